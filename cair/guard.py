"""The outermost layer, on every path of the process (T1, T17).

It decides, before anything of ours or Django's sees a request, whether the request came to this server on its own
address and from an origin that may ask. It answers nothing with credentials across origins, and it lets no exception
out after a response has begun: Daphne's reaper would stop for good.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from cair.client_address import client_of
from oauth_relay.loopback import is_loopback
from oauth_relay.traces import new_trace_id, trace_id

logger = logging.getLogger(__name__)
# Method, path and status: never the query, where codes and states travel. The servers' own access logs are off for it.
access_log = logging.getLogger("cair.access")

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

MCP_PATHS = frozenset({"/mcp", "/sse", "/messages/"})
# What a browser client calls before it has a token. Public, and never with cookies: any origin may.
PUBLIC_PATHS = frozenset({"/token", "/register", "/revoke"})
PUBLIC_PREFIXES = ("/.well-known/", "/register/")
DISCOVERY_SUFFIX = "/.well-known/openid-configuration"  # clients also ask below the endpoint itself
FORWARDED = (b"forwarded", b"via", b"x-real-ip", b"x-forwarded-", b"cf-")
EXPOSED_HEADERS = "WWW-Authenticate, Mcp-Session-Id, MCP-Protocol-Version, Retry-After, X-Trace-Id"
ALLOWED_REQUEST_HEADERS = (
    "Authorization, Content-Type, Accept, Last-Event-ID, MCP-Protocol-Version, Mcp-Session-Id, Mcp-Method, Mcp-Name"
)


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        trace_id.set(new_trace_id())
        # `Daphne-Root-Path` is a client's header: it would move every path. The scheme is ours by configuration, not the
        # proxy's last hop: Django compares the Origin of a form with it.
        request = _Request({**scope, "root_path": "", "scheme": settings.PUBLIC_URL.partition(":")[0]})
        response = _Response(send, request.cors_headers())
        refusal = request.refusal()
        if refusal is not None:
            await response.answer(*refusal)
        elif request.is_preflight():
            await response.answer(204, {}, request.preflight_headers())
        else:
            if settings.TRUSTED_PROXIES:
                request.scope["client"] = client_of(scope, request.values(b"x-forwarded-for"))
            await self._pass_on(request.scope, receive, response)
        access_log.info("%s %s %s", request.method, ascii(request.path)[1:-1], response.status)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.application(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, response: "_Response") -> None:
        try:
            await self.application(scope, receive, response.send)
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("unforeseen")
            await response.give_up()


class _Request:
    """What the guard wants to know of a request: where it was sent, and from where."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self.headers: Headers = list(scope["headers"])

    def values(self, name: bytes) -> list[str]:
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == name]

    # -- Host ----------------------------------------------------------------------------------------------------------

    def refusal(self) -> tuple[int, dict[str, str], Headers] | None:
        """Status, body and headers of the refusal; None if the request may go on."""
        hosts = [host.lower() for host in self.values(b"host")]
        if settings.DEVELOPMENT and (why := self._not_from_here(hosts)):
            repair = (
                f"This development server answers requests from its own machine only ({why}). To serve others, run it "
                "with CAIR_ENV=production and PUBLIC_URL set to the address they use: see docs/configuration.md."
            )
            return 421, {"error": "misdirected_request", "error_description": repair}, []
        if self.path == "/health":
            return None
        if hosts != [settings.PUBLIC_HOST]:
            return self._wrong_host(hosts)
        if self.path in MCP_PATHS and not self._origin_may_call():
            said = "This origin may not call the MCP endpoint. An operator can add it to ALLOWED_ORIGINS."
            return 403, {"error": "forbidden_origin", "error_description": said}, []
        return None

    def _not_from_here(self, hosts: list[str]) -> str:
        """Why this request did not come straight from this machine; empty if it did (T1)."""
        client = self.scope.get("client")
        if client and not is_loopback(client[0].removeprefix("::ffff:")):
            return "it came from another machine"
        if any(not is_loopback(_name_of(host)) for host in hosts):
            return "its Host is not a loopback name"
        if any(key.lower().startswith(FORWARDED) for key, _ in self.headers):
            return "it came through a proxy or a tunnel"
        return ""

    def _wrong_host(self, hosts: list[str]) -> tuple[int, dict[str, str], Headers]:
        """A page asked for at another loopback name is sent to ours; anything else is told where we are."""
        same_server = len(hosts) == 1 and settings.ON_LOOPBACK and is_loopback(_name_of(hosts[0]))
        raw_path = self.scope.get("raw_path", self.path.encode())
        if same_server and self.method in ("GET", "HEAD") and self._is_page() and raw_path.startswith(b"/"):
            query = self.scope.get("query_string", b"")
            target = settings.PUBLIC_URL.encode() + raw_path
            return 307, {}, [(b"location", target + (b"?" + query if query else b""))]
        said = f"This server is {settings.PUBLIC_URL}. Use that address, exactly."
        return 421, {"error": "misdirected_request", "error_description": said}, []

    def _is_page(self) -> bool:
        safe = self.path.startswith("/") and not self.path.startswith(("//", "/\\"))
        return safe and self.path not in MCP_PATHS and not self._is_public() and not self.path.startswith("/api/")

    # -- Origin --------------------------------------------------------------------------------------------------------

    def _is_public(self) -> bool:
        return (
            self.path in PUBLIC_PATHS or self.path.startswith(PUBLIC_PREFIXES) or self.path.endswith(DISCOVERY_SUFFIX)
        )

    def _origin_may_call(self) -> bool:
        """> Servers MUST validate the `Origin` header on all incoming connections. (MCP, Streamable HTTP, Security)"""
        origins = [origin.lower() for origin in self.values(b"origin")]
        return not origins or (len(origins) == 1 and _is_allowed_origin(origins[0]))

    def is_preflight(self) -> bool:
        is_cors = bool(self.values(b"origin")) and bool(self.values(b"access-control-request-method"))
        return self.method == "OPTIONS" and is_cors and (self.path in MCP_PATHS or self._is_public())

    def cors_headers(self) -> Headers:
        origins = self.values(b"origin")
        if self._is_public():
            allowed = b"*"
        elif self.path in MCP_PATHS and origins and self._origin_may_call():
            allowed = origins[0].encode("latin-1")
        else:
            return []
        exposed = (b"access-control-expose-headers", EXPOSED_HEADERS.encode())
        return [(b"access-control-allow-origin", allowed), exposed, (b"vary", b"Origin")]

    def preflight_headers(self) -> Headers:
        asked = ", ".join(self.values(b"access-control-request-headers")).lower()
        params = sorted({name.strip() for name in asked.split(",") if name.strip().startswith("mcp-param-")})
        allowed = ", ".join([ALLOWED_REQUEST_HEADERS, *(name for name in params if _is_token(name))])
        return [
            (b"access-control-allow-methods", b"GET, POST, PUT, DELETE, OPTIONS"),
            (b"access-control-allow-headers", allowed.encode()),
            (b"access-control-max-age", b"600"),
        ]


def _name_of(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_token(name: str) -> bool:
    return all(character.isalnum() or character in "-_." for character in name)


def _is_allowed_origin(origin: str) -> bool:
    if origin in settings.ALLOWED_ORIGINS or origin == settings.PUBLIC_URL.lower():
        return True
    if not settings.DEVELOPMENT:
        return False
    try:
        parts = urlsplit(origin)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and is_loopback(parts.hostname) and not parts.path


class _Response:
    """Sends one response, remembering how far it got."""

    def __init__(self, send: Send, extra: Headers) -> None:
        self._send = send
        self.extra = [*extra, (b"x-trace-id", trace_id.get().encode())]
        self.status = 0
        self.started = False
        self.finished = False

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            ours = {key for key, _ in self.extra} - {b"vary"}
            kept = [(key, value) for key, value in message.get("headers", []) if key.lower() not in ours]
            message = {**message, "headers": [*kept, *self.extra]}
        elif message["type"] == "http.response.body":
            self.finished = not message.get("more_body", False)
        await self._send(message)

    async def answer(self, status: int, body: dict[str, str], headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        content = json.dumps(body).encode() if body else b""
        kind = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")] if body else []
        length = (b"content-length", str(len(content)).encode())
        await self.send({"type": "http.response.start", "status": status, "headers": [*kind, length, *headers]})
        await self.send({"type": "http.response.body", "body": content})

    async def give_up(self) -> None:
        """End what had begun, or say that it failed; never raise again."""
        if not self.started:
            said = f"Something failed here. The operator can find it under {trace_id.get()}."
            await self.answer(500, {"error": "server_error", "error_description": said})
        elif not self.finished:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})
