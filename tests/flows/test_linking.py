"""A person adds a second provider to their account, in a real browser, at two real providers; then signs in by it."""

import contextlib
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests import identity_provider, servers
from tests.flows.visit import Visit
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET
from tests.servers import Server

pytestmark = [pytest.mark.chromium, pytest.mark.node]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Auth0 and a second issuer, both panva's oidc-provider."""
    port = servers.free_port()
    here = f"http://localhost:{port}"
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(identity_provider.real_provider(f"{here}/callback"))
        second = stack.enter_context(identity_provider.real_provider(f"{here}/callback/work"))
        extra = {
            **identity_provider.environment(first),
            "PORT": str(port),
            "PROVIDERS": "work",
            "PROVIDER_WORK_LABEL": "Work",
            "PROVIDER_WORK_ISSUER": second,
            "PROVIDER_WORK_CLIENT_ID": CLIENT_ID,
            "PROVIDER_WORK_CLIENT_SECRET": CLIENT_SECRET,
        }
        url = stack.enter_context(servers.database("sqlite"))
        yield stack.enter_context(servers.serve(url, extra))


def sign_in_there(visit: Visit, login: str) -> None:
    """The provider's own page; it asks whenever it is told to."""
    visit.page.get_by_label("Login").fill(login)
    visit.page.get_by_role("button", name="Continue").click()


@pytest.mark.threat("T30")
def test_a_second_provider_is_added_and_opens_the_same_account(server: Server, visit: Visit, chromium: Browser) -> None:
    page = visit.page
    page.goto(f"{server.url}/login")
    page.get_by_role("button", name="Continue with Auth0").click()
    sign_in_there(visit, "auth0|ada")
    expect(page.get_by_role("heading", level=1)).to_have_text("Your connections")
    visit.picture("connections-addable")
    page.get_by_role("button", name="Add Work").click()
    visit.picture("link-confirm")
    page.get_by_role("button", name="Continue with Auth0").click()
    sign_in_there(visit, "auth0|ada")  # asked anew, though its session is alive
    visit.picture("link-continue")
    page.get_by_role("button", name="Continue with Work").click()
    sign_in_there(visit, "auth0|mallory")
    expect(page.get_by_role("heading", level=1)).to_have_text("Is this you at Work?")
    expect(page.get_by_text("auth0|mallory")).to_be_visible()
    visit.picture("link-keep")
    page.get_by_role("button", name="Add it", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("You can sign in with Work from now on.")
    visit.picture("connections-linked")
    elsewhere = Visit(chromium, visit.folder)
    elsewhere.page.goto(f"{server.url}/login")
    elsewhere.page.get_by_role("button", name="Continue with Work").click()
    sign_in_there(elsewhere, "auth0|mallory")
    expect(elsewhere.page.get_by_role("heading", name="Auth0")).to_be_visible()
    elsewhere.context.close()
    assert (
        server.shell("from oauth_relay.models import User; print(User.objects.filter(is_staff=False).count())") == "1"
    )
