"""A server whose people sign in at the real provider, and a person who does."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import requests

from cair.demo.person import Page
from tests import identity_provider, servers
from tests.identity_provider import PersonAtTheProvider
from tests.servers import Server
from tests.walk import Person


class PersonWithProvider(Person):
    """Somebody whose account is at the provider: the button on our page leads there, and they come back."""

    def __init__(self, url: str, subject: str = "auth0|ada") -> None:
        super().__init__(url)
        self.subject = subject
        self.elsewhere = PersonAtTheProvider()

    def sign_in(self, page: Page) -> Page:
        left = self.browser.press(page, "auth0").left
        assert left, "the button does not lead to the provider"
        return self.open(self.elsewhere.sign_in(left, self.subject))

    def consent_page(self, authorization_url: str) -> Page:
        page = self.open(authorization_url)
        if page.has_button("auth0"):
            page = self.sign_in(page)
        assert page.has_button("allow"), (page.status, page.left, page.text)
        return page


_TAKE_REFRESH_TOKENS = """
from oauth_relay.models import UpstreamCredential
from oauth_relay.upstream_credentials import open_tokens
for row in UpstreamCredential.objects.filter(state="good"):
    print(open_tokens(row, user_id=row.user_id, provider_name=row.provider, audience=row.audience).refresh_token)
"""


@dataclass
class Installation:
    """One running server with its provider."""

    server: Server
    provider: str

    def end_the_sign_in(self) -> None:
        """What an administrator of the provider does: every refresh token that the vault holds is worth nothing now."""
        for refresh_token in self.server.shell(_TAKE_REFRESH_TOKENS).split():
            form = {
                "token": refresh_token,
                "token_type_hint": "refresh_token",
                "client_id": identity_provider.CLIENT_ID,
                "client_secret": identity_provider.CLIENT_SECRET,
            }
            response = requests.post(f"{self.provider}/token/revocation", data=form, timeout=5)
            assert response.status_code == 200, response.text

    def states(self) -> list[str]:
        told = self.server.shell(
            "from oauth_relay.models import UpstreamCredential\n"
            "print(*UpstreamCredential.objects.values_list('state', flat=True))"
        )
        return told.split()


@contextlib.contextmanager
def installation(environment: Mapping[str, str] | None = None, **variables: str) -> Iterator[Installation]:
    """A server and its provider, on SQLite. `environment` goes to the server, `variables` to the provider."""
    port = servers.free_port()
    with identity_provider.real_provider(f"http://localhost:{port}/callback", **variables) as origin:
        extra = {**identity_provider.environment(origin), "PORT": str(port), **(environment or {})}
        with servers.database("sqlite") as url, servers.serve(url, extra) as server:
            yield Installation(server, origin)
