"""The end of a person here, and of what the vault holds of them (T11; RFC 7009)."""

import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.management import CommandError, call_command

from oauth_relay import withdrawals
from oauth_relay.models import (
    AuditEvent,
    Client,
    Grant,
    LoginTransaction,
    Session,
    UpstreamCredential,
    User,
    Withdrawal,
)
from tests import github_stand_in, identity_provider
from tests.github_stand_in import CLIENT_ID, Account, StandIn
from tests.identity_provider import FakedProvider
from tests.oauth_relay.at_provider import BrowserAtProvider
from tests.oauth_relay.conftest import Browser, answered, make_client

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def peer(settings: Any) -> Iterator[FakedProvider]:
    with identity_provider.faked_provider() as running:
        running.metadata["revocation_endpoint"] = f"{running.origin}/revoke"
        identity_provider.configure(settings, running.origin)
        yield running


@pytest.fixture
def connected(peer: FakedProvider, inspector: Client) -> BrowserAtProvider:
    """Ada, with a client and a credential in the vault."""
    browser = BrowserAtProvider(peer)
    peer.tokens = {"refresh_token": "upstream-refresh-of-ada"}
    browser.tokens_of(inspector)
    assert UpstreamCredential.objects.count() == 1
    return browser


def revoked(within: float = 5.0) -> AuditEvent:
    """What the background wrote down, once it has."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if found := AuditEvent.objects.filter(event="upstream_token.revoked").first():
            return found
        time.sleep(0.02)
    raise AssertionError("nothing was written down about the revocation")


def _switch_off(user: User) -> None:
    User.objects.filter(pk=user.pk).update(is_active=False)


def _save_inactive(user: User) -> None:
    user.is_active = False
    user.save()


@pytest.mark.threat("T11")
@pytest.mark.parametrize("end", [_switch_off, _save_inactive, lambda user: user.delete()])
def test_a_person_who_ends_loses_vault_and_sessions(
    connected: BrowserAtProvider, end: Callable[[User], Any], peer: FakedProvider
) -> None:
    end(User.objects.get())
    assert not UpstreamCredential.objects.exists()
    assert not Session.objects.filter(user__isnull=False).exists()
    assert Withdrawal.objects.filter(kind="user").exists()
    assert connected.get("/connections").status_code == 303
    assert revoked().outcome == "ok"


def test_an_operator_erases_what_the_vault_holds_of_one_person(
    connected: BrowserAtProvider, peer: FakedProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    BrowserAtProvider(peer, "auth0|mallory").tokens_of(make_client("Another"))
    ada = User.objects.get(identities__subject="auth0|ada")
    LoginTransaction.objects.filter(user=ada).update(staged_tokens=b"left over")
    call_command("erase_credentials", ada.username)
    assert "1 credential was erased" in capsys.readouterr().out
    assert [row.subject for row in UpstreamCredential.objects.all()] == ["auth0|mallory"]
    assert not LoginTransaction.objects.exclude(staged_tokens=None).exists()
    assert Grant.objects.open().count() == 2
    assert Withdrawal.objects.filter(kind="credential", reference=str(ada.pk)).exists()
    assert revoked().outcome == "ok"


def test_erasing_for_nobody_says_so(db: None) -> None:
    with pytest.raises(CommandError, match="nobody"):
        call_command("erase_credentials", "nobody")


# -- the provider is told ----------------------------------------------------------------------------------------------


def _disconnect() -> None:
    withdrawals.withdraw_grant(Grant.objects.open().get().pk, "person")


def test_the_last_grant_revokes_the_refresh_token_at_the_provider(
    connected: BrowserAtProvider, peer: FakedProvider
) -> None:
    peer.answer = None
    _disconnect()
    assert revoked().outcome == "ok"
    [form] = peer.calls("/revoke")
    assert (form["token"], form["token_type_hint"]) == ("upstream-refresh-of-ada", "refresh_token")
    assert "authorization" in form and form["authorization"].startswith("Basic ")
    assert "upstream-refresh" not in str(list(AuditEvent.objects.values()))


def test_without_a_refresh_token_the_access_token_is_revoked(
    connected: BrowserAtProvider, peer: FakedProvider, inspector: Client
) -> None:
    UpstreamCredential.objects.all().delete()
    peer.tokens = {"refresh_token": None, "access_token": "upstream-access-of-ada"}
    connected.tokens_of(inspector)
    _disconnect()
    assert revoked().outcome == "ok"
    [form] = peer.calls("/revoke")
    assert (form["token"], form["token_type_hint"]) == ("upstream-access-of-ada", "access_token")
    assert "upstream-access" not in str(list(AuditEvent.objects.values()))


@pytest.fixture
def octocat(settings: Any, inspector: Client) -> Iterator[StandIn]:
    """GitHub, with a person whose token is in the vault."""
    with github_stand_in.running() as running:
        settings.UPSTREAM_PROVIDERS = {"github": running.configuration()}
        settings.OWN_ACCOUNTS = settings.DEMO_USER = False
        browser = Browser()
        browser.authorize(inspector)
        location = browser.post("/login", {**browser.page.hidden, "provider": "github"})["Location"]
        back = urlsplit(running.approve(location, Account(583231, "octocat")))
        browser.read(browser.get(f"{back.path}?{back.query}"))
        assert "code" in answered(browser.answer())
        yield running


@pytest.mark.parametrize("trouble", ["", "it is gone already"])
def test_github_deletes_the_token(octocat: StandIn, trouble: str) -> None:
    [token] = octocat.tokens
    if trouble:
        octocat.revoke_tokens()
    _disconnect()
    assert revoked().outcome == "ok"
    assert octocat.tokens == {}
    assert octocat.requests[-1] == ("DELETE", f"/applications/{CLIENT_ID}/token", {"access_token": token})
    assert octocat.calls("DELETE", f"/applications/{CLIENT_ID}/token") == 1


@pytest.mark.parametrize("trouble", ["away", "it refuses our client"])
def test_a_github_in_trouble_is_never_in_the_way(octocat: StandIn, trouble: str, settings: Any) -> None:
    if trouble == "away":
        octocat.is_broken = True
    else:
        settings.UPSTREAM_PROVIDERS = {"github": {**octocat.configuration(), "client_secret": "another"}}
    _disconnect()
    assert not UpstreamCredential.objects.exists()
    assert revoked().outcome == "unavailable"


def test_a_grant_that_is_not_the_last_revokes_nothing(
    connected: BrowserAtProvider, peer: FakedProvider, inspector: Client
) -> None:
    connected.tokens_of(make_client("Another"))
    withdrawals.withdraw_grant(Grant.objects.get(client=inspector).pk, "person")
    assert UpstreamCredential.objects.count() == 1
    assert not AuditEvent.objects.filter(event="upstream_token.erased").exists()


@pytest.mark.parametrize(
    ("trouble", "outcome"),
    [
        ("/revoke answers 503", "unavailable"),
        ("it refuses our client", "unavailable"),
        ("nothing offered", "not_offered"),
        ("it revokes another kind only", "not_offered"),
    ],
)
def test_a_provider_in_trouble_is_never_in_the_way(
    connected: BrowserAtProvider, peer: FakedProvider, trouble: str, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trouble == "nothing offered":
        from oauth_relay.identity_providers import provider

        del provider("auth0").metadata()["revocation_endpoint"]
    peer.revocation = (503, "<h1>Away</h1>") if "503" in trouble else (401, {"error": "invalid_client"})
    if "another kind" in trouble:
        peer.revocation = (400, {"error": "unsupported_token_type"})
    _disconnect()
    assert not UpstreamCredential.objects.exists()
    assert revoked().outcome == outcome


def test_a_withdrawal_that_is_rolled_back_revokes_nothing(connected: BrowserAtProvider, peer: FakedProvider) -> None:
    from django.db.transaction import atomic

    with pytest.raises(RuntimeError, match="changed my mind"), atomic():
        _disconnect()
        raise RuntimeError("changed my mind")
    assert UpstreamCredential.objects.count() == 1
    _disconnect()
    assert revoked().outcome == "ok"
    assert len(peer.calls("/revoke")) == 1, "the provider was told of what never happened"
