"""A production server behind a proxy that ends TLS: people can do there what they can do at home."""

import http.client
import re
from collections.abc import Iterator

import pytest

from tests.check_deploy import PRODUCTION
from tests.servers import Server, database, free_port, serve

HOST = "cair.example.com"


class Browser:
    """A browser at the far side of the proxy: it speaks https there, and the proxy speaks http to us."""

    def __init__(self, server: Server) -> None:
        self.port = int(server.environment["PORT"])
        self.cookies: dict[str, str] = {}

    def ask(self, method: str, path: str, form: str = "") -> tuple[int, str, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        headers = {"Host": HOST, "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
        headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if method == "POST":
            headers |= {"Origin": f"https://{HOST}", "Content-Type": "application/x-www-form-urlencoded"}
        connection.request(method, path, form, headers)
        response = connection.getresponse()
        text = response.read().decode()
        for cookie in response.headers.get_all("Set-Cookie") or []:
            name, _, value = cookie.partition(";")[0].partition("=")
            assert name.startswith("__Host-"), cookie
            assert "Secure" in cookie
            self.cookies[name] = value
        return response.status, text, response.headers


def field(page: str, name: str) -> str:
    found = re.search(rf'name="{name}"[^>]*value="([^"]*)"', page)
    assert found, page
    return found[1]


@pytest.fixture(scope="module")
def production() -> Iterator[Server]:
    with database("sqlite") as url, serve(url, {**PRODUCTION, "PORT": str(free_port())}) as running:
        make = "from oauth_relay.models import User; User.objects.create_superuser('ada', password='open sesame 4711')"
        running.shell(make)
        yield running


@pytest.fixture
def browser(production: Server) -> Browser:
    browser = Browser(production)
    _, page, _ = browser.ask("GET", "/login?next=/connections")
    form = f"transaction={field(page, 'transaction')}&form_token={field(page, 'form_token')}"
    status, _, headers = browser.ask("POST", "/login", f"{form}&action=sign_in&username=ada&password=open+sesame+4711")
    assert (status, headers["Location"]) == (303, "/connections")
    return browser


def test_a_person_can_disconnect_and_sign_out(browser: Browser) -> None:
    _, page, headers = browser.ask("GET", "/connections")
    assert "max-age=" in headers["Strict-Transport-Security"]
    token = field(page, "csrfmiddlewaretoken")
    assert browser.ask("POST", "/connections", f"csrfmiddlewaretoken={token}&grant=x&action=withdraw")[0] == 303
    assert browser.ask("POST", "/logout", f"csrfmiddlewaretoken={token}")[0] == 303
    assert browser.ask("GET", "/connections")[0] == 303


def test_an_operator_can_sign_in_at_the_admin(production: Server) -> None:
    browser = Browser(production)
    _, page, _ = browser.ask("GET", "/admin/login/")
    form = (
        f"csrfmiddlewaretoken={field(page, 'csrfmiddlewaretoken')}&username=ada&password=open+sesame+4711&next=/admin/"
    )
    assert browser.ask("POST", "/admin/login/", form)[0] == 302
    assert browser.ask("GET", "/admin/")[0] == 200


def test_a_form_from_elsewhere_is_still_refused(browser: Browser) -> None:
    _, page, _ = browser.ask("GET", "/connections")
    connection = http.client.HTTPConnection("127.0.0.1", browser.port, timeout=10)
    headers = {
        "Host": HOST, "Origin": "https://evil.example", "Content-Type": "application/x-www-form-urlencoded",
        "Cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items()),
    }  # fmt: skip
    connection.request("POST", "/logout", f"csrfmiddlewaretoken={field(page, 'csrfmiddlewaretoken')}", headers)
    assert connection.getresponse().status == 403


def test_metadata_names_the_public_address_and_no_other(production: Server) -> None:
    browser = Browser(production)
    for path in ("/.well-known/oauth-authorization-server", "/.well-known/oauth-protected-resource"):
        _, text, _ = browser.ask("GET", path)
        assert f"https://{HOST}" in text
        assert "127.0.0.1" not in text
