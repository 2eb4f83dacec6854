"""/connections: seen, narrowed and ended by the person alone; and what each of them takes with it (T11, T12)."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from oauth_relay import access_tokens, last_uses, request_validator, withdrawals
from oauth_relay.access_tokens import PresentedToken, verify_access_token
from oauth_relay.models import (
    AccessToken,
    AuditEvent,
    Client,
    Consent,
    Grant,
    RefreshToken,
    UpstreamCredential,
    User,
    Withdrawal,
)
from tests import identity_provider, servers
from tests.identity_provider import FakedProvider
from tests.oauth_relay import racing
from tests.oauth_relay.at_provider import BrowserAtProvider
from tests.oauth_relay.conftest import Browser, make_client
from tests.servers import Server
from tests.walk import OAuthClient, Person, result_of

in_thread = sync_to_async(thread_sensitive=False)
MCP = settings.RESOURCES[0]
READ, WRITE, BILLING = "read:todos", "write:todos", "read:billing"


def text_of(browser: Browser) -> str:
    """What the page says, in one line."""
    response = browser.get("/connections")
    assert response.status_code == 200
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", response.content.decode())).split())


def press(browser: Browser, action: str, **fields: Any) -> str:
    form = {"action": action, "grant": str(Grant.objects.open().order_by("created").values_list("pk", flat=True)[0])}
    response = browser.read(browser.post("/connections", {**form, **fields}))
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", response.content.decode())).split())


def narrow(browser: Browser, *kept: str, shown: tuple[str, ...] = (READ, WRITE), **fields: Any) -> str:
    return press(browser, "narrow", shown=list(shown), scope=list(kept), **fields)


# -- seen --------------------------------------------------------------------------------------------------------------


@pytest.mark.pain("P30")
@pytest.mark.django_db
def test_it_says_what_a_client_may_do_and_when_it_was_used(browser: Browser, ada: User, inspector: Client) -> None:
    browser.tokens(inspector, ada)
    assert "Last used Not yet" in text_of(browser)
    Grant.objects.update(last_used_at=timezone.now(), last_tool="list_todos", last_address="192.0.2.0/24")
    page = text_of(browser)
    for said in (
        "Inspector",
        "127.0.0.1:33418",
        "See your todos",
        "Last tool list_todos",
        "Last seen from 192.0.2.0/24",
    ):
        assert said in page
    assert "Last used 0 minutes ago" in page


@pytest.mark.django_db
def test_it_tells_each_yes_and_what_became_of_it(browser: Browser, ada: User, inspector: Client) -> None:
    browser.tokens(inspector, ada)
    narrow(browser, READ)
    over = timezone.now() - timedelta(seconds=1)
    Consent.objects.create(grant=Grant.objects.get(), redirect_uri="https://a.example/", scope=BILLING, expires_at=over)
    page = text_of(browser)
    assert page.count("Lasts until") == 1
    assert page.count("Narrowed") == 1
    assert page.count("Ran out") == 1
    assert "See your billing details" in page
    press(browser, "withdraw")
    page = text_of(browser)
    assert (page.count("Lasts until"), page.count("Narrowed"), page.count("Taken back")) == (0, 1, 2)


@pytest.mark.django_db
def test_what_was_taken_away_is_not_told_as_a_yes(browser: Browser, ada: User, inspector: Client) -> None:
    """Each step says what went, whoever allowed it again in between."""
    browser.tokens(inspector, ada, scope=f"{READ} {WRITE} {BILLING}")
    narrow(browser, READ, WRITE, shown=(READ, WRITE, BILLING))
    narrow(browser, READ)
    browser.tokens(inspector, ada)
    page = text_of(browser)
    told = re.findall(r"\d\d:\d\d UTC : (.*?) Answered at", page)
    read, write, billing = "See your todos", "Add, change and delete your todos", "See your billing details"
    assert told == [
        f"{read} , {write}",
        f"You took away {write} . What is left: {read}",
        f"You took away {billing} . What is left: {read} , {write}",
        f"{read} , {write} , {billing}",
    ]
    assert (page.count("Narrowed"), page.count("Lasts until")) == (2, 2)


@pytest.mark.django_db(transaction=True)
def test_it_says_when_a_client_first_used_what_it_was_given(browser: Browser, ada: User, inspector: Client) -> None:
    given = browser.tokens(inspector, ada)
    assert "First used" not in text_of(browser), "it has only been connected"
    async_to_sync(verify_access_token)(PresentedToken("Bearer", given["access_token"], "POST", MCP, MCP))
    browser.refresh(inspector, given["refresh_token"])
    first, second = timezone.now() - timedelta(days=3), timezone.now()
    RefreshToken.objects.filter(successor__isnull=False).update(first_used_at=first)
    RefreshToken.objects.filter(successor__isnull=True).update(first_used_at=second)
    assert f"First used {first:%-d %B %Y, %H:%M} UTC" in text_of(browser)


@pytest.mark.django_db
def test_it_asks_the_database_no_more_for_many_than_for_one(
    browser: Browser, ada: User, inspector: Client, django_assert_num_queries: Any
) -> None:
    def connect(name: str) -> None:
        client = make_client(name)
        browser.tokens(client, ada)
        withdrawals.withdraw_grant(Grant.objects.get(client=client).pk, "person")
        browser.tokens(client, ada)
        narrow(browser, READ, grant=str(Grant.objects.open().get(client=client).pk))

    connect("First")
    with CaptureQueriesContext(connection) as asked:
        text_of(browser)
        for_one = len(asked)
    for name in ("Second", "Third", "Fourth"):
        connect(name)
    with django_assert_num_queries(for_one):
        page = text_of(browser)
    assert page.count("You took away") == 4 and page.count("by you") == 4


@pytest.mark.threat("T33")
@pytest.mark.django_db
def test_who_narrows_is_told_that_the_client_may_not_ask_for_a_day(
    browser: Browser, ada: User, inspector: Client
) -> None:
    browser.tokens(inspector, ada)
    sentence = "It cannot ask you again for a day. To allow more sooner, disconnect it, and connect it again."
    assert text_of(browser).count(sentence) == 1
    assert narrow(browser, READ).count(sentence) == 2, "beside the boxes, and with what was done"


@pytest.mark.django_db
def test_what_ended_is_shown_for_ninety_days(browser: Browser, ada: User, inspector: Client) -> None:
    browser.tokens(inspector, ada)
    assert "Ended in the last 90 days" not in text_of(browser)
    press(browser, "withdraw")
    page = text_of(browser)
    assert "Ended in the last 90 days Inspector Connected" in page
    assert "by you" in page
    assert "What you allowed, and when" in page
    Grant.objects.update(withdrawn_at=timezone.now() - timedelta(days=91))
    assert "Ended in the last 90 days" not in text_of(browser)


@pytest.mark.django_db
def test_nothing_of_anybody_else_is_on_the_page(browser: Browser, ada: User, mallory: User, inspector: Client) -> None:
    browser.tokens(inspector, ada)
    press(browser, "withdraw")
    browser.tokens(inspector, ada)
    other = Browser()
    other.read(other.get("/login"))
    other.sign_in(mallory)
    assert "Inspector" not in text_of(other)


# -- narrowed ----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_what_is_unticked_is_gone_from_every_token_at_once(browser: Browser, ada: User, inspector: Client) -> None:
    given = browser.tokens(inspector, ada)
    assert "Inspector may no longer: “Add, change and delete your todos”." in narrow(browser, READ)
    assert set(AccessToken.objects.values_list("scope", flat=True)) == {READ}
    assert set(RefreshToken.objects.values_list("scope", flat=True)) == {READ}
    answer = browser.refresh(inspector, given["refresh_token"]).json()
    assert answer["scope"] == READ
    assert browser.refresh(inspector, answer["refresh_token"]).json()["scope"] == READ
    assert browser.refresh(inspector, answer["refresh_token"], scope=f"{READ} {WRITE}").status_code == 400


@pytest.mark.django_db
def test_the_record_is_withdrawn_and_another_says_what_is_left(browser: Browser, ada: User, inspector: Client) -> None:
    browser.tokens(inspector, ada)
    before = Consent.objects.get()
    narrow(browser, READ)
    old, new = Consent.objects.order_by("created")
    assert (old.pk, old.scope) == (before.pk, f"{READ} {WRITE}")
    assert old.withdrawn_at is not None
    same = ("client_digest", "redirect_uri", "resource", "expires_at")
    assert (new.scope, new.withdrawn_at) == (READ, None)
    assert [getattr(new, name) for name in same] == [getattr(before, name) for name in same]
    event = AuditEvent.objects.get(event="grant.narrowed")
    assert (event.detail, event.grant_id) == ({"by": "person", "scopes": [WRITE]}, new.grant_id)


@pytest.mark.django_db
def test_only_what_the_page_showed_can_be_taken_away(browser: Browser, ada: User, inspector: Client) -> None:
    """The person allowed more in another tab meanwhile: this form knows nothing of it."""
    browser.tokens(inspector, ada)
    browser.tokens(inspector, ada, scope="read:billing")
    narrow(browser, READ, shown=(READ, WRITE))
    scopes = {scope for record in Consent.objects.alive() for scope in record.scope.split()}
    assert scopes == {READ, "read:billing"}


@pytest.mark.django_db
def test_the_same_form_twice_changes_nothing_more(browser: Browser, ada: User, inspector: Client) -> None:
    browser.tokens(inspector, ada)
    narrow(browser, READ)
    assert "Nothing was changed." in narrow(browser, READ)
    assert Consent.objects.count() == 2
    assert Withdrawal.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize("kept", [(), ("admin",)])
def test_nothing_ticked_is_no_answer(browser: Browser, ada: User, inspector: Client, kept: tuple[str, ...]) -> None:
    browser.tokens(inspector, ada)
    assert "leave at least one permission ticked" in narrow(browser, *kept)
    assert Consent.objects.alive().get().scope == f"{READ} {WRITE}"


@pytest.mark.django_db
def test_ticking_more_than_was_shown_gives_nothing(browser: Browser, ada: User, inspector: Client) -> None:
    browser.tokens(inspector, ada, scope=READ)
    narrow(browser, READ, WRITE, "read:billing", shown=(READ,))
    assert {record.scope for record in Consent.objects.all()} == {READ}
    assert AccessToken.objects.get().scope == READ


@pytest.mark.django_db
def test_somebody_elses_connection_is_not_narrowed(
    browser: Browser, ada: User, mallory: User, inspector: Client
) -> None:
    browser.tokens(inspector, ada)
    attacker = Browser()
    attacker.read(attacker.get("/login"))
    attacker.sign_in(mallory)
    assert "had already ended" in narrow(attacker, READ)
    assert "Everything is disconnected" not in press(attacker, "withdraw_all")
    assert Consent.objects.alive().get().scope == f"{READ} {WRITE}"


@pytest.mark.django_db
def test_a_code_on_its_way_yields_what_is_left(browser: Browser, ada: User, inspector: Client) -> None:
    code = browser.connect(inspector, ada)["code"]
    narrow(browser, READ)
    assert browser.redeem(inspector, code).json()["scope"] == READ


@pytest.mark.django_db
@pytest.mark.threat("T13")
def test_a_client_that_missed_its_answer_gets_it_with_what_is_left(
    browser: Browser, ada: User, inspector: Client
) -> None:
    """Byte for byte, but for the scope: a client that keeps to the rule is not lost, and is not told what is not so."""
    raw = browser.tokens(inspector, ada)["refresh_token"]
    first = browser.refresh(inspector, raw)
    assert browser.refresh(inspector, raw).content == first.content
    narrow(browser, READ)
    again = browser.refresh(inspector, raw)
    assert again.json() == {**first.json(), "scope": READ}
    assert browser.refresh(inspector, again.json()["refresh_token"]).status_code == 200


@pytest.mark.django_db
@pytest.mark.threat("T13")
def test_a_stolen_token_is_still_known_for_what_it_is(browser: Browser, ada: User, inspector: Client) -> None:
    stolen = browser.tokens(inspector, ada)["refresh_token"]
    second = browser.refresh(inspector, stolen).json()["refresh_token"]
    third = browser.refresh(inspector, second).json()["refresh_token"]
    narrow(browser, READ)
    assert browser.refresh(inspector, stolen).status_code == 400
    assert AuditEvent.objects.filter(event="token_family.ended", outcome="refresh_token_reused").exists()
    assert browser.refresh(inspector, third).status_code == 400


@pytest.mark.django_db
def test_what_was_taken_away_can_be_allowed_again(browser: Browser, ada: User, inspector: Client) -> None:
    browser.tokens(inspector, ada)
    narrow(browser, READ)
    assert browser.tokens(inspector, ada)["scope"] == f"{READ} {WRITE}"


@pytest.mark.django_db
@pytest.mark.threat("T11")
@pytest.mark.parametrize("spent", ["code", "refresh_token"])
def test_what_was_narrowed_while_a_request_waited_for_the_lock_is_what_it_gets(
    browser: Browser, ada: User, inspector: Client, monkeypatch: pytest.MonkeyPatch, spent: str
) -> None:
    code = browser.connect(inspector, ada)["code"]
    lock = request_validator.live_grant_for

    def narrowed_meanwhile(row: Any, request: Any) -> Grant:
        withdrawals.narrow_grant(row.grant_id, {WRITE}, "person")
        return lock(row, request)

    if spent == "code":
        monkeypatch.setattr(request_validator, "live_grant_for", narrowed_meanwhile)
        response = browser.redeem(inspector, code)
    else:
        raw = browser.redeem(inspector, code).json()["refresh_token"]
        monkeypatch.setattr(request_validator, "live_grant_for", narrowed_meanwhile)
        response = browser.refresh(inspector, raw)
    assert (response.status_code, response.json().get("scope")) == (200, READ)


@pytest.mark.threat("T12")
@pytest.mark.django_db(transaction=True)
async def test_a_token_in_use_loses_it_within_a_second_and_its_stream_goes_on(
    browser: Browser, ada: User, inspector: Client
) -> None:
    raw = (await in_thread(browser.tokens)(inspector, ada))["access_token"]
    presented = PresentedToken("Bearer", raw, "POST", MCP, MCP)
    principal = await verify_access_token(presented)
    assert principal.scopes == {READ, WRITE}
    ended: list[str] = []
    access_tokens.when_withdrawn(principal, lambda: ended.append("stream"))
    reader = withdrawals.reader()
    seen = reader.count
    await in_thread(withdrawals.narrow_grant)(principal.grant_id, {WRITE}, "person")
    while reader.count == seen:
        await reader.read()
    assert (await verify_access_token(presented)).scopes == {READ}
    assert ended == []


# -- ended -------------------------------------------------------------------------------------------------------------


@pytest.mark.pain("P30")
@pytest.mark.django_db
def test_everything_can_be_disconnected_at_once(browser: Browser, ada: User, mallory: User, inspector: Client) -> None:
    given = browser.tokens(inspector, ada)
    assert "Disconnect all" not in text_of(browser), "one can be disconnected by its own button"
    browser.tokens(make_client("Other"), ada)
    theirs = Browser()
    theirs.tokens(inspector, mallory)
    assert "Yes, disconnect all of them" in text_of(browser)
    assert "Everything is disconnected." in press(browser, "withdraw_all")
    assert set(Grant.objects.open().values_list("user__username", flat=True)) == {"mallory"}
    assert browser.refresh(inspector, given["refresh_token"]).status_code == 400
    assert AuditEvent.objects.filter(event="grant.withdrawn").count() == 2


@pytest.mark.django_db
def test_a_button_that_does_not_exist_does_nothing(browser: Browser, ada: User, inspector: Client) -> None:
    browser.tokens(inspector, ada)
    assert "Nothing was changed." in press(browser, "explode")
    assert Grant.objects.get().is_open


# -- the vault ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def peer(settings: Any) -> Iterator[FakedProvider]:
    with identity_provider.faked_provider() as running:
        identity_provider.configure(settings, running.origin)
        yield running


@pytest.fixture
def two_clients(peer: FakedProvider, inspector: Client) -> BrowserAtProvider:
    """Ada's client that reads todos, and one that reads nothing of the API."""
    peer.tokens = {"refresh_token": "upstream-refresh-of-ada"}
    browser = BrowserAtProvider(peer)
    browser.tokens_of(inspector)
    browser.tokens_of(make_client("Only knows her"))
    Consent.objects.filter(grant__client__name="Only knows her").update(scope="")
    assert UpstreamCredential.objects.count() == 1
    return browser


def _withdraw_inspector() -> None:
    withdrawals.withdraw_grant(Grant.objects.get(client__name="Inspector").pk, "person")


def _narrow_inspector() -> None:
    withdrawals.narrow_grant(Grant.objects.get(client__name="Inspector").pk, {READ, WRITE}, "person")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("act", [_withdraw_inspector, _narrow_inspector])
def test_tokens_that_nothing_needs_any_more_are_erased(
    two_clients: BrowserAtProvider, settings: Any, act: Callable[[], None]
) -> None:
    settings.UPSTREAM_RECHECK = 0
    act()
    assert not UpstreamCredential.objects.exists()
    assert AuditEvent.objects.get(event="upstream_token.erased").outcome == "nothing_needs_it"


@pytest.mark.django_db(transaction=True)
def test_tokens_that_another_connection_reaches_its_api_with_are_kept(
    two_clients: BrowserAtProvider, settings: Any
) -> None:
    settings.UPSTREAM_RECHECK = 0
    Consent.objects.filter(scope="").update(scope=READ)
    _withdraw_inspector()
    assert UpstreamCredential.objects.exists()


@pytest.mark.threat("T37")
@pytest.mark.django_db(transaction=True)
def test_tokens_by_which_the_provider_is_asked_about_the_person_are_kept(two_clients: BrowserAtProvider) -> None:
    _withdraw_inspector()
    assert UpstreamCredential.objects.exists(), "or nobody would learn that the provider has disabled the person"
    withdrawals.withdraw_grant(Grant.objects.open().get().pk, "person")
    assert not UpstreamCredential.objects.exists()


# -- the last use ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keeps", "address", "kept"),
    [
        ("TRUNCATED", "192.0.2.77", "192.0.2.0/24"),
        ("TRUNCATED", "::ffff:192.0.2.77", "192.0.2.0/24"),
        ("TRUNCATED", "2001:db8:1:2:3::4", "2001:db8:1::/48"),
        ("FULL", "192.0.2.77", "192.0.2.77"),
        ("FULL", "2001:db8:1:2:3::4", "2001:db8:1:2:3::4"),
        ("NONE", "192.0.2.77", ""),
        ("FULL", "", ""),
        ("FULL", "unix:/run/x", ""),
    ],
)
def test_as_much_of_an_address_is_kept_as_is_configured(settings: Any, keeps: str, address: str, kept: str) -> None:
    settings.CLIENT_ADDRESSES = keeps
    assert last_uses.address_to_keep(address) == kept


@pytest.mark.django_db(transaction=True)
async def test_the_last_tool_is_written_at_once_and_then_once_a_minute(
    ada: User, inspector: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The minute is ours to end here."""
    grant = await Grant.objects.acreate(user=ada, client=inspector)
    uses = last_uses._uses.get()
    minutes: list[Any] = []

    async def a_minute(seconds: float) -> None:
        assert seconds == 60
        minutes.append(done := last_uses.asyncio.get_running_loop().create_future())
        await done

    async def written() -> tuple[str, str]:
        await grant.arefresh_from_db()
        return grant.last_tool, grant.last_address

    until = time.monotonic() + 5

    async def minute_number(number: int) -> None:
        while len(minutes) < number:
            assert time.monotonic() < until
            await real_sleep(0.01)

    real_sleep = last_uses.asyncio.sleep
    monkeypatch.setattr(last_uses.asyncio, "sleep", a_minute)
    last_uses.note(grant.pk, "first", "192.0.2.7")
    await minute_number(1)
    assert await written() == ("first", "192.0.2.0/24")
    for tool, address in (("second", "192.0.2.7"), ("third", "198.51.100.7")):
        last_uses.note(grant.pk, tool, address)
    assert (await written(), len(uses.tasks)) == (("first", "192.0.2.0/24"), 1)
    minutes[0].set_result(None)
    await minute_number(2)
    assert await written() == ("third", "198.51.100.0/24")
    minutes[1].set_result(None)
    while uses.tasks:
        await real_sleep(0)
    assert uses.latest == {}


@pytest.mark.django_db(transaction=True)
async def test_a_token_in_use_from_elsewhere_is_seen_from_there(
    browser: Browser, ada: User, inspector: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stole it calls while it is remembered: nothing is looked up again."""
    raw = (await in_thread(browser.tokens)(inspector, ada))["access_token"]
    written: asyncio.Queue[Any] = asyncio.Queue()
    write = last_uses._write

    def tell(*use: Any) -> None:
        write(*use)
        loop.call_soon_threadsafe(written.put_nowait, None)

    async def seen_from(address: str) -> str:
        principal = await verify_access_token(PresentedToken("Bearer", raw, "POST", MCP, MCP, address))
        access_tokens.note_tool(principal, "list_todos")
        async with asyncio.timeout(5):
            await written.get()
        return (await Grant.objects.aget()).last_address

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(last_uses, "WRITTEN_EVERY", 0)
    monkeypatch.setattr(last_uses, "_write", tell)
    assert await seen_from("192.0.2.7") == "192.0.2.0/24"
    monkeypatch.setattr(access_tokens, "_look_up", None)
    assert await seen_from("198.51.100.7") == "198.51.100.0/24"
    assert await seen_from("192.0.2.7") == "192.0.2.0/24"


# -- at once -----------------------------------------------------------------------------------------------------------

LAST_TWO = """
import threading, time
from django.conf import settings
from django.db import connection, connections
from django.db.transaction import atomic
from oauth_relay.models import Client, Grant, UpstreamCredential, User
from oauth_relay.withdrawals import withdraw_grant
settings.UPSTREAM_PROVIDERS = {"auth0": {"audience": "x"}}  # whose word every connection rests on
user = User.objects.create(username="ada")
UpstreamCredential.objects.create(user=user, provider="auth0", audience="x", issuer="i", subject="s", tokens=b"")
one, other = [
    Grant.objects.create(user=user, client=Client.objects.create(
        name=name, client_type="public", redirect_uris="https://a.example/", authorization_grant_type="authorization-code"))
    for name in ("one", "other")
]
has_ended, second_is_done = threading.Event(), threading.Event()

def second_waits():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return cursor.fetchone()[0] > 0

def first():
    with atomic():
        withdraw_grant(one.pk, "test")
        has_ended.set()
        until = time.monotonic() + 20
        while not (second_is_done.wait(0.02) or second_waits()):
            assert time.monotonic() < until
    connections.close_all()

thread = threading.Thread(target=first)
thread.start()
assert has_ended.wait(20)
withdraw_grant(other.pk, "test")
second_is_done.set()
thread.join(30)
print(Grant.objects.open().count(), UpstreamCredential.objects.count())
"""


@pytest.mark.postgres
@pytest.mark.threat("T11")
def test_of_two_last_grants_that_end_at_once_the_second_takes_the_vault_along() -> None:
    """Neither may take the other, whose end has not committed yet, for alive. SQLite has one writer at a time."""
    with servers.database("postgres") as url:
        environment = racing.environment(url)
        racing.migrate(environment)
        assert racing.run(environment, LAST_TWO) == "0 0"


# -- across processes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_servers() -> Iterator[tuple[Server, Server]]:
    """Two processes under one public name, as behind a balancer."""
    with servers.database("postgres") as url, servers.serve(url) as first:
        with servers.serve(url, {"PUBLIC_URL": first.url, "PORT": str(servers.free_port())}) as second:
            yield first, second


@pytest.mark.postgres
@pytest.mark.threat("T12")
def test_narrowing_holds_within_a_second_in_every_process(two_servers: tuple[Server, Server]) -> None:
    first, second = two_servers
    client, person = OAuthClient(first.url, name="Narrowed"), Person(first.url)
    client.connect(person)
    there = OAuthClient(second.address, tokens=client.tokens)
    there.http.headers["Host"] = first.url.removeprefix("http://")

    def may_create(at: OAuthClient) -> bool:
        """The person has just refused this, so the tool says so: nobody is sent to ask them again (T33)."""
        return not result_of(at.call("create_todo", title="Milk")).get("isError", False)

    assert may_create(client)
    assert may_create(there)
    until = time.monotonic() + 5
    while "Last tool create_todo" not in (page := person.open("/connections")).text:
        assert time.monotonic() < until, page.text
    assert "Last seen from 127.0.0.0/24" in page.text
    narrowed = person.browser.press(page, "narrow", untick=[WRITE], about="Narrowed")
    assert "Narrowed may no longer" in narrowed.text
    started = time.monotonic()
    while may_create(client) or may_create(there):
        assert time.monotonic() - started < 5, "a second (T12), and what the machine adds to two calls"
    assert client.todos()
    assert there.todos()
    assert client.refresh(client.tokens["refresh_token"]).json()["scope"] == READ
