"""Daphne, held to two bounds that it does not have: the size of a request, and what waits for a reader that reads slowly.

Daphne takes a whole body in before the application sees its first byte, and lets the application send as much as it
likes to a client that never reads. Both would be one person's way to take all the memory. This bends its request class
at the joints that Twisted names; uvicorn has bounds of its own and needs nothing here.
"""

import asyncio
import json
from functools import partial
from typing import Any

from daphne import http_protocol
from django.conf import settings
from twisted.internet import interfaces, reactor
from zope.interface import implementer

from cair.guard import Application, Receive, Scope, Send

LINGER_SECONDS = 2.0
"""How long a refused client may go on sending into the void: cutting it off at once would cost it the answer."""


def largest_body() -> int:
    """Bytes. The transports and Django have their own, smaller limits, which answer in their own form."""
    return 2 * max(settings.MCP_BODY_LIMIT, settings.DATA_UPLOAD_MAX_MEMORY_SIZE)


@implementer(interfaces.IPushProducer)
class Room:
    """Whether the socket takes more. Twisted says so to whoever is registered as the source of a response."""

    def __init__(self) -> None:
        self._free = asyncio.Event()
        self._free.set()

    def pauseProducing(self) -> None:
        self._free.clear()

    def resumeProducing(self) -> None:
        self._free.set()

    def stopProducing(self) -> None:
        self._free.set()  # the client is gone: whoever waits must get to hear of it

    async def wait(self) -> None:
        await self._free.wait()


class BoundedRequest(http_protocol.WebRequest):
    """Bends Daphne's request where its length becomes known, where its body comes in, and where its answer leaves."""

    room: Room | None = None
    received = 0
    refused = False

    def gotLength(self, length: int | None) -> None:
        super().gotLength(length)
        if length is not None and length > largest_body():
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        self.received += len(data)
        if self.received > largest_body():
            self._refuse()
        if not self.refused:
            super().handleContentChunk(data)

    def process(self) -> Any:
        # A client's header that would move every path (T17), and that Daphne cannot even decode if it is not ASCII.
        self.requestHeaders.removeHeader(b"daphne-root-path")
        return None if self.refused else super().process()

    def _refuse(self) -> None:
        if self.refused:
            return
        self.refused = True
        said = {"error": "invalid_request", "error_description": f"The body is larger than {largest_body()} bytes."}
        body = json.dumps(said).encode()
        head = f"HTTP/1.1 413 Content Too Large\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.channel.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        reactor.callLater(LINGER_SECONDS, self.channel.transport.abortConnection)

    # -- the way out ---------------------------------------------------------------------------------------------------

    async def wait_for_room(self) -> None:
        """Return when the socket takes more of this response, or its client is gone."""
        if self.channel is None or self.finished:
            return
        if self.room is None:
            self.room = Room()
            self.registerProducer(self.room, True)
        await self.room.wait()

    def finish(self) -> None:
        self._let_go()
        super().finish()

    def connectionLost(self, reason: Any) -> None:
        self._let_go()
        super().connectionLost(reason)

    def _let_go(self) -> None:
        if self.room is not None:
            self.room.stopProducing()
            if self.producer is not None and self.channel is not None:
                self.unregisterProducer()


def bounded(application: Application) -> Application:
    """`application`, with every request of this process bounded, and every `send` waiting for a reader who is slow."""
    http_protocol.WebRequest = BoundedRequest

    async def bounded_application(scope: Scope, receive: Receive, send: Send) -> None:
        await application(scope, receive, with_back_pressure(send))

    return bounded_application


def with_back_pressure(send: Send) -> Send:
    """`send`, which waits while the client does not read. Any other server's `send` does so by itself."""
    request = send.args[0] if isinstance(send, partial) and send.args else None
    if not isinstance(request, BoundedRequest):
        return send

    async def send_when_there_is_room(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body" and message.get("more_body"):
            await request.wait_for_room()
        await send(message)

    return send_when_there_is_room
