"""Door 2: whose token, from which source, how fresh, and refreshed how often (DESIGN §5; T4, T10, T12, T14, T21, T22)."""

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
import pytest
import requests
from django.db import InterfaceError, OperationalError, ProgrammingError, connections
from django.db.models import Model
from django.db.transaction import atomic
from django.utils import timezone

from oauth_relay import (
    identity_providers,
    keys,
    staged_tokens,
    upstream_credentials,
    upstream_refresh,
    upstream_tokens,
    vault,
    withdrawals,
)
from oauth_relay.access_tokens import Principal
from oauth_relay.identity_providers import TokenAnswer
from oauth_relay.models import (
    AuditEvent,
    Client,
    Grant,
    Identity,
    LoginTransaction,
    SigningKey,
    UpstreamCredential,
    User,
)
from oauth_relay.models.secrets import LOST
from oauth_relay.upstream_tokens import (
    UpstreamLoginRequired,
    UpstreamRefused,
    UpstreamToken,
    UpstreamUnavailable,
    upstream_token_for,
)
from tests import identity_provider, servers
from tests.identity_provider import FakedProvider, PersonAtTheProvider
from tests.oauth_relay import racing

pytestmark = pytest.mark.django_db(transaction=True)

State = UpstreamCredential.State
FULL = identity_provider.SCOPE


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    vault.forget_keys()
    keys.forget_signer()
    upstream_tokens._memories.clear()
    yield
    vault.forget_keys()
    keys.forget_signer()


@pytest.fixture
def peer(settings: Any) -> Iterator[FakedProvider]:
    with identity_provider.faked_provider() as running:
        identity_provider.configure(settings, running.origin)
        yield running


@dataclass(frozen=True)
class Person:
    """A person with a client that they have allowed."""

    user: User
    grant: Grant
    issuer: str

    def principal(self, *scopes: str) -> Principal:
        return Principal(
            subject=self.user.subject,
            user_id=self.user.pk,
            client_id=self.grant.client.client_id,
            grant_id=self.grant.pk,
            scopes=frozenset(scopes or ("write:todos", "read:todos")),
            resource="http://localhost:8788/mcp",
            expires_at=time.time() + 600,
            claims={},
            pseudonym=self.user.pseudonym,
            client_pk=self.grant.client.pk,
        )

    def sign_in(self, **answer: Any) -> None:
        """What a sign-in at the provider followed by consent leaves in the vault."""
        transaction = LoginTransaction.objects.create(
            expires_at=timezone.now() + timedelta(minutes=5),
            browser_digest="0" * 64,
            provider="auth0",
            user=self.user,
        )
        given = {"access_token": "access-1", "refresh_token": "refresh-1", "id_token": None, "scope": FULL, **answer}
        given.setdefault("expires_at", time.time() + 3600)
        subject = given.pop("subject", self.user.username)
        staged_tokens.stage(transaction, TokenAnswer(**given), issuer=self.issuer, subject=subject)
        with atomic():
            staged_tokens.keep_staged(transaction)
        assert not LoginTransaction.objects.exclude(staged_tokens=None).exists()

    @property
    def credential(self) -> UpstreamCredential:
        return UpstreamCredential.objects.get(user=self.user)


def make_person(name: str, issuer: str) -> Person:
    client, _ = Client.objects.get_or_create(
        client_id="inspector",
        defaults={
            "name": "Inspector",
            "client_type": Client.CLIENT_PUBLIC,
            "authorization_grant_type": Client.GRANT_AUTHORIZATION_CODE,
            "redirect_uris": "http://127.0.0.1/callback",
        },
    )
    user = User.objects.create_user(name, password=None)
    Identity.objects.create(user=user, provider="auth0", issuer=issuer, subject=name)
    return Person(user, Grant.objects.create(user=user, client=client), issuer)


@pytest.fixture
def ada(peer: FakedProvider) -> Person:
    return make_person("ada", peer.origin)


@pytest.fixture
def own_ada() -> Person:
    """The same person where CAIR itself makes the tokens."""
    return make_person("ada", "")


def ask(person: Person, rejected_version: str | None = None) -> UpstreamToken:
    return asyncio.run(upstream_token_for(person.principal(), "todos", rejected_version))


def ask_within_one_loop(person: Person, times: int) -> list[UpstreamToken]:
    async def asking() -> list[UpstreamToken]:
        return [await upstream_token_for(person.principal(), "todos") for _ in range(times)]

    return asyncio.run(asking())


def change(row: Model, **values: Any) -> None:
    type(row)._default_manager.filter(pk=row.pk).update(**values)


# -- source: CAIR itself -----------------------------------------------------------------------------------------------


@pytest.mark.threat("T22")
def test_it_issues_a_jwt_for_the_api_with_the_granted_scopes_of_this_person(own_ada: Person) -> None:
    token = ask(own_ada)
    raw_token = token.value.removeprefix("Bearer ")
    header = jwt.get_unverified_header(raw_token)
    key = jwt.PyJWKSet.from_dict(keys.jwks())[header["kid"]]
    claims = jwt.decode(raw_token, key, algorithms=["RS256"], audience="urn:todos-api", issuer="http://localhost:8788")
    assert (header["typ"], token.header) == ("at+jwt", "Authorization")
    assert claims["sub"] == own_ada.user.subject
    assert claims["client_id"] == "inspector"
    assert claims["scope"] == "read:todos write:todos"
    assert claims["exp"] - claims["iat"] <= 120
    assert (claims["jti"], claims["exp"]) == (token.version, token.expires_at)
    assert set(claims) == {"iss", "aud", "sub", "client_id", "scope", "iat", "exp", "jti"}  # RFC 9068 §2.2


def test_it_signs_once_for_many_calls(own_ada: Person) -> None:
    tokens = ask_within_one_loop(own_ada, 3)
    assert len({token.value for token in tokens}) == 1


def test_a_narrower_principal_never_gets_the_wider_ones_token(own_ada: Person) -> None:
    async def asking() -> UpstreamToken:
        await upstream_token_for(own_ada.principal("read:todos", "write:todos"), "todos")
        return await upstream_token_for(own_ada.principal("read:todos"), "todos")

    narrower = asyncio.run(asking())
    assert jwt.decode(narrower.value[7:], options={"verify_signature": False})["scope"] == "read:todos"


def test_it_makes_another_token_when_the_api_refuses_one(own_ada: Person) -> None:
    async def asking() -> tuple[UpstreamToken, UpstreamToken, UpstreamToken]:
        first = await upstream_token_for(own_ada.principal(), "todos")
        second = await upstream_token_for(own_ada.principal(), "todos", rejected_version=first.version)
        return first, second, await upstream_token_for(own_ada.principal(), "todos")

    first, second, third = asyncio.run(asking())
    assert first.version != second.version == third.version


def test_it_signs_anew_thirty_seconds_before_the_end(own_ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    async def asking() -> tuple[UpstreamToken, UpstreamToken, UpstreamToken]:
        first = await upstream_token_for(own_ada.principal(), "todos")
        now = time.time()
        monkeypatch.setattr(upstream_tokens, "time", SimpleNamespace(time=lambda: now + 85))
        second = await upstream_token_for(own_ada.principal(), "todos")
        monkeypatch.setattr(upstream_tokens, "time", SimpleNamespace(time=lambda: now + 91))
        return first, second, await upstream_token_for(own_ada.principal(), "todos")

    first, second, third = asyncio.run(asking())
    assert first.version == second.version != third.version


@pytest.mark.threat("T12")
@pytest.mark.parametrize("what", ["grant", "user", "client"])
def test_it_gives_nothing_more_once_the_withdrawal_was_read(own_ada: Person, what: str) -> None:
    def withdraw() -> None:
        if what == "grant":
            withdrawals.withdraw_grant(own_ada.grant.pk, by="person")
        elif what == "user":
            User.objects.update(is_active=False)
        else:
            withdrawals.block_client(own_ada.grant.client)

    async def asking() -> None:
        await upstream_token_for(own_ada.principal(), "todos")
        await upstream_tokens.in_database(withdraw)
        await withdrawals.reader().read()
        await upstream_token_for(own_ada.principal(), "todos")

    with pytest.raises(UpstreamLoginRequired):
        asyncio.run(asking())


@pytest.mark.threat("T12")
def test_it_bypasses_its_memory_while_the_withdrawal_log_is_read_late(
    own_ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asking() -> tuple[UpstreamToken, UpstreamToken]:
        first = await upstream_token_for(own_ada.principal(), "todos")
        monkeypatch.setattr(withdrawals.reader(), "lateness", lambda: withdrawals.LATE_AFTER + 0.1)
        return first, await upstream_token_for(own_ada.principal(), "todos")

    first, second = asyncio.run(asking())
    assert first.version != second.version


@pytest.mark.parametrize("away", [OperationalError, InterfaceError])
def test_a_database_that_is_away_is_worth_another_try(
    own_ada: Person, monkeypatch: pytest.MonkeyPatch, away: type[Exception]
) -> None:
    monkeypatch.setattr(keys, "sign_api_token", failing_with(away))
    with pytest.raises(UpstreamUnavailable) as raised:
        ask(own_ada)
    assert raised.value.retry_after == 5


def test_a_fault_of_ours_in_the_database_is_not_called_its_absence(
    own_ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "sign_api_token", failing_with(ProgrammingError))
    with pytest.raises(ProgrammingError):
        ask(own_ada)


def failing_with(error: type[Exception]) -> Any:
    def fail(*given: Any) -> None:
        raise error

    return fail


@pytest.mark.threat("T22")
def test_an_empty_vault_never_falls_back_to_issuing(ada: Person) -> None:
    with pytest.raises(UpstreamLoginRequired):
        ask(ada)
    assert not SigningKey.objects.exists()
    assert staged_tokens.needs_sign_in(ada.user)


@pytest.mark.threat("T22")
def test_a_full_vault_is_not_looked_into_where_cair_issues(ada: Person, settings: Any) -> None:
    ada.sign_in()
    todos = {**settings.UPSTREAM_APIS["todos"], "token_source": "cair"}
    settings.UPSTREAM_APIS = {"todos": todos}
    assert "access-1" not in ask(ada).value
    assert not staged_tokens.needs_sign_in(ada.user)


def test_a_service_reaches_no_persons_vault(ada: Person) -> None:
    ada.sign_in()
    service = replace(ada.principal(), user_id=None)
    with pytest.raises(UpstreamLoginRequired):
        asyncio.run(upstream_token_for(service, "todos"))


# -- source: the vault -------------------------------------------------------------------------------------------------


def test_it_hands_out_the_providers_token_and_asks_nobody(ada: Person, peer: FakedProvider) -> None:
    ada.sign_in()
    token = ask(ada)
    assert (token.header, token.value) == ("Authorization", "Bearer access-1")
    assert not staged_tokens.needs_sign_in(ada.user)
    assert peer.requests == []


def test_nothing_in_the_table_and_nothing_printed_shows_a_token(ada: Person) -> None:
    ada.sign_in()
    row = UpstreamCredential.objects.values().get()
    shown = repr(row) + repr(ask(ada)) + repr(upstream_refresh._open_credential(ada.principal(), "todos"))
    assert "access-1" not in shown and b"access-1" not in bytes(row["tokens"])
    assert "refresh-1" not in shown and b"refresh-1" not in bytes(row["tokens"])


@pytest.mark.threat("T21")
def test_another_persons_tokens_copied_into_the_row_do_not_open(ada: Person, peer: FakedProvider) -> None:
    mallory = make_person("mallory", peer.origin)
    ada.sign_in()
    mallory.sign_in(access_token="access-of-mallory")
    change(ada.credential, tokens=mallory.credential.tokens)
    with pytest.raises(UpstreamUnavailable):
        ask(ada)
    change(mallory.credential, subject="ada")
    with pytest.raises(UpstreamUnavailable):
        ask(mallory)


def test_it_refreshes_before_the_token_ends(ada: Person, peer: FakedProvider) -> None:
    ada.sign_in()
    make_due(ada)
    token = ask(ada)
    assert token.value.startswith("Bearer upstream-access-")
    (form,) = peer.calls("/token")
    assert (form["grant_type"], form["refresh_token"]) == ("refresh_token", "refresh-1")
    assert ada.credential.version == 2
    assert AuditEvent.objects.get(event="upstream_token.refreshed").pseudonym == ada.user.pseudonym
    assert ask(ada) == token
    assert len(peer.calls("/token")) == 1


def make_due(person: Person, *, ends_in: float = 20, refresh_token: str | None = "refresh-1") -> None:
    """Let the person's access token be so old that another one is wanted; over altogether if `ends_in` is negative."""
    row = person.credential
    row.expires_at = timezone.now() + timedelta(seconds=ends_in)
    tokens = upstream_credentials.Tokens("access-1", refresh_token, time.time() - 1)
    row.tokens = upstream_credentials.seal_tokens(row, tokens, version=row.version)
    row.save()


def test_a_token_of_a_few_seconds_is_not_refreshed_at_every_call(ada: Person, peer: FakedProvider) -> None:
    ada.sign_in(expires_at=time.time() + 3600)
    make_due(ada)
    peer.tokens = {"expires_in": 20}
    first = ask(ada)
    assert ask(ada) == first
    assert len(peer.calls("/token")) == 1


def test_an_answer_without_a_refresh_token_keeps_the_old_one(ada: Person, peer: FakedProvider) -> None:
    ada.sign_in()
    peer.tokens = {"refresh_token": None}
    make_due(ada)
    ask(ada)
    row = ada.credential
    tokens = upstream_credentials.open_tokens(
        row, user_id=ada.user.pk, provider_name="auth0", audience=identity_provider.AUDIENCE
    )
    assert tokens.refresh_token == "refresh-1"


def test_a_provider_that_wants_basic_credentials_gets_them(ada: Person, peer: FakedProvider) -> None:
    peer.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"]}
    refused = (401, {"error": "invalid_client"})
    peer.answer = lambda form: (200, peer.granted(form)) if form["authorization"] else refused
    ada.sign_in()
    make_due(ada)
    assert ask(ada).value.startswith("Bearer upstream-access-")
    first, second = peer.calls("/token")
    assert first["client_secret"] == identity_provider.CLIENT_SECRET
    assert "client_secret" not in second
    make_due(ada)
    ask(ada)
    assert len(peer.calls("/token")) == 3  # the way that works is remembered


# -- an API that refuses (T10) -----------------------------------------------------------------------------------------


@pytest.mark.threat("T10")
def test_a_refused_version_is_refreshed_once_and_then_no_more(ada: Person, peer: FakedProvider) -> None:
    ada.sign_in()
    first = ask(ada)
    second = ask(ada, rejected_version=first.version)
    assert second.version != first.version
    assert ask(ada, rejected_version=first.version) == second  # somebody else's news is old
    with pytest.raises(UpstreamLoginRequired):
        ask(ada, rejected_version=second.version)
    assert len(peer.calls("/token")) == 1
    assert ada.credential.state == State.GOOD  # an API's word marks no credential
    assert ask(ada) == second


@pytest.mark.threat("T10")
def test_an_api_that_refuses_every_token_is_signed_in_for_once(ada: Person, peer: FakedProvider) -> None:
    """Once per client: then the tool says so, whether or not the person has signed in for it."""
    ada.sign_in()
    second = ask(ada, rejected_version=ask(ada).version)
    with pytest.raises(UpstreamLoginRequired):
        ask(ada, rejected_version=second.version)
    for _ in range(3):
        with pytest.raises(UpstreamRefused):
            ask(ada, rejected_version=second.version)
    ada.sign_in(access_token="access-2")
    third = ask(ada, rejected_version=ask(ada).version)
    with pytest.raises(UpstreamRefused):
        ask(ada, rejected_version=third.version)
    assert ada.credential.state == State.GOOD


@pytest.mark.threat("T10")
def test_a_refused_token_without_a_refresh_token_marks_nothing(ada: Person) -> None:
    ada.sign_in(refresh_token=None)
    token = ask(ada)
    with pytest.raises(UpstreamLoginRequired):
        ask(ada, rejected_version=token.version)
    assert ada.credential.state == State.GOOD


def test_an_expired_token_without_a_refresh_token_needs_a_sign_in(ada: Person, peer: FakedProvider) -> None:
    ada.sign_in(refresh_token=None)
    make_due(ada, ends_in=-1, refresh_token=None)
    with pytest.raises(UpstreamLoginRequired):
        ask(ada)
    assert staged_tokens.needs_sign_in(ada.user)
    assert peer.requests == []


# -- a provider that refuses, or is away -------------------------------------------------------------------------------


@pytest.mark.pain("P14")
def test_invalid_grant_means_sign_in_until_the_person_does(ada: Person, peer: FakedProvider) -> None:
    ada.sign_in()
    make_due(ada, ends_in=-1)
    peer.answer = lambda form: (400, {"error": "invalid_grant"})
    for _ in range(3):
        with pytest.raises(UpstreamLoginRequired):
            ask(ada)
    assert len(peer.calls("/token")) == 1
    assert staged_tokens.needs_sign_in(ada.user)
    assert AuditEvent.objects.get(event="upstream_token.sign_in_needed").outcome == "invalid_grant"
    ada.sign_in(access_token="access-2", refresh_token="refresh-2")
    assert ask(ada).value == "Bearer access-2"
    assert not staged_tokens.needs_sign_in(ada.user)


@pytest.mark.threat("T10")
@pytest.mark.pain("P14")
@pytest.mark.parametrize(
    "answer",
    [
        (400, {"error": "invalid_request"}),
        (401, {"error": "invalid_client"}),
        (400, {"error": "temporarily_unavailable"}),
        (429, {"error": "invalid_grant"}),
        (503, {"error": "invalid_grant"}),
        (200, "<h1>Maintenance</h1>"),
        (200, {"access_token": 7}),
    ],
)
def test_any_other_failure_says_when_to_retry_and_costs_the_provider_one_call(
    ada: Person, peer: FakedProvider, answer: tuple[int, Any]
) -> None:
    ada.sign_in()
    make_due(ada, ends_in=-1)
    peer.answer = lambda form: answer
    for _ in range(3):
        with pytest.raises(UpstreamUnavailable) as caught:
            ask(ada)
        assert 0 < caught.value.retry_after <= 60
    assert len(peer.calls("/token")) == 1
    assert ada.credential.state == State.GOOD
    peer.answer = None
    change(ada.credential, failed_at=timezone.now() - timedelta(seconds=6))
    assert ask(ada).value.startswith("Bearer upstream-access-")


def test_a_provider_that_does_not_answer_at_all_is_unavailable(ada: Person, peer: FakedProvider, settings: Any) -> None:
    ada.sign_in()
    make_due(ada, ends_in=-1)
    identity_provider.configure(settings, f"http://127.0.0.1:{servers.free_port()}")
    UpstreamCredential.objects.update(issuer=ada.issuer)
    with pytest.raises(UpstreamUnavailable):
        ask(ada)


def test_a_provider_that_never_ends_its_answer_is_given_up(ada: Person, peer: FakedProvider, settings: Any) -> None:
    settings.UPSTREAM_TIMEOUT = 1
    release = threading.Event()

    def hang(form: dict[str, str]) -> identity_provider.Answer:
        release.wait(10)
        return 200, {}

    ada.sign_in()
    make_due(ada, ends_in=-1)
    peer.answer = hang
    started = time.monotonic()
    try:
        with pytest.raises(UpstreamUnavailable):
            ask(ada)
    finally:
        release.set()
    assert time.monotonic() - started < 5


def test_a_token_that_still_works_is_used_while_the_provider_is_away(ada: Person, peer: FakedProvider) -> None:
    ada.sign_in()
    make_due(ada)
    peer.answer = lambda form: (503, {})
    assert [ask(ada).value for _ in range(3)] == ["Bearer access-1"] * 3
    assert len(peer.calls("/token")) == 1


# -- the lease (T14) ---------------------------------------------------------------------------------------------------


def hold_lease(person: Person, *, ends_in: float, sent: bool, **values: Any) -> None:
    now = timezone.now()
    change(
        person.credential,
        lease_holder=uuid.uuid4(),
        lease_until=now + timedelta(seconds=ends_in),
        lease_sent_at=now - timedelta(seconds=30) if sent else None,
        **values,
    )


@pytest.mark.threat("T14")
def test_a_claim_that_expired_unsent_is_retaken_freely(ada: Person, peer: FakedProvider) -> None:
    ada.sign_in()
    make_due(ada, ends_in=-1)
    hold_lease(ada, ends_in=-1, sent=False, failure=LOST)
    assert ask(ada).value.startswith("Bearer upstream-access-")


@pytest.mark.threat("T14")
def test_a_claim_that_expired_sent_is_retaken_once(ada: Person, peer: FakedProvider) -> None:
    ada.sign_in()
    make_due(ada, ends_in=-1)
    hold_lease(ada, ends_in=-1, sent=True)
    during: list[str] = []
    peer.answer = lambda form: (during.append(in_thread(lambda: ada.credential.failure)), (200, peer.granted(form)))[1]
    assert ask(ada).value.startswith("Bearer upstream-access-")
    assert during == [LOST]
    make_due(ada, ends_in=-1)
    hold_lease(ada, ends_in=-1, sent=True, failure=LOST)
    with pytest.raises(UpstreamLoginRequired):
        ask(ada)
    assert ada.credential.state == State.SIGN_IN_NEEDED
    assert len(peer.calls("/token")) == 1


def in_thread(work: Any) -> Any:
    """`work` on a thread of the faked provider, whose database connection is closed behind it."""
    try:
        return work()
    finally:
        connections.close_all()


@pytest.mark.threat("T14")
def test_a_holder_whose_time_is_over_does_not_send(
    ada: Person, peer: FakedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada.sign_in()
    make_due(ada, ends_in=-1)
    credential = upstream_refresh._open_credential(ada.principal(), "todos")
    paused = iter([0.0, upstream_refresh._lease_seconds()])
    monkeypatch.setattr(upstream_refresh, "time", SimpleNamespace(monotonic=lambda: next(paused)))
    upstream_refresh._renew(credential, "", None)
    assert peer.calls("/token") == []
    assert ada.credential.lease_holder is None


@pytest.mark.threat("T14")
def test_a_late_success_beats_a_failure_on_the_same_version(ada: Person) -> None:
    ada.sign_in()
    row = ada.credential
    change(row, state=State.SIGN_IN_NEEDED, failure="invalid_grant")
    upstream_refresh._store(row, TokenAnswer("access-9", "refresh-9", None, None, time.time() + 3600), "", None)
    assert ask(ada).value == "Bearer access-9"
    assert ada.credential.state == State.GOOD


@pytest.mark.threat("T14")
def test_a_sign_in_during_a_refresh_is_what_stays(ada: Person, peer: FakedProvider) -> None:
    ada.sign_in()
    make_due(ada, ends_in=-1)

    def answer(form: dict[str, str]) -> identity_provider.Answer:
        in_thread(lambda: ada.sign_in(access_token="access-2", refresh_token="refresh-2"))
        return 200, peer.granted(form)

    peer.answer = answer
    assert ask(ada).value == "Bearer access-2"
    assert ada.credential.version == 2


def test_callers_that_go_away_leave_the_refresh_to_the_others(ada: Person, peer: FakedProvider) -> None:
    ada.sign_in()
    make_due(ada, ends_in=-1)

    async def asking() -> UpstreamToken:
        first = asyncio.create_task(upstream_token_for(ada.principal(), "todos"))
        others = [asyncio.create_task(upstream_token_for(ada.principal(), "todos")) for _ in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        found = await asyncio.wait_for(asyncio.gather(*others), 5)
        assert len(set(found)) == 1
        return found[0]

    assert asyncio.run(asking()).value.startswith("Bearer upstream-access-")
    assert len(peer.calls("/token")) == 1


# -- from a sign-in to the vault (T4) ----------------------------------------------------------------------------------


def held(person: Person) -> tuple[str, str | None, str]:
    row = person.credential
    tokens = upstream_credentials.open_tokens(
        row, user_id=person.user.pk, provider_name="auth0", audience=identity_provider.AUDIENCE
    )
    return tokens.access_token, tokens.refresh_token, row.scope


@pytest.mark.threat("T4")
def test_a_better_sign_in_replaces_what_is_there(ada: Person) -> None:
    ada.sign_in(scope="openid read:todos")
    ada.sign_in(access_token="access-2", refresh_token="refresh-2", scope="openid read:todos write:todos")
    assert held(ada) == ("access-2", "refresh-2", "openid read:todos write:todos")
    assert ada.credential.version == 2


@pytest.mark.threat("T4")
def test_a_sign_in_without_a_refresh_token_keeps_the_one_that_is_there(ada: Person) -> None:
    ada.sign_in()
    ada.sign_in(access_token="access-2", refresh_token=None)
    assert held(ada) == ("access-2", "refresh-1", FULL)


@pytest.mark.threat("T4")
def test_a_sign_in_with_fewer_scopes_changes_nothing(ada: Person) -> None:
    ada.sign_in()
    ada.sign_in(access_token="access-2", refresh_token="refresh-2", scope="openid read:todos")
    assert held(ada) == ("access-1", "refresh-1", FULL)
    assert ada.credential.version == 1


@pytest.mark.threat("T4")
def test_a_refresh_token_that_is_being_spent_is_not_carried_over(ada: Person) -> None:
    ada.sign_in()
    hold_lease(ada, ends_in=20, sent=True)
    ada.sign_in(access_token="access-2", refresh_token=None)
    assert held(ada)[:2] == ("access-1", "refresh-1")


@pytest.mark.parametrize("dead", [{"state": State.SIGN_IN_NEEDED}, {"tokens": b"not to be opened"}])
def test_what_is_dead_is_replaced_whole(ada: Person, dead: dict[str, Any]) -> None:
    ada.sign_in()
    change(ada.credential, **dead)
    ada.sign_in(access_token="access-2", refresh_token=None, scope="openid")
    assert held(ada) == ("access-2", None, "openid")
    assert ada.credential.state == State.GOOD


def test_another_account_of_the_same_person_is_never_mixed_in(ada: Person) -> None:
    ada.sign_in()
    Identity.objects.create(user=ada.user, provider="auth0", issuer=ada.issuer, subject="ada-at-work")
    ada.sign_in(access_token="access-2", refresh_token=None, scope="openid", subject="ada-at-work")
    assert held(ada) == ("access-2", None, "openid")
    assert ada.credential.subject == "ada-at-work"


def test_staged_tokens_of_somebody_else_are_dropped(ada: Person) -> None:
    ada.sign_in(subject="mallory")
    assert not UpstreamCredential.objects.exists()


def test_erased_tokens_are_gone(ada: Person) -> None:
    transaction = LoginTransaction.objects.create(
        expires_at=timezone.now(), browser_digest="0" * 64, provider="auth0", user=ada.user
    )
    answer = TokenAnswer("access-1", "refresh-1", None, None, None)
    staged_tokens.stage(transaction, answer, issuer=ada.issuer, subject="ada")
    assert LoginTransaction.objects.exclude(staged_tokens=None).exists()
    staged_tokens.erase_staged(transaction)
    staged_tokens.keep_staged(transaction)
    assert not LoginTransaction.objects.exclude(staged_tokens=None).exists()
    assert not UpstreamCredential.objects.exists()


# -- a real provider ---------------------------------------------------------------------------------------------------


@pytest.mark.node
def test_a_real_providers_token_is_refreshed_with_rotation_and_ends_with_revocation(settings: Any) -> None:
    with identity_provider.real_provider("http://localhost:8788/callback") as origin:
        identity_provider.configure(settings, origin)
        upstream = identity_providers.provider("auth0")
        ada = make_person("auth0|ada", origin)
        first = sign_in_for_real(upstream)
        ada.sign_in(
            access_token=first.access_token, refresh_token=first.refresh_token, scope=FULL, expires_at=first.expires_at
        )
        issued = ask(ada)
        renewed = ask(ada, rejected_version=issued.version)
        claims = jwt.decode(renewed.value[7:], options={"verify_signature": False})
        assert (claims["aud"], claims["sub"]) == (identity_provider.AUDIENCE, "auth0|ada")
        assert renewed.value != issued.value
        _, refresh_token, _ = held(ada)
        assert refresh_token not in (None, first.refresh_token)
        client = {"client_id": identity_provider.CLIENT_ID, "client_secret": identity_provider.CLIENT_SECRET}
        revoked = requests.post(
            upstream.metadata()["revocation_endpoint"], data={"token": refresh_token, **client}, timeout=5
        )
        assert revoked.ok, revoked.text
        change(ada.credential, failure="")
        with pytest.raises(UpstreamLoginRequired):
            ask(ada, rejected_version=renewed.version)
        assert ada.credential.state == State.SIGN_IN_NEEDED


def sign_in_for_real(upstream: identity_providers.Provider) -> TokenAnswer:
    """The code flow by hand, without CAIR's pages: those have their own tests."""
    redirect_uri = "http://localhost:8788/callback"
    parameters = {
        "response_type": "code",
        "client_id": upstream.client_id,
        "redirect_uri": redirect_uri,
        "scope": FULL,
        "audience": upstream.audience,
        "state": "s",
        "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
        "code_challenge_method": "S256",
    }
    location = f"{upstream.metadata()['authorization_endpoint']}?{urlencode(parameters)}"
    back = dict(parse_qsl(urlsplit(PersonAtTheProvider().sign_in(location, "auth0|ada")).query))
    # RFC 7636, Appendix B.
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    return upstream.exchange_code(back["code"], redirect_uri=redirect_uri, code_verifier=verifier)


# -- many processes ----------------------------------------------------------------------------------------------------

MAKE_ADA = """
import time
from datetime import timedelta
from django.db.transaction import atomic
from django.utils import timezone
from oauth_relay import staged_tokens
from oauth_relay.identity_providers import TokenAnswer
from oauth_relay.models import *
user = User.objects.create_user("ada", password=None)
client = Client.objects.create(client_id="inspector", client_type="public",
    authorization_grant_type="authorization-code", redirect_uris="http://127.0.0.1/callback")
Grant.objects.create(user=user, client=client)
Identity.objects.create(user=user, provider="auth0", issuer="{issuer}", subject="ada")
transaction = LoginTransaction.objects.create(expires_at=timezone.now() + timedelta(minutes=5),
    browser_digest="0" * 64, provider="auth0", user=user)
answer = TokenAnswer("access-1", "refresh-1", None, None, time.time() - 1)
staged_tokens.stage(transaction, answer, issuer="{issuer}", subject="ada")
with atomic():
    staged_tokens.keep_staged(transaction)
"""

ASK = """
import asyncio, time
from oauth_relay.access_tokens import Principal
from oauth_relay.models import Grant
from oauth_relay.upstream_tokens import UpstreamLoginRequired, UpstreamUnavailable, upstream_token_for
def act():
    grant = Grant.objects.select_related("user", "client").get()
    principal = Principal(subject=grant.user.subject, user_id=grant.user.pk, client_id="inspector", grant_id=grant.pk,
        scopes=frozenset({"read:todos"}), resource="", expires_at=time.time() + 600, claims={})
    try:
        return asyncio.run(upstream_token_for(principal, "todos")).value
    except (UpstreamLoginRequired, UpstreamUnavailable) as error:
        return error.__class__.__name__
"""


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def processes(request: pytest.FixtureRequest, peer: FakedProvider) -> Iterator[dict[str, str]]:
    """The environment of processes that share one database, where Ada's access token has expired."""
    with servers.database(request.param) as url:
        environment = racing.environment(url, identity_provider.environment(peer.origin))
        racing.migrate(environment)
        racing.run(environment, MAKE_ADA.format(issuer=peer.origin))
        yield environment


@pytest.mark.threat("T14")
def test_many_processes_make_one_refresh_call(processes: dict[str, str], peer: FakedProvider) -> None:
    values = racing.race(processes, ASK, processes=2, threads=6)
    assert len(values) == 12
    assert len(set(values)) == 1 and values[0].startswith("Bearer upstream-access-")
    assert [form["refresh_token"] for form in peer.calls("/token")] == ["refresh-1"]


def test_many_processes_cost_a_provider_that_is_down_one_call(processes: dict[str, str], peer: FakedProvider) -> None:
    peer.answer = lambda form: (503, "<h1>Down</h1>")
    assert set(racing.race(processes, ASK, processes=2, threads=6)) == {"UpstreamUnavailable"}
    assert len(peer.calls("/token")) == 1
