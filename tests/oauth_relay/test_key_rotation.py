"""Rotating every key: what each step does, refuses, and leaves alone (DESIGN §6; T20, T21, T22). Under load: tests/flows."""

import base64
import io
import json
import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote_plus, urlencode

import jwt
import pytest
from django.apps import apps
from django.conf import settings as configured
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.db.models import BinaryField, F
from django.test import override_settings
from django.utils import timezone

from mcp_gateway.sessions import StreamSession, UnknownSession, session_for
from oauth_relay import key_rotation, keys, master_key_rotation, upstream_tokens, vault, vault_rotation
from oauth_relay.access_tokens import Principal
from oauth_relay.management.rotation_command import RotationCommand
from oauth_relay.models import (
    AuditEvent,
    Client,
    DataKey,
    FormerSecret,
    LoginTransaction,
    SigningKey,
    UpstreamCredential,
    User,
    Wrapping,
)
from oauth_relay.staged_tokens import staged_binding
from oauth_relay.upstream_credentials import Tokens, open_tokens, seal_tokens
from oauth_relay.upstream_login import journey_binding
from tests import servers
from tests.oauth_relay import racing
from tests.oauth_relay.conftest import Browser, answered, make_client

pytestmark = pytest.mark.django_db(transaction=True)

State = SigningKey.State
KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    yield
    vault.forget_keys()
    keys.forget_signer()


def run(command: str, *arguments: str) -> tuple[str, str]:
    """What a command writes to stdout and to stderr. Raises CommandError."""
    out, err = io.StringIO(), io.StringIO()
    call_command(command, *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def time_passes(passed: timedelta) -> None:
    """As far as keys can tell."""
    SigningKey.objects.update(state_since=F("state_since") - passed)
    DataKey.objects.exclude(retired_at=None).update(retired_at=F("retired_at") - passed)


def everything() -> list[list[Any]]:
    """Each row that a rotation could touch."""
    models = (SigningKey, DataKey, Wrapping, UpstreamCredential, LoginTransaction, Client, FormerSecret, AuditEvent)
    return [list(model.objects.order_by("pk").values()) for model in models]


def published() -> set[str]:
    return {key["kid"] for key in keys.jwks()["keys"]}


def signer() -> str:
    return str(jwt.get_unverified_header(keys.sign_api_token({"sub": "ada"}))["kid"])


def state_of(kid: str) -> str:
    return SigningKey.objects.get(pk=kid).state


# -- signing keys ------------------------------------------------------------------------------------------------------


@pytest.mark.threat("T20")
def test_a_key_signs_only_after_it_has_been_published_for_a_whole_lifetime_of_the_document() -> None:
    first = signer()
    out, _ = run("rotate_signing_key")
    (coming,) = published() - {first}
    assert "run again" in out and coming in out
    time_passes(timedelta(seconds=keys.JWKS_MAX_AGE))  # the margin is still to come
    run("rotate_signing_key")
    keys.forget_signer()
    assert (signer(), state_of(coming)) == (first, State.NEXT)
    time_passes(key_rotation.MARGIN)
    run("rotate_signing_key")
    keys.forget_signer()
    assert (signer(), state_of(first)) == (coming, State.RETIRED)


@pytest.mark.threat("T20")
def test_a_retired_key_is_published_until_its_last_token_is_over_and_then_erased() -> None:
    first = signer()
    run("rotate_signing_key")
    time_passes(key_rotation.PUBLISHED_BEFORE)
    run("rotate_signing_key")
    time_passes(timedelta(seconds=upstream_tokens.API_TOKEN_LIFETIME + keys.JWKS_MAX_AGE))
    out, _ = run("rotate_signing_key")
    assert first in published() and "still published" in out
    time_passes(key_rotation.MARGIN)
    out, _ = run("rotate_signing_key")
    assert "Nothing more to do" in out
    assert first not in published()
    assert (state_of(first), bytes(SigningKey.objects.get(pk=first).private_key)) == (State.GONE, b"")
    assert len(published()) == 1, "a rotation that is over does not begin the next by itself"


def test_waiting_for_it_goes_the_whole_way(monkeypatch: pytest.MonkeyPatch) -> None:
    first = signer()
    dues: list[Any] = []

    def wait_for(self: Any, is_there: Any, what: str, due: Any) -> None:
        assert not is_there()
        dues.append(due)
        time_passes(due - timezone.now())
        assert is_there()

    monkeypatch.setattr(RotationCommand, "wait_for", wait_for)
    out, progress = run("rotate_signing_key", "--wait")
    assert len(dues) == 2
    assert [word in progress for word in ("is next", "is current", "is retired", "is gone")] == [True] * 4
    assert "Nothing more to do" in out
    assert state_of(first) == State.GONE


def test_it_says_when_while_it_waits_and_ends_when_somebody_else_has_done_it(monkeypatch: pytest.MonkeyPatch) -> None:
    signer()
    run("rotate_signing_key")
    looked = []

    def sleep(seconds: float) -> None:
        looked.append(seconds)
        time_passes(key_rotation.PUBLISHED_AFTER)
        key_rotation.advance(may_begin=False)

    monkeypatch.setattr("oauth_relay.management.rotation_command.time.sleep", sleep)
    out, progress = run("rotate_signing_key", "--wait")
    assert "the next step can be made at" in progress and "Nothing more to do" in out
    assert len(looked) == 2


def test_a_step_that_fails_leaves_the_one_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first = signer()
    run("rotate_signing_key")
    time_passes(key_rotation.PUBLISHED_BEFORE)
    before, record = everything(), key_rotation.audit.record_within

    def fail_at_the_last(event: Any) -> None:
        if event.event == "signing_key.current":
            raise ZeroDivisionError
        record(event)

    monkeypatch.setattr(key_rotation.audit, "record_within", fail_at_the_last)
    with pytest.raises(ZeroDivisionError):
        run("rotate_signing_key")
    assert everything() == before
    assert signer() == first


@pytest.mark.threat("T20")
def test_a_compromised_key_leaves_the_document_and_signs_nothing_within_a_second() -> None:
    first = signer()
    run("rotate_signing_key")
    (coming,) = published() - {first}
    run("rotate_signing_key", "--compromised", first)  # this process has it in memory, as any other would
    until = time.monotonic() + 1.0
    while signer() == first:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert signer() == coming, "what verifiers may have read already goes first"
    assert published() == {coming}
    assert bytes(SigningKey.objects.get(pk=first).private_key) == b""
    out, _ = run("rotate_signing_key", "--compromised", first)  # again, after a kill
    assert published() == {coming} and coming in out


def test_without_a_next_key_a_compromised_one_is_followed_by_a_new_one_at_once() -> None:
    first = signer()
    run("rotate_signing_key", "--compromised", first)
    keys.forget_signer()
    assert published() == {signer()} and signer() != first


@pytest.mark.parametrize("state", [State.NEXT, State.RETIRED])
def test_a_compromised_key_that_does_not_sign_leaves_the_current_one_alone(state: SigningKey.State) -> None:
    current = signer()
    other = str(keys.make(state).pk)
    run("rotate_signing_key", "--compromised", other)
    assert published() == {current} == {signer()}
    assert state_of(other) == State.COMPROMISED


def test_an_unknown_key_cannot_be_compromised() -> None:
    signer()
    with pytest.raises(CommandError, match=r"manage\.py keys"):
        run("rotate_signing_key", "--compromised", str(uuid.uuid4()))


def test_where_providers_issue_all_tokens_there_is_nothing_to_rotate(settings: Any) -> None:
    settings.UPSTREAM_APIS = {"todos": {"token_source": "auth0", "audience": "urn:todos-api"}}
    out, _ = run("rotate_signing_key")
    assert "none is needed" in out
    assert not SigningKey.objects.exists()


ROTATE_SIGNING_KEY = """
from django.core.management import call_command
from oauth_relay.models import SigningKey
def act():
    call_command("rotate_signing_key", stdout=open("/dev/null", "w"), stderr=open("/dev/null", "w"))
    return sorted(SigningKey.objects.values_list("state", flat=True))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_operators_at_once_make_one_signing_key(kind: str) -> None:
    with servers.database(kind) as url:
        environment = racing.environment(url)
        racing.migrate(environment)
        racing.run(environment, "from oauth_relay import keys; keys.jwks()")
        assert racing.race(environment, ROTATE_SIGNING_KEY, threads=2) == [["current", "next"]] * 4


# -- the vault ---------------------------------------------------------------------------------------------------------

TOKENS = Tokens("access", "refresh", None)


def make_credential(user: User, audience: str = "urn:todos-api") -> UpstreamCredential:
    row = UpstreamCredential(user=user, provider="auth0", audience=audience, issuer="https://i.example/", subject="ada")
    row.tokens = seal_tokens(row, TOKENS, version=row.version)
    row.save()
    return row


def tokens_of(row: UpstreamCredential) -> Tokens:
    row.refresh_from_db()
    return open_tokens(row, user_id=row.user_id, provider_name=row.provider, audience=row.audience)


def make_transaction(user: User) -> LoginTransaction:
    row = LoginTransaction(
        expires_at=timezone.now() + timedelta(minutes=5), browser_digest="0" * 64, provider="auth0", user=user
    )
    row.staged_tokens = vault.seal(b"staged", **staged_binding(row))
    row.upstream_secrets = vault.seal(b"journey", **journey_binding(row, "auth0"))
    row.save()
    return row


@pytest.mark.threat("T21")
def test_every_record_is_sealed_anew_and_still_says_the_same(ada: User) -> None:
    credential, transaction, first = make_credential(ada), make_transaction(ada), signer()
    old = DataKey.objects.get()
    run("rotate_vault_key")
    new = DataKey.objects.get(retired_at=None)
    vault.forget_keys()
    keys.forget_signer()
    time_passes(vault_rotation.SETTLED_AFTER)
    out, _ = run("rotate_vault_key")
    assert "Nothing more to do" in out
    assert [key.pk for key in DataKey.objects.all()] == [new.pk] and old.pk != new.pk
    assert not Wrapping.objects.filter(data_key_id=old.pk).exists()
    transaction.refresh_from_db()
    assert transaction.staged_tokens and transaction.upstream_secrets
    assert vault.open_sealed(transaction.staged_tokens, **staged_binding(transaction)) == b"staged"
    assert vault.open_sealed(transaction.upstream_secrets, **journey_binding(transaction, "auth0")) == b"journey"
    assert (tokens_of(credential), credential.version) == (TOKENS, 1)
    assert signer() == first


def test_no_sealed_column_is_forgotten() -> None:
    """A new one belongs into SEALED_COLUMNS, or here with the reason why no data key seals it."""
    others = {
        ("Wrapping", "wrapped"),  # under a master key
        ("RefreshToken", "replay_answer"),  # under the refresh token itself
    }
    mine = [model for model in apps.get_models() if model.__module__.startswith("oauth_relay.")]
    binary = {(m.__name__, f.name) for m in mine for f in m._meta.fields if isinstance(f, BinaryField)}
    assert binary == others | {(c.model.__name__, c.column) for c in vault_rotation.SEALED_COLUMNS}


def test_a_process_that_has_the_old_key_in_memory_seals_with_the_new_one_at_once(ada: User) -> None:
    make_credential(ada)
    remembered = vault._memory.keys.copy()
    run("rotate_vault_key")
    vault.forget_keys()
    vault._memory.keys.update(remembered)
    new = DataKey.objects.get(retired_at=None)
    assert vault.sealed_under(make_credential(ada, "urn:other").tokens) == new.pk
    time_passes(vault_rotation.SETTLED_AFTER)
    run("rotate_vault_key")
    make_credential(ada, "urn:third")
    assert set(vault._memory.keys) == {new.pk}, "a key that is gone is gone from memory too"


def test_a_refresh_at_the_same_moment_wins(ada: User) -> None:
    credential = make_credential(ada)
    assert vault_rotation.begin() is not None
    (column,) = [c for c in vault_rotation.SEALED_COLUMNS if c.column == "tokens"]
    (as_read,) = column.under(vault_rotation.retired_keys())
    newer = Tokens("access-2", "refresh-2", None)
    sealed = seal_tokens(credential, newer, version=2)
    UpstreamCredential.objects.filter(pk=credential.pk, version=1).update(tokens=sealed, version=2)
    assert column.reseal(as_read) is False
    assert tokens_of(credential) == newer


def test_the_old_key_stays_while_somebody_may_still_be_writing_under_it(ada: User) -> None:
    credential = make_credential(ada)
    straggler = bytes(credential.tokens)
    run("rotate_vault_key")
    time_passes(vault_rotation.SETTLED_AFTER - timedelta(seconds=5))
    out, _ = run("rotate_vault_key")
    assert DataKey.objects.count() == 2 and "run again" in out
    UpstreamCredential.objects.update(tokens=straggler)  # written late by a process that was paused
    assert vault_rotation.remaining()["upstream credentials"] == 1
    time_passes(timedelta(seconds=5))
    assert vault_rotation.remove_unused() == [], "something is sealed under it"
    run("rotate_vault_key")
    assert DataKey.objects.count() == 1
    assert tokens_of(credential) == TOKENS


def test_waiting_for_the_vault_goes_the_whole_way(ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    credential = make_credential(ada)
    straggler = bytes(credential.tokens)

    def sleep(seconds: float) -> None:
        UpstreamCredential.objects.update(tokens=straggler)
        time_passes(vault_rotation.SETTLED_AFTER)

    monkeypatch.setattr("oauth_relay.management.rotation_command.time.sleep", sleep)
    out, progress = run("rotate_vault_key", "--wait")
    assert "Nothing more to do" in out and "can be removed at" in progress
    assert tokens_of(credential) == TOKENS


def test_batches_leave_nobody_out(ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_rotation, "BATCH", 3)
    rows = [make_credential(ada, f"urn:{number}") for number in range(7)]
    _, progress = run("rotate_vault_key")
    assert "3 of 7" in progress and "7 of 7" in progress
    assert vault_rotation.remaining()["upstream credentials"] == 0
    assert [tokens_of(row) for row in rows] == [TOKENS] * 7


def test_a_rotation_that_was_killed_goes_on_without_another_key(ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_rotation, "BATCH", 1)
    for number in range(3):
        make_credential(ada, f"urn:{number}")
    vault_rotation.begin()
    for _ in vault_rotation.reseal():
        break
    assert vault_rotation.remaining()["upstream credentials"] == 2
    run("rotate_vault_key")
    assert vault_rotation.remaining()["upstream credentials"] == 0
    assert DataKey.objects.count() == 2


@pytest.mark.threat("T21")
def test_a_record_that_was_moved_is_named_and_not_made_good(ada: User) -> None:
    mine, moved = make_credential(ada), make_credential(ada, "urn:other")
    UpstreamCredential.objects.filter(pk=moved.pk).update(tokens=mine.tokens)
    with pytest.raises(CommandError, match=str(moved.pk)):
        run("rotate_vault_key")
    assert tokens_of(mine) == TOKENS
    time_passes(vault_rotation.SETTLED_AFTER)
    with pytest.raises(CommandError, match="the former key stays"):
        run("rotate_vault_key")
    with pytest.raises(vault.VaultError):
        tokens_of(moved)
    assert DataKey.objects.count() == 2
    moved.delete()
    run("rotate_vault_key")
    assert DataKey.objects.count() == 1


@pytest.mark.parametrize("begun", [False, True])
def test_without_the_master_key_nothing_is_touched(ada: User, settings: Any, begun: bool) -> None:
    make_credential(ada)
    old = settings.MASTER_KEYS
    if begun:
        vault_rotation.begin()
    before = everything()
    vault.forget_keys()
    settings.MASTER_KEYS = [os.urandom(32)]
    with pytest.raises(CommandError, match="CAIR_MASTER_KEYS"):
        run("rotate_vault_key")
    assert everything() == before
    settings.MASTER_KEYS = old
    run("rotate_vault_key")
    assert DataKey.objects.count() == 2


def test_an_empty_vault_has_nothing_to_rotate() -> None:
    out, _ = run("rotate_vault_key")
    assert "nothing to rotate" in out
    assert not DataKey.objects.exists()


ROTATE_VAULT_KEY = """
from django.core.management import call_command
from oauth_relay.models import DataKey
def act():
    call_command("rotate_vault_key", stdout=open("/dev/null", "w"), stderr=open("/dev/null", "w"))
    return DataKey.objects.count()
"""
MANY_RECORDS = """
from oauth_relay import keys
for _ in range(6):
    keys.make("retired")
"""
ALL_OPEN = """
from oauth_relay import keys, vault, vault_rotation
from oauth_relay.models import SigningKey
print(sum(keys._open_private_key(row).key_size == 2048 for row in SigningKey.objects.all()), vault_rotation.remaining())
"""


@pytest.mark.parametrize("kind", KINDS)
def test_operators_at_once_make_one_data_key(kind: str) -> None:
    with servers.database(kind) as url:
        environment = racing.environment(url)
        racing.migrate(environment)
        racing.run(environment, MANY_RECORDS)
        assert racing.race(environment, ROTATE_VAULT_KEY, threads=2) == [2] * 4
        assert racing.run(environment, ALL_OPEN).startswith("6 ") and "1" not in racing.run(environment, ALL_OPEN)


# -- master keys -------------------------------------------------------------------------------------------------------


@pytest.mark.threat("T20")
def test_the_order_of_a_master_key_rotation_works_at_every_node_at_every_step(ada: User, settings: Any) -> None:
    credential = make_credential(ada)
    sealed = bytes(credential.tokens)
    (old,), new = settings.MASTER_KEYS, os.urandom(32)

    def opens(*master_keys: bytes) -> bool:
        vault.forget_keys()
        with override_settings(MASTER_KEYS=list(master_keys)):
            return tokens_of(credential) == TOKENS

    assert opens(old) and opens(old, new) and opens(new, old)  # restarts, in any order
    settings.MASTER_KEYS = [new, old]
    out, _ = run("rotate_master_key")
    assert vault.master_key_id(old) in out and "--drop" in out
    assert opens(old) and opens(new) and opens(new, old)  # a straggler that has only the old one still opens
    settings.MASTER_KEYS = [new]
    out, _ = run("rotate_master_key")
    assert vault.master_key_id(old) in out and Wrapping.objects.count() == 2
    out, _ = run("rotate_master_key", "--drop")
    assert "Nothing more to do" in out and opens(new)
    assert [row.master_key_id for row in Wrapping.objects.all()] == [vault.master_key_id(new)]
    with pytest.raises(vault.VaultError):
        opens(old)
    assert bytes(credential.tokens) == sealed, "no record was touched"


@pytest.mark.threat("T20")
@pytest.mark.parametrize("arguments", [(), ("--drop",), ("--dry-run",)])
def test_it_refuses_where_a_data_key_would_be_beyond_everybody(
    ada: User, settings: Any, arguments: tuple[str, ...]
) -> None:
    make_credential(ada)
    old = vault.master_key_id(settings.MASTER_KEYS[0])
    before = everything()
    vault.forget_keys()
    settings.MASTER_KEYS = [os.urandom(32)]
    with pytest.raises(CommandError, match=f"wrapped by {old}.*Put that key back"):
        run("rotate_master_key", *arguments)
    assert everything() == before


def test_it_mends_a_damaged_wrapping_while_another_opens(ada: User, settings: Any) -> None:
    make_credential(ada)
    (old,), new = settings.MASTER_KEYS, os.urandom(32)
    settings.MASTER_KEYS = [new, old]
    run("rotate_master_key")
    Wrapping.objects.filter(master_key_id=vault.master_key_id(new)).update(wrapped=b"\0" * 92)
    run("rotate_master_key")
    settings.MASTER_KEYS = [new]
    vault.forget_keys()
    assert tokens_of(UpstreamCredential.objects.get()) == TOKENS


def test_it_drops_no_wrapping_that_is_a_data_key_s_last(ada: User, settings: Any) -> None:
    """One may have been made, between two steps, by a node that still had the old master key in front."""
    make_credential(ada)
    settings.MASTER_KEYS = [os.urandom(32)]
    assert master_key_rotation.drop() == 0
    assert Wrapping.objects.count() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_operators_who_rewrap_at_once_end_with_one_wrapping_each(kind: str) -> None:
    with servers.database(kind) as url:
        old, new = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
        before = racing.environment(url, {"CAIR_MASTER_KEYS": old})
        racing.migrate(before)
        racing.run(before, MANY_RECORDS)
        during = racing.environment(url, {"CAIR_MASTER_KEYS": f"{new},{old}"})
        code = ROTATE_VAULT_KEY.replace("rotate_vault_key", "rotate_master_key").replace("DataKey", "Wrapping")
        assert racing.race(during, code, threads=2) == [2] * 4
        assert racing.run(racing.environment(url, {"CAIR_MASTER_KEYS": new}), ALL_OPEN).startswith("6 ")


# -- client secrets ----------------------------------------------------------------------------------------------------


@pytest.fixture
def confidential(db: None) -> Client:
    return make_client(
        client_id="confidential",
        client_type=Client.CLIENT_CONFIDENTIAL,
        client_secret="the first secret",
        metadata={"token_endpoint_auth_method": "client_secret_post"},
    )


def is_good(browser: Browser, raw_secret: str) -> bool:
    """Whether /token takes this secret, both ways; what else is wrong with the request does not matter."""
    basic = base64.b64encode(f"confidential:{quote_plus(raw_secret)}".encode()).decode()
    form = {"grant_type": "refresh_token", "refresh_token": "none"}
    body = browser.token(**form, client_id="confidential", client_secret=raw_secret)
    header = browser.post(
        "/token",
        urlencode(form),
        content_type="application/x-www-form-urlencoded",
        headers={"authorization": f"Basic {basic}"},
    )
    errors = {json.loads(response.content)["error"] for response in (body, header)}
    assert len(errors) == 1 and errors <= {"invalid_client", "invalid_grant"}
    return errors == {"invalid_grant"}


def test_the_old_secret_is_good_for_the_overlap_and_then_not(browser: Browser, confidential: Client) -> None:
    out, err = run("rotate_client_secret", "confidential", "--overlap", "2h")
    new = out.strip()
    assert len(new) > 40 and new not in err and "Former ones are good until" in err
    assert is_good(browser, new) and is_good(browser, "the first secret")
    FormerSecret.objects.update(good_until=timezone.now())
    assert is_good(browser, new) and not is_good(browser, "the first secret")


def test_neither_secret_is_stored_and_the_audit_has_neither(browser: Browser, confidential: Client) -> None:
    new = run("rotate_client_secret", "confidential")[0].strip()
    stored = json.dumps(everything(), default=str)
    assert new not in stored and "the first secret" not in stored
    assert AuditEvent.objects.filter(event="client.secret_rotated", client_id="confidential").count() == 1


def test_an_old_secret_opens_no_other_client(browser: Browser, confidential: Client) -> None:
    run("rotate_client_secret", "confidential")
    FormerSecret.objects.update(client=make_client(client_id="other", client_type=Client.CLIENT_CONFIDENTIAL))
    assert not is_good(browser, "the first secret")


def test_a_second_rotation_within_the_overlap_must_be_meant(browser: Browser, confidential: Client) -> None:
    second = run("rotate_client_secret", "confidential")[0].strip()
    with pytest.raises(CommandError, match="--again"):
        run("rotate_client_secret", "confidential")
    third = run("rotate_client_secret", "confidential", "--again")[0].strip()
    assert [is_good(browser, secret) for secret in ("the first secret", second, third)] == [True] * 3
    run("rotate_client_secret", "confidential", "--end-overlap")
    assert [is_good(browser, secret) for secret in ("the first secret", second, third)] == [False, False, True]


def test_a_stolen_secret_ends_at_once_without_an_overlap(browser: Browser, confidential: Client) -> None:
    second = run("rotate_client_secret", "confidential")[0].strip()
    third = run("rotate_client_secret", "confidential", "--again", "--overlap", "0")[0].strip()
    assert [is_good(browser, secret) for secret in ("the first secret", second, third)] == [False, False, True]


def test_a_public_client_and_an_unknown_one_have_no_secret_to_rotate(inspector: Client) -> None:
    for client_id, why in ((inspector.client_id, "public client"), ("nobody", "No client"), ("a\0b", "No client")):
        with pytest.raises(CommandError, match=why):
            run("rotate_client_secret", client_id)


@pytest.mark.parametrize("overlap", ["soon", "-1h", "24", "31d", "1.5h"])
def test_a_wrong_overlap_is_refused(confidential: Client, overlap: str) -> None:
    with pytest.raises(CommandError, match="overlap"):
        run("rotate_client_secret", "confidential", f"--overlap={overlap}")


@pytest.mark.parametrize("trouble", [KeyboardInterrupt, OperationalError])
def test_whatever_ends_it_early_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, trouble: type[BaseException]
) -> None:
    def fail(seconds: float) -> None:
        raise trouble

    signer()
    monkeypatch.setattr("oauth_relay.management.rotation_command.time.sleep", fail)
    with pytest.raises(CommandError, match="run the same command again"):
        run("rotate_signing_key", "--wait")
    assert len(published()) == 2


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("rotate_signing_key",),
        ("rotate_signing_key", "--compromised", "CURRENT"),
        ("rotate_vault_key",),
        ("rotate_vault_key", "--wait"),
        ("rotate_master_key", "--drop"),
        ("rotate_client_secret", "confidential"),
        ("rotate_client_secret", "confidential", "--end-overlap"),
    ],
)
def test_a_dry_run_changes_nothing(ada: User, confidential: Client, settings: Any, command: tuple[str, ...]) -> None:
    make_credential(ada)
    current = signer()
    FormerSecret.objects.create(client=confidential, secret="x", good_until=timezone.now() + timedelta(hours=1))
    settings.MASTER_KEYS = [os.urandom(32), *settings.MASTER_KEYS]
    for _ in range(2):
        before = everything()
        out, _ = run(*[current if word == "CURRENT" else word for word in command], "--dry-run")
        assert out.startswith("Nothing was changed.")
        assert everything() == before
        vault_rotation.begin()
        key_rotation.advance(may_begin=True)


def test_every_step_is_in_the_audit(ada: User, confidential: Client, settings: Any) -> None:
    make_credential(ada)
    signer()
    for _ in range(3):
        run("rotate_signing_key")
        run("rotate_vault_key")
        time_passes(timedelta(hours=1))
    run("rotate_signing_key", "--compromised", signer())
    settings.MASTER_KEYS = [os.urandom(32), *settings.MASTER_KEYS]
    run("rotate_master_key")
    settings.MASTER_KEYS = settings.MASTER_KEYS[:1]
    run("rotate_master_key", "--drop")
    run("rotate_client_secret", "confidential")
    run("rotate_client_secret", "confidential", "--end-overlap")
    written = set(AuditEvent.objects.values_list("event", flat=True))
    states = {f"signing_key.{state}" for state in ("next", "current", "retired", "gone", "compromised")}
    steps = {"vault_key.made", "vault_key.removed", "vault_key.rewrapped", "master_key.dropped"}
    assert written >= states | steps | {"client.secret_rotated", "client.overlap_ended"}


def test_the_status_names_every_key_and_shows_none(ada: User, confidential: Client, settings: Any) -> None:
    make_credential(ada)
    current = signer()
    run("rotate_signing_key")
    run("rotate_vault_key")
    run("rotate_client_secret", "confidential")
    (old,), new = settings.MASTER_KEYS, os.urandom(32)
    settings.MASTER_KEYS = [new, old]
    status = json.loads(run("keys", "--json")[0])
    assert [(key["state"], key["id"] == current) for key in status["signing_keys"]] == [
        ("current", True),
        ("next", False),
    ]
    assert [key["state"] for key in status["data_keys"]] == ["retired", "sealing"]
    assert status["data_keys"][1]["records"]["upstream credentials"] == 1
    assert [(key["id"], key["first"], key["data_keys"]) for key in status["master_keys"]] == [
        (vault.master_key_id(new), True, 0),
        (vault.master_key_id(old), False, 2),
    ]
    assert status["former_client_secrets"][0]["client_id"] == "confidential"
    settings.MASTER_KEYS = [new]
    former = json.loads(run("keys", "--json")[0])["master_keys"][1]
    assert (former["id"], former["configured"]) == (vault.master_key_id(old), False)
    words, _ = run("keys")
    for secret in (old, new):
        assert base64.b64encode(secret).decode() not in words and secret.hex() not in words
    assert current in words


# -- Django's SECRET_KEY -----------------------------------------------------------------------------------------------

OLD_SECRET, NEW_SECRET = "o" * 50, "n" * 50


@pytest.fixture
def rotated(settings: Any) -> Iterator[Any]:
    """Starts with the old secret; calling it makes the next step of the rotation."""
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = OLD_SECRET, []

    def to(secret: str, *fallbacks: str) -> None:
        settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = secret, list(fallbacks)

    yield to


def test_a_session_and_an_open_form_outlive_the_secret_while_it_is_a_fallback(
    rotated: Any, browser: Browser, ada: User, inspector: Client
) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    rotated(OLD_SECRET, NEW_SECRET)
    rotated(NEW_SECRET, OLD_SECRET)
    assert "code" in answered(browser.answer())
    browser.authorize(inspector, prompt="consent")
    assert browser.page.scopes, "still signed in"


def test_two_tabs_at_once_both_stay_signed_in(rotated: Any, browser: Browser, ada: User, inspector: Client) -> None:
    """Replacing the session under the first would sign the second out, and its answer the first."""
    browser.authorize(inspector)
    browser.sign_in(ada)
    cookie = browser.cookies[configured.SESSION_COOKIE_NAME].value
    rotated(NEW_SECRET, OLD_SECRET)
    for _ in range(2):
        browser.cookies[configured.SESSION_COOKIE_NAME] = cookie
        browser.authorize(inspector, prompt="consent")
        assert browser.page.scopes, "still signed in"


def test_without_the_fallback_the_old_secret_opens_nothing(
    rotated: Any, browser: Browser, ada: User, inspector: Client
) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    rotated(NEW_SECRET)
    response = browser.answer()
    assert response.status_code != 302 or "code" not in answered(response)
    browser.authorize(inspector, prompt="consent")
    assert not browser.page.scopes, "signed out"


def test_a_session_ends_when_the_password_changes(browser: Browser, ada: User, inspector: Client) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    ada.set_password("another one")
    ada.save()
    browser.authorize(inspector, prompt="consent")
    assert not browser.page.scopes


def test_a_stream_outlives_the_secret_while_it_is_a_fallback(rotated: Any) -> None:
    principal = Principal(
        subject="ada", user_id=1, client_id="c", grant_id=uuid.uuid4(), scopes=frozenset(), claims={},
        resource="http://localhost:8788/sse", expires_at=time.time() + 600, pseudonym=None, client_pk=1,
    )  # fmt: skip
    session = StreamSession.opened_by(principal, "channel")
    sealed = session.sealed()
    rotated(NEW_SECRET, OLD_SECRET)
    assert session_for(principal, sealed) == session
    rotated(NEW_SECRET)
    with pytest.raises(UnknownSession):
        session_for(principal, sealed)
