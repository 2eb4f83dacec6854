"""A tool needs more at the provider than was given there: one authorization with all of it, and no circles (T10)."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings as django_settings
from django.utils import timezone

from oauth_relay import challenges, staged_tokens
from oauth_relay.access_tokens import PresentedToken, verify_access_token
from oauth_relay.models import Challenge, Client, UpstreamCredential, User
from oauth_relay.upstream_tokens import must_be_widened
from tests import identity_provider
from tests.identity_provider import SCOPE, FakedProvider
from tests.oauth_relay.at_provider import BrowserAtProvider
from tests.oauth_relay.conftest import Browser

pytestmark = pytest.mark.django_db(transaction=True)

NARROW = SCOPE.replace(" read:billing", "")


@pytest.fixture
def peer(settings: Any) -> Iterator[FakedProvider]:
    """A provider of which, by configuration, less is asked than the tools need."""
    with identity_provider.faked_provider() as running:
        identity_provider.configure(settings, running.origin)
        settings.UPSTREAM_PROVIDERS["auth0"]["scope"] = NARROW
        yield running


@pytest.fixture
def browser(peer: FakedProvider) -> BrowserAtProvider:
    return BrowserAtProvider(peer)


def is_sent_for(raw_token: str, upstream_scope: str) -> bool:
    """What the gateway asks door 2 before it runs a tool."""
    resource = django_settings.RESOURCES[0]

    async def ask() -> bool:
        principal = await verify_access_token(PresentedToken("Bearer", raw_token, "POST", resource, resource))
        return await must_be_widened(principal, "todos", upstream_scope)

    return async_to_sync(ask)()


def test_a_scope_that_the_provider_gave_asks_nobody(browser: BrowserAtProvider, inspector: Client) -> None:
    raw = browser.tokens_of(inspector)["access_token"]
    assert not is_sent_for(raw, "read:todos")
    assert not Challenge.objects.exists()


@pytest.mark.parametrize("says", [True, False])
def test_the_next_authorization_asks_the_provider_for_the_union(
    browser: BrowserAtProvider, peer: FakedProvider, inspector: Client, says: bool
) -> None:
    """Signed in here or not: the page leads to the provider, once, with everything there is."""
    raw = browser.tokens_of(inspector)["access_token"]
    assert is_sent_for(raw, "read:billing")
    browser.authorize(inspector, scope="read:todos read:billing")
    assert not browser.page.scopes, "the person was not sent to the provider"
    if says:
        peer.tokens = {"scope": SCOPE}
    browser.sign_in_there()
    assert browser.page.scopes, "the person was sent to the provider twice"
    assert set(browser.sent["scope"].split()) == set(SCOPE.split())
    browser.answer()
    assert set(UpstreamCredential.objects.get().scope.split()) == set(SCOPE.split())
    assert not is_sent_for(raw, "read:billing")
    browser.authorize(inspector)
    assert browser.page.scopes


def test_a_token_in_memory_does_not_hide_what_the_sign_in_brought(
    browser: BrowserAtProvider, peer: FakedProvider, inspector: Client
) -> None:
    raw = browser.tokens_of(inspector)["access_token"]
    resource = django_settings.RESOURCES[0]

    async def ask_around_the_sign_in() -> list[bool]:
        principal = await verify_access_token(PresentedToken("Bearer", raw, "POST", resource, resource))
        before = await must_be_widened(principal, "todos", "read:todos")  # fills the memory of this loop
        await sync_to_async(UpstreamCredential.objects.update)(scope=SCOPE)
        return [before, await must_be_widened(principal, "todos", "read:billing")]

    assert async_to_sync(ask_around_the_sign_in)() == [False, False]


@pytest.mark.threat("T10")
def test_a_provider_that_does_not_give_it_is_asked_once(
    browser: BrowserAtProvider, peer: FakedProvider, inspector: Client
) -> None:
    raw = browser.tokens_of(inspector)["access_token"]
    assert is_sent_for(raw, "read:billing")
    peer.tokens = {"scope": NARROW}
    browser.authorize(inspector)
    browser.sign_in_there()
    browser.answer()
    for _ in range(3):
        assert not is_sent_for(raw, "read:billing")
    Challenge.objects.update(at=timezone.now() - challenges.WIDENED_WITHIN)
    browser.authorize(inspector)
    assert browser.page.scopes, "the person is sent to the provider for ever"
    Challenge.objects.update(at=timezone.now() - challenges.AGAIN_AFTER - timedelta(minutes=1))
    assert is_sent_for(raw, "read:billing")


def test_a_wider_credential_stays_wide_at_the_next_sign_in(
    browser: BrowserAtProvider, peer: FakedProvider, inspector: Client
) -> None:
    browser.tokens_of(inspector)
    UpstreamCredential.objects.update(scope=SCOPE)
    user = User.objects.get()
    from oauth_relay.identity_providers import provider

    assert set(staged_tokens.scope_to_ask(user, provider("auth0")).split()) == set(SCOPE.split())
    assert staged_tokens.scope_to_ask(None, provider("auth0")) == NARROW


def test_cairs_own_tokens_are_never_widened(browser: Browser, ada: User, inspector: Client, settings: Any) -> None:
    settings.UPSTREAM_PROVIDERS = {}
    settings.UPSTREAM_APIS = {"todos": {**settings.UPSTREAM_APIS["todos"], "token_source": "cair"}}
    settings.OWN_ACCOUNTS = True
    own = Browser()
    assert not is_sent_for(own.tokens(inspector, ada)["access_token"], "read:billing")
