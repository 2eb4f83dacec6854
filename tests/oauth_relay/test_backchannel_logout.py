"""The provider's word that somebody signed out (OpenID Connect Back-Channel Logout 1.0; T37)."""

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.http import HttpResponse
from django.test import Client as Anybody
from django.utils import timezone

from oauth_relay import access_tokens
from oauth_relay.access_tokens import InvalidToken, PresentedToken
from oauth_relay.backchannel_logout import EVENT
from oauth_relay.models import AuditEvent, Client, Grant, Session, SpentLogoutToken, UpstreamCredential, Withdrawal
from tests import identity_provider
from tests.identity_provider import CLIENT_ID, OTHER_RSA_KEY, RSA_KEY, FakedProvider
from tests.oauth_relay.at_provider import BrowserAtProvider

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def peer(settings: Any) -> Iterator[FakedProvider]:
    with identity_provider.faked_provider() as running:
        identity_provider.configure(settings, running.origin)
        yield running


@pytest.fixture
def browser(peer: FakedProvider) -> BrowserAtProvider:
    return BrowserAtProvider(peer, sid="session-1")


def logout_token(peer: FakedProvider, key: Any = RSA_KEY, typ: str | None = "logout+jwt", **changes: Any) -> str:
    """A logout token as §2.4 has it. A change to None leaves the claim out."""
    now = int(time.time())
    claims = {
        "iss": peer.origin, "aud": CLIENT_ID, "iat": now, "exp": now + 120, "jti": str(uuid.uuid4()),
        "sub": "auth0|ada", "events": {EVENT: {}}, **changes,
    }  # fmt: skip
    kept = {name: value for name, value in claims.items() if value is not None}
    headers: dict[str, Any] = {"kid": "key-1", **({"typ": typ} if typ else {})}
    return jwt.encode(kept, key, algorithm="RS256", headers=headers)


def send(token: str, path: str = "/backchannel-logout") -> HttpResponse:
    response = Anybody(HTTP_HOST=django_settings.PUBLIC_HOST).post(path, {"logout_token": token})
    assert response["Cache-Control"] == "no-store"
    return response


def is_untouched() -> bool:
    credential = UpstreamCredential.objects.get()
    return (
        Session.objects.filter(user__isnull=False).count() == 1
        and credential.state == "good"
        and not Grant.objects.exclude(suspended_at=None).exists()
        and not Withdrawal.objects.exists()
    )


# -- what it does ------------------------------------------------------------------------------------------------------


@pytest.mark.threat("T37")
@pytest.mark.parametrize("who", [{"sub": "auth0|ada"}, {"sub": None, "sid": "session-1"}, {"sid": "session-1"}])
@pytest.mark.parametrize("typ", ["logout+jwt", "JWT", None])
def test_it_ends_sessions_and_lets_the_clients_wait(
    browser: BrowserAtProvider, peer: FakedProvider, inspector: Client, who: dict[str, Any], typ: str | None
) -> None:
    raw = browser.tokens_of(inspector)["refresh_token"]
    assert send(logout_token(peer, typ=typ, **who)).status_code == 200
    assert browser.get("/connections")["Location"].startswith("/login")
    refused = browser.refresh(inspector, raw)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
    assert UpstreamCredential.objects.get().state == "sign_in_needed"
    assert Grant.objects.get().is_open
    assert AuditEvent.objects.filter(event="user.signed_out_by_provider").count() == 1
    browser.visit()
    assert browser.refresh(inspector, raw).status_code == 200


@pytest.mark.threat("T37")
async def test_an_access_token_is_refused_until_the_person_signs_in_again(
    browser: BrowserAtProvider, peer: FakedProvider, inspector: Client
) -> None:
    raw = (await sync_to_async(browser.tokens_of)(inspector))["access_token"]
    resource = django_settings.RESOURCES[0]
    presented = PresentedToken("Bearer", raw, "POST", resource, resource)
    ended: list[bool] = []
    principal = await access_tokens.verify_access_token(presented)
    access_tokens.when_withdrawn(principal, lambda: ended.append(True))
    await sync_to_async(send)(logout_token(peer))
    await access_tokens.withdrawals.reader().read()
    assert ended == [True], "streams are not told"
    with pytest.raises(InvalidToken):
        await access_tokens.verify_access_token(presented)
    await sync_to_async(browser.visit)()
    assert (await access_tokens.verify_access_token(presented)).grant_id == principal.grant_id


def test_somebody_elses_sessions_and_clients_go_on(
    browser: BrowserAtProvider, peer: FakedProvider, inspector: Client
) -> None:
    browser.tokens_of(inspector)
    assert send(logout_token(peer, sub="auth0|mallory")).status_code == 200
    assert send(logout_token(peer, sub=None, sid="session-2")).status_code == 200
    assert is_untouched()


def test_a_refresh_under_way_does_not_bring_the_credential_back(
    browser: BrowserAtProvider, peer: FakedProvider, inspector: Client
) -> None:
    from oauth_relay.identity_providers import TokenAnswer
    from oauth_relay.upstream_refresh import _store

    browser.tokens_of(inspector)
    row = UpstreamCredential.objects.get()
    send(logout_token(peer))
    _store(row, TokenAnswer("new", "new", None, None, time.time() + 60), "", None)
    assert UpstreamCredential.objects.get().state == "sign_in_needed"


# -- what it does not believe ------------------------------------------------------------------------------------------

WRONG: dict[str, Callable[[FakedProvider], str]] = {
    "another key": lambda peer: logout_token(peer, OTHER_RSA_KEY),
    "no signature": lambda peer: jwt.encode({"iss": peer.origin}, None, algorithm="none"),
    "another issuer": lambda peer: logout_token(peer, iss="https://elsewhere.example"),
    "no issuer": lambda peer: logout_token(peer, iss=None),
    "another audience": lambda peer: logout_token(peer, aud="somebody-else"),
    "no audience": lambda peer: logout_token(peer, aud=None),
    "no iat": lambda peer: logout_token(peer, iat=None),
    "made in the future": lambda peer: logout_token(peer, iat=int(time.time()) + 3600),
    "expired": lambda peer: logout_token(peer, exp=int(time.time()) - 3600),
    "old, and without an end": lambda peer: logout_token(peer, exp=None, iat=int(time.time()) - 3600),
    "an end that is none": lambda peer: logout_token(peer, exp="soon"),
    "no jti": lambda peer: logout_token(peer, jti=None),
    "a jti that is no text": lambda peer: logout_token(peer, jti=["a"]),
    "no events": lambda peer: logout_token(peer, events=None),
    "other events": lambda peer: logout_token(peer, events={"http://schemas.openid.net/event/other": {}}),
    "events as a list": lambda peer: logout_token(peer, events=[EVENT]),
    "an event without an object": lambda peer: logout_token(peer, events={EVENT: True}),
    "a nonce": lambda peer: logout_token(peer, nonce="n"),
    "an empty nonce": lambda peer: logout_token(peer, nonce=""),
    "nobody": lambda peer: logout_token(peer, sub=None),
    "a subject that is no text": lambda peer: logout_token(peer, sub=7),
    "a subject with a NUL": lambda peer: logout_token(peer, sub="auth0|ada\0"),
    "another type": lambda peer: logout_token(peer, typ="at+jwt"),
    "an ID token": lambda peer: peer.id_token({"nonce": "n"}),
    "no token at all": lambda peer: "nonsense",
    "nothing": lambda peer: "",
    "too much": lambda peer: "a" * 20_000,
}


@pytest.mark.threat("T37")
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_token_is_refused_and_changes_nothing(
    browser: BrowserAtProvider, peer: FakedProvider, inspector: Client, wrong: str
) -> None:
    browser.tokens_of(inspector)
    response = send(WRONG[wrong](peer))
    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")
    assert is_untouched()
    assert not SpentLogoutToken.objects.exists()
    assert send(logout_token(peer)).status_code == 200 and not is_untouched(), "the right one would not do either"


@pytest.mark.threat("T37")
def test_a_token_counts_once(browser: BrowserAtProvider, peer: FakedProvider, inspector: Client) -> None:
    token = logout_token(peer)
    browser.tokens_of(inspector)
    assert send(token).status_code == 200
    browser.visit()
    Withdrawal.objects.all().delete()
    assert send(token).status_code == 400
    assert is_untouched()


def test_what_was_spent_is_forgotten_when_it_could_not_be_shown_again(peer: FakedProvider) -> None:
    send(logout_token(peer))
    SpentLogoutToken.objects.update(until=timezone.now())
    send(logout_token(peer))
    assert SpentLogoutToken.objects.count() == 1


@pytest.mark.parametrize(
    "path", ["/backchannel-logout/nobody", "/backchannel-logout/%00", "/backchannel-logout/github"]
)
def test_a_provider_that_is_none_is_refused(peer: FakedProvider, path: str) -> None:
    assert send(logout_token(peer), path).status_code == 400


def test_each_provider_has_an_address_of_its_own(peer: FakedProvider) -> None:
    assert send(logout_token(peer), "/backchannel-logout/auth0").status_code == 200


def test_a_provider_whose_keys_cannot_be_read_is_no_fault_of_ours(peer: FakedProvider) -> None:
    peer.discovery = (503, "<h1>Away</h1>")
    assert send(logout_token(peer)).status_code == 400


@pytest.mark.parametrize("ask", ["get", "put", "delete"])
def test_only_post_is_answered(peer: FakedProvider, ask: str) -> None:
    response = getattr(Anybody(HTTP_HOST=django_settings.PUBLIC_HOST), ask)("/backchannel-logout")
    assert (response.status_code, response["Allow"]) == (405, "POST")


def test_without_any_provider_there_is_nobody_to_believe(db: None) -> None:
    assert send("anything").status_code == 400
