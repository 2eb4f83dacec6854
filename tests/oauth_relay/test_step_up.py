"""Asking a person for more: seldom, not after a no, and without losing what they gave before (T33, DESIGN §4.9)."""

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.utils import timezone

from mcp_gateway.answer import Exchange, judge
from mcp_gateway.errors import InsufficientScope
from oauth_relay import challenges, withdrawals
from oauth_relay.access_tokens import PresentedToken, Principal, may_step_up, verify_access_token
from oauth_relay.digests import digest_of
from oauth_relay.models import AccessToken, Challenge, Client, Consent, Grant, User
from tests import identity_provider
from tests.identity_provider import SCOPE, FakedProvider
from tests.oauth_relay import racing
from tests.oauth_relay.at_provider import BrowserAtProvider
from tests.oauth_relay.conftest import Browser, answered, make_client
from tests.servers import database

with_rows = pytest.mark.django_db(transaction=True)
MCP, SSE = settings.RESOURCES
KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture
def raw_token(browser: Browser, ada: User, inspector: Client) -> str:
    return str(browser.tokens(inspector, ada)["access_token"])


def may_ask(raw_token: str, *scopes: str) -> bool:
    """What the gateway asks door 1 before it challenges."""

    async def ask() -> bool:
        principal = await verify_access_token(PresentedToken("Bearer", raw_token, "POST", MCP, MCP))
        return await may_step_up(principal, scopes)

    return async_to_sync(ask)()


def an_hour_later() -> None:
    Challenge.objects.update(at=timezone.now() - challenges.STEP_UPS_WITHIN - timedelta(minutes=1))


def a_day_later() -> None:
    Challenge.objects.update(at=timezone.now() - challenges.AGAIN_AFTER - timedelta(minutes=1))


# -- how often ---------------------------------------------------------------------------------------------------------


@with_rows
@pytest.mark.threat("T33")
def test_a_grant_is_challenged_three_times_an_hour_whatever_it_lacks(raw_token: str) -> None:
    scopes = ["read:billing", "one", "two", "three", "read:billing"]
    assert [may_ask(raw_token, scope) for scope in scopes] == [True, True, True, False, False]
    an_hour_later()
    assert [may_ask(raw_token, scope) for scope in scopes] == [True, True, True, False, False]


@with_rows
@pytest.mark.threat("T33")
def test_one_grants_challenges_are_not_anothers(browser: Browser, ada: User, raw_token: str) -> None:
    other = browser.tokens(make_client("Other"), ada)["access_token"]
    for _ in range(4):
        may_ask(raw_token, "read:billing")
    assert may_ask(other, "read:billing")


@pytest.mark.threat("T33")
@pytest.mark.parametrize("kind", KINDS)
def test_of_many_at_once_in_two_processes_three_are_challenged(kind: str) -> None:
    with database(kind) as url:
        environment = racing.environment(url)
        racing.migrate(environment)
        grant = racing.run(
            environment,
            "from oauth_relay.models import Client, Grant, User\n"
            "user = User.objects.create(username='ada')\n"
            "print(Grant.objects.create(user=user, client=Client.objects.create(name='Inspector')).pk)",
        )
        code = (
            "from oauth_relay import challenges\n"
            f"def act():\n    return [challenges.may_step_up('{grant}', None, ['read:billing']) for _ in range(3)]"
        )
        for _ in range(2):
            told = racing.race(environment, code, processes=2, threads=4)
            assert sum(map(sum, told)) == 3
            later = "from django.utils import timezone\nfrom oauth_relay.models import Challenge\n"
            racing.run(environment, f"{later}Challenge.objects.update(at='2026-01-01T00:00:00Z')")


async def test_a_call_within_its_scopes_asks_the_database_nothing(principal_with: Any) -> None:
    """No database is allowed in this test."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list_todos", "arguments": {}}}
    exchange = Exchange(principal_with("read:todos"), "test", "2025-11-25")
    assert await judge(message, exchange) is not None
    assert not exchange.not_asked_for


@pytest.fixture
def principal_with(settings: Any) -> Any:
    settings.UPSTREAM_APIS = {"todos": {**settings.UPSTREAM_APIS["todos"], "token_source": "cair"}}

    def make(*scopes: str) -> Principal:
        return Principal(
            subject="ada", user_id=1, client_id="inspector", grant_id=uuid.uuid4(), scopes=frozenset(scopes),
            resource=MCP, expires_at=4e9, claims={},
        )  # fmt: skip

    return make


# -- a scope that the provider has not given, and nothing else ---------------------------------------------------------


@pytest.fixture
def peer(settings: Any) -> Iterator[FakedProvider]:
    """A provider that gives less than `list_billing` needs, however much our own token allows."""
    with identity_provider.faked_provider() as running:
        identity_provider.configure(settings, running.origin)
        settings.UPSTREAM_PROVIDERS["auth0"]["scope"] = SCOPE.replace(" read:billing", "")
        yield running


def is_sent(raw_token: str, tool: str) -> bool:
    """Whether a call of `tool` ends in a challenge before anything runs."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {}}}

    async def ask() -> bool:
        principal = await verify_access_token(PresentedToken("Bearer", raw_token, "POST", MCP, MCP))
        exchange = Exchange(principal, "test", "2025-11-25")
        try:
            await judge(message, exchange)
        except InsufficientScope:
            return True
        assert not exchange.not_asked_for, "our own token lacks nothing"
        return False

    return async_to_sync(ask)()


@with_rows
@pytest.mark.threat("T10")
@pytest.mark.threat("T33")
def test_who_may_not_be_asked_this_hour_is_asked_in_the_next(peer: FakedProvider, inspector: Client) -> None:
    raw = BrowserAtProvider(peer).tokens_of(inspector, scope="read:todos read:billing")["access_token"]
    assert [may_ask(raw, scope) for scope in ("one", "two", "three")] == [True, True, True]
    assert not is_sent(raw, "list_billing")
    an_hour_later()
    assert is_sent(raw, "list_billing"), "the question of the day was spent on an hour in which nobody was asked"
    assert [is_sent(raw, "list_billing") for _ in range(5)] == [False] * 5
    assert [may_ask(raw, scope) for scope in ("one", "two", "three")] == [True, True, False], "it cost one, once"


@pytest.mark.threat("T10")
@pytest.mark.parametrize("kind", KINDS)
def test_of_many_who_need_it_at_once_one_asks_and_it_costs_one(kind: str) -> None:
    with database(kind) as url:
        environment = racing.environment(url)
        racing.migrate(environment)
        grant = racing.run(
            environment,
            "from oauth_relay.models import Client, Grant, User\n"
            "user = User.objects.create(username='ada')\n"
            "print(Grant.objects.create(user=user, client=Client.objects.create(name='Inspector')).pk)",
        )
        code = (
            "from oauth_relay import challenges\n"
            f"def act():\n    return [challenges.may_widen('{grant}', None, name) for name in ('one', 'other')]"
        )
        told = racing.race(environment, code, processes=2, threads=4)
        for which in (0, 1):
            assert sum(answers[which] for answers in told) == 1
        rows = "from oauth_relay.models import Challenge\nprint(Challenge.objects.filter(reason__startswith='step').count())"
        assert racing.run(environment, rows) == "2"


# -- a client that only moves when refreshing fails --------------------------------------------------------------------


@with_rows
def test_what_was_written_for_families_of_the_past_goes_when_another_is(
    browser: Browser, ada: User, inspector: Client, raw_token: str
) -> None:
    def families() -> set[str]:
        rows = Challenge.objects.filter(reason__startswith="restart ").values_list("reason", flat=True)
        return {reason.removeprefix("restart ") for reason in rows}

    def family_of(raw_token: str) -> str:
        return str(AccessToken.objects.get(token_checksum=digest_of(raw_token)).family)

    Client.objects.filter(pk=inspector.pk).update(restart_on_step_up=True)
    second, third = (browser.tokens(inspector, ada)["access_token"] for _ in range(2))
    assert may_ask(raw_token, "one") and may_ask(second, "one")
    assert families() == {family_of(raw_token), family_of(second)}, "both are still to refresh"
    an_hour_later()
    assert may_ask(third, "one")
    assert families() == {family_of(third)}


# -- after a no --------------------------------------------------------------------------------------------------------


@with_rows
@pytest.mark.threat("T33")
def test_a_refused_scope_is_not_asked_for_again_for_a_day(browser: Browser, inspector: Client, raw_token: str) -> None:
    browser.authorize(inspector, scope="read:todos read:billing")
    assert answered(browser.answer("deny"))["error"] == "access_denied"
    assert not may_ask(raw_token, "read:billing")
    assert not may_ask(raw_token, "read:billing", "write:todos")
    an_hour_later()
    assert not may_ask(raw_token, "read:billing")
    a_day_later()
    assert may_ask(raw_token, "read:billing")


@with_rows
@pytest.mark.threat("T33")
def test_a_refusal_says_nothing_of_other_scopes_clients_and_people(
    browser: Browser, ada: User, mallory: User, inspector: Client, raw_token: str
) -> None:
    other = browser.tokens(make_client("Other"), ada)["access_token"]
    theirs = Browser().tokens(inspector, mallory)["access_token"]
    browser.authorize(inspector, scope="read:todos read:billing")
    browser.answer("deny")
    assert may_ask(raw_token, "another")
    assert may_ask(other, "read:billing")
    assert may_ask(theirs, "read:billing")


@with_rows
@pytest.mark.threat("T33")
def test_cancel_is_a_refusal_where_the_person_is_known(browser: Browser, inspector: Client, raw_token: str) -> None:
    browser.authorize(inspector, scope="read:billing", prompt="login")
    answered(browser.read(browser.post("/login", {**browser.page.hidden, "action": "cancel"})))
    assert not may_ask(raw_token, "read:billing")


@with_rows
@pytest.mark.threat("T33")
def test_somebody_who_is_not_signed_in_refuses_in_nobodys_name(inspector: Client, raw_token: str) -> None:
    stranger = Browser()
    stranger.authorize(inspector, scope="read:billing")
    answered(stranger.read(stranger.post("/login", {**stranger.page.hidden, "action": "cancel"})))
    assert may_ask(raw_token, "read:billing")


@with_rows
@pytest.mark.threat("T33")
def test_unticking_is_no_refusal(browser: Browser, inspector: Client, raw_token: str) -> None:
    browser.authorize(inspector, scope="read:todos read:billing")
    answered(browser.answer(scope=["read:todos"]))
    assert may_ask(raw_token, "read:billing")


@with_rows
def test_a_client_that_changed_meanwhile_was_refused_by_nobody(
    browser: Browser, inspector: Client, raw_token: str
) -> None:
    browser.authorize(inspector, scope="read:todos read:billing")
    Client.objects.filter(pk=inspector.pk).update(name="Claude")
    assert answered(browser.answer())["error"] == "access_denied"
    assert may_ask(raw_token, "read:billing")


@with_rows
def test_a_later_yes_takes_the_refusal_back(browser: Browser, inspector: Client, raw_token: str) -> None:
    browser.authorize(inspector, scope="read:billing")
    browser.answer("deny")
    browser.authorize(inspector, scope="read:billing")
    answered(browser.answer(scope=["read:billing"]))
    assert may_ask(raw_token, "read:billing")
    assert not may_ask(raw_token, "write:todos"), "what was refused and not allowed since stays refused"


@with_rows
def test_a_form_sent_twice_refuses_once(browser: Browser, inspector: Client, raw_token: str) -> None:
    """An Allow, and then the Deny of the same page out of the browser's history: nothing was refused."""
    browser.authorize(inspector, scope="read:billing")
    page = {**browser.page.hidden, "scope": browser.page.scopes}
    answered(browser.post("/authorize", {**page, "action": "allow"}))
    assert browser.post("/authorize", {**page, "action": "deny"}).status_code == 409
    assert may_ask(raw_token, "read:billing")


# -- what is new, and what is kept -------------------------------------------------------------------------------------


@with_rows
def test_who_is_asked_for_something_new_keeps_what_they_gave_before(
    browser: Browser, inspector: Client, raw_token: str
) -> None:
    page = browser.authorize(inspector, scope="read:billing").content.decode()
    assert browser.page.scopes == ["read:billing", "read:todos", "write:todos"]
    assert (page.count("Allowed before"), page.count(">New<")) == (2, 1)
    response = browser.redeem(inspector, answered(browser.answer())["code"])
    assert set(response.json()["scope"].split()) == {"read:billing", "read:todos", "write:todos"}
    assert Grant.objects.count() == 1


@with_rows
def test_what_was_given_before_can_be_unticked_and_stays_so(
    browser: Browser, inspector: Client, raw_token: str
) -> None:
    browser.authorize(inspector, scope="read:billing")
    answered(browser.answer(scope=["read:billing", "read:todos"]))
    Consent.objects.latest("created").delete()
    browser.authorize(inspector, scope="read:billing")
    answered(browser.answer(scope=["read:billing"]))
    browser.authorize(inspector, scope="read:todos")
    assert browser.page.scopes == ["read:todos", "read:billing"]


@with_rows
@pytest.mark.parametrize("asked", ["read:todos", "read:todos offline_access"])
def test_a_client_that_asks_for_less_is_offered_no_more(
    browser: Browser, inspector: Client, raw_token: str, asked: str
) -> None:
    browser.authorize(inspector, scope=asked)
    assert browser.page.scopes == ["read:todos"]


@with_rows
def test_nothing_is_kept_of_what_is_over_or_was_for_elsewhere(
    browser: Browser, inspector: Client, raw_token: str
) -> None:
    browser.authorize(inspector, scope="read:billing", resource=SSE)
    assert browser.page.scopes == ["read:billing"]
    Client.objects.filter(pk=inspector.pk).update(name="Claude")
    browser.authorize(inspector, scope="read:billing")
    assert browser.page.scopes == ["read:billing"], "another client to consent to"
    Client.objects.filter(pk=inspector.pk).update(name=inspector.name)
    withdrawals.withdraw_grant(Grant.objects.get().pk, by="person")
    browser.authorize(inspector, scope="read:billing")
    assert browser.page.scopes == ["read:billing"]


@with_rows
def test_it_is_kept_too_where_the_person_must_sign_in_first(ada: User, inspector: Client, raw_token: str) -> None:
    another = Browser()
    another.authorize(inspector, scope="read:billing")
    another.sign_in(ada)
    assert another.page.scopes == ["read:billing", "read:todos", "write:todos"]
    assert answered(another.answer())["code"]


@with_rows
@pytest.mark.threat("T27")
def test_another_account_is_offered_nothing_that_the_first_one_gave(
    browser: Browser, mallory: User, inspector: Client, raw_token: str
) -> None:
    browser.authorize(inspector, scope="read:billing")
    old = {**browser.page.hidden, "scope": browser.page.scopes, "action": "allow"}
    page = browser.answer("switch_account")
    assert "See your billing details" in page.content.decode() and "See your todos" not in page.content.decode()
    browser.sign_in(mallory)
    assert browser.page.scopes == ["read:billing"]
    browser.authorize(inspector, scope="read:billing")
    browser.read(browser.post("/authorize", old))
    assert browser.page.scopes == ["read:billing"]
    assert not Grant.objects.filter(user=mallory).exists()


@with_rows
@pytest.mark.threat("T27")
def test_an_account_that_changed_in_another_tab_is_offered_its_own(
    browser: Browser, mallory: User, inspector: Client, raw_token: str
) -> None:
    browser.authorize(inspector, scope="read:billing")
    old = {**browser.page.hidden, "scope": browser.page.scopes, "action": "allow"}
    browser.post("/logout")
    browser.read(browser.get("/login"))
    browser.sign_in(mallory)
    browser.read(browser.post("/authorize", old))
    assert browser.page.scopes == ["read:billing"]
    assert not Grant.objects.filter(user=mallory).exists()
    browser.answer()
    assert Consent.objects.get(grant__user=mallory).scope == "read:billing"
