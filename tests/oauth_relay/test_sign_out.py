"""POST /logout: here, at the provider, and who is asked afterwards (OpenID Connect RP-Initiated Logout 1.0; T30)."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from oauth_relay.models import AuditEvent, Client, UpstreamCredential, User
from tests import identity_provider
from tests.identity_provider import CLIENT_ID, FakedProvider
from tests.oauth_relay.at_provider import BrowserAtProvider
from tests.oauth_relay.conftest import Browser

pytestmark = pytest.mark.django_db


@pytest.fixture
def peer(settings: Any) -> Iterator[FakedProvider]:
    with identity_provider.faked_provider() as running:
        running.metadata["end_session_endpoint"] = f"{running.origin}/session/end"
        identity_provider.configure(settings, running.origin)
        yield running


@pytest.fixture
def browser(peer: FakedProvider) -> BrowserAtProvider:
    return BrowserAtProvider(peer)


def test_the_session_at_the_provider_ends_too(browser: BrowserAtProvider, peer: FakedProvider, settings: Any) -> None:
    browser.visit()
    response = browser.post("/logout")
    assert response.status_code == 200
    seconds, _, address = response["Refresh"].partition("; url=")
    assert seconds == "0" and address.startswith(f"{peer.origin}/session/end?")
    assert dict(parse_qsl(urlsplit(address).query)) == {
        "client_id": CLIENT_ID,
        "post_logout_redirect_uri": f"{settings.PUBLIC_URL}/",
    }
    assert "Sign out at Auth0" in response.content.decode()
    assert browser.get("/connections")["Location"].startswith("/login")
    assert AuditEvent.objects.filter(event="user.signed_out").count() == 1


def test_a_provider_without_an_address_for_it_is_left_alone(browser: BrowserAtProvider, peer: FakedProvider) -> None:
    del peer.metadata["end_session_endpoint"]
    browser.visit()
    response = browser.post("/logout")
    assert (response.status_code, response["Location"]) == (303, "/")


@pytest.mark.parametrize("address", ["javascript:alert(1)", "http://elsewhere.example/", 7, None])
def test_an_address_that_is_none_is_not_followed(
    browser: BrowserAtProvider, peer: FakedProvider, address: object
) -> None:
    peer.metadata["end_session_endpoint"] = address
    browser.visit()
    assert browser.post("/logout")["Location"] == "/"


def test_a_session_of_an_own_account_ends_here_alone(ada: User, peer: FakedProvider, settings: Any) -> None:
    settings.OWN_ACCOUNTS = True
    own = Browser()
    own.read(own.get("/login"))
    own.sign_in(ada)
    assert own.post("/logout")["Location"] == "/"


def test_nobody_signed_in_is_sent_nowhere(browser: BrowserAtProvider) -> None:
    assert browser.post("/logout")["Location"] == "/"


def test_clients_stay_connected(browser: BrowserAtProvider, inspector: Client) -> None:
    raw = browser.tokens_of(inspector)["refresh_token"]
    browser.post("/logout")
    assert UpstreamCredential.objects.get().state == "good"
    assert browser.refresh(inspector, raw).status_code == 200


# -- whoever comes next ------------------------------------------------------------------------------------------------


@pytest.mark.threat("T30")
@pytest.mark.parametrize(
    ("listed", "word"),
    [(["none", "login", "select_account"], "select_account"), (["none", "login"], "login"), (None, "login")],
)
def test_after_a_sign_out_the_provider_asks_who_it_is(
    browser: BrowserAtProvider, peer: FakedProvider, listed: list[str] | None, word: str
) -> None:
    if listed:
        peer.metadata["prompt_values_supported"] = listed
    browser.visit()
    assert "prompt" not in browser.sent
    browser.post("/logout")
    for _ in range(2):  # also when the first attempt was given up
        browser.read(browser.get("/login"))
        browser.go_to_provider()
        assert browser.sent["prompt"] == word
    browser.read(browser.get("/login"))
    another_tab = browser.page
    browser.visit()
    browser.page = another_tab
    browser.go_to_provider()
    assert "prompt" not in browser.sent, "it is asked for ever"
