"""HTTP+SSE (2024-11-05): a stream at GET /sse, messages at POST /messages/. Deletable, with `sessions.py`.

MCP 2026-07-28 lists this transport as deprecated (SEP-2596). The stream lives in one worker, a message may arrive at any:
there it is checked, handed over through the channel layer, and acknowledged by the stream's worker before it runs.

Consumers have one method per ASGI event and no loop inside any: so a disconnect is seen at once.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from channels.exceptions import ChannelFull, StopConsumer
from channels.generic.http import AsyncHttpConsumer
from django.conf import settings
from mcp.shared.exceptions import MCPError
from redis.exceptions import RedisError
from starlette.datastructures import Headers

from mcp_gateway import bearer, jsonrpc, shutdown
from mcp_gateway.answer import Exchange, answer, judge
from mcp_gateway.errors import InsufficientScope
from mcp_gateway.replies import (
    EVENT_STREAM_HEADERS,
    PING,
    ClientGone,
    Receive,
    Refusal,
    Scope,
    Send,
    malformed,
    method_not_allowed,
    unavailable,
)
from mcp_gateway.sessions import ACKNOWLEDGED_WITHIN, Delivery, StreamSession, UnknownSession, session_for
from mcp_gateway.tools import Tool
from mcp_gateway.transports.streamable_http import check_content_type, parse
from oauth_relay import access_tokens, audit, upstream_tokens
from oauth_relay.access_tokens import Principal
from oauth_relay.database import DATABASE_AWAY
from oauth_relay.upstream_tokens import UpstreamLoginRequired, UpstreamUnavailable

logger = logging.getLogger(__name__)

TRANSPORT = "sse"
REVISION = "2024-11-05"
HEARTBEAT_EVERY = 15.0
LAST_WORD_WITHIN = 1.0
MOST_WAITING_FRAMES = 64
MOST_WAITING_BYTES = 8 * 1024 * 1024
MOST_CALLS = 64

LAYER_AWAY = (RedisError, ChannelFull, OSError, TimeoutError)
"""What a channel layer raises when it cannot carry a message."""


class _HttpConsumer(AsyncHttpConsumer):
    """Channels' consumer with an end of its own: `end()` stops it from anywhere, at once."""

    answered = False
    _life: asyncio.Timeout | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._live(scope, receive, send)
        except LAYER_AWAY as error:
            if not self.answered:
                logger.warning("no stream, or no answer from it: %s", error.__class__.__name__)
                self.base_send = send
                await self.refuse(unavailable("Streams are not available at the moment."))

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.timeout(None) as self._life:
            try:
                await super().__call__(scope, receive, send)
            finally:
                self._life = None

    def end(self, after: float = 0.0) -> None:
        if self._life is not None and not self._life.expired():
            self._life.reschedule(asyncio.get_running_loop().time() + after)

    async def refuse(self, refusal: Refusal) -> None:
        self.answered = True
        await self.send_response(refusal.status, refusal.content, headers=refusal.all_headers)


class SseConsumer(_HttpConsumer):
    """GET /sse: tells where to send messages, then carries the answers."""

    principal: Principal

    def __init__(self) -> None:
        super().__init__()
        self.outbox: asyncio.Queue[bytes] = asyncio.Queue(MOST_WAITING_FRAMES)
        self.waiting_bytes = 0
        self.calls: dict[Any, asyncio.Task[None]] = {}
        self.version = REVISION
        self.client: dict[str, Any] = {}
        self.lives_until = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.sender: asyncio.Task[None] | None = None
        self.unwatch = lambda: None
        try:
            with shutdown.open_stream(self.end):
                await super().__call__(scope, receive, send)
        finally:
            self.unwatch()
            await self._cancel_all()
        if self.sender is not None:
            await self._last_word(send)

    async def http_request(self, message: Mapping[str, Any]) -> None:
        if message.get("more_body"):
            return
        try:
            await self._open()
        except Refusal as refusal:
            await self.refuse(refusal)
            raise StopConsumer from None

    async def http_disconnect(self, message: Mapping[str, Any]) -> None:
        raise StopConsumer

    async def _open(self) -> None:
        if self.scope["method"] != "GET":
            # Clients try a POST first and take 405 for the sign of this older transport.
            raise method_not_allowed("GET")
        self.principal = await bearer.principal_for(self.scope, settings.RESOURCES[1])
        self.unwatch = access_tokens.when_withdrawn(self.principal, self.end)
        if not await self._is_alive():
            raise bearer.challenge(settings.RESOURCES[1], "invalid_token", "The access token has ended.")
        session = StreamSession.opened_by(self.principal, self.channel_name)
        self.closes_at = session.expires_at
        await self.send_headers(headers=EVENT_STREAM_HEADERS)
        self.answered = True
        self._put(f"event: endpoint\r\ndata: /messages/?session_id={session.sealed()}\r\n\r\n".encode())
        self.sender = asyncio.create_task(self._send_outbox())
        self.sender.add_done_callback(lambda _: self.end())

    # -- what goes out -------------------------------------------------------------------------------------------------

    def _put(self, frame: bytes) -> None:
        """Queue a frame; a reader too slow for a bounded queue is let go, memory is not."""
        self.waiting_bytes += len(frame)
        try:
            if self.waiting_bytes > MOST_WAITING_BYTES:
                raise asyncio.QueueFull
            self.outbox.put_nowait(frame)
        except asyncio.QueueFull:
            logger.warning("a stream of client %s reads too slowly; closed", self.principal.client_id)
            self.end()

    async def _send_outbox(self) -> None:
        """A task of its own, beside the events: frames as they come, a comment when none does."""
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_EVERY):
                    frame = await self.outbox.get()
                self.waiting_bytes -= len(frame)
            except TimeoutError:
                if not await self._is_alive():
                    return
                frame = PING
            await self.send_body(frame, more_body=True)

    async def _is_alive(self) -> bool:
        """Whether a token of the grant, newer ones included, is still good, or was a moment ago."""
        if time.time() < self.lives_until:
            return True
        try:
            self.lives_until = await access_tokens.stream_expiry(self.principal)
        except DATABASE_AWAY:
            return True  # away, and nothing says that the grant is: the next heartbeat asks again
        return time.time() < min(self.lives_until, getattr(self, "closes_at", float("inf")))

    async def _cancel_all(self) -> None:
        tasks = [*self.calls.values(), *([self.sender] if self.sender is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _last_word(self, send: Send) -> None:
        """End the response properly; a client that does not even take that is left to the server."""
        try:
            async with asyncio.timeout(LAST_WORD_WITHIN):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (TimeoutError, OSError):
            return

    # -- what comes in -------------------------------------------------------------------------------------------------

    async def relay_message(self, event: Mapping[str, Any]) -> None:
        """A message from /messages/, on whichever worker that was: acknowledged first, run after."""
        try:
            delivery = Delivery.unsealed(event["payload"])
        except UnknownSession:
            logger.warning("something reached a stream that no worker of ours sealed")
            return
        if delivery.is_stale or delivery.principal.grant_id != self.principal.grant_id:
            return
        accepted = len(self.calls) < MOST_CALLS
        await self.channel_layer.send(delivery.acknowledge_to, {"type": "relay.acknowledged", "accepted": accepted})
        if accepted:
            self._begin(delivery)

    def _begin(self, delivery: Delivery) -> None:
        message = delivery.message
        if message.get("method") == "notifications/cancelled":
            self._cancel(message.get("params"))
        elif not jsonrpc.is_request(message):
            return
        elif message["id"] in self.calls:
            self._put(jsonrpc.event(jsonrpc.error(message["id"], -32600, "A request with this id is still running")))
        else:
            call = asyncio.create_task(self._answer(delivery))
            self.calls[message["id"]] = call
            call.add_done_callback(lambda _: self.calls.pop(message["id"], None))

    def _cancel(self, params: Any) -> None:
        request_id = params.get("requestId") if isinstance(params, Mapping) else None
        if isinstance(request_id, str | int) and (call := self.calls.get(request_id)):
            call.cancel()

    async def _answer(self, delivery: Delivery) -> None:
        audit.trace_id.set(delivery.trace_id)
        message = delivery.message
        exchange = Exchange(
            delivery.principal,
            TRANSPORT,
            self.version,
            self.client.get("clientInfo"),
            self.client.get("capabilities"),
            carry=self._carry,
        )
        try:
            response = await answer(message, exchange)
        except InsufficientScope as refused:
            response = jsonrpc.error(message["id"], -32600, f"Insufficient scope; needed: {refused}")
        except DATABASE_AWAY:
            response = jsonrpc.error(message["id"], -32603, "The database cannot be reached. Try again in a moment.")
        if message["method"] == "initialize" and "result" in response:
            self.version = response["result"]["protocolVersion"]
            self.client = message["params"]
        self._put(jsonrpc.event(response))

    async def _carry(self, notification: jsonrpc.Message) -> None:
        # A notification may be lost where an answer may not: a busy tool is no reason to let its reader go.
        if not self.outbox.full():
            self._put(jsonrpc.event(notification))
        await asyncio.sleep(0)


class MessagesConsumer(_HttpConsumer):
    """POST /messages/: checks a message as /mcp would, then hands it to the worker that has the stream."""

    async def http_request(self, message: Mapping[str, Any]) -> None:
        self.body.append(message.get("body", b""))
        try:
            if sum(map(len, self.body)) > settings.MCP_BODY_LIMIT:
                raise malformed(413, -32600, f"The body is larger than {settings.MCP_BODY_LIMIT} bytes")
            if not message.get("more_body"):
                await self._hand_over(b"".join(self.body))
        except Refusal as refusal:
            await self.refuse(refusal)
            raise StopConsumer from None
        except ClientGone:
            raise StopConsumer from None

    async def http_disconnect(self, message: Mapping[str, Any]) -> None:
        raise StopConsumer

    async def _hand_over(self, body: bytes) -> None:
        principal = await bearer.principal_for(self.scope, settings.RESOURCES[1])
        if self.scope["method"] != "POST":
            raise method_not_allowed("POST")
        check_content_type(Headers(raw=list(self.scope["headers"])))
        message = parse(body)
        if not (jsonrpc.is_request(message) or jsonrpc.is_notification(message) or jsonrpc.is_response(message)):
            raise malformed(400, -32600, "Body must be a single JSON-RPC message")
        session = self._session(principal)
        if jsonrpc.is_request(message):
            await _check_call(message, Exchange(principal, TRANSPORT, REVISION))
        payload = Delivery.of(message, principal, self.channel_name).sealed()
        self.end(after=ACKNOWLEDGED_WITHIN)
        await self.channel_layer.send(session.channel, {"type": "relay.message", "payload": payload})

    def _session(self, principal: Principal) -> StreamSession:
        named = parse_qs(self.scope.get("query_string", b"").decode("latin-1")).get("session_id", [])
        try:
            if len(named) != 1:
                raise UnknownSession("not one session_id")
            return session_for(principal, named[0])
        except UnknownSession as reason:
            logger.info("session refused: %s", reason)
            raise malformed(404, -32600, "Unknown session: open a new stream at /sse") from None

    async def relay_acknowledged(self, event: Mapping[str, Any]) -> None:
        if event["accepted"]:
            self.answered = True
            await self.send_response(202, b"Accepted", headers=[(b"content-type", b"text/plain")])
        else:
            await self.refuse(unavailable("Too many calls are running on this stream."))
        raise StopConsumer


async def _check_call(message: jsonrpc.Message, exchange: Exchange) -> None:
    """What HTTP can still say here and the stream cannot: 403, and 401 where the person must sign in again."""
    resource = exchange.principal.resource
    try:
        tool = await judge(message, exchange)
        if tool is not None and tool.api is not None:
            await _check_sign_in(tool, exchange.principal)
    except MCPError:
        return  # an unknown tool: the stream carries the answer
    except InsufficientScope as refused:
        raise bearer.step_up(resource, refused) from None
    except UpstreamLoginRequired:
        raise bearer.sign_in_again(resource) from None
    except DATABASE_AWAY:
        raise unavailable("The database cannot be reached at the moment.") from None


async def _check_sign_in(tool: Tool, principal: Principal) -> None:
    try:
        await upstream_tokens.upstream_token_for(principal, tool.api or "")
    except UpstreamUnavailable:
        return  # only for now: the call says when to retry
