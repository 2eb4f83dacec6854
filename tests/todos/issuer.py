"""A small issuer for the tests of the Todos API: a real HTTP server with keys, documents and moods."""

import contextlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUDIENCE = "urn:todos-api"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def public_jwk(key: Any, kid: str, **members: Any) -> dict[str, Any]:
    """The public half of `key`, as an issuer publishes it."""
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig", **members}


class SampleIssuer:
    """Serves `documents` by path and counts the requests.

    `is_down` makes it hang up instead; while `may_answer` is not set it says nothing at all.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.hosts: list[str] = []
        self.documents: dict[str, tuple[int, bytes]] = {}
        self.is_down = False
        self.was_asked, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.publish(public_jwk(RSA_KEY, "first"))
        self.say("/.well-known/openid-configuration", {"issuer": self.url, "jwks_uri": self.jwks_url})
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def jwks_url(self) -> str:
        return f"{self.url}/keys"

    @property
    def discovery(self) -> str:
        return f"{self.url}/.well-known/openid-configuration"

    @property
    def keys_read(self) -> int:
        return self.requests["/keys"]

    def say(self, path: str, document: Any, status: int = 200) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.documents[path] = (status, body)

    def publish(self, *jwks: Any) -> None:
        self.say("/keys", {"keys": list(jwks)})

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims that are accepted, with `changes`; None takes one out."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 120}
        claims |= {"scope": "read:todos write:todos", **changes}
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self,
        key: Any = RSA_KEY,
        algorithm: str = "RS256",
        headers: dict[str, Any] | None = None,
        claims: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        """A token that is accepted, but for what the arguments change."""
        headers = {"kid": "first", "typ": "at+jwt", **(headers or {})}
        return jwt.encode(self.claims(**changes) if claims is None else claims, key, algorithm, headers=headers)

    def close(self) -> None:
        self.may_answer.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests[self.path] += 1
                issuer.hosts.append(self.headers["Host"])
                issuer.was_asked.set()
                issuer.may_answer.wait(5)
                if issuer.is_down:
                    self.close_connection = True
                    return
                status, body = issuer.documents.get(self.path, (404, b"{}"))
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", body.decode())
                    body = b""
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # who asked may have gone
                    self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        return Handler
