"""Processes that share one vault, and a provider with one-time refresh tokens whose answer can be held back."""

import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.flows.test_parallel_processes import at_once, through
from tests.identity_provider import AUDIENCE, RSA_KEY, SCOPE, Answer, FakedProvider, signed_with
from tests.servers import Server
from tests.walk import OAuthClient, message_of

BOUND = 45.0


class _Patient(requests.Session):
    """Waits as long as an AI client does: a call may have to outlast the lease of a process that has died."""

    def request(self, *args: Any, **options: Any) -> requests.Response:
        return super().request(*args, **{**options, "timeout": BOUND})


def patiently(client: OAuthClient, server: Server) -> OAuthClient:
    """The same client at one process, on a connection of its own."""
    other, session = through(client, server), _Patient()
    session.trust_env = False
    session.headers.update(other.http.headers)
    other.http = session
    return other


_MAKE_DUE = """
import time
from datetime import timedelta
from django.utils import timezone
from oauth_relay.models import UpstreamCredential
from oauth_relay.upstream_credentials import Tokens, open_tokens, seal_tokens
row = UpstreamCredential.objects.get(subject="{subject}")
old = open_tokens(row, user_id=row.user_id, provider_name=row.provider, audience=row.audience)
row.expires_at = timezone.now() + timedelta(seconds={ends_in})
row.tokens = seal_tokens(row, Tokens(old.access_token, old.refresh_token, time.time() - 1), version=row.version)
row.save()
print(old.refresh_token)
"""
_TOLD = """
import json
from oauth_relay.models import AuditEvent, UpstreamCredential
row = UpstreamCredential.objects.get(subject="{subject}")
events = AuditEvent.objects.filter(event__startswith="upstream_token.", pseudonym=row.user.pseudonym)
print(json.dumps([row.version, row.state, row.failure, list(events.order_by("at").values_list("event", flat=True))]))
"""
_LET_LEASE_END = """
from datetime import timedelta
from django.utils import timezone
from oauth_relay.models import UpstreamCredential
rows = UpstreamCredential.objects.filter(subject="{subject}", lease_sent_at__isnull=False)
print(rows.update(lease_until=timezone.now() - timedelta(seconds=1)))
"""


@dataclass(frozen=True)
class Told:
    """What the database says of one person's credential, and the audit of its life."""

    version: int
    state: str
    failure: str
    events: list[str]

    @property
    def refreshed(self) -> int:
        return self.events.count("upstream_token.refreshed")


@dataclass(frozen=True)
class Fleet:
    """Processes on one database, addressed by the name of the first."""

    servers: tuple[Server, ...]

    def make_due(self, subject: str, *, ends_in: float = -1) -> str:
        """As if this person's access token had grown old. Gives the refresh token that is due to be spent."""
        return self.servers[0].shell(_MAKE_DUE.format(subject=subject, ends_in=ends_in))

    def told_of(self, subject: str) -> Told:
        return Told(*json.loads(self.servers[0].shell(_TOLD.format(subject=subject))))

    def let_lease_end(self, subject: str) -> None:
        """As if the time of the holder, who has sent, were over."""
        assert self.servers[0].shell(_LET_LEASE_END.format(subject=subject)) == "1"

    def storm(self, client: OAuthClient, calls: int) -> list[requests.Response]:
        """As many calls of one tool at every process, all at once, each on a connection of its own."""
        for (
            server
        ) in self.servers:  # the client's own token is known there; what is asked for at once is the provider's
            assert patiently(client, server).call("whoami").status_code == 200
        clients = [patiently(client, server) for server in self.servers for _ in range(calls)]
        gate = threading.Barrier(len(clients))

        def one(caller: OAuthClient) -> requests.Response:
            gate.wait(BOUND)
            return caller.call("list_todos")

        return at_once([_calling(one, caller) for caller in clients])


def _calling(act: Callable[[OAuthClient], requests.Response], client: OAuthClient) -> Callable[[], requests.Response]:
    return lambda: act(client)


def has_todos(response: requests.Response) -> bool:
    """The tool ran, and the API took the token."""
    if response.status_code != 200:
        return False
    result = message_of(response).get("result", {})
    return not result.get("isError") and isinstance(result.get("structuredContent", {}).get("todos"), list)


@dataclass
class HoldingProvider:
    """Refresh tokens are good once. With `grace` the one before gets the same answer again, as with an overlap period.

    The next refresh can be held back, `before` the token is spent or `after`, until `let_go`; `takes` is what every
    other one lasts, in seconds.
    """

    peer: FakedProvider
    grace: bool = False
    rotates: bool = True
    is_down: bool = False
    takes: float = 0.0
    asked_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.peer.answer = self._answer
        self._alive: dict[str, str] = {}
        self._spent: dict[str, Answer] = {}
        self._lock = threading.Lock()
        self._hold, self.holds, self._let_go = "", threading.Event(), threading.Event()

    def hold(self, moment: str) -> None:
        """The next refresh gets no answer yet. `holds` is set when it has come."""
        self._hold, self.holds, self._let_go = moment, threading.Event(), threading.Event()

    def let_go(self) -> None:
        self._let_go.set()

    def shown(self, *, since: int = 0) -> list[str]:
        """The refresh tokens that came, in order."""
        calls = [form for form in self.peer.calls("/token") if form["grant_type"] == "refresh_token"]
        return [form["refresh_token"] for form in calls[since:]]

    def _answer(self, form: dict[str, str]) -> Answer:
        if form["grant_type"] == "authorization_code":
            id_token = self.peer.id_token(self.peer.journeys[form["code"]])
            return 200, {**self._given(self.peer.claims["sub"]), "id_token": id_token}
        self.asked_at.append(time.monotonic())
        with self._lock:
            moment, self._hold = self._hold, ""
        if self.is_down:
            return 503, "<h1>Down</h1>"
        if moment == "before":
            self._wait()
            return 503, "<h1>Nobody waits for this</h1>"
        time.sleep(self.takes)
        answer = self._spend(form["refresh_token"])
        if moment == "after":
            self._wait()
        return answer

    def _wait(self) -> None:
        let_go = self._let_go
        self.holds.set()
        let_go.wait(BOUND)

    def _spend(self, refresh_token: str) -> Answer:
        with self._lock:
            if self.grace and refresh_token in self._spent:
                return self._spent[refresh_token]
            subject = self._alive.get(refresh_token) if not self.rotates else self._alive.pop(refresh_token, None)
            if subject is None:
                return 400, {"error": "invalid_grant"}
            answer = self._spent[refresh_token] = 200, self._given(subject)
            return answer

    def _given(self, subject: str) -> dict[str, Any]:
        now = time.time()
        claims = {"iss": self.peer.origin, "aud": AUDIENCE, "sub": subject, "scope": SCOPE, "exp": now + 300}
        given = {
            "access_token": signed_with(RSA_KEY, "RS256", "key-1")(claims),
            "token_type": "Bearer",
            "expires_in": 300,
        }
        if self.rotates or not self._alive_for(subject):
            given["refresh_token"] = refresh_token = secrets.token_urlsafe(16)
            self._alive[refresh_token] = subject
        return given

    def _alive_for(self, subject: str) -> bool:
        return subject in self._alive.values()
