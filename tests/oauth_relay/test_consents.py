"""What a person's yes covers, when it is asked for again, and what waits for it (DESIGN §4.5, T9, T31)."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone

from oauth_relay import consents
from oauth_relay.models import AuditEvent, Client, Consent, Grant, RefreshToken, User
from tests.oauth_relay.conftest import LOOPBACK, Browser, answered, make_client

pytestmark = pytest.mark.django_db
HOST = "https://app.example/callback"
CONTINUE = "Continue as "
FULL = "Allow this client to act for you?"


@pytest.fixture
def vouched(db: None) -> Client:
    """A client that an operator made, answered at a host of its own."""
    return make_client("Vouched", f"{HOST} {HOST}2", registration_source="manual")


def again(browser: Browser, client: Client, **changes: Any) -> str:
    """The page that the next authorization request brings."""
    return browser.authorize(client, **{"redirect_uri": HOST, **changes}).content.decode()


def given(browser: Browser, client: Client, user: User, **changes: Any) -> dict[str, Any]:
    """Tokens of a client that is answered at HOST, once the person has read the whole page and allowed it."""
    code = browser.connect(client, user, redirect_uri=HOST, **changes)["code"]
    response = browser.redeem(client, code, redirect_uri=HOST)
    assert response.status_code == 200, response.content
    return dict(response.json())


# -- asked again, or one click (T9) ------------------------------------------------------------------------------------


@pytest.mark.threat("T9")
def test_what_was_allowed_to_an_assured_client_takes_one_click(browser: Browser, ada: User, vouched: Client) -> None:
    given(browser, vouched, ada)
    page = again(browser, vouched)
    assert f"{CONTINUE}<bdi>Ada</bdi>" in page
    assert FULL not in page
    assert "See your todos" in page
    assert browser.page.scopes == ["read:todos", "write:todos"], "they can still be changed"
    assert answered(browser.answer())["code"]
    assert Consent.objects.count() == 2


@pytest.mark.threat("T9")
def test_one_click_may_still_be_a_no_or_allow_less(browser: Browser, ada: User, vouched: Client) -> None:
    given(browser, vouched, ada)
    again(browser, vouched)
    assert answered(browser.answer("deny"))["error"] == "access_denied"
    again(browser, vouched)
    code = answered(browser.answer(scope=["read:todos"]))["code"]
    assert browser.redeem(vouched, code, redirect_uri=HOST).json()["scope"] == "read:todos"


def _rename(client: Client) -> None:
    Client.objects.filter(pk=client.pk).update(name="Vouched and renamed")


def _another_redirect_uri(client: Client) -> None:
    Client.objects.filter(pk=client.pk).update(redirect_uris=f"{client.redirect_uris} https://other.example/")


def _another_website(client: Client) -> None:
    Client.objects.filter(pk=client.pk).update(metadata={**client.metadata, "client_uri": "https://other.example"})


def _keys_elsewhere(client: Client) -> None:
    Client.objects.filter(pk=client.pk).update(metadata={**client.metadata, "jwks_uri": "https://keys.example/jwks"})


CHANGES = [_rename, _another_redirect_uri, _another_website, _keys_elsewhere]


@pytest.mark.threat("T31")
@pytest.mark.parametrize("change", CHANGES)
def test_it_is_asked_again_when_the_client_has_changed(
    browser: Browser, ada: User, vouched: Client, change: Callable[[Client], None]
) -> None:
    given(browser, vouched, ada)
    change(vouched)
    page = again(browser, vouched)
    assert FULL in page
    assert CONTINUE not in page


@pytest.mark.threat("T9")
@pytest.mark.parametrize(
    "changes",
    [
        {"redirect_uri": f"{HOST}2"},
        {"resource": settings.RESOURCES[1]},
        {"resource": None},
        {"scope": "read:todos write:todos read:billing"},
        {"scope": "read:billing"},
        {"prompt": "consent"},
    ],
)
def test_it_is_asked_again_when_something_else_is_asked(
    browser: Browser, ada: User, vouched: Client, changes: dict[str, Any]
) -> None:
    given(browser, vouched, ada)
    page = again(browser, vouched, **changes)
    assert FULL in page
    assert CONTINUE not in page


def test_less_than_was_allowed_is_within_it(browser: Browser, ada: User, vouched: Client) -> None:
    given(browser, vouched, ada, resource=None)
    assert CONTINUE in again(browser, vouched, scope="read:todos", resource=settings.RESOURCES[1])


@pytest.mark.parametrize(
    "over", [{"expires_at": timezone.now() - timedelta(seconds=1)}, {"withdrawn_at": timezone.now()}]
)
def test_a_consent_that_is_over_covers_nothing(
    browser: Browser, ada: User, vouched: Client, over: dict[str, Any]
) -> None:
    given(browser, vouched, ada)
    Consent.objects.update(**over)
    assert FULL in again(browser, vouched)


def test_what_was_unticked_is_asked_again(browser: Browser, ada: User, vouched: Client) -> None:
    browser.authorize(vouched, redirect_uri=HOST)
    browser.sign_in(ada)
    browser.answer(scope=["read:todos"])
    assert FULL in again(browser, vouched)
    assert CONTINUE in again(browser, vouched, scope="read:todos")


@pytest.mark.threat("T9")
def test_nothing_is_remembered_of_a_client_that_nobody_vouches_for(browser: Browser, ada: User) -> None:
    stranger = make_client("Stranger", HOST)
    given(browser, stranger, ada)
    assert FULL in again(browser, stranger)


@pytest.mark.threat("T9")
@pytest.mark.parametrize(
    "redirect_uri", [LOOPBACK, "https://localhost:8443/cb", "https://127.0.0.1/cb", "cursor://anysphere/cb"]
)
def test_nothing_is_remembered_where_any_program_may_get_the_answer(
    browser: Browser, ada: User, redirect_uri: str
) -> None:
    vouched = make_client("Vouched", redirect_uri, registration_source="manual")
    browser.connect(vouched, ada, redirect_uri=redirect_uri)
    assert FULL in again(browser, vouched, redirect_uri=redirect_uri)


@pytest.mark.threat("T9")
@pytest.mark.parametrize(
    ("redirect_uri", "is_verified"),
    [
        ("https://app.example/callback", True), ("https://eu.app.example/callback", True),
        ("https://evil.test/callback", False), ("https://evilapp.example/callback", False),
        ("https://app.example.evil.test/callback", False), (LOOPBACK, False),
    ],
)  # fmt: skip
def test_a_host_vouches_for_its_document_only_where_the_answer_goes_there_too(
    browser: Browser, ada: User, redirect_uri: str, is_verified: bool
) -> None:
    """Many hosts publish what strangers wrote: a mark for the host would be theirs."""
    client = make_client(
        "Claude", redirect_uri, client_id="https://app.example/client.json", registration_source="cimd",
        cimd_expires_at=timezone.now() + timedelta(hours=1),
    )  # fmt: skip
    page = browser.authorize(client, redirect_uri=redirect_uri).content.decode()
    assert ("Verified as" in page) is is_verified
    assert ("Describes itself at" in page) is not is_verified
    browser.sign_in(ada)
    browser.answer()
    assert (CONTINUE in again(browser, client, redirect_uri=redirect_uri)) is is_verified


def test_somebody_elses_yes_covers_nothing(browser: Browser, ada: User, mallory: User, vouched: Client) -> None:
    given(browser, vouched, ada)
    other = Browser()
    other.authorize(vouched, redirect_uri=HOST)
    assert FULL in other.sign_in(mallory).content.decode()


# -- a client that changes (T31) ---------------------------------------------------------------------------------------


@pytest.mark.threat("T31")
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_suspends_refresh_until_the_person_has_seen_it(
    browser: Browser, ada: User, vouched: Client, change: Callable[[Client], None]
) -> None:
    raw = given(browser, vouched, ada)["refresh_token"]
    change(vouched)
    before = RefreshToken.objects.values()[0]
    for _ in range(3):
        response = browser.refresh(vouched, raw)
        assert (response.status_code, response.json()["error"]) == (400, "invalid_grant")
    assert RefreshToken.objects.values()[0] == before, "nothing is spent, nothing revoked"
    assert Grant.objects.get().is_open
    again(browser, vouched)
    browser.answer()
    assert browser.refresh(vouched, raw).status_code == 200


@pytest.mark.threat("T31")
def test_a_client_that_changes_back_goes_on(browser: Browser, ada: User, vouched: Client) -> None:
    raw = given(browser, vouched, ada)["refresh_token"]
    _rename(vouched)
    assert browser.refresh(vouched, raw).status_code == 400
    Client.objects.filter(pk=vouched.pk).update(name="Vouched")
    assert browser.refresh(vouched, raw).status_code == 200


@pytest.mark.threat("T31")
def test_a_code_is_not_redeemed_by_a_client_that_has_changed(browser: Browser, ada: User, vouched: Client) -> None:
    code = browser.connect(vouched, ada, redirect_uri=HOST)["code"]
    _rename(vouched)
    assert browser.redeem(vouched, code, redirect_uri=HOST).json()["error"] == "invalid_grant"


@pytest.mark.threat("T31")
def test_consent_to_a_changed_client_for_less_does_not_carry_the_old_tokens(
    browser: Browser, ada: User, vouched: Client
) -> None:
    raw = given(browser, vouched, ada)["refresh_token"]
    _rename(vouched)
    again(browser, vouched)
    browser.answer(scope=["read:todos"])
    assert browser.refresh(vouched, raw).status_code == 400


@pytest.mark.threat("T31")
def test_the_digest_names_the_host_of_the_keys_and_not_the_keys(inspector: Client) -> None:
    without = inspector.digest()
    inspector.metadata["jwks_uri"] = "https://keys.example/1.json"
    first = inspector.digest()
    inspector.metadata["jwks_uri"] = "https://KEYS.example/2.json"
    assert inspector.digest() == first != without
    inspector.metadata["jwks_uri"] = "https://other.example/1.json"
    assert inspector.digest() != first


def test_the_digest_of_a_client_without_keys_is_what_it_always_was() -> None:
    client = Client(name="Inspector", redirect_uris=LOOPBACK, metadata={"token_endpoint_auth_method": "none"})
    assert client.digest() == "1dc9250b8f5a9fa3a88031dcd5fc178b73c446493a257b266abf8d62b55ba025"


# -- names (T31) -------------------------------------------------------------------------------------------------------


@pytest.mark.threat("T31")
@pytest.mark.pain("P19")
def test_a_name_that_passes_for_another_is_flagged_on_both_pages_and_in_the_audit(browser: Browser, ada: User) -> None:
    evil = make_client("Claude", "https://evil.example/callback")
    said = "It calls itself Claude, but its answer goes to evil.example."
    page = browser.authorize(evil, redirect_uri="https://evil.example/callback").content.decode()
    assert said in page
    assert said in browser.sign_in(ada).content.decode()
    browser.answer()
    assert AuditEvent.objects.get(event="consent.given").detail["flagged"] == ["foreign_brand"]


@pytest.mark.threat("T31")
def test_the_name_of_another_client_of_this_person_is_flagged(browser: Browser, ada: User) -> None:
    given(browser, make_client("Acme Notes", HOST), ada)
    twin = make_client("Acme N\N{GREEK SMALL LETTER OMICRON}tes", "https://evil.example/")
    page = again(browser, twin, redirect_uri="https://evil.example/")
    assert "another client of this name, which is answered at app.example" in page


@pytest.mark.threat("T31")
def test_what_ended_is_no_client_of_this_person(browser: Browser, ada: User) -> None:
    given(browser, make_client("Acme Notes", HOST), ada)
    Grant.objects.update(withdrawn_at=timezone.now())
    assert "another client of this name" not in again(
        browser, make_client("Acme Notes", "https://b.example/"), redirect_uri="https://b.example/"
    )


@pytest.mark.threat("T31")
def test_an_operator_may_vouch_for_any_name(browser: Browser, ada: User) -> None:
    client = make_client("Claude", "https://proxy.example/", registration_source="manual")
    assert consents.name_warnings(client, "https://proxy.example/", ada) == []
    browser.connect(client, ada, redirect_uri="https://proxy.example/")
    assert "flagged" not in AuditEvent.objects.get(event="consent.given").detail


@pytest.mark.threat("T31")
def test_no_picture_of_a_client_is_ever_loaded(browser: Browser, ada: User) -> None:
    logo = "https://evil.example/logo.png"
    client = make_client("Pictured", HOST, metadata={"token_endpoint_auth_method": "none", "logo_uri": logo})
    pages = again(browser, client) + browser.sign_in(ada).content.decode()
    assert logo not in pages
    assert pages.count("<img") == pages.count('<img src="/static/')
