"""The demo's OAuth client: each message of the protocol by itself, so that every step can be watched."""

import base64
import hashlib
import queue
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import requests

from cair.demo.trouble import DemoFailed

SECONDS = 10.0
_PARAMETER = re.compile(r'([a-z_]+)="([^"]*)"')
_GOODBYE = "<!doctype html><title>CAIR demo</title><p>Thank you. The terminal goes on; this page can be closed."


class Listener:
    """A loopback address that waits for the answer to one authorization request (RFC 8252 §7.3)."""

    def __init__(self) -> None:
        answers: queue.Queue[dict[str, str]] = queue.Queue()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                if parts.path != "/callback":
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(_GOODBYE.encode())
                answers.put({name: values[0] for name, values in parse_qs(parts.query).items()})

            def log_message(self, format: str, *args: Any) -> None:
                """Silence: the request line holds the code."""

        self.answers = answers
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self.redirect_uri = f"{self.origin}/callback"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait(self, seconds: float) -> dict[str, str] | None:
        """The parameters of the answer, or None if none came in time."""
        try:
            return self.answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class OAuthClient:
    """An MCP client as far as OAuth goes. Its attributes fill as the walk goes on; all checks a client owes are made."""

    resource: str
    redirect_uri: str
    name: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    client_id: str = ""
    scope: str = ""
    state: str = ""
    access_token: str = ""
    granted_scopes: frozenset[str] = frozenset()
    refresh_token: str = ""
    verifier: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        self.session = requests.Session()
        self.session.trust_env = False

    def _send(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            return self.session.request(method, url, timeout=SECONDS, allow_redirects=False, **options)
        except requests.RequestException as error:
            host = urlsplit(url).netloc
            raise DemoFailed(
                f"{host} cannot be reached ({error.__class__.__name__}).",
                "Is the server running, and is URL its address? `make run` starts one; without URL= the demo starts its own.",
            ) from error

    def _document(self, url: str) -> dict[str, Any]:
        response = self._send("GET", url)
        try:
            document = response.json() if response.status_code == 200 else None
        except requests.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise DemoFailed(f"{url} answered {response.status_code}, not a document.", "Is URL a CAIR server?")
        return document

    # -- the steps -----------------------------------------------------------------------------------------------------

    def knock(self) -> tuple[int, dict[str, str]]:
        """POST /mcp with the token there is: the status, and the parameters of the challenge."""
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        headers = {"Accept": "application/json, text/event-stream"}
        if self.access_token:
            headers["Authorization"] = f"Bearer {self.access_token}"
        response = self._send("POST", self.resource, json=message, headers=headers)
        return response.status_code, dict(_PARAMETER.findall(response.headers.get("WWW-Authenticate", "")))

    def discover(self, metadata_url: str) -> dict[str, Any]:
        """From the resource's metadata to its authorization server's (RFC 9728 §5, RFC 8414 §3)."""
        described = self._document(metadata_url)
        if described.get("resource") != self.resource:
            raise DemoFailed(
                f"The server says that it is {described.get('resource')}, not {self.resource}.",
                "Use URL= exactly as the server's PUBLIC_URL has it.",
            )
        issuer = str(described["authorization_servers"][0])
        self.metadata = self._document(f"{issuer}/.well-known/oauth-authorization-server")
        if self.metadata.get("issuer") != issuer:
            raise DemoFailed("The authorization server gives itself another name.", "Check PUBLIC_URL of the server.")
        return described

    def register(self) -> None:
        """RFC 7591 §3.1, as a public client: it has no place to keep a secret."""
        asked = {
            "client_name": self.name,
            "redirect_uris": [self.redirect_uri],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
            "application_type": "native",
        }
        if "registration_endpoint" not in self.metadata:
            repair = "Set REGISTRATION=open there, or run the demo without URL: it then has a server of its own."
            raise DemoFailed("This server lets no client register itself.", repair)
        response = self._send("POST", self.metadata["registration_endpoint"], json=asked)
        if response.status_code != 201:
            raise DemoFailed(f"Registration was refused: {_said(response)}", "See the server's log.")
        self.client_id = str(response.json()["client_id"])

    def authorization_url(self) -> str:
        """The address to open in the browser (RFC 6749 §4.1.1, RFC 7636 §4.3, RFC 8707 §2)."""
        self.state, self.verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()
        parameters = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": self.scope,
            "state": self.state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            "resource": self.resource,
        }
        return f"{self.metadata['authorization_endpoint']}?{urlencode(parameters)}"

    def code_from(self, answer: Mapping[str, str]) -> str:
        """The code in an authorization response, after the checks a client owes (RFC 9207 §2.4)."""
        if answer.get("state") != self.state or answer.get("iss") != self.metadata["issuer"]:
            raise DemoFailed("An answer came that belongs to another request.", "Close other tabs and run it again.")
        if answer.get("error") == "access_denied":
            raise DemoFailed(
                "You refused, and the client was told so: access_denied.", "Run it again and choose Allow."
            )
        if "code" not in answer:
            raise DemoFailed(
                f"No code came, but {answer.get('error')}: {answer.get('error_description')}", "Run it again."
            )
        return answer["code"]

    def redeem(self, code: str) -> dict[str, Any]:
        """Code and verifier for the tokens (RFC 6749 §4.1.3)."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "client_id": self.client_id,
            "code_verifier": self.verifier,
            "resource": self.resource,
        }
        response = self._send("POST", self.metadata["token_endpoint"], data=form)
        if response.status_code != 200:
            raise DemoFailed(f"The code was refused: {_said(response)}", "Run it again: a code lives one minute.")
        answer: dict[str, Any] = response.json()
        self.access_token, self.refresh_token = answer["access_token"], answer.get("refresh_token", "")
        self.granted_scopes = frozenset(answer.get("scope", "").split())
        return answer


def _said(response: requests.Response) -> str:
    """Status and words of an error answer; never its other contents."""
    try:
        body = response.json()
    except requests.JSONDecodeError:
        return str(response.status_code)
    return f"{response.status_code} {body.get('error', '')}: {body.get('error_description', '')}"
