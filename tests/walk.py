"""The scripted person and the OAuth client of the flow tests: a browser that reads pages, a client that hides nothing."""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import requests

from cair.demo.person import Browser, Page

REDIRECT_URI = "http://127.0.0.1:53682/callback"
"""A loopback address where nobody listens: the scripted browser stops at its door."""
SECONDS = 5.0
MODERN = "2026-07-28"
_CHALLENGE = re.compile(r'([a-z_]+)="([^"]*)"')


def plain() -> requests.Session:
    """A session that neither a proxy variable nor a cookie jar of an earlier test can disturb."""
    session = requests.Session()
    session.trust_env = False
    return session


def challenge_of(response: requests.Response) -> dict[str, str]:
    """The parameters of the WWW-Authenticate header."""
    return dict(_CHALLENGE.findall(response.headers.get("WWW-Authenticate", "")))


def parameters_of(url: str) -> dict[str, str]:
    """The query of an address; fails where a parameter comes twice (RFC 6749 §3.1)."""
    found = parse_qs(urlsplit(url).query, keep_blank_values=True, strict_parsing=True)
    assert all(len(values) == 1 for values in found.values()), found
    return {name: values[0] for name, values in found.items()}


class Person:
    """Somebody at a browser of their own."""

    def __init__(self, url: str, *, username: str = "demo", password: str = "demo", also: Collection[str] = ()) -> None:
        self.browser = Browser(url, follow_to=also)
        self.url, self.username, self.password = url, username, password

    def open(self, url: str) -> Page:
        return self.browser.open(self.url + url if url.startswith("/") else url)

    def sign_in(self, page: Page) -> Page:
        return self.browser.press(page, "sign_in", fill={"username": self.username, "password": self.password})

    def sign_in_first(self) -> Page:
        return self.sign_in(self.open("/login"))

    def consent_page(self, authorization_url: str) -> Page:
        """The consent page of a request, signing in on the way if asked to."""
        page = self.open(authorization_url)
        if page.has_button("sign_in"):
            page = self.sign_in(page)
        assert page.has_button("allow"), (page.status, page.left, page.text)
        return page

    def allow(self, authorization_url: str, untick: Collection[str] = ()) -> dict[str, str]:
        """Read, allow, and give the parameters of the answer to the client."""
        return self.answer(self.consent_page(authorization_url), "allow", untick)

    def answer(self, page: Page, button: str, untick: Collection[str] = ()) -> dict[str, str]:
        answered = self.browser.press(page, button, untick=untick)
        assert answered.left, (answered.status, answered.text)
        return parameters_of(answered.left)

    def withdraw(self, client_name: str) -> Page:
        return self.browser.press(self.open("/connections"), "withdraw", about=client_name)


@dataclass
class OAuthClient:
    """An MCP client that does one message at a time. `changes` replace parameters; None leaves one away."""

    url: str
    name: str = "Inspector"
    redirect_uri: str = REDIRECT_URI
    client_id: str = ""
    registration: dict[str, Any] = field(default_factory=dict)
    verifier: str = ""
    state: str = ""
    tokens: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.http = plain()

    @property
    def mcp(self) -> str:
        return f"{self.url}/mcp"

    # -- OAuth ---------------------------------------------------------------------------------------------------------

    def register(self, **metadata: Any) -> "OAuthClient":
        asked = {
            "client_name": self.name,
            "redirect_uris": [self.redirect_uri],
            "grant_types": ["authorization_code", "refresh_token"],
            "token_endpoint_auth_method": "none",
        } | metadata
        response = self.http.post(f"{self.url}/register", json=asked, timeout=SECONDS)
        assert response.status_code == 201, response.text
        self.registration = response.json()
        self.client_id = self.registration["client_id"]
        return self

    def authorization_url(self, **changes: Any) -> str:
        self.state, self.verifier = secrets.token_urlsafe(16), secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": "read:todos write:todos",
            "state": self.state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            "resource": self.mcp,
        } | changes
        return f"{self.url}/authorize?{urlencode(_present(asked), doseq=True)}"

    def token_request(self, **form: Any) -> requests.Response:
        form = {"client_id": self.client_id} | form
        return self.http.post(f"{self.url}/token", data=_present(form), timeout=SECONDS)

    def redeem(self, issued_code: str, **changes: Any) -> requests.Response:
        form = {
            "grant_type": "authorization_code",
            "code": issued_code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": self.verifier,
            "resource": self.mcp,
        }
        return self.token_request(**(form | changes))

    def refresh(self, refresh_token: str, **changes: Any) -> requests.Response:
        return self.token_request(**({"grant_type": "refresh_token", "refresh_token": refresh_token} | changes))

    def revoke(self, token: str, **changes: Any) -> requests.Response:
        form = {"client_id": self.client_id, "token": token} | changes
        return self.http.post(f"{self.url}/revoke", data=_present(form), timeout=SECONDS)

    def connect(self, person: Person, untick: Collection[str] = (), **changes: Any) -> "OAuthClient":
        """The whole of it: register if need be, let the person allow, fetch the tokens."""
        if not self.client_id:
            self.register()
        answer = person.allow(self.authorization_url(**changes), untick)
        assert answer["state"] == self.state
        response = self.redeem(answer["code"], resource=changes.get("resource", self.mcp))
        assert response.status_code == 200, response.text
        self.tokens = response.json()
        return self

    # -- MCP, by hand --------------------------------------------------------------------------------------------------

    def ask(self, method: str, params: Mapping[str, Any] | None = None, token: str | None = None) -> requests.Response:
        """One request of the stateless revision at /mcp. `token` is the client's own unless given; empty sends none."""
        token = self.tokens.get("access_token", "") if token is None else token
        meta = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": self.name, "version": "1"},
        }
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**(params or {}), "_meta": meta}}
        headers = {
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": MODERN,
            "Mcp-Method": method,
        }
        if params and "name" in params:
            headers["Mcp-Name"] = params["name"]
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return self.http.post(self.mcp, json=message, headers=headers, timeout=SECONDS)

    def call(self, tool: str, token: str | None = None, **arguments: Any) -> requests.Response:
        return self.ask("tools/call", {"name": tool, "arguments": arguments}, token)

    def todos(self) -> list[dict[str, Any]]:
        response = self.call("list_todos")
        assert response.status_code == 200, response.text
        todos: list[dict[str, Any]] = result_of(response)["structuredContent"]["todos"]
        return todos


def result_of(response: requests.Response) -> dict[str, Any]:
    """The result in an answer, whether it came as JSON or as an event stream."""
    message = message_of(response)
    assert "result" in message, message
    result: dict[str, Any] = message["result"]
    return result


def message_of(response: requests.Response) -> dict[str, Any]:
    if response.headers["Content-Type"].startswith("text/event-stream"):
        frames = [line[5:] for line in response.text.splitlines() if line.startswith("data:")]
        message: dict[str, Any] = json.loads(frames[-1])
        return message
    message = response.json()
    return message


def _present(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}
