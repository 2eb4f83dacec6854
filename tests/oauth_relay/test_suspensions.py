"""A family that waits for its person: nothing is spent, nothing is revoked, and it goes on (DESIGN §4.8, T10)."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from oauth_relay import challenges, suspensions
from oauth_relay.models import AuditEvent, Challenge, Client, Consent, Grant, RefreshToken, UpstreamCredential, User
from tests import identity_provider
from tests.identity_provider import FakedProvider
from tests.oauth_relay.at_provider import BrowserAtProvider
from tests.oauth_relay.conftest import Browser, make_client

pytestmark = pytest.mark.django_db


@pytest.fixture
def peer(settings: Any) -> Iterator[FakedProvider]:
    with identity_provider.faked_provider() as running:
        identity_provider.configure(settings, running.origin)
        yield running


@pytest.fixture
def ada_at_provider(peer: FakedProvider) -> BrowserAtProvider:
    return BrowserAtProvider(peer)


def end_credential() -> None:
    UpstreamCredential.objects.update(state=UpstreamCredential.State.SIGN_IN_NEEDED)


def refused(browser: Browser, client: Client, refresh_token: str) -> bool:
    response = browser.refresh(client, refresh_token)
    if response.status_code == 200:
        return False
    assert (response.status_code, response.json()["error"]) == (400, "invalid_grant")
    assert response["Cache-Control"] == "no-store"
    return True


@pytest.mark.threat("T10")
@pytest.mark.pain("P14")
@pytest.mark.parametrize("end", [end_credential, lambda: UpstreamCredential.objects.all().delete()])
def test_a_refresh_waits_without_spending_or_ending_anything(
    ada_at_provider: BrowserAtProvider, inspector: Client, end: Callable[[], Any]
) -> None:
    raw = ada_at_provider.tokens_of(inspector)["refresh_token"]
    end()
    before = RefreshToken.objects.values()[0]
    assert all(refused(ada_at_provider, inspector, raw) for _ in range(3))
    assert RefreshToken.objects.values()[0] == before
    assert Grant.objects.get().is_open
    assert not AuditEvent.objects.filter(event="token_family.ended").exists()


@pytest.mark.threat("T10")
@pytest.mark.parametrize("way", ["a visit", "another client"])
def test_any_sign_in_of_the_person_lets_it_go_on(
    ada_at_provider: BrowserAtProvider, peer: FakedProvider, inspector: Client, way: str
) -> None:
    raw = ada_at_provider.tokens_of(inspector)["refresh_token"]
    end_credential()
    assert refused(ada_at_provider, inspector, raw)
    elsewhere = BrowserAtProvider(peer)
    if way == "a visit":
        elsewhere.visit()
    else:
        elsewhere.tokens_of(make_client("Another"))
    assert not refused(ada_at_provider, inspector, raw)


@pytest.mark.threat("T10")
def test_a_retry_of_the_predecessor_is_no_theft_while_it_waits(
    ada_at_provider: BrowserAtProvider, inspector: Client
) -> None:
    raw = ada_at_provider.tokens_of(inspector)["refresh_token"]
    answer = ada_at_provider.refresh(inspector, raw).json()
    end_credential()
    assert refused(ada_at_provider, inspector, raw)
    assert RefreshToken.objects.order_by("created").first().replays == 0  # type: ignore[union-attr]
    ada_at_provider.visit()
    assert ada_at_provider.refresh(inspector, raw).json() == answer


def test_another_persons_sign_in_helps_nobody(
    ada_at_provider: BrowserAtProvider, peer: FakedProvider, inspector: Client
) -> None:
    raw = ada_at_provider.tokens_of(inspector)["refresh_token"]
    end_credential()
    BrowserAtProvider(peer, "auth0|mallory").tokens_of(make_client("Another"))
    assert refused(ada_at_provider, inspector, raw)


def test_what_needs_no_provider_does_not_wait(ada_at_provider: BrowserAtProvider, inspector: Client) -> None:
    """Scopes that open no API: the tools behind them work without the provider."""
    raw = ada_at_provider.tokens_of(inspector)["refresh_token"]
    end_credential()
    grant = Grant.objects.get()
    assert suspensions.is_suspended(grant, ["read:todos"])
    assert not suspensions.is_suspended(grant, ["offline_access"])
    RefreshToken.objects.update(scope="offline_access")
    Consent.objects.update(scope="offline_access")
    assert not refused(ada_at_provider, inspector, raw)


def test_nobody_waits_where_cair_makes_the_tokens(browser: Browser, ada: User, inspector: Client) -> None:
    assert not refused(browser, inspector, browser.tokens(inspector, ada)["refresh_token"])


@pytest.mark.threat("T10")
def test_a_client_is_sent_to_sign_in_once_a_day_for_one_reason(ada: User, inspector: Client) -> None:
    grant, other = (Grant.objects.create(user=ada, client=client) for client in (inspector, make_client("Another")))
    assert challenges.may_challenge(grant.pk, "refused by todos")
    assert not challenges.may_challenge(grant.pk, "refused by todos")
    assert challenges.may_challenge(grant.pk, "refused by billing")
    assert challenges.may_challenge(other.pk, "refused by todos")
    Challenge.objects.update(at=timezone.now() - timedelta(hours=25))
    assert challenges.may_challenge(grant.pk, "refused by todos")
    assert not challenges.may_challenge(grant.pk, "refused by todos")
