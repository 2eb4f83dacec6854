"""People who sign in at the faked provider, through our own pages."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from django.http import HttpResponse

from oauth_relay.models import Client
from tests.identity_provider import FakedProvider
from tests.oauth_relay.conftest import Browser, answered


class BrowserAtProvider(Browser):
    """One person's browser; the provider signs in whoever the test says, and asks nobody."""

    def __init__(self, peer: FakedProvider, subject: str = "auth0|ada", **claims: Any) -> None:
        super().__init__()
        self.peer, self.claims = peer, {"sub": subject, **claims}
        self.sent: dict[str, str] = {}

    def go_to_provider(self) -> str:
        """Press the button of the sign-in page that is open. What we sent is in `sent`."""
        response = self.post("/login", {**self.page.hidden, "provider": "auth0"})
        assert response.status_code == 303, response.content.decode()
        self.sent = dict(parse_qsl(urlsplit(response["Location"]).query))
        return str(response["Location"])

    def sign_in_there(self) -> HttpResponse:
        back = urlsplit(self.peer.approve(self.go_to_provider(), **self.claims))
        return self.read(self.get(f"{back.path}?{back.query}"))

    def visit(self) -> HttpResponse:
        """Come without a client, and sign in."""
        self.read(self.get("/login"))
        return self.sign_in_there()

    def tokens_of(self, client: Client, **changes: Any) -> dict[str, Any]:
        """The whole way to the tokens of `client`, signing in where the page asks for it."""
        self.authorize(client, **changes)
        if not self.page.scopes:
            self.sign_in_there()
        response = self.redeem(client, answered(self.answer())["code"])
        assert response.status_code == 200, response.content
        return dict(response.json())
