"""A provider that tells nobody whom it has disabled is asked, and no access token outlives its word (T37)."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from oauth_relay.models import (
    AccessToken,
    AuditEvent,
    Client,
    Consent,
    Grant,
    LoginTransaction,
    RefreshToken,
    Session,
    UpstreamCredential,
    User,
)
from oauth_relay.withdrawals import withdraw_grant
from tests import github_stand_in, identity_provider, servers
from tests.cair.test_checks import start
from tests.flows.sign_in_at_provider import PersonWithProvider, installation
from tests.github_stand_in import Account, StandIn
from tests.identity_provider import Answer, FakedProvider
from tests.oauth_relay import racing
from tests.oauth_relay.at_provider import BrowserAtProvider
from tests.oauth_relay.conftest import Browser, answered, make_client
from tests.walk import OAuthClient

pytestmark = pytest.mark.django_db(transaction=True)

State = UpstreamCredential.State
HOLDS = 3600 - 600
"""Seconds for which a word is good for an access token of ten minutes."""
REFUSED: Answer = (400, {"error": "invalid_grant"})


@pytest.fixture
def peer(settings: Any) -> Iterator[FakedProvider]:
    with identity_provider.faked_provider() as running:
        identity_provider.configure(settings, running.origin)
        yield running


@pytest.fixture
def ada(peer: FakedProvider) -> BrowserAtProvider:
    return BrowserAtProvider(peer)


@pytest.fixture
def raw(ada: BrowserAtProvider, inspector: Client) -> str:
    """The refresh token of Ada's client, whose provider said its word too long ago."""
    given = str(ada.tokens_of(inspector)["refresh_token"])
    make_old()
    return given


def make_old(seconds: float = HOLDS + 10) -> None:
    UpstreamCredential.objects.update(proved_at=timezone.now() - timedelta(seconds=seconds), failed_at=None)


def asked(peer: FakedProvider) -> int:
    """How often the provider was asked for a refresh."""
    return sum(form.get("grant_type") == "refresh_token" for form in peer.calls("/token"))


def goes_on(browser: Browser, client: Client, raw: str) -> str | None:
    """The next refresh token; None where the family waits."""
    response = browser.refresh(client, raw)
    if response.status_code == 200:
        return str(response.json()["refresh_token"])
    assert (response.status_code, response.json()["error"]) == (400, "invalid_grant")
    return None


def is_proved() -> bool:
    return UpstreamCredential.objects.get().proved_at > timezone.now() - timedelta(seconds=60)


# -- when it is asked --------------------------------------------------------------------------------------------------


@pytest.mark.threat("T37")
@pytest.mark.parametrize("has_connected_before", [False, True])
def test_whoever_came_before_any_client_brings_what_the_provider_is_asked_with(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, settings: Any, has_connected_before: bool
) -> None:
    """After a visit, or the last withdrawal, the vault is empty: connecting then takes one more sign-in."""
    settings.UPSTREAM_APIS["todos"]["token_source"] = "cair"
    if has_connected_before:
        ada.tokens_of(inspector)
        withdraw_grant(Grant.objects.open().get().pk, by="person")
    else:
        ada.visit()
    assert not UpstreamCredential.objects.exists()
    ada.authorize(inspector)
    assert not ada.page.scopes, "the consent page, with nobody to ask about this person later"
    given = ada.tokens_of(inspector)
    make_old()
    assert goes_on(ada, inspector, given["refresh_token"])
    assert asked(peer) == 1


@pytest.mark.threat("T37")
@pytest.mark.parametrize(("age", "times"), [(0, 0), (HOLDS - 20, 0), (HOLDS + 1, 1), (10 * HOLDS, 1)])
def test_no_access_token_outlives_the_providers_word(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, raw: str, age: int, times: int
) -> None:
    make_old(age)
    successor = goes_on(ada, inspector, raw)
    assert (asked(peer), is_proved()) == (times, times == 1 or age == 0)
    assert successor and goes_on(ada, inspector, successor)
    assert asked(peer) == times, "it was asked again at once"


def test_an_hour_shorter_than_an_access_token_asks_every_time(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, raw: str, settings: Any
) -> None:
    settings.UPSTREAM_RECHECK = 60
    make_old(0)
    successor = goes_on(ada, inspector, raw)
    assert successor and goes_on(ada, inspector, successor)
    assert asked(peer) == 2


def test_it_can_be_switched_off(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, raw: str, settings: Any
) -> None:
    settings.UPSTREAM_RECHECK = 0
    make_old(86400 * 30)
    assert goes_on(ada, inspector, raw)
    assert asked(peer) == 0


@pytest.mark.parametrize("value", ["never", "-1", "86401"])
def test_a_wrong_value_is_named_before_anything_is_served(tmp_path: Path, value: str) -> None:
    printed = start({"CAIR_ENV": "development", "CAIR_ENV_FILE": "/dev/null", "UPSTREAM_RECHECK": value}, tmp_path)
    assert f"UPSTREAM_RECHECK is '{value}'" in printed and "from 0 to 86400" in printed
    assert "started" not in printed


def test_it_keeps_what_the_refresh_brought(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, raw: str
) -> None:
    assert goes_on(ada, inspector, raw)
    assert UpstreamCredential.objects.get().version == 2
    assert AuditEvent.objects.filter(event="upstream_token.refreshed").count() == 1


def queries_of(browser: Browser, client: Client, raw: str) -> tuple[int, str | None]:
    with CaptureQueriesContext(connection) as captured:
        successor = goes_on(browser, client, raw)
    return len(captured), successor


def test_it_costs_one_query_and_nothing_with_own_accounts(
    ada: BrowserAtProvider, inspector: Client, raw: str, settings: Any, browser: Browser
) -> None:
    make_old(0)
    with_it, successor = queries_of(ada, inspector, raw)
    settings.UPSTREAM_RECHECK = 0
    without, _ = queries_of(ada, inspector, successor or "")
    assert with_it == without + 1
    source = {**settings.UPSTREAM_APIS["todos"], "token_source": "cair"}
    settings.UPSTREAM_PROVIDERS, settings.OWN_ACCOUNTS, settings.UPSTREAM_APIS = {}, True, {"todos": source}
    grace, own = User.objects.create_user("grace", password="open sesame"), make_client("Own")
    without, successor = queries_of(browser, own, browser.tokens(own, grace)["refresh_token"])
    settings.UPSTREAM_RECHECK = 3600
    assert queries_of(browser, own, successor or "")[0] == without


@pytest.mark.threat("T37")
def test_nobody_is_asked_for_a_client_that_is_not_who_it_says(ada: BrowserAtProvider, peer: FakedProvider) -> None:
    confidential = make_client("Confidential")
    given = ada.tokens_of(confidential)["refresh_token"]
    Client.objects.filter(pk=confidential.pk).update(client_type=Client.CLIENT_CONFIDENTIAL, client_secret="hash")
    make_old()
    response = ada.refresh(confidential, given, client_secret="a guess")
    assert (response.status_code, response.json()["error"]) == (401, "invalid_client")
    assert asked(peer) == 0


@pytest.mark.parametrize("what", ["unknown", "revoked", "another client", "too much", "person switched off"])
def test_nobody_is_asked_for_a_token_that_is_refused_anyway(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, raw: str, what: str
) -> None:
    client, changes = inspector, {}
    match what:
        case "unknown":
            raw = "unknown"
        case "revoked":
            RefreshToken.objects.update(revoked=timezone.now())
        case "another client":
            client = make_client("Another")
        case "too much":
            changes = {"scope": "read:todos admin"}
        case "person switched off":
            User.objects.update(is_active=False)
    assert ada.refresh(client, raw, **changes).status_code == 400
    assert asked(peer) == 0


@pytest.mark.threat("T37")
def test_a_browser_that_is_still_signed_in_connects_no_client_for_whom_the_provider_has_disabled(
    ada: BrowserAtProvider, peer: FakedProvider, raw: str
) -> None:
    another = make_client("Another")
    ada.authorize(another)
    code = answered(ada.answer())["code"]
    peer.answer = lambda form: REFUSED
    response = ada.redeem(another, code)
    assert (response.status_code, response.json()["error"]) == (400, "invalid_grant")
    assert not AccessToken.objects.filter(application=another).exists()
    assert asked(peer) == 1


def test_a_code_is_good_while_the_provider_stands_by_its_person(
    ada: BrowserAtProvider, peer: FakedProvider, raw: str
) -> None:
    another = make_client("Another")
    ada.authorize(another)
    assert ada.redeem(another, answered(ada.answer())["code"]).status_code == 200
    assert asked(peer) == 1 and is_proved()


# -- what it says ------------------------------------------------------------------------------------------------------


@pytest.mark.threat("T37")
def test_whom_the_provider_has_disabled_waits_for_a_sign_in(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, raw: str
) -> None:
    other = make_client("Another")
    others = ada.tokens_of(other)["refresh_token"]
    make_old()
    peer.requests.clear()
    before = list(RefreshToken.objects.order_by("pk").values())
    peer.answer = lambda form: REFUSED
    assert goes_on(ada, inspector, raw) is None
    assert goes_on(ada, other, others) is None
    assert asked(peer) == 1
    assert UpstreamCredential.objects.get().state == State.SIGN_IN_NEEDED
    assert not Grant.objects.filter(suspended_at=None).exists()
    assert not Session.objects.filter(user__isnull=False).exists(), "a browser could connect the next client"
    assert list(RefreshToken.objects.order_by("pk").values()) == before, "something was spent or revoked"
    assert AuditEvent.objects.filter(event="user.refused_by_provider").count() == 1
    peer.answer = None
    ada.visit()
    assert goes_on(ada, inspector, raw) and goes_on(ada, other, others)


@pytest.mark.parametrize("answer", [(503, "<h1>Away</h1>"), (401, {"error": "invalid_client"}), (429, {"error": "x"})])
def test_a_provider_that_cannot_be_asked_ends_nothing_and_is_left_alone_for_a_moment(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, raw: str, answer: Answer
) -> None:
    peer.answer = lambda form: answer
    successor = goes_on(ada, inspector, raw)
    calls = asked(peer)
    assert successor and calls >= 1
    successor = goes_on(ada, inspector, successor)
    assert successor and asked(peer) == calls
    assert (UpstreamCredential.objects.get().state, is_proved()) == (State.GOOD, False)
    assert Grant.objects.get().suspended_at is None
    UpstreamCredential.objects.update(failed_at=timezone.now() - timedelta(seconds=6))
    peer.answer = lambda form: REFUSED
    assert goes_on(ada, inspector, successor) is None


def test_a_provider_that_hangs_holds_a_refresh_up_no_longer_than_one_call(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, raw: str, settings: Any
) -> None:
    settings.UPSTREAM_TIMEOUT = 1
    let_go = threading.Event()
    peer.answer = lambda form: (503, str(let_go.wait(10)))
    started = time.monotonic()
    assert goes_on(ada, inspector, raw)
    let_go.set()
    assert time.monotonic() - started < 5


@pytest.mark.threat("T37")
def test_no_lock_is_held_while_the_provider_thinks(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, raw: str
) -> None:
    """On SQLite any open transaction that writes would make this one wait until the call has failed."""
    taken = []

    def answer(form: dict[str, str]) -> Answer:
        try:
            taken.append(Grant.objects.update(last_used_at=timezone.now()))
        finally:
            connections.close_all()
        return 200, peer.granted(form)

    peer.answer = answer
    assert goes_on(ada, inspector, raw)
    assert taken == [1] and is_proved()


def test_a_person_who_signs_in_meanwhile_is_not_signed_out_again(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, raw: str
) -> None:
    elsewhere = BrowserAtProvider(peer)

    def answer(form: dict[str, str]) -> Answer:
        if form["grant_type"] != "refresh_token":
            return 200, peer.granted(form)
        try:
            elsewhere.visit()
        finally:
            connections.close_all()
        return REFUSED

    peer.answer = answer
    peer.tokens = {"refresh_token": "the refresh token of the second sign-in"}
    assert goes_on(ada, inspector, raw)
    assert elsewhere.get("/connections").status_code == 200
    assert UpstreamCredential.objects.get().state == State.GOOD


@pytest.mark.threat("T37")
@pytest.mark.parametrize("failure", ["invalid_grant", "lost"])
def test_a_refusal_that_nobody_has_acted_on_is_found_by_the_next_refresh(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, raw: str, failure: str
) -> None:
    """A tool's call heard it, or the process was killed. Tokens that open no API do not wait by themselves."""
    RefreshToken.objects.update(scope="offline_access")
    Consent.objects.update(scope="offline_access")
    UpstreamCredential.objects.update(state=State.SIGN_IN_NEEDED, failure=failure)
    assert goes_on(ada, inspector, raw) is None
    assert asked(peer) == 0
    # Whoever then comes by another way in goes on: the same refusal does not count twice.
    Grant.objects.update(suspended_at=None)
    assert goes_on(ada, inspector, raw)


def test_a_provider_that_gave_nothing_to_ask_with_is_not_asked(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client
) -> None:
    peer.tokens = {"refresh_token": None}
    given = ada.tokens_of(inspector)["refresh_token"]
    make_old()
    assert goes_on(ada, inspector, given)
    assert asked(peer) == 0


def test_a_credential_that_cannot_be_opened_ends_nothing(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, raw: str
) -> None:
    UpstreamCredential.objects.update(tokens=b"not to be opened")
    assert goes_on(ada, inspector, raw)
    assert asked(peer) == 0


# -- what counts as its word -------------------------------------------------------------------------------------------


def test_a_sign_in_proves_even_where_the_old_tokens_are_kept(
    ada: BrowserAtProvider, peer: FakedProvider, inspector: Client, raw: str
) -> None:
    peer.tokens = {"scope": "openid"}
    BrowserAtProvider(peer).visit()
    assert UpstreamCredential.objects.get().version == 1
    assert is_proved()
    assert goes_on(ada, inspector, raw) and asked(peer) == 0


def test_the_word_is_as_old_as_the_sign_in_not_as_the_consent(
    ada: BrowserAtProvider, inspector: Client, peer: FakedProvider
) -> None:
    ada.authorize(inspector)
    ada.sign_in_there()
    earlier = timezone.now() - timedelta(minutes=25)
    LoginTransaction.objects.update(signed_in_at=earlier)
    assert "code" in answered(ada.answer())
    assert UpstreamCredential.objects.get().proved_at == earlier


# -- GitHub, whose tokens have no end ----------------------------------------------------------------------------------


@pytest.fixture
def github(settings: Any) -> Iterator[StandIn]:
    with github_stand_in.running() as running:
        settings.UPSTREAM_PROVIDERS = {"github": running.configuration()}
        settings.OWN_ACCOUNTS = settings.DEMO_USER = False
        yield running


@pytest.fixture
def octocats(github: StandIn, browser: Browser, inspector: Client) -> str:
    """The refresh token of a client of somebody from GitHub; the API's tokens are CAIR's own."""
    browser.authorize(inspector)
    location = browser.post("/login", {**browser.page.hidden, "provider": "github"})["Location"]
    assert "state" in dict(parse_qsl(urlsplit(location).query))
    back = urlsplit(github.approve(location, Account(583231, "octocat")))
    browser.read(browser.get(f"{back.path}?{back.query}"))
    given = browser.redeem(inspector, answered(browser.answer())["code"]).json()["refresh_token"]
    make_old()
    github.requests.clear()
    return str(given)


def test_github_is_asked_with_the_token_itself(
    github: StandIn, browser: Browser, inspector: Client, octocats: str
) -> None:
    successor = goes_on(browser, inspector, octocats)
    assert successor and goes_on(browser, inspector, successor)
    assert github.calls("GET", "/user") == len(github.requests) == 1
    row = UpstreamCredential.objects.get()
    assert (row.version, row.lease_holder, row.state, is_proved()) == (1, None, State.GOOD, True)


def _revoke(github: StandIn) -> None:
    github.revoke_tokens()


def _suspend(github: StandIn) -> None:
    github.is_suspended = True


@pytest.mark.threat("T37")
@pytest.mark.parametrize("disable", [_revoke, _suspend])
def test_whom_github_has_disabled_waits_for_a_sign_in(
    github: StandIn, browser: Browser, inspector: Client, octocats: str, disable: Callable[[StandIn], None]
) -> None:
    disable(github)
    assert goes_on(browser, inspector, octocats) is None
    assert goes_on(browser, inspector, octocats) is None
    assert len(github.requests) == 1
    assert UpstreamCredential.objects.get().state == State.SIGN_IN_NEEDED
    assert Grant.objects.get().suspended_at is not None


@pytest.mark.parametrize("trouble", ["is_broken", "is_rate_limited"])
def test_a_github_in_trouble_ends_nothing(
    github: StandIn, browser: Browser, inspector: Client, octocats: str, trouble: str
) -> None:
    setattr(github, trouble, True)
    successor = goes_on(browser, inspector, octocats)
    assert successor and goes_on(browser, inspector, successor)
    assert len(github.requests) == 1
    assert (UpstreamCredential.objects.get().state, is_proved()) == (State.GOOD, False)


# -- many at once, and for real ----------------------------------------------------------------------------------------

MAKE_ADA = """
import time, uuid
from datetime import timedelta
from django.conf import settings
from django.db.transaction import atomic
from django.utils import timezone
from oauth_relay import staged_tokens
from oauth_relay.digests import digest_of
from oauth_relay.identity_providers import TokenAnswer
from oauth_relay.models import *
user, places = User.objects.create_user("ada", password=None), list(settings.RESOURCES)
tomorrow = timezone.now() + timedelta(days=1)
Identity.objects.create(user=user, provider="auth0", issuer="{issuer}", subject="ada")
for number in range(3):
    client = Client.objects.create(client_id=f"client-{{number}}", client_type="public", name="Inspector",
        authorization_grant_type="authorization-code", redirect_uris="http://127.0.0.1/callback")
    grant = Grant.objects.create(user=user, client=client)
    Consent.objects.create(grant=grant, client_digest=client.digest(), resource=places, scope="read:todos",
        expires_at=tomorrow)
    token = RefreshToken.objects.create(user=user, application=client, grant=grant, token=str(number),
        token_family=uuid.uuid4(), scope="read:todos", resource=places, expires_at=tomorrow)
    RefreshToken.objects.filter(pk=token.pk).update(token="", token_checksum=digest_of(f"refresh-token-{{number}}"))
transaction = LoginTransaction.objects.create(expires_at=tomorrow, browser_digest="0" * 64, provider="auth0", user=user,
    signed_in_at=timezone.now() - timedelta(days=1))
answer = TokenAnswer("access-1", "refresh-1", None, None, time.time() + 3600)
staged_tokens.stage(transaction, answer, issuer="{issuer}", subject="ada")
with atomic():
    staged_tokens.keep_staged(transaction)
"""

REFRESH = """
import itertools
from django.test import Client as Browser
turns = itertools.count()
def act():
    number = next(turns) % 3
    form = f"grant_type=refresh_token&client_id=client-{number}&refresh_token=refresh-token-{number}"
    response = Browser(HTTP_HOST="localhost:8788").post(
        "/token", form, content_type="application/x-www-form-urlencoded")
    return [response.status_code, response.json().get("error", "")]
"""


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def processes(request: pytest.FixtureRequest, peer: FakedProvider) -> Iterator[dict[str, str]]:
    """The environment of processes that share one database: Ada has three clients, and a word that is a day old."""
    with servers.database(request.param) as url:
        environment = racing.environment(url, identity_provider.environment(peer.origin))
        racing.migrate(environment)
        racing.run(environment, MAKE_ADA.format(issuer=peer.origin))
        yield environment


@pytest.mark.threat("T37")
@pytest.mark.threat("T14")
@pytest.mark.parametrize("is_disabled", [False, True])
def test_many_refreshes_at_once_cost_the_provider_one_call(
    processes: dict[str, str], peer: FakedProvider, is_disabled: bool
) -> None:
    peer.answer = lambda form: REFUSED if is_disabled else (200, peer.granted(form))
    said = racing.race(processes, REFRESH, processes=2, threads=9)
    assert said == [[400, "invalid_grant"] if is_disabled else [200, ""]] * 18
    assert [form["refresh_token"] for form in peer.calls("/token")] == ["refresh-1"]


_MAKE_OLD = """
from datetime import timedelta
from django.utils import timezone
from oauth_relay.models import UpstreamCredential
UpstreamCredential.objects.update(proved_at=timezone.now() - timedelta(hours=1))
"""


@pytest.mark.node
@pytest.mark.threat("T37")
def test_a_real_provider_refuses_and_the_client_goes_on_after_a_sign_in() -> None:
    with installation() as running:
        person = PersonWithProvider(running.server.url)
        client = OAuthClient(running.server.url).connect(person)
        running.server.shell(_MAKE_OLD)
        given = client.refresh(client.tokens["refresh_token"])
        assert given.status_code == 200 and running.states() == ["good"]
        raw, access_token = given.json()["refresh_token"], given.json()["access_token"]
        running.end_the_sign_in()
        running.server.shell(_MAKE_OLD)
        refused = client.refresh(raw)
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
        assert running.states() == ["sign_in_needed"]
        until = time.monotonic() + 5  # every process forgets within a second
        while client.call("whoami", token=access_token).status_code != 401:
            assert time.monotonic() < until, "the access token still opens the door"
            time.sleep(0.05)
        assert person.open("/connections").has_button("auth0"), "the browser is still signed in"
        person.sign_in(person.open("/login"))
        assert client.refresh(raw).status_code == 200
