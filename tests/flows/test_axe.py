"""axe-core looks at every page a person can meet, narrow and wide, in the light and in the dark, and finds nothing.

Each page is opened as a person comes to it; what it folds away is unfolded first.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests import identity_provider, servers
from tests.flows.node_program import NODE
from tests.flows.visit import Visit
from tests.servers import Server
from tests.walk import OAuthClient, Person

pytestmark = [pytest.mark.chromium, pytest.mark.node]

SIZES = {"narrow": {"width": 320, "height": 640}, "wide": {"width": 1280, "height": 900}}
SCHEMES = ["light", "dark"]
EVERYTHING = "read:todos write:todos read:billing"
PASSWORD = "correct horse battery"
# Nothing of ours is worth fetching twice, and the pages' own policy would rightly forbid it.
OPTIONS = {"preload": False, "resultTypes": ["violations"]}
UNFOLD = "document.querySelectorAll('details').forEach(each => each.open = true)"


@pytest.fixture(scope="module")
def server(sqlite_server: Server) -> Server:
    """Which database it is is not the point here: the walks are made on both elsewhere."""
    return sqlite_server


@pytest.fixture(scope="module")
def axe() -> str:
    """As a function, since the pages run no script but what a debugger puts in."""
    return f"() => {{ {(NODE / 'node_modules/axe-core/axe.min.js').read_text()} }}"


class Looker:
    """Somebody with a browser and a list of complaints."""

    def __init__(self, visit: Visit, axe: str) -> None:
        self.visit, self.axe = visit, axe

    @property
    def page(self) -> Page:
        return self.visit.page

    def look(self, heading: str) -> None:
        """The page under this heading, in each size and colour scheme."""
        expect(self.page.get_by_role("heading", level=1)).to_have_text(heading)
        self.page.evaluate(UNFOLD)
        found = []
        for size, viewport in SIZES.items():
            self.page.set_viewport_size(viewport)  # type: ignore[arg-type]
            for scheme in SCHEMES:
                self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                found += [f"{size}, {scheme}: {finding}" for finding in self.findings()]
        assert found == [], f"“{heading}” at {self.page.url}:\n" + "\n".join(found)

    def findings(self) -> list[str]:
        if not self.page.evaluate("Boolean(window.axe)"):
            self.page.evaluate(self.axe)
        result = self.page.evaluate("options => axe.run(document, options)", OPTIONS)
        return [line for violation in result["violations"] for line in _lines(violation)]

    def open(self, url: str) -> None:
        self.page.goto(url)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).first.click()

    def sign_in(self, username: str = "demo", password: str = "demo") -> None:
        self.page.get_by_label("User name").fill(username)
        self.page.get_by_label("Password").fill(password)
        self.page.locator("button[value='sign_in']").click()


def _lines(violation: dict[str, Any]) -> list[str]:
    return [f"{violation['id']} ({violation['help']}): {node['html'][:200]}" for node in violation["nodes"]]


@pytest.fixture
def looker(visit: Visit, axe: str) -> Looker:
    return Looker(visit, axe)


def client_at(server: Server, redirect_uri: str, name: str = "Inspector") -> OAuthClient:
    return OAuthClient(server.url, name=name, redirect_uri=redirect_uri).register()


def test_the_pages_before_a_sign_in(server: Server, looker: Looker) -> None:
    client = client_at(server, "http://127.0.0.1:53682/callback")
    looker.open(server.url)
    looker.look("Connect an AI client")
    looker.open(f"{server.url}/login")
    looker.look("Sign in")
    looker.open(client.authorization_url(scope=EVERYTHING))
    looker.look("Sign in to connect a client")
    looker.sign_in(password="wrong")
    expect(looker.page.get_by_role("alert")).to_be_visible()
    looker.look("Sign in to connect a client")


@pytest.mark.parametrize(
    "redirect_uri, name",
    [
        pytest.param("http://127.0.0.1:53682/callback", "Inspector", id="program-on-this-device"),
        pytest.param("cursor://anysphere.cursor-mcp/oauth/callback", "Cursor", id="app-on-this-device"),
        pytest.param("https://elsewhere.example/callback", "Cl\u0430ude", id="look-alike-from-elsewhere"),
        pytest.param(f"https://elsewhere.example/{'very-' * 80}long", "W" * 120, id="too-long-for-a-line"),
    ],
)
def test_the_consent_page(server: Server, looker: Looker, redirect_uri: str, name: str) -> None:
    client = client_at(server, redirect_uri, name)
    looker.open(client.authorization_url(scope=EVERYTHING))
    looker.look("Sign in to connect a client")
    looker.sign_in()
    looker.look("Allow this client to act for you?")


def test_the_consent_page_that_was_answered_with_nothing_ticked(server: Server, looker: Looker) -> None:
    looker.open(client_at(server, "http://127.0.0.1:53682/callback").authorization_url())
    looker.sign_in()
    for box in looker.page.get_by_role("checkbox").all():
        box.uncheck()
    looker.press("Allow")
    looker.look("Allow this client to act for you?")


def test_the_page_for_a_client_that_was_allowed_before(server: Server, looker: Looker) -> None:
    """An operator made it and its redirect URI is https: known, and one click."""
    made = server.manage("create_client", "Weekly report", "https://reports.example/callback", "--json")
    client = OAuthClient(server.url, redirect_uri="https://reports.example/callback")
    client.client_id = json.loads(made)["client_id"]
    client.connect(Person(server.url))
    looker.open(client.authorization_url())
    looker.sign_in()
    looker.look("Continue with this client?")


def test_the_consent_page_that_shows_what_is_new(server: Server, looker: Looker) -> None:
    client = client_at(server, "http://127.0.0.1:53682/callback").connect(Person(server.url), scope="read:todos")
    looker.open(client.authorization_url(scope="read:billing"))
    looker.sign_in()
    expect(looker.page.get_by_text("Allowed before")).to_be_visible()
    looker.look("Allow this client to act for you?")


def test_the_page_that_hands_over_to_an_app(server: Server, looker: Looker) -> None:
    looker.open(client_at(server, "cursor://anysphere.cursor-mcp/oauth/callback", "Cursor").authorization_url())
    looker.sign_in()
    looker.press("Allow")
    looker.look("Go back to the app")


def test_the_connections_page_empty_and_full(server: Server, looker: Looker) -> None:
    username = _newcomer(server)
    looker.open(f"{server.url}/login")
    looker.sign_in(username, PASSWORD)
    looker.look("Your connections")
    person = Person(server.url, username=username, password=PASSWORD)
    for name in ("Inspector", "Cursor"):
        client_at(server, "http://127.0.0.1:53682/callback", name).connect(person)
    looker.open(f"{server.url}/connections")
    expect(looker.page.get_by_role("button", name="Disconnect", exact=True)).to_have_count(2)
    looker.look("Your connections")
    looker.press("Disconnect")
    expect(looker.page.get_by_role("status")).to_be_visible()
    expect(looker.page.get_by_role("heading", name="Ended")).to_be_visible()
    looker.look("Your connections")
    looker.open(server.url)
    looker.look("Connect an AI client")


def _newcomer(server: Server) -> str:
    """Somebody without any connection, whatever other tests have allowed."""
    server.shell(
        "from oauth_relay.models import User\n"
        "if not User.objects.filter(username='axe').exists():\n"
        f"    User.objects.create_user('axe', 'axe@example.com', {PASSWORD!r}, first_name='Ada')"
    )
    return "axe"


def test_the_pages_that_say_no(server: Server, looker: Looker) -> None:
    client = client_at(server, "https://elsewhere.example/callback")
    looker.open(client.authorization_url(redirect_uri="https://attacker.example/"))
    looker.look("This application must connect anew")
    looker.open(client.authorization_url(scope="no:such"))
    looker.look("The request was not right")
    looker.open(client.authorization_url(client_id="nobody"))
    looker.look("This application must connect anew")
    looker.open(f"{server.url}/nowhere")
    looker.look("Not found")


# -- with a provider ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server_with_provider() -> Iterator[Server]:
    """A provider, and own accounts beside it."""
    port = servers.free_port()
    with contextlib.ExitStack() as stack:
        issuer = stack.enter_context(identity_provider.real_provider(f"http://localhost:{port}/callback"))
        url = stack.enter_context(servers.database("sqlite"))
        extra = {**identity_provider.environment(issuer), "PORT": str(port), "OWN_ACCOUNTS": "true"}
        yield stack.enter_context(servers.serve(url, extra))


def test_the_pages_on_which_somebody_adds_a_way_to_sign_in(server_with_provider: Server, looker: Looker) -> None:
    username = _newcomer(server_with_provider)
    looker.open(f"{server_with_provider.url}/login")
    looker.look("Sign in")
    looker.sign_in(username, PASSWORD)
    looker.look("Your connections")
    looker.press("Add Auth0")
    looker.look("First show that this is your account")
    looker.sign_in(username, PASSWORD)
    looker.look("Add Auth0 to your account")
    looker.press("Continue with Auth0")
    looker.page.get_by_label("Login").fill("auth0|ada")
    looker.page.get_by_role("button", name="Continue").click()
    looker.look("Is this you at Auth0?")
    looker.press("Do not add it")
    looker.look("Nothing was added")


# -- and would it have said so? ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil, rule",
    [
        ("document.documentElement.removeAttribute('lang')", "html-has-lang"),
        ("document.querySelectorAll('label').forEach(each => each.replaceWith(...each.childNodes))", "label"),
        ("document.querySelector('h1').style.color = 'rgb(120 120 120 / 40%)'", "color-contrast"),
    ],
)
def test_it_would_have_said_so(server: Server, looker: Looker, spoil: str, rule: str) -> None:
    looker.open(f"{server.url}/login")
    looker.page.evaluate(spoil)
    assert any(line.startswith(f"{rule} ") for line in looker.findings())
