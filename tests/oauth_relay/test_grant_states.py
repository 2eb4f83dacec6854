"""One person's clients through every order of events: refreshed, retried, stolen from, narrowed, ended (DESIGN §5; T11, T13).

Beside the rows a small model keeps what should be true of each family of tokens. It knows the rule of T13 and nothing of
how the rule is kept.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from django.conf import settings
from django.http import HttpResponse
from django.test import Client as DjangoClient
from django.urls import reverse
from django.utils import timezone
from hypothesis import HealthCheck
from hypothesis import settings as bounds
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from oauth_relay import access_tokens, suspensions, withdrawals
from oauth_relay.digests import digest_of
from oauth_relay.models import AccessToken, AuditEvent, Client, Consent, Grant, RefreshToken, User
from tests.oauth_relay.conftest import Browser, make_client

pytestmark = pytest.mark.django_db

MCP, SSE = settings.RESOURCES
READ, BOTH, BILLING = "read:todos", "read:todos write:todos", "read:todos read:billing"
MINUTE, HOUR, DAY = 60, 3600, 24 * 3600
FRESH_CODE, REPLAY, LONGEST_REPLAY, MOST_REPLAYS = 60, 30, DAY, 20
SECRET = "s" * 40


class Clock:
    """The time of day, which goes on when a test says so."""

    def __init__(self, started: datetime) -> None:
        self.started, self.seconds = started, 0.0

    def now(self) -> datetime:
        return self.started + timedelta(seconds=self.seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    running = Clock(timezone.now())
    monkeypatch.setattr(timezone, "now", running.now)
    yield running


def use(access_token: str, resource: str = MCP) -> None:
    """As when a process sees the token for the first time at /mcp."""
    access_tokens._look_up(digest_of(access_token), resource)


def refusal(response: HttpResponse) -> str:
    return "" if response.status_code == 200 else str(response.json()["error"])


# -- the orders that were once got wrong -------------------------------------------------------------------------------


@pytest.mark.threat("T13")
def test_a_token_older_than_the_predecessor_ends_the_family_at_once(
    browser: Browser, ada: User, inspector: Client, clock: Clock
) -> None:
    """Who refreshed with the second has had the answer to the first: nobody honest still waits for it."""
    first = browser.tokens(inspector, ada)["refresh_token"]
    second = browser.refresh(inspector, first).json()["refresh_token"]
    third = browser.refresh(inspector, second).json()["refresh_token"]
    assert refusal(browser.refresh(inspector, first)) == "invalid_grant"
    assert refusal(browser.refresh(inspector, third)) == "invalid_grant"
    assert AuditEvent.objects.filter(event="token_family.ended", outcome="refresh_token_reused").count() == 1


@pytest.mark.threat("T13")
@pytest.mark.parametrize("less", [{"scope": READ}, {"resource": MCP}, {"scope": READ, "resource": MCP}])
def test_a_client_that_asked_for_less_gets_the_answer_it_missed(
    browser: Browser, ada: User, inspector: Client, less: dict[str, str]
) -> None:
    raw_token = browser.tokens(inspector, ada, resource=None)["refresh_token"]
    answer = browser.refresh(inspector, raw_token, **less)
    assert refusal(answer) == ""
    assert refusal(browser.refresh(inspector, raw_token)) == "invalid_scope", "the whole was not asked for then"
    assert browser.refresh(inspector, raw_token, **less).content == answer.content


@pytest.mark.threat("T13")
def test_a_family_that_has_ended_is_not_ended_again_by_each_of_its_old_tokens(
    browser: Browser, ada: User, inspector: Client
) -> None:
    first = browser.tokens(inspector, ada)["refresh_token"]
    second = browser.refresh(inspector, first).json()["refresh_token"]
    browser.refresh(inspector, second)
    for raw_token in (first, second, first):
        assert refusal(browser.refresh(inspector, raw_token)) == "invalid_grant"
    assert AuditEvent.objects.filter(event="token_family.ended").count() == 1


# -- for how long ------------------------------------------------------------------------------------------------------


def refresh_each(browser: Browser, client: Client, raw_token: str, clock: Clock, days: list[int]) -> list[str]:
    """Refresh after so many days each time; what was refused, or an empty word."""
    outcomes = []
    for number in days:
        clock.seconds += number * DAY
        answer = browser.refresh(client, raw_token)
        outcomes.append(refusal(answer))
        raw_token = answer.json().get("refresh_token", raw_token)
    return outcomes


@pytest.mark.pain("P13")
def test_each_use_lends_a_refresh_token_its_idle_lifetime_anew(
    browser: Browser, ada: User, inspector: Client, clock: Clock
) -> None:
    raw_token = browser.tokens(inspector, ada)["refresh_token"]
    assert refresh_each(browser, inspector, raw_token, clock, [29, 29, 29, 30]) == ["", "", "", "invalid_grant"]


def test_refreshing_ends_with_the_absolute_lifetime_however_often_it_is_done(
    browser: Browser, ada: User, inspector: Client, clock: Clock, settings: Any
) -> None:
    settings.REFRESH_TOKEN_ABSOLUTE_LIFETIME = 60 * DAY
    raw_token = browser.tokens(inspector, ada)["refresh_token"]
    assert refresh_each(browser, inspector, raw_token, clock, [25, 25, 9, 1]) == ["", "", "", "invalid_grant"]


@pytest.mark.pain("P13")
@pytest.mark.parametrize(
    ("idle", "absolute", "outcomes"),
    [
        (None, None, ["", "", ""]),
        (3, None, ["", "invalid_grant"]),
        (None, 5, ["", "", "invalid_grant"]),
        (90, None, ["", "", "", ""]),
        (90, 300, ["", "", "", ""]),
    ],
)
def test_a_client_may_have_lifetimes_of_its_own(
    browser: Browser, ada: User, clock: Clock, idle: int | None, absolute: int | None, outcomes: list[str]
) -> None:
    lifetimes = {"refresh_idle_lifetime": idle, "refresh_absolute_lifetime": absolute}
    client = make_client(**{name: days and timedelta(days=days) for name, days in lifetimes.items()})
    raw_token = browser.tokens(client, ada)["refresh_token"]
    assert refresh_each(browser, client, raw_token, clock, [2, 3 - (absolute == 5), 1, 89][: len(outcomes)]) == outcomes


def test_a_lifetime_that_an_operator_shortens_holds_for_tokens_that_are_out(
    browser: Browser, ada: User, inspector: Client, clock: Clock
) -> None:
    raw_token = browser.tokens(inspector, ada)["refresh_token"]
    Client.objects.update(refresh_absolute_lifetime=timedelta(days=1))
    assert refresh_each(browser, inspector, raw_token, clock, [1]) == ["invalid_grant"]


@pytest.mark.parametrize(("entered", "stored"), [("7 00:00:00", timedelta(days=7)), ("", None), ("0", "refused")])
def test_an_operator_gives_a_client_its_lifetimes_in_the_admin(
    admin_client: DjangoClient, inspector: Client, entered: str, stored: Any
) -> None:
    Client.objects.update(refresh_idle_lifetime=timedelta(days=1))
    page = reverse("admin:oauth_relay_client_change", args=[inspector.pk])
    form = {"refresh_idle_lifetime": entered, "refresh_absolute_lifetime": "100 00:00:00"}
    response = admin_client.post(page, form, headers={"Host": settings.PUBLIC_HOST})
    inspector.refresh_from_db()
    if stored == "refused":
        assert response.status_code == 200
        assert inspector.refresh_idle_lifetime == timedelta(days=1)
    else:
        assert response.status_code == 302
        lifetimes = inspector.refresh_idle_lifetime, inspector.refresh_absolute_lifetime
        assert lifetimes == (stored, timedelta(days=100))


def test_the_absolute_lifetime_is_each_devices_own(
    browser: Browser, ada: User, inspector: Client, clock: Clock, settings: Any
) -> None:
    settings.REFRESH_TOKEN_ABSOLUTE_LIFETIME = 20 * DAY
    laptop = browser.tokens(inspector, ada)["refresh_token"]
    clock.seconds += 10 * DAY
    phone = browser.tokens(inspector, ada)["refresh_token"]
    clock.seconds += 10 * DAY
    assert refusal(browser.refresh(inspector, laptop)) == "invalid_grant"
    assert refusal(browser.refresh(inspector, phone)) == ""


# -- several devices ---------------------------------------------------------------------------------------------------


@pytest.mark.pain("P15")
def test_a_second_device_signs_in_and_the_first_stays(browser: Browser, ada: User, inspector: Client) -> None:
    laptop = browser.tokens(inspector, ada)
    phone = Browser().tokens(inspector, ada)
    for _ in range(3):
        laptop = browser.refresh(inspector, laptop["refresh_token"]).json()
        phone = browser.refresh(inspector, phone["refresh_token"]).json()
        use(laptop["access_token"])
        use(phone["access_token"])
    assert RefreshToken.objects.filter(revoked=None).values("token_family").distinct().count() == 2


@pytest.mark.threat("T13")
def test_what_is_stolen_from_one_device_ends_that_one_alone(
    browser: Browser, ada: User, inspector: Client, clock: Clock
) -> None:
    laptop, phone = browser.tokens(inspector, ada), Browser().tokens(inspector, ada)
    use(browser.refresh(inspector, laptop["refresh_token"]).json()["access_token"])
    clock.seconds += REPLAY + 1
    assert refusal(browser.refresh(inspector, laptop["refresh_token"])) == "invalid_grant"
    assert refusal(browser.refresh(inspector, phone["refresh_token"])) == ""


# -- every order -------------------------------------------------------------------------------------------------------


@dataclass
class Permission:
    """What one client may do for the person, as the model knows it: each yes with its scopes, places and end."""

    pk: Any
    consents: list[tuple[set[str], set[str], float]] = field(default_factory=list)
    is_withdrawn: bool = False
    is_suspended: bool = False

    def covers(self, scope: set[str], resource: set[str], now: float) -> bool:
        return any(scope <= held and resource <= places and now < until for held, places, until in self.consents)


@dataclass
class Link:
    """One refresh token, and the answer that it got when it was spent."""

    raw_token: str
    access_token: str
    born: float
    used: float | None = None
    spent: float | None = None
    asked: tuple[set[str], set[str]] = (set(), set())
    answer: bytes = b""
    replays: int = 0


@dataclass
class Device:
    """What came of one code."""

    client: Client
    permission: Permission
    code: str
    since: float
    scope: set[str]
    resource: set[str]
    chain: list[Link] = field(default_factory=list)
    has_ended: bool = False

    @property
    def newest(self) -> Link:
        return self.chain[-1]

    def is_over(self, now: float) -> bool:
        """The lifetimes: Inspector has the server's, Server its own."""
        idle, absolute = (2 * DAY, 5 * DAY) if self.client.name == "Server" else (30 * DAY, 365 * DAY)
        return now >= min(self.newest.born + idle, self.chain[0].born + absolute)

    def is_too_late(self, number: int, now: float) -> bool:
        """The rule of T13: the predecessor of the newest, 24 h, 30 s after use, 20 times."""
        link, used = self.chain[number], self.newest.used
        assert link.spent is not None
        if number != len(self.chain) - 2 or link.replays >= MOST_REPLAYS:
            return True
        return now > link.spent + LONGEST_REPLAY or (used is not None and now > used + REPLAY)


SCOPES = st.sampled_from(["", "", "", READ, BOTH, BILLING])
RESOURCES = st.sampled_from(["", "", "", MCP, SSE, "https://other.example"])
WHICH = st.integers(0, 7)


class GrantStates(RuleBasedStateMachine):
    """Rules are what may happen; the invariants are looked at after each."""

    clock: Clock

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[Device] = []
        self.codes: list[Device] = []
        self.permissions: dict[int, Permission] = {}
        self.is_active, self.blocked = True, set[int]()

    @initialize()
    def there_is_a_person_with_two_clients(self) -> None:
        self.clock.seconds = 0.0
        self.ada = User.objects.create_user("ada", password="open sesame")
        own = {"refresh_idle_lifetime": timedelta(days=2), "refresh_absolute_lifetime": timedelta(days=5)}
        secret = {"client_type": "confidential", "client_secret": SECRET}
        self.clients = [make_client(), make_client("Server", **secret, **own)]
        self.browser = Browser()
        self.a_device_is_connected(0, BOTH, None)
        self.a_client_refreshes(0, 2)

    def teardown(self) -> None:
        try:
            self.everything_can_be_refreshed_that_should()
        finally:
            User.objects.all().delete()
            Client.objects.all().delete()

    # -- what the model says -------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.clock.seconds

    def _may_use_tokens(self, device: Device, *, refreshing: bool = True) -> bool:
        permission = device.permission
        if device.client.pk in self.blocked or not self.is_active or permission.is_withdrawn:
            return False
        if not permission.covers(device.scope, device.resource, self.now):
            return False
        return not (refreshing and permission.is_suspended)

    def _device(self, which: int, links: int = 1) -> Device:
        """One that has spent so many tokens; an ended one only where there is no other: that stays as it is."""
        long = [device for device in self.devices if len(device.chain) >= links]
        good = [device for device in long if not device.has_ended and self._may_use_tokens(device)] or long
        return good[which % len(good)]

    def _good(self) -> int:
        good = [device for device in self.devices if not device.has_ended and self._may_use_tokens(device)]
        return len([device for device in good if not device.is_over(self.now)])

    def _has_spent(self, tokens: int) -> bool:
        return any(len(device.chain) > tokens for device in self.devices)

    # -- asking and redeeming ------------------------------------------------------------------------------------------

    def _connect(self, which: int, scope: str, resource: str | None) -> None:
        """At a new browser: the person signs in, so whatever waited for that goes on."""
        client = self.clients[which % 2]
        code = Browser().connect(client, self.ada, scope=scope, resource=resource)["code"]
        for other in self.permissions.values():
            other.is_suspended = False
        permission = self.permissions.get(client.pk)
        if permission is None or permission.is_withdrawn:
            grant = Grant.objects.open().get(client=client)
            permission = self.permissions[client.pk] = Permission(grant.pk)
        granted, places = set(scope.split()), {resource} if resource else {MCP, SSE}
        permission.consents.append((granted, places, self.now + settings.CONSENT_LIFETIME))
        self.codes.append(Device(client, permission, code, self.now, granted, places))

    @precondition(lambda self: self.is_active and not self.blocked and self._good() < 2)
    @rule(which=WHICH, scope=st.sampled_from([READ, BOTH]), resource=st.sampled_from([MCP, None]))
    def a_code_is_fetched(self, which: int, scope: str, resource: str | None) -> None:
        self._connect(which, scope, resource)

    @precondition(lambda self: self.is_active and not self.blocked and self._good() < 2)
    @rule(which=WHICH, scope=st.sampled_from([READ, BOTH]), resource=st.sampled_from([MCP, None]))
    def a_device_is_connected(self, which: int, scope: str, resource: str | None) -> None:
        self._connect(which, scope, resource)
        self.a_code_is_redeemed(len(self.codes) - 1)

    @precondition(lambda self: self.codes)
    @rule(which=WHICH)
    def a_code_is_redeemed(self, which: int) -> None:
        device = self.codes.pop(which % len(self.codes))
        is_good = self._may_use_tokens(device, refreshing=False) and self.now < device.since + FRESH_CODE
        response = self.browser.redeem(device.client, device.code, **self._authentication(device.client))
        assert (response.status_code == 200) == is_good, response.content
        if is_good:
            given = response.json()
            device.chain.append(Link(given["refresh_token"], given["access_token"], self.now))
            self.devices.append(device)

    # -- refreshing ----------------------------------------------------------------------------------------------------

    def _authentication(self, client: Client) -> dict[str, str]:
        return {"client_secret": SECRET} if client.name == "Server" else {}

    def _refresh(self, device: Device, number: int, scope: str = "", resource: str = "") -> HttpResponse:
        form = {name: value for name, value in (("scope", scope), ("resource", resource)) if value}
        form |= self._authentication(device.client)
        return self.browser.refresh(device.client, device.chain[number].raw_token, **form)

    def _refresh_and_judge(self, device: Device, number: int, scope: str = "", resource: str = "") -> None:
        response = self._refresh(device, number, scope, resource)
        asked = set(scope.split()) or set(device.scope), {resource} if resource else set(device.resource)
        is_within = asked[0] <= device.scope and asked[1] <= device.resource
        is_beyond_places = not asked[1] <= device.resource
        if device.has_ended or not self._may_use_tokens(device):
            self._is_refused(response)
        elif number == len(device.chain) - 1:
            if device.is_over(self.now) or not is_within:
                self._is_refused(response)
            else:
                self._is_rotated(device, response, asked)
        elif is_beyond_places:
            self._is_refused(response)
        elif device.is_too_late(number, self.now):
            device.has_ended = True
            self._is_refused(response)
        elif device.is_over(self.now) or asked != device.chain[number].asked:
            self._is_refused(response)
        else:
            self._is_answered_again(device.chain[number], response)

    def _is_refused(self, response: HttpResponse) -> None:
        assert response.status_code in (400, 401), response.content
        assert "token" not in response.json()

    def _is_answered_again(self, link: Link, response: HttpResponse) -> None:
        """Byte for byte; only what the person has taken away since is no longer promised."""
        link.replays += 1
        assert response.status_code == 200, response.content
        said = json.loads(link.answer)
        left = [scope for scope in said["scope"].split() if scope in link.asked[0]]
        if left == said["scope"].split():
            assert response.content == link.answer
        else:
            assert response.json() == said | {"scope": " ".join(left)}

    def _is_rotated(self, device: Device, response: HttpResponse, asked: tuple[set[str], set[str]]) -> None:
        assert response.status_code == 200, response.content
        given, spent = response.json(), device.newest
        assert set(given["scope"].split()) == asked[0]
        spent.spent, spent.asked, spent.answer = self.now, asked, response.content
        device.chain.append(Link(given["refresh_token"], given["access_token"], self.now))

    @precondition(lambda self: self.devices)
    @rule(which=WHICH, times=st.integers(1, 3))
    def a_client_refreshes(self, which: int, times: int) -> None:
        device = self._device(which)
        for _ in range(times):
            self._refresh_and_judge(device, len(device.chain) - 1)

    @precondition(lambda self: self.devices)
    @rule(which=WHICH, scope=SCOPES, resource=RESOURCES)
    def a_client_refreshes_asking_for_something(self, which: int, scope: str, resource: str) -> None:
        device = self._device(which)
        self._refresh_and_judge(device, len(device.chain) - 1, scope, resource)

    @precondition(lambda self: self._has_spent(1))
    @rule(which=WHICH, same=st.booleans(), scope=SCOPES, resource=RESOURCES)
    def the_predecessor_comes_again(self, which: int, same: bool, scope: str, resource: str) -> None:
        """Whether it was refused because it asks for other things, or answered, nothing else has changed."""
        device = self._device(which, 2)
        number = len(device.chain) - 2
        if same:
            asked = device.chain[number].asked
            scope, resource = " ".join(sorted(asked[0])), next(iter(asked[1])) if len(asked[1]) == 1 else ""
        self._refresh_and_judge(device, number, scope, resource)

    @precondition(lambda self: self._has_spent(1))
    @rule(which=WHICH)
    def the_predecessor_has_come_many_times(self, which: int) -> None:
        device = self._device(which, 2)
        link = device.chain[-2]
        link.replays = MOST_REPLAYS - 1
        RefreshToken.objects.filter(token_checksum=digest_of(link.raw_token)).update(replays=link.replays)
        self._refresh_and_judge(device, len(device.chain) - 2)
        self._refresh_and_judge(device, len(device.chain) - 2)

    @precondition(lambda self: self._has_spent(2))
    @rule(which=WHICH, older=WHICH, scope=SCOPES)
    def an_older_token_comes_from_a_thief(self, which: int, older: int, scope: str) -> None:
        device = self._device(which, 3)
        self._refresh_and_judge(device, older % (len(device.chain) - 2), scope)

    @precondition(lambda self: self.devices)
    @rule(which=WHICH, number=WHICH)
    def a_stranger_comes_with_a_token(self, which: int, number: int) -> None:
        """Another client, or one that says it is this one and has not its secret. Nothing changes, whatever the token."""
        device = self._device(which)
        raw_token = device.chain[number % len(device.chain)].raw_token
        other = next(client for client in self.clients if client.pk != device.client.pk)
        self._is_refused(self.browser.refresh(other, raw_token, **self._authentication(other)))
        if device.client.name == "Server":
            self._is_refused(self.browser.refresh(device.client, raw_token, client_secret="guessed"))

    @precondition(lambda self: self.devices)
    @rule(which=WHICH)
    def the_newest_access_token_is_used(self, which: int) -> None:
        device = self._device(which)
        is_good = self._may_use_tokens(device) and not device.has_ended and self.now < device.newest.born + 10 * MINUTE
        places = device.chain[-2].asked[1] if len(device.chain) > 1 else device.resource
        if is_good:
            use(device.newest.access_token, min(places))
            device.newest.used = device.newest.used if device.newest.used is not None else self.now

    # -- ends and pauses -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.devices)
    @rule(
        which=WHICH,
        number=WHICH,
        how=st.sampled_from(
            "code_comes_again is_revoked is_withdrawn is_narrowed consent_runs_out time_passes".split()
        ),
    )
    def something_ends(self, which: int, number: int, how: str) -> None:
        """One rule for all of it: of a run in which nothing is alive there is little to learn."""
        getattr(self, f"_{how}")(self._device(which), number)

    def _code_comes_again(self, device: Device, number: int) -> None:
        response = self.browser.redeem(device.client, device.code, **self._authentication(device.client))
        self._is_refused(response)
        device.has_ended |= self._may_use_tokens(device, refreshing=False)

    def _is_revoked(self, device: Device, number: int) -> None:
        """RFC 7009, by any of the family's tokens, old ones too."""
        link = device.chain[number % len(device.chain)]
        token = link.raw_token if number % 2 else link.access_token
        form = {"token": token, "client_id": device.client.client_id, **self._authentication(device.client)}
        body = urlencode(form)
        self.browser.post("/revoke", body, content_type="application/x-www-form-urlencoded")
        device.has_ended |= device.client.pk not in self.blocked

    def _is_withdrawn(self, device: Device, number: int) -> None:
        withdrawals.withdraw_grant(device.permission.pk, "person")
        device.permission.is_withdrawn = True

    def _consent_runs_out(self, device: Device, number: int) -> None:
        Consent.objects.filter(grant_id=device.permission.pk).update(expires_at=self.clock.now())
        device.permission.consents.clear()

    def _is_narrowed(self, device: Device, number: int) -> None:
        """All that hangs on it holds less; an answer that is kept for a retry says what it said."""
        permission = device.permission
        if not withdrawals.narrow_grant(permission.pk, {"write:todos"}, "person"):
            return
        assert not permission.is_withdrawn
        permission.consents = [(held - {"write:todos"}, *rest) for held, *rest in permission.consents]
        for one in [*self.devices, *self.codes]:
            if one.permission is permission:
                one.scope.discard("write:todos")
                for link in one.chain:
                    link.asked[0].discard("write:todos")

    def _time_passes(self, device: Device, number: int) -> None:
        self.clock.seconds += (LONGEST_REPLAY, LONGEST_REPLAY + 1, 3 * DAY, 29 * DAY, 31 * DAY, 366 * DAY)[number % 6]

    @rule(what=st.sampled_from(["person", "client", "provider"]), which=WHICH)
    def something_is_switched_off(self, what: str, which: int) -> None:
        client = self.clients[which % 2]
        if what == "person":
            self._switch_person(False)
        elif what == "client":
            withdrawals.block_client(client)
            self.blocked.add(client.pk)
        else:
            suspensions.suspend(self.ada, "auth0")
            for permission in self.permissions.values():
                permission.is_suspended = True

    @precondition(lambda self: self._is_anything_off())
    @rule()
    def everything_is_on_again(self) -> None:
        """What was off has not ended: the same tokens go on."""
        self._switch_person(True)
        Client.objects.update(blocked_at=None)
        self.blocked.clear()
        suspensions.resume(self.ada)
        for permission in self.permissions.values():
            permission.is_suspended = False

    def _is_anything_off(self) -> bool:
        return not self.is_active or bool(self.blocked) or any(p.is_suspended for p in self.permissions.values())

    def _switch_person(self, is_active: bool) -> None:
        self.ada.refresh_from_db()
        self.ada.is_active = self.is_active = is_active
        self.ada.save()

    @rule(seconds=st.sampled_from([1, REPLAY - 1, REPLAY, REPLAY + 1, 11 * MINUTE, HOUR]))
    def a_moment_passes(self, seconds: int) -> None:
        self.clock.seconds += seconds

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def a_family_has_one_living_token_unless_it_has_ended(self) -> None:
        """And that is the one which the client got last: neither a thief's nor nobody's."""
        for device in self.devices:
            family = RefreshToken.objects.get(token_checksum=digest_of(device.chain[0].raw_token)).token_family
            living = RefreshToken.objects.filter(token_family=family, revoked=None)
            expected = [] if device.has_ended else [digest_of(device.newest.raw_token)]
            assert list(living.values_list("token_checksum", flat=True)) == expected
            assert not (device.has_ended and AccessToken.objects.filter(family=family).exists())

    @invariant()
    def no_token_is_there_that_nobody_was_given(self) -> None:
        assert RefreshToken.objects.count() == sum(len(device.chain) for device in self.devices)

    def everything_can_be_refreshed_that_should(self) -> None:
        """At the end: no client that kept to the rule is lost, none that broke it is kept."""
        for device in self.devices:
            self._refresh_and_judge(device, len(device.chain) - 1)


@pytest.mark.threat("T11")
@pytest.mark.threat("T13")
def test_no_order_of_events_loses_an_honest_client_or_keeps_another(clock: Clock) -> None:
    GrantStates.clock = clock
    run_state_machine_as_test(
        GrantStates,
        settings=bounds(
            max_examples=40,
            stateful_step_count=15,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
