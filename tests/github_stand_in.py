"""GitHub as far as a sign-in sees it: its addresses, the shapes of its answers, and its habits.

After https://docs.github.com/apps/oauth-apps and https://docs.github.com/rest/users: errors of the token endpoint come
with status 200, as a form unless JSON was asked for; scopes are separated by commas; lists come in pages with a `Link`;
a revoked token gets 401 "Bad credentials", a suspended account 403; the app itself deletes a token with its secret.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

CLIENT_ID = "Iv1.cair"
CLIENT_SECRET = "a secret of the OAuth app"
SCOPE = "read:user user:email"
_BROKEN = (503, "<h1>Unicorn!</h1>")


@dataclass
class Account:
    """One person at GitHub. `emails` are rows of /user/emails; `email` is what their profile shows to everybody."""

    id: int
    login: str
    name: str | None = None
    email: str | None = None
    emails: list[dict[str, Any]] = field(default_factory=list)
    organisations: list[dict[str, Any]] = field(default_factory=list)

    def user(self) -> dict[str, Any]:
        return {"login": self.login, "id": self.id, "type": "User", "name": self.name, "email": self.email}


def organisation(number: int, login: str) -> dict[str, Any]:
    """A membership as /user/orgs shows it; one that the person keeps private looks the same."""
    return {"login": login, "id": number, "url": f"https://api.github.com/orgs/{login}", "description": None}


def address(email: str, *, primary: bool = True, verified: bool = True) -> dict[str, Any]:
    return {"email": email, "primary": primary, "verified": verified, "visibility": "private" if primary else None}


@dataclass
class StandIn:
    """A running stand-in. `authorized` holds what each code was asked with, `tokens` whose each access token is."""

    origin: str = ""
    authorized: dict[str, tuple[Account, dict[str, str]]] = field(default_factory=dict)
    tokens: dict[str, tuple[Account, frozenset[str]]] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    is_broken: bool = False
    is_rate_limited: bool = False
    is_suspended: bool = False
    next_page_at: str = ""
    grants_only: str | None = None

    def configuration(self, scope: str = SCOPE) -> dict[str, str]:
        """Its entry in settings.UPSTREAM_PROVIDERS, as GITHUB_BASE_URL and its companions make it."""
        return {
            "kind": "github", "variables": "GITHUB_", "label": "GitHub", "origin": self.origin, "api": self.origin,
            "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, "audience": "https://api.github.com",
            "audience_parameter": "", "scope": scope,
        }  # fmt: skip

    def approve(self, location: str, account: Account) -> str:
        """Play the person who says yes: CAIR's redirect in, the address of CAIR's with a code out."""
        parts = urlsplit(location)
        assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{self.origin}/login/oauth/authorize", location
        asked = dict(parse_qsl(parts.query))
        assert asked["client_id"] == CLIENT_ID
        code = secrets.token_hex(10)
        self.authorized[code] = (account, asked)
        return f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"

    def deny(self, location: str) -> str:
        asked = dict(parse_qsl(urlsplit(location).query))
        said = {"error": "access_denied", "error_description": "The user has denied your application access."}
        return f"{asked['redirect_uri']}?{urlencode({**said, 'state': asked['state']})}"

    def revoke_tokens(self) -> None:
        self.tokens.clear()

    def calls(self, method: str, path: str) -> int:
        return sum((called, at) == (method, path) for called, at, _ in self.requests)

    # -- what it answers -----------------------------------------------------------------------------------------------

    def respond(self, method: str, target: str, form: dict[str, str], authorization: str) -> tuple[int, Any, str]:
        """Status, body and `Link`."""
        parts = urlsplit(target)
        if self.is_broken:
            return *_BROKEN, ""
        if (method, parts.path) == ("POST", "/login/oauth/access_token"):
            return 200, self._token(form), ""
        if (method, parts.path) == ("DELETE", f"/applications/{CLIENT_ID}/token"):
            return *self._delete_token(form, authorization), ""
        token = authorization.removeprefix("Bearer ")
        if token not in self.tokens:
            return 401, {"message": "Bad credentials", "status": "401"}, ""
        if self.is_rate_limited:
            return 403, {"message": "API rate limit exceeded for user ID 1.", "status": "403"}, ""
        if self.is_suspended:
            return 403, {"message": "Sorry. Your account was suspended.", "status": "403"}, ""
        return self._api(parts.path, dict(parse_qsl(parts.query)), *self.tokens[token])

    def _delete_token(self, document: dict[str, str], authorization: str) -> tuple[int, Any]:
        """RFC 7617: the pair as it is, not form-encoded."""
        pair = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if authorization != f"Basic {pair}":
            return 401, {"message": "Bad credentials", "status": "401"}
        if self.tokens.pop(document.get("access_token", ""), None) is None:
            return 404, {"message": "Not Found", "status": "404"}
        return 204, None

    def _token(self, form: dict[str, str]) -> dict[str, Any]:
        if (form.get("client_id"), form.get("client_secret")) != (CLIENT_ID, CLIENT_SECRET):
            return {"error": "incorrect_client_credentials", "error_description": "The client_id … are incorrect."}
        account, asked = self.authorized.pop(form.get("code", ""), (None, {}))
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if account is None or challenge != asked["code_challenge"]:
            return {"error": "bad_verification_code", "error_description": "The code passed is incorrect or expired."}
        if form.get("redirect_uri") != asked["redirect_uri"]:
            return {"error": "redirect_uri_mismatch", "error_description": "The redirect_uri MUST match …"}
        scopes = (asked["scope"] if self.grants_only is None else self.grants_only).split()
        token = f"gho_{secrets.token_hex(18)}"
        self.tokens[token] = (account, frozenset(scopes))
        return {"access_token": token, "token_type": "bearer", "scope": ",".join(scopes)}

    def _api(self, path: str, query: dict[str, str], account: Account, scopes: frozenset[str]) -> tuple[int, Any, str]:
        if path == "/user":
            return 200, account.user(), ""
        if path == "/user/emails" and scopes & {"user:email", "user"}:
            return self._page(path, query, account.emails)
        if path == "/user/orgs" and not scopes & {"read:org", "user"}:
            return 403, {"message": "You need at least read:org scope or user scope to list your organizations."}, ""
        if path == "/user/orgs":
            return self._page(path, query, account.organisations)
        return 404, {"message": "Not Found", "status": "404"}, ""

    def _page(self, path: str, query: dict[str, str], rows: list[Any]) -> tuple[int, Any, str]:
        size, number = min(int(query.get("per_page", "30")), 100), int(query.get("page", "1"))
        more = len(rows) > size * number
        following = urlencode({"per_page": size, "page": number + 1})
        more_at = f"{self.next_page_at or self.origin}{path}?{following}"
        link = f'<{more_at}>; rel="next", <{more_at}>; rel="last"' if more else ""
        return 200, rows[size * (number - 1) : size * number], link


@contextlib.contextmanager
def running() -> Iterator[StandIn]:
    """A stand-in on a port of its own, gone afterwards."""
    peer = StandIn()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(peer))
    server.daemon_threads = True
    peer.origin = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield peer
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _handler_for(peer: StandIn) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._respond({})

        def do_DELETE(self) -> None:
            self._respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._respond({name: values[0] for name, values in parse_qs(body).items()})

        def _respond(self, form: dict[str, str]) -> None:
            peer.requests.append((self.command, urlsplit(self.path).path, form))
            status, content, link = peer.respond(self.command, self.path, form, self.headers.get("Authorization", ""))
            wants_json = "json" in self.headers.get("Accept", "")
            if isinstance(content, str):
                kind, text = "text/html", content
            elif self.path.startswith("/login/") and not wants_json:
                kind, text = "application/x-www-form-urlencoded", urlencode(content)
            else:
                kind, text = "application/json; charset=utf-8", "" if content is None else json.dumps(content)
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if link:
                self.send_header("Link", link)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the list of requests is what tests read."""

    return Handler
