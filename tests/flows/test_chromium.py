"""The pages in a real browser: read, allowed, refused, by mouse and by keyboard, on a phone and in the dark."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from cair.demo.oauth_client import Listener
from tests.flows.visit import BOUND, Visit
from tests.servers import Server
from tests.walk import OAuthClient

pytestmark = pytest.mark.chromium

PHONE = {"width": 320, "height": 640}


@pytest.fixture(scope="module")
def server(sqlite_server: Server) -> Server:
    """Which database it is is not the point here: the walks are made on both elsewhere."""
    return sqlite_server


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def client(server: Server, listener: Listener) -> OAuthClient:
    return OAuthClient(server.url, name="Chromium flow", redirect_uri=listener.redirect_uri).register()


def answer(listener: Listener) -> dict[str, str]:
    got = listener.wait(BOUND)
    assert got is not None, "no answer reached the client's own address"
    return got


def test_somebody_signs_in_reads_and_allows(client: OAuthClient, listener: Listener, visit: Visit) -> None:
    visit.page.goto(client.authorization_url())
    expect(visit.page.get_by_role("heading", level=1)).to_have_text("Sign in to connect a client")
    expect(visit.page.get_by_text("Chromium flow").first).to_be_visible()
    visit.picture("sign-in")
    visit.sign_in()
    expect(visit.page.get_by_role("heading", level=1)).to_have_text("Allow this client to act for you?")
    expect(visit.page.get_by_text("demo@example.com").first).to_be_visible()
    expect(visit.page.get_by_text(listener.redirect_uri).first).to_be_visible()
    expect(visit.page.get_by_role("note")).to_contain_text("a program on this device")
    expect(visit.page.get_by_role("checkbox", name="See your todos")).to_be_checked()
    expect(visit.page.get_by_text("list_todos").first).to_be_visible()
    visit.picture("consent")
    visit.page.get_by_role("button", name="Allow", exact=True).click()
    got = answer(listener)
    assert (got["state"], got["iss"]) == (client.state, client.url)
    client.tokens = client.redeem(got["code"]).json()
    assert client.todos()


def test_somebody_denies(client: OAuthClient, listener: Listener, visit: Visit) -> None:
    visit.page.goto(client.authorization_url())
    visit.sign_in()
    visit.page.get_by_role("button", name="Deny").click()
    got = answer(listener)
    assert (got["error"], got["state"], got["iss"]) == ("access_denied", client.state, client.url)


def test_somebody_cancels_before_signing_in(client: OAuthClient, listener: Listener, visit: Visit) -> None:
    visit.page.goto(client.authorization_url())
    visit.page.get_by_role("button", name="Cancel").click()
    assert answer(listener)["error"] == "access_denied"


def test_somebody_unticks_a_permission(client: OAuthClient, listener: Listener, visit: Visit) -> None:
    visit.page.goto(client.authorization_url())
    visit.sign_in()
    visit.page.get_by_role("checkbox", name="Add, change and delete").uncheck()
    visit.page.get_by_role("button", name="Allow", exact=True).click()
    assert client.redeem(answer(listener)["code"]).json()["scope"] == "read:todos"


def test_a_wrong_password_is_announced_and_can_be_mended(client: OAuthClient, listener: Listener, visit: Visit) -> None:
    visit.page.goto(client.authorization_url())
    visit.sign_in(password="wrong")
    expect(visit.page.get_by_role("alert")).to_contain_text("do not match")
    expect(visit.page.get_by_label("User name")).to_have_value("demo")
    expect(visit.page.get_by_label("Password")).to_have_value("")
    assert visit.page.title().startswith("Error")
    visit.picture("sign-in-wrong-password")
    visit.sign_in()
    visit.page.get_by_role("button", name="Allow", exact=True).click()
    assert answer(listener)["code"]


def test_the_keyboard_is_enough(client: OAuthClient, listener: Listener, visit: Visit) -> None:
    visit.page.goto(client.authorization_url())
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.className") == "skip"
    visit.picture("keyboard-skip-link")
    visit.tab_to("#username")
    visit.page.keyboard.type("demo")
    visit.tab_to("#password")
    visit.page.keyboard.type("demo")
    visit.page.keyboard.press("Enter")
    expect(visit.page.get_by_role("heading", level=1)).to_have_text("Allow this client to act for you?")
    visit.tab_to("input[value='write:todos']")
    visit.page.keyboard.press("Space")
    expect(visit.page.get_by_role("checkbox", name="Add, change and delete")).not_to_be_checked()
    visit.tab_to("button[value='allow']")
    visit.picture("keyboard-allow-focused")
    outline = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "nobody could see where the focus is"
    visit.page.keyboard.press("Enter")
    assert client.redeem(answer(listener)["code"]).json()["scope"] == "read:todos"


def test_enter_in_a_checkbox_never_allows(client: OAuthClient, listener: Listener, visit: Visit) -> None:
    visit.page.goto(client.authorization_url())
    visit.sign_in()
    visit.tab_to("input[name='scope']")
    visit.page.keyboard.press("Enter")
    assert answer(listener)["error"] == "access_denied"


def test_back_and_allow_again_changes_nothing(client: OAuthClient, listener: Listener, visit: Visit) -> None:
    visit.page.goto(client.authorization_url())
    visit.sign_in()
    visit.page.get_by_role("button", name="Allow", exact=True).click()
    assert answer(listener)["code"]
    visit.page.go_back()
    if visit.page.get_by_role("button", name="Allow", exact=True).count():
        visit.page.get_by_role("button", name="Allow", exact=True).click()
    expect(visit.page.get_by_role("heading", level=1)).to_have_text("Nothing was changed")
    visit.picture("already-answered")
    assert listener.answers.empty()


def test_somebody_disconnects(server: Server, client: OAuthClient, listener: Listener, visit: Visit) -> None:
    visit.page.goto(client.authorization_url())
    visit.sign_in()
    visit.page.get_by_role("button", name="Allow", exact=True).click()
    client.tokens = client.redeem(answer(listener)["code"]).json()
    visit.page.goto(f"{server.url}/connections")
    visit.picture("connections")
    row = visit.page.get_by_role("listitem").filter(has_text=listener.origin.removeprefix("http://"))
    row.get_by_role("button", name="Disconnect").click()
    expect(visit.page.get_by_role("status")).to_contain_text("disconnected")
    assert client.refresh(client.tokens["refresh_token"]).status_code == 400


def test_a_page_of_ours_at_another_loopback_name_leads_to_ours(server: Server, visit: Visit) -> None:
    visit.page.goto(server.url.replace("localhost", "127.0.0.1") + "/connections")
    assert visit.page.url.startswith(server.url)


def test_the_first_page_and_the_refusals_say_what_to_do(server: Server, client: OAuthClient, visit: Visit) -> None:
    visit.page.goto(server.url)
    expect(visit.page.get_by_text(f"{server.url}/mcp").first).to_be_visible()
    visit.picture("home")
    client.client_id = "nobody"
    visit.page.goto(client.authorization_url())
    expect(visit.page.get_by_text("What you can do")).to_be_visible()
    visit.picture("unknown-client")
    visit.page.goto(f"{server.url}/nowhere")
    expect(visit.page.get_by_role("heading", level=1)).to_have_text("Not found")


# -- small, dark, and large letters ------------------------------------------------------------------------------------

_CONTRAST = """() => {
  const channel = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const numbers = s => s.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = e => { for (; e; e = e.parentElement) { const n = numbers(getComputedStyle(e).backgroundColor);
    if (n.length === 3 || n[3] === 1) return n; } return numbers(getComputedStyle(document.documentElement).backgroundColor); };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('.visually-hidden, .skip') || !e.getClientRects().length) continue;
    const [a, b] = [light(numbers(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(`${e.tagName} “${e.textContent.trim().slice(0, 40)}” ${ratio.toFixed(2)}`);
  }
  return found;
}"""


@pytest.mark.parametrize(
    "visit",
    [
        pytest.param({"viewport": PHONE, "color_scheme": "light"}, id="phone-light"),
        pytest.param({"viewport": PHONE, "color_scheme": "dark"}, id="phone-dark"),
        pytest.param({"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"}, id="desk-dark"),
        pytest.param({"viewport": {"width": 1280, "height": 900}, "forced_colors": "active"}, id="desk-forced-colours"),
    ],
    indirect=True,
)
def test_it_can_be_read_on_a_phone_and_in_the_dark(
    server: Server, client: OAuthClient, visit: Visit, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id.replace("sqlite-", "").replace("postgres-", "")

    def look(page: str) -> None:
        visit.picture(f"{name}-{page}")
        too_wide = visit.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert too_wide <= 0, f"{page} must be scrolled sideways by {too_wide} px"
        if "forced" not in name:
            assert visit.page.evaluate(_CONTRAST) == [], f"{page}: WCAG 1.4.3"

    visit.page.goto(client.authorization_url())
    look("sign-in")
    visit.sign_in()
    expect(visit.page.get_by_role("button", name="Allow", exact=True)).to_be_visible()
    look("consent")
    for path, page in (("/connections", "connections"), ("/", "home"), ("/nowhere", "refusal")):
        visit.page.goto(server.url + path)
        look(page)


def test_each_control_has_a_name_and_each_page_one_heading(server: Server, client: OAuthClient, visit: Visit) -> None:
    def look() -> None:
        assert visit.page.get_by_role("heading", level=1).count() == 1
        assert visit.page.locator("html").get_attribute("lang")
        visit.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        for control in visit.page.locator("button, a, input:not([type=hidden])").all():
            words = control.evaluate("e => e.innerText || (e.labels && e.labels[0] && e.labels[0].innerText) || ''")
            assert words.strip(), control.evaluate("e => e.outerHTML")

    visit.page.goto(client.authorization_url())
    look()
    visit.sign_in()
    expect(visit.page.get_by_role("button", name="Allow", exact=True)).to_be_visible()
    look()
    visit.page.goto(f"{server.url}/connections")
    look()
