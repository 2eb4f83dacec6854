"""How an HTTP response leaves the gateway: held back until it is certain, so that a 401 or 403 can still be said."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from mcp_gateway import jsonrpc

Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Scope = Mapping[str, Any]
Header = tuple[bytes, bytes]

JSON_HEADERS: list[Header] = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
EVENT_STREAM_HEADERS: list[Header] = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
PING = b": ping\r\n\r\n"


class Refusal(Exception):
    """An HTTP answer that ends a request early: status, headers and a small JSON body, or none."""

    def __init__(self, status: int, body: Mapping[str, Any] | None, headers: Iterable[Header] = ()) -> None:
        self.status = status
        self.body = body
        self.headers = list(headers)
        super().__init__(str(status))

    @property
    def content(self) -> bytes:
        return jsonrpc.encode(dict(self.body)) if self.body is not None else b""

    @property
    def all_headers(self) -> list[Header]:
        return [*(JSON_HEADERS if self.body is not None else []), *self.headers]


class ClientGone(Exception):
    """The client hung up before its request was read."""


def method_not_allowed(allow: str) -> Refusal:
    return Refusal(405, None, [(b"allow", allow.encode())])


def unavailable(description: str, retry_after: int = 5) -> Refusal:
    body = {"error": "temporarily_unavailable", "error_description": description}
    return Refusal(503, body, [(b"retry-after", str(retry_after).encode())])


def malformed(status: int, code: int, message: str) -> Refusal:
    """A refusal in JSON-RPC form, without an id."""
    return Refusal(status, jsonrpc.error(None, code, message))


class Reply:
    """One response under way. It becomes an event stream with its first frame, else it is one JSON document."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._turn = asyncio.Lock()
        self.has_started = False

    async def whole(self, status: int, headers: list[Header], body: bytes) -> None:
        self.has_started = True
        headers = [*headers, (b"content-length", str(len(body)).encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def json(self, message: jsonrpc.Message, status: int = 200) -> None:
        await self.whole(status, JSON_HEADERS, jsonrpc.encode(message))

    async def refuse(self, refusal: Refusal) -> None:
        await self.whole(refusal.status, refusal.all_headers, refusal.content)

    async def frame(self, content: bytes, last: bool = False) -> None:
        """Send a piece of the event stream. Frames come from the call and from the clock: one at a time."""
        async with self._turn:
            if not self.has_started:
                self.has_started = True
                await self._send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM_HEADERS})
            await self._send({"type": "http.response.body", "body": content, "more_body": not last})


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The request body. Raises Refusal (413), ClientGone."""
    too_large = malformed(413, -32600, f"The body is larger than {limit} bytes")
    declared = dict(scope["headers"]).get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = b""
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientGone
        body += event.get("body", b"")
        if len(body) > limit:
            raise too_large
        if not event.get("more_body"):
            return body
