"""Ada, who owns things; Mallory, who wants them; a browser that reads forms as browsers do; clients that ask."""

import base64
import hashlib
import json
import secrets
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from django.conf import settings
from django.http import HttpResponse
from django.test import Client as DjangoClient

from oauth_relay.models import Client, User

LOOPBACK = "http://127.0.0.1:33418/callback"
VERIFIER = "v" * 64
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


class _Fields(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hidden: dict[str, str] = {}
        self.scopes: list[str] = []

    def handle_starttag(self, tag: str, raw: list[tuple[str, str | None]]) -> None:
        attributes = dict(raw)
        if tag == "input" and attributes.get("type") == "hidden":
            self.hidden[attributes["name"] or ""] = attributes.get("value") or ""
        if tag == "input" and attributes.get("name") == "scope":
            self.scopes.append(attributes["value"] or "")


class Browser(DjangoClient):
    """One person's browser."""

    def __init__(self) -> None:
        super().__init__(HTTP_HOST=settings.PUBLIC_HOST)
        self.page: _Fields = _Fields()

    def read(self, response: HttpResponse) -> HttpResponse:
        """Follow our own redirects, and read the form on the page that comes."""
        while response.status_code in (302, 303) and response["Location"].startswith("/"):
            response = self.get(response["Location"])
        self.page = _Fields()
        self.page.feed(response.content.decode())
        return response

    def authorize(self, client: Client, **changes: Any) -> HttpResponse:
        """Open the authorization request of `client`; a parameter of None is left out."""
        asked = {
            "client_id": client.client_id,
            "redirect_uri": LOOPBACK,
            "response_type": "code",
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
            "state": "its state",
            "resource": settings.RESOURCES[0],
            **changes,
        }
        pairs = {name: value for name, value in asked.items() if value is not None}
        return self.read(self.get("/authorize?" + urlencode(pairs, doseq=True)))

    def sign_in(self, user: User, **fields: str) -> HttpResponse:
        form = {**self.page.hidden, "action": "sign_in", "username": user.username, "password": "open sesame", **fields}
        return self.read(self.post("/login", form))

    def answer(self, action: str = "allow", **fields: Any) -> HttpResponse:
        form = {**self.page.hidden, "scope": self.page.scopes, "action": action, **fields}
        return self.read(self.post("/authorize", form))

    def connect(self, client: Client, user: User, **changes: Any) -> dict[str, str]:
        """The whole way to the answer at the client: its query parameters."""
        self.authorize(client, **changes)
        if "username" not in self.page.hidden and not self.page.scopes:
            self.sign_in(user)
        return answered(self.answer())

    def token(self, **form: str) -> HttpResponse:
        return self.post("/token", urlencode(form), content_type="application/x-www-form-urlencoded")

    def redeem(self, client: Client, code: str, /, **changes: str) -> HttpResponse:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "client_id": client.client_id,
            "redirect_uri": LOOPBACK,
        }
        return self.token(**{**form, "code_verifier": VERIFIER, **changes})

    def refresh(self, client: Client, refresh_token: str, /, **changes: str) -> HttpResponse:
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token, "client_id": client.client_id}
        return self.token(**{**form, **changes})

    def tokens(self, client: Client, user: User, **changes: Any) -> dict[str, Any]:
        response = self.redeem(client, self.connect(client, user, **changes)["code"])
        assert response.status_code == 200, response.content
        return json.loads(response.content)


def answered(response: HttpResponse) -> dict[str, str]:
    """The parameters with which a response returns to the client; fails if it does not."""
    assert response.status_code == 302, (response.status_code, response.content[:2000])
    return {name: values[0] for name, values in parse_qs(urlsplit(response["Location"]).query).items()}


def make_client(name: str = "Inspector", redirect_uri: str = LOOPBACK, **fields: Any) -> Client:
    """A public client that registered itself, unless `fields` say otherwise."""
    return Client.objects.create(
        **{
            "name": name,
            "client_id": secrets.token_urlsafe(12),
            "redirect_uris": redirect_uri,
            "client_type": Client.CLIENT_PUBLIC,
            "authorization_grant_type": Client.GRANT_AUTHORIZATION_CODE,
            "client_secret": "",
            "registration_source": "dcr",
            "metadata": {"token_endpoint_auth_method": "none"},
            **fields,
        }
    )


@pytest.fixture
def ada(db: None) -> User:
    return User.objects.create_user("ada", password="open sesame", email="ada@example.com", first_name="Ada")


@pytest.fixture
def mallory(db: None) -> User:
    return User.objects.create_user("mallory", password="open sesame")


@pytest.fixture
def inspector(db: None) -> Client:
    return make_client()


@pytest.fixture
def browser() -> Browser:
    return Browser()
