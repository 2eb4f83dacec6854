"""The answer to an app of the person's device, in a real browser: a page that goes on by itself, and has a link."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.flows.node_program import NODE
from tests.flows.visit import BOUND, Visit
from tests.servers import Server
from tests.walk import OAuthClient, parameters_of

pytestmark = pytest.mark.chromium
APP = "cursor://anysphere.cursor-mcp/oauth/callback"
STOPPED = "stopped"
NO_APP = "does not have a registered handler"


@pytest.fixture(scope="module")
def server(sqlite_server: Server) -> Server:
    """Which database it is is not the point here: the walks are made on both elsewhere."""
    return sqlite_server


@pytest.fixture
def client(server: Server) -> OAuthClient:
    return OAuthClient(server.url, name="Cursor", redirect_uri=APP).register()


class Departures:
    """Where the browser set out to, by itself or at a click, and for what reason. No app is there to take it."""

    def __init__(self, visit: Visit) -> None:
        self.seen: list[tuple[str, str]] = []
        self.visit = visit
        session = visit.context.new_cdp_session(visit.page)
        session.on("Page.frameRequestedNavigation", lambda event: self.seen.append((event["reason"], event["url"])))
        session.on("Page.frameStoppedLoading", lambda event: self.seen.append((STOPPED, "")))
        session.send("Page.enable")

    def wait(self, reason: str) -> dict[str, str]:
        """The parameters with which the app is called for this reason, once it is."""
        for _ in range(int(BOUND * 20)):
            for why, url in self.seen:
                if why == reason and url.startswith(APP):
                    return parameters_of(url)
            self.visit.page.wait_for_timeout(50)
        raise AssertionError(f"no {reason} to the app: {self.seen}")

    def wait_for_the_end(self) -> None:
        """The browser has found no app to call; until then it would not go back."""
        for _ in range(int(BOUND * 20)):
            if self.seen and self.seen[-1][0] == STOPPED:
                return
            self.visit.page.wait_for_timeout(50)
        raise AssertionError(f"the browser still tries: {self.seen}")


@pytest.fixture
def departures(visit: Visit) -> Departures:
    return Departures(visit)


def forget_missing_app(visit: Visit) -> None:
    """What Chromium says where no app claims the scheme is not about our page."""
    visit.complaints = [line for line in visit.complaints if NO_APP not in line]


def test_the_page_goes_on_by_itself_and_has_a_link(client: OAuthClient, visit: Visit, departures: Departures) -> None:
    visit.page.goto(client.authorization_url())
    visit.sign_in()
    visit.page.get_by_role("button", name="Allow", exact=True).click()
    expect(visit.page.get_by_role("heading", level=1)).to_have_text("Go back to the app")
    by_itself = departures.wait("httpHeaderRefresh")
    assert by_itself["state"] == client.state and by_itself["iss"] == client.url
    visit.page.get_by_role("link", name="Return to Cursor").click()
    assert departures.wait("anchorClick") == by_itself
    assert client.redeem(by_itself["code"]).status_code == 200
    assert by_itself["code"] not in visit.page.url, "the address would stay in the history"
    visit.picture("hand-off")
    forget_missing_app(visit)


@pytest.mark.parametrize("button", ["Deny", "Cancel"])
def test_a_no_reaches_the_app_too(client: OAuthClient, visit: Visit, departures: Departures, button: str) -> None:
    visit.page.goto(client.authorization_url())
    if button == "Deny":
        visit.sign_in()
    visit.page.get_by_role("button", name=button).click()
    expect(visit.page.get_by_role("heading", level=1)).to_have_text("Go back to the app")
    assert departures.wait("httpHeaderRefresh")["error"] == "access_denied"
    forget_missing_app(visit)


def test_back_and_allow_again_changes_nothing(client: OAuthClient, visit: Visit, departures: Departures) -> None:
    visit.page.goto(client.authorization_url())
    visit.sign_in()
    visit.page.get_by_role("button", name="Allow", exact=True).click()
    departures.wait("httpHeaderRefresh")
    departures.wait_for_the_end()
    visit.page.go_back()
    if visit.page.get_by_role("button", name="Allow", exact=True).count():
        visit.page.get_by_role("button", name="Allow", exact=True).click()
    expect(visit.page.get_by_role("heading", level=1)).to_have_text("Nothing was changed")
    forget_missing_app(visit)


@pytest.mark.parametrize(
    "visit",
    [pytest.param({"viewport": {"width": 320, "height": 640}, "color_scheme": "dark"}, id="phone-dark"), {}],
    indirect=True,
)
def test_everybody_can_read_it(client: OAuthClient, visit: Visit, departures: Departures) -> None:
    visit.page.goto(client.authorization_url())
    visit.sign_in()
    visit.page.get_by_role("button", name="Allow", exact=True).click()
    departures.wait("httpHeaderRefresh")
    visit.page.evaluate(Path(NODE / "node_modules/axe-core/axe.min.js").read_text())
    found = visit.page.evaluate("async () => (await axe.run()).violations.map(v => [v.id, v.nodes.map(n => n.html)])")
    assert found == []
    assert visit.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    visit.picture("hand-off-accessible")
    forget_missing_app(visit)
