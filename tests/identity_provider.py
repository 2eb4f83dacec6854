"""The identity providers of the tests: a real one (panva's oidc-provider, under Node) and a small faked one.

The real one proves that CAIR can talk to what is out there. The faked one says what no real one can be made to say:
tokens of another issuer, for another client, without an end, under an unknown key.
"""

import contextlib
import html
import http.server
import json
import os
import re
import secrets
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urljoin, urlsplit

import jwt
import requests
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tests.servers import ROOT

CLIENT_ID = "cair-at-the-provider"
CLIENT_SECRET = "a secret & with marks/that%need=escaping"
AUDIENCE = "urn:todos-api"
SCOPE = "openid email profile offline_access read:todos write:todos read:billing"
ACCOUNTS = {
    "auth0|ada": {"name": "Ada Lovelace", "email": "ada@example.com", "email_verified": True},
    "auth0|mallory": {"name": "Mallory", "email": "ada@example.com", "email_verified": False},
}
STARTS_WITHIN = 20.0


def configure(settings: Any, origin: str) -> None:
    """Make the provider at `origin` the one people sign in at, as AUTH0_DOMAIN and its companions would."""
    settings.UPSTREAM_PROVIDERS = {
        "auth0": {
            "label": "Auth0",
            "discovery": f"{origin}/.well-known/openid-configuration",
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "audience": AUDIENCE,
            "scope": SCOPE,
        }
    }
    todos = {**settings.UPSTREAM_APIS["todos"], "audience": AUDIENCE, "token_source": "auth0"}
    settings.UPSTREAM_APIS = {**settings.UPSTREAM_APIS, "todos": todos}
    settings.OWN_ACCOUNTS = settings.DEMO_USER = False


def environment(origin: str) -> dict[str, str]:
    """The same for a process of its own."""
    return {
        "AUTH0_DOMAIN": origin,
        "AUTH0_CLIENT_ID": CLIENT_ID,
        "AUTH0_CLIENT_SECRET": CLIENT_SECRET,
        "AUTH0_AUDIENCE": AUDIENCE,
        "AUTH0_SCOPE": SCOPE,
    }


# -- the real one ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def real_provider(redirect_uri: str, **variables: str) -> Iterator[str]:
    """The origin of a running oidc-provider. `variables` go into its environment, e.g. ACCESS_TOKEN_LIFETIME.

    CAIR's addresses for sign-outs are registered beside `redirect_uri`, as docs/operations.md asks of an operator.
    """
    process = subprocess.Popen(
        ["node", "identity_provider.mjs"],
        cwd=ROOT / "tests" / "node",
        env={
            "PATH": os.environ["PATH"],
            "PORT": "0",
            "CLIENT_ID": CLIENT_ID,
            "CLIENT_SECRET": CLIENT_SECRET,
            "REDIRECT_URI": redirect_uri,
            "POST_LOGOUT_REDIRECT_URI": urljoin(redirect_uri, "/"),
            "BACKCHANNEL_LOGOUT_URI": urljoin(redirect_uri, "/backchannel-logout"),
            "AUDIENCES": AUDIENCE,
            "SCOPES": "read:todos write:todos read:billing",
            "ACCOUNTS": json.dumps(ACCOUNTS),
            **variables,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield _origin_printed_by(process)
    finally:
        process.kill()
        process.communicate(timeout=5)


def _origin_printed_by(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        assert selector.select(STARTS_WITHIN), "the identity provider did not start"
    line = process.stdout.readline()
    assert line.startswith("READY "), "the identity provider did not start: is tests/node installed (npm ci)?"
    return line.split()[1]


class PersonAtTheProvider:
    """A person's browser at the real provider's pages: it keeps their cookies and fills in their form.

    `times_asked` counts how often the provider wanted to know who it is.
    """

    def __init__(self) -> None:
        self.session = requests.Session()
        self.times_asked = 0

    def sign_in(self, location: str, subject: str) -> str:
        """Follow CAIR's redirect, sign in as `subject` if asked, and give the address of CAIR's that it ends at."""
        return self._walk(location, subject)

    def cancel(self, location: str) -> str:
        """The same, but press Cancel."""
        return self._walk(location, None)

    def sign_out(self, location: str) -> str:
        """End the session at the provider's own page for it, and give the address that the person is sent on to."""
        page = self.session.get(location, allow_redirects=False, timeout=5)
        xsrf = re.search(r'name="xsrf" value="([^"]+)"', page.text)
        assert xsrf, page.text
        left = self._post(page, {"xsrf": xsrf[1], "logout": "yes"})
        assert left.is_redirect, left.text
        return urljoin(left.url, left.headers["Location"])

    def _walk(self, location: str, subject: str | None) -> str:
        provider = urlsplit(location).netloc
        response = self.session.get(location, allow_redirects=False, timeout=5)
        for _ in range(10):
            if response.is_redirect:
                location = urljoin(response.url, response.headers["Location"])
                if urlsplit(location).netloc != provider:
                    return location
                response = self.session.get(location, allow_redirects=False, timeout=5)
            elif subject is None:
                link = re.search(r'href="([^"]+/abort)"', response.text)
                assert link, response.text
                response = self.session.get(urljoin(response.url, link[1]), allow_redirects=False, timeout=5)
            else:
                response = self._send_form(response, subject)
        raise AssertionError(f"the provider never sent the person back: {response.text}")

    def _send_form(self, response: requests.Response, subject: str) -> requests.Response:
        self.times_asked += 1
        return self._post(response, {"login": subject, "password": "any"})

    def _post(self, response: requests.Response, fields: dict[str, str]) -> requests.Response:
        form = re.search(r'<form[^>]* method="post" action="([^"]+)"', response.text)
        assert response.ok and form, f"{response.status_code}: {response.text}"
        action = urljoin(response.url, html.unescape(form[1]))
        return self.session.post(action, data=fields, allow_redirects=False, timeout=5)


# -- the faked one -----------------------------------------------------------------------------------------------------

RSA_KEY = generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = generate_ec_key(SECP256R1())


def rsa_jwk(key: RSAPrivateKey, kid: str) -> dict[str, Any]:
    return {**json.loads(RSAAlgorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig", "alg": "RS256"}


def ec_jwk(kid: str) -> dict[str, Any]:
    return {**json.loads(ECAlgorithm.to_jwk(EC_KEY.public_key())), "kid": kid, "use": "sig", "alg": "ES256"}


Answer = tuple[int, Any]
"""Status, and what is sent: a dictionary goes out as JSON, a string as HTML."""


@dataclass
class FakedProvider:
    """A provider that says whatever a test wants. `requests` lists method, path and form of each call."""

    origin: str = ""
    issuer: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    keys: list[dict[str, Any]] = field(default_factory=lambda: [rsa_jwk(RSA_KEY, "key-1"), ec_jwk("key-2")])
    claims: dict[str, Any] = field(default_factory=dict)
    sign: Callable[[dict[str, Any]], str] | None = None
    tokens: dict[str, Any] = field(default_factory=dict)
    answer: Callable[[dict[str, str]], Answer] | None = None
    discovery: Answer | None = None
    revocation: Answer = (200, "")
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    journeys: dict[str, dict[str, str]] = field(default_factory=dict)

    def calls(self, path: str) -> list[dict[str, str]]:
        return [form for _, called, form in self.requests if called == path]

    def approve(self, location: str, **claims: Any) -> str:
        """Play the person who says yes: CAIR's redirect in, the address of CAIR's that the provider would answer at out."""
        journey = dict(parse_qsl(urlsplit(location).query))
        code = secrets.token_urlsafe(8)
        self.journeys[code] = journey
        self.claims = {**self.claims, **claims}
        return f"{journey['redirect_uri']}?code={code}&state={journey['state']}"

    # -- what it answers -----------------------------------------------------------------------------------------------

    def respond(self, path: str, form: dict[str, str]) -> Answer:
        if path == "/.well-known/openid-configuration":
            return self.discovery or (200, self.document())
        if path == "/jwks":
            return 200, {"keys": self.keys}
        if path == "/token":
            return self.answer(form) if self.answer else (200, self.granted(form))
        if path == "/revoke":
            return self.revocation
        return 404, "<h1>Not found</h1>"

    def document(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer or self.origin,
            "authorization_endpoint": f"{self.origin}/authorize",
            "token_endpoint": f"{self.origin}/token",
            "jwks_uri": f"{self.origin}/jwks",
            **self.metadata,
        }

    def granted(self, form: Mapping[str, str]) -> dict[str, Any]:
        """A token response. An override of None leaves the member out."""
        found = {
            "access_token": f"upstream-access-{secrets.token_urlsafe(8)}",
            "refresh_token": f"upstream-refresh-{secrets.token_urlsafe(8)}",
            "id_token": self.id_token(self.journeys.get(form.get("code", ""), {})),
            "token_type": "Bearer",
            "expires_in": 3600,
            **self.tokens,
        }
        return {name: value for name, value in found.items() if value is not None}

    def id_token(self, journey: Mapping[str, str]) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer or self.origin,
            "sub": "auth0|ada",
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": journey.get("nonce"),
            **self.claims,
        }
        kept = {name: value for name, value in claims.items() if value is not None}
        return (self.sign or signed_with(RSA_KEY, "RS256", "key-1"))(kept)


def signed_with(key: Any, algorithm: str, kid: str | None) -> Callable[[dict[str, Any]], str]:
    headers = {} if kid is None else {"kid": kid}
    return lambda claims: jwt.encode(claims, key, algorithm=algorithm, headers=headers)


@contextlib.contextmanager
def faked_provider() -> Iterator[FakedProvider]:
    """A faked provider on a port of its own, gone afterwards."""
    peer = FakedProvider()
    server = _Server(("127.0.0.1", 0), _handler_for(peer))
    peer.origin = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield peer
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever has read enough goes away: only other errors are worth a line."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _handler_for(peer: FakedProvider) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._respond({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            self._respond({**form, "authorization": self.headers.get("Authorization", "")})

        def _respond(self, form: dict[str, str]) -> None:
            path = urlsplit(self.path).path
            peer.requests.append((self.command, path, form))
            status, content = peer.respond(path, form)
            is_json = not isinstance(content, str)
            body = (json.dumps(content) if is_json else content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if is_json else "text/html")
            self.send_header("Content-Length", str(len(body)))
            if 300 <= status < 400:
                self.send_header("Location", f"{peer.origin}/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the list of requests is what tests read."""

    return Handler
