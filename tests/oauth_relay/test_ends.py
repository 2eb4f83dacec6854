"""How an authorization ends: twice, late, in mid-flow, and at an app that a browser has to be talked into opening."""

from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.http import HttpResponse

from oauth_relay.models import AuthorizationCode, Client, Consent, Grant, LoginTransaction, User
from tests.oauth_relay.conftest import Browser, answered, make_client

pytestmark = pytest.mark.django_db
APP = "cursor://anysphere.cursor-mcp/oauth/callback"
NAVIGATES = {"HTTP_SEC_FETCH_MODE": "navigate"}


@pytest.fixture
def cursor(db: None) -> Client:
    return make_client("Cursor", APP)


@pytest.fixture
def person(ada: User, cursor: Client) -> Browser:
    """A person's real browser, which says that it navigates, on Cursor's consent page."""
    browser = Browser()
    browser.defaults.update(NAVIGATES)
    browser.authorize(cursor, redirect_uri=APP)
    browser.sign_in(ada)
    return browser


def handed_off(response: HttpResponse) -> dict[str, str]:
    """The parameters of the address to which a page leads: by its link, and by itself."""
    assert response.status_code == 200, response.content[:2000]
    page = response.content.decode()
    assert "If nothing happens" in page
    target = response["Refresh"].removeprefix("0;url=")
    assert f'href="{target}"' in unescape(page)
    assert target.startswith(f"{APP}?")
    return {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}


# -- at an app of the person's device ----------------------------------------------------------------------------------


def test_an_app_is_answered_by_way_of_a_page(person: Browser) -> None:
    response = person.answer()
    answer = handed_off(response)
    assert answer["code"] and answer["state"] == "its state" and answer["iss"]
    assert b"about a minute" in response.content


def test_deny_and_cancel_reach_an_app_the_same_way(person: Browser, cursor: Client) -> None:
    denied = person.answer("deny")
    assert handed_off(denied)["error"] == "access_denied"
    assert b"about a minute" not in denied.content
    person.authorize(cursor, redirect_uri=APP, prompt="login")
    cancelled = person.read(person.post("/login", {**person.page.hidden, "action": "cancel"}))
    assert (handed_off(cancelled)["error"], handed_off(cancelled)["state"]) == ("access_denied", "its state")


def test_a_wrong_request_reaches_an_app_that_may_be_told_the_same_way(person: Browser, cursor: Client) -> None:
    handed_off(person.answer())
    assert handed_off(person.authorize(cursor, redirect_uri=APP, scope="nonsense"))["error"] == "invalid_scope"


def test_the_page_keeps_the_code_to_itself(person: Browser) -> None:
    response = person.answer()
    assert "no-store" in response["Cache-Control"] and response["Referrer-Policy"] == "no-referrer"
    assert "Location" not in response
    assert "frame-ancestors 'none'" in response["Content-Security-Policy"]


def test_a_program_is_redirected_as_the_standard_says(ada: User, cursor: Client) -> None:
    browser = Browser()
    browser.authorize(cursor, redirect_uri=APP)
    browser.sign_in(ada)
    assert answered(browser.answer())["code"]


@pytest.mark.parametrize("redirect_uri", ["http://127.0.0.1:33418/callback", "https://client.example/callback"])
def test_a_browser_is_redirected_to_what_has_an_address(ada: User, redirect_uri: str) -> None:
    browser = Browser()
    browser.defaults.update(NAVIGATES)
    browser.authorize(make_client("Web", redirect_uri), redirect_uri=redirect_uri)
    browser.sign_in(ada)
    assert answered(browser.answer())["code"]


def test_what_an_app_calls_itself_stays_text(ada: User) -> None:
    browser = Browser()
    browser.defaults.update(NAVIGATES)
    browser.authorize(make_client('"><script>alert(1)</script>', APP), redirect_uri=APP)
    browser.sign_in(ada)
    assert b"<script" not in browser.answer().content


# -- twice -------------------------------------------------------------------------------------------------------------


def test_a_request_opened_twice_can_be_answered_in_both_tabs(browser: Browser, ada: User, inspector: Client) -> None:
    """Two transactions, two codes, one permission."""
    browser.authorize(inspector)
    browser.sign_in(ada)
    first = {**browser.page.hidden, "scope": browser.page.scopes, "action": "allow"}
    browser.authorize(inspector)
    codes = {answered(browser.answer())["code"], answered(browser.post("/authorize", first))["code"]}
    assert len(codes) == 2
    assert all(browser.redeem(inspector, code).status_code == 200 for code in codes)
    assert Grant.objects.count() == 1


@pytest.mark.parametrize(("first", "then"), [("allow", "deny"), ("deny", "allow"), ("deny", "deny")])
def test_the_first_answer_stays(browser: Browser, ada: User, inspector: Client, first: str, then: str) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    page = {**browser.page.hidden, "scope": browser.page.scopes}
    answered(browser.post("/authorize", {**page, "action": first}))
    again = browser.post("/authorize", {**page, "action": then})
    assert again.status_code == 409 and b"already answered" in again.content
    assert Consent.objects.count() == AuthorizationCode.objects.count() == (1 if first == "allow" else 0)
    assert LoginTransaction.objects.get().outcome == {"allow": "allowed", "deny": "denied"}[first]


def test_cancel_pressed_twice_says_so(browser: Browser, inspector: Client) -> None:
    browser.authorize(inspector)
    form = {**browser.page.hidden, "action": "cancel"}
    answered(browser.post("/login", form))
    assert b"already answered" in browser.post("/login", form).content


def test_the_hand_off_page_asked_for_again_says_that_it_was_answered(person: Browser) -> None:
    """What the back button does: the form is sent once more."""
    page = {**person.page.hidden, "scope": person.page.scopes, "action": "allow"}
    handed_off(person.post("/authorize", page))
    again = person.post("/authorize", page)
    assert again.status_code == 409 and "Refresh" not in again
    assert AuthorizationCode.objects.count() == 1


# -- in mid-flow -------------------------------------------------------------------------------------------------------


def test_a_session_that_ends_before_the_answer_costs_a_sign_in_and_no_more(
    browser: Browser, ada: User, inspector: Client
) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    browser.session.flush()
    page = browser.answer()
    assert b"Sign in to connect a client" in page.content
    assert not Consent.objects.exists()
    browser.sign_in(ada)
    assert answered(browser.answer())["state"] == "its state"


@pytest.mark.parametrize("action", ["allow", "deny"])
def test_an_answer_that_comes_too_late_changes_nothing(
    browser: Browser, ada: User, inspector: Client, action: str
) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    LoginTransaction.objects.update(expires_at="2026-01-01T00:00:00Z")
    late = browser.answer(action)
    assert late.status_code == 409 and b"connect again" in late.content
    assert not Consent.objects.exists()


def test_a_person_switched_off_in_mid_flow_gets_no_further(
    browser: Browser, ada: User, inspector: Client, settings: Any
) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    User.objects.filter(pk=ada.pk).update(is_active=False)
    assert b"Sign in to connect a client" in browser.answer().content
    assert not Consent.objects.exists()
