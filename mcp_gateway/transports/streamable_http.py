"""Streamable HTTP at /mcp: one POST, one message, one answer. Stateless in every revision.

2026-07-28 behaves as the SDK's own handler for it does. 2025-03-26 … 2025-11-25 share everything but the header rules.
The answer is one JSON document, unless the call tells of something on its way or takes long: then it is an event
stream. Closing the response cancels the call; without sessions nobody could ever fetch its answer.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from django.conf import settings
from mcp.server.streamable_http import check_accept_headers
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    MCP_PROTOCOL_VERSION_HEADER,
    InboundLadderRejection,
    classify_inbound_request,
    find_duplicated_routing_header,
    unsupported_protocol_version_rejection,
    validate_mcp_param_headers,
)
from mcp_types import DEFAULT_NEGOTIATED_VERSION, HEADER_MISMATCH, INVALID_REQUEST
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.datastructures import Headers
from starlette.requests import Request

from mcp_gateway import bearer, jsonrpc, shutdown
from mcp_gateway.answer import Exchange, answer
from mcp_gateway.errors import InsufficientScope
from mcp_gateway.replies import (
    PING,
    ClientGone,
    Receive,
    Refusal,
    Reply,
    Scope,
    Send,
    malformed,
    method_not_allowed,
    read_body,
    unavailable,
)
from mcp_gateway.tools import Tool
from oauth_relay import access_tokens
from oauth_relay.database import DATABASE_AWAY
from oauth_relay.upstream_tokens import UpstreamLoginRequired

PING_EVERY = 15.0
"""Seconds of silence after which an event stream begins, and is kept alive: proxies close what says nothing."""
WITHDRAWN = "withdrawn"
NOT_A_MESSAGE = "Body must be a single JSON-RPC request or notification object"


async def streamable_http(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application for /mcp."""
    reply = Reply(send)
    try:
        await _serve(scope, receive, reply)
    except Refusal as refusal:
        await reply.refuse(refusal)
    except (ClientGone, OSError):
        return  # nobody is there any more; since ASGI 2.4 a server says so by OSError from `send`


async def _serve(scope: Scope, receive: Receive, reply: Reply) -> None:
    """Body limit → bearer → method → content type → Accept → JSON → era."""
    resource = settings.RESOURCES[0]
    body = await read_body(scope, receive, settings.MCP_BODY_LIMIT)
    principal = await bearer.principal_for(scope, resource)
    if scope["method"] != "POST":
        # No stream to listen on and no session to end: also what earlier revisions expect of a server without them.
        raise method_not_allowed("POST")
    headers = Headers(raw=list(scope["headers"]))
    check_content_type(headers)
    if not all(check_accept_headers(Request(dict(scope)))):
        raise malformed(406, INVALID_REQUEST, "Accept must list application/json and text/event-stream")
    message = parse(body)
    exchange = Exchange(principal, "streamable-http", _era(headers), carry=_carrier(reply))
    exchange.may_challenge = lambda: not reply.has_started
    if exchange.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
        await _serve_handshake_era(message, exchange, receive, reply)
    else:
        await _serve_envelope_era(message, exchange, headers, receive, reply)


def check_content_type(headers: Mapping[str, str]) -> None:
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise malformed(415, INVALID_REQUEST, "Content-Type must be application/json")


def parse(body: bytes) -> jsonrpc.Message:
    try:
        return jsonrpc.parse(body)
    except jsonrpc.Malformed as fault:
        raise Refusal(400, fault.response) from None


def _era(headers: Headers) -> str:
    """The revision that the header names; whatever no handshake knows is the strict path's to accept or refuse.

    > if the server does not receive an `MCP-Protocol-Version` header … the server SHOULD assume 2025-03-26.
    """
    named = headers.getlist(MCP_PROTOCOL_VERSION_HEADER)
    if not named:
        return DEFAULT_NEGOTIATED_VERSION
    # Two headers name no revision; the strict path says so.
    return named[0] if len(named) == 1 else ", ".join(named)


# -- 2025-03-26 … 2025-11-25 -------------------------------------------------------------------------------------------


async def _serve_handshake_era(message: jsonrpc.Message, exchange: Exchange, receive: Receive, reply: Reply) -> None:
    if jsonrpc.is_notification(message) or jsonrpc.is_response(message):
        await reply.whole(202, [], b"")
    elif jsonrpc.is_request(message):
        # Errors of the protocol are answers here: clients of these revisions read them from a 200.
        await _respond(message, exchange, receive, reply, statuses={})
    else:
        raise malformed(400, INVALID_REQUEST, NOT_A_MESSAGE)


# -- 2026-07-28 --------------------------------------------------------------------------------------------------------


async def _serve_envelope_era(
    message: jsonrpc.Message, exchange: Exchange, headers: Headers, receive: Receive, reply: Reply
) -> None:
    if jsonrpc.is_notification(message):
        # Nothing for one to act on: a call is cancelled by closing its response.
        _pass(unsupported_protocol_version_rejection(exchange.protocol_version), None)
        await reply.whole(202, [], b"")
        return
    if not jsonrpc.is_request(message):
        raise malformed(400, INVALID_REQUEST, NOT_A_MESSAGE)
    if duplicated := find_duplicated_routing_header(headers.items()):
        _pass(InboundLadderRejection(HEADER_MISMATCH, f"{duplicated} header appears more than once"), message["id"])
    route = classify_inbound_request(message, headers=dict(headers))
    if isinstance(route, InboundLadderRejection):
        raise _rejection(route, message["id"])
    exchange = replace(
        exchange,
        protocol_version=route.protocol_version,
        client_info=route.client_info,
        client_capabilities=route.client_capabilities,
        examine=lambda tool: _compare_mirrored(tool, message, headers),
    )
    await _respond(message, exchange, receive, reply, statuses=ERROR_CODE_HTTP_STATUS)


def _rejection(rejection: InboundLadderRejection, request_id: Any) -> Refusal:
    body = jsonrpc.error(request_id, rejection.code, rejection.message, rejection.data)
    return Refusal(ERROR_CODE_HTTP_STATUS.get(rejection.code, 400), body)


def _pass(rejection: InboundLadderRejection | None, request_id: Any) -> None:
    if rejection is not None:
        raise _rejection(rejection, request_id)


def _compare_mirrored(tool: Tool, message: jsonrpc.Message, headers: Headers) -> None:
    """`Mcp-Param-*` headers must say what the body says: somebody may have routed by them."""
    arguments = message["params"].get("arguments")
    rejection = validate_mcp_param_headers(
        tool.arguments.schema, arguments if isinstance(arguments, Mapping) else {}, headers
    )
    if rejection is not None:
        raise MCPError(rejection.code, rejection.message, rejection.data)


# -- the answer --------------------------------------------------------------------------------------------------------


def _carrier(reply: Reply) -> Any:
    async def carry(notification: jsonrpc.Message) -> None:
        # A client that left is the watcher's business; the tool is not to hear of it.
        with suppress(OSError):
            await reply.frame(jsonrpc.event(notification))

    return carry


async def _respond(
    message: jsonrpc.Message, exchange: Exchange, receive: Receive, reply: Reply, statuses: Mapping[int, int]
) -> None:
    """Answer one request, while watching for the client to leave and for the permission to end."""
    call = asyncio.create_task(answer(message, exchange))
    left = asyncio.create_task(_client_leaves(receive))

    def end() -> None:
        call.cancel(WITHDRAWN)

    unwatch = access_tokens.when_withdrawn(exchange.principal, end)
    try:
        with shutdown.running_call(call.cancel):
            while not (call.done() or left.done()):
                await asyncio.wait({call, left}, timeout=PING_EVERY, return_when=asyncio.FIRST_COMPLETED)
                if not (call.done() or left.done()):
                    await reply.frame(PING)
        if call.done():
            await _finish(message["id"], call, exchange, reply, statuses)
    finally:
        unwatch()
        call.cancel()
        left.cancel()
        await asyncio.gather(call, left, return_exceptions=True)


def _cut(resource: str, cut: asyncio.CancelledError) -> Refusal:
    """Why a call was cut short while its client still waits."""
    if cut.args == (WITHDRAWN,):
        return bearer.challenge(resource, "invalid_token", "The permission behind this token was withdrawn.")
    return unavailable("This server is restarting. Try again in a moment.")


async def _client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _finish(
    request_id: Any, call: asyncio.Task[jsonrpc.Message], exchange: Exchange, reply: Reply, statuses: Mapping[int, int]
) -> None:
    """Send the outcome: as a document with its status, or as the last event of a stream that has begun."""
    resource = exchange.principal.resource
    try:
        response = call.result()
    except asyncio.CancelledError as cut:
        refusal = _cut(resource, cut)
    except InsufficientScope as refused:
        refusal = bearer.step_up(resource, refused)
    except UpstreamLoginRequired:
        refusal = bearer.sign_in_again(resource)
    except DATABASE_AWAY:
        refusal = unavailable("The database cannot be reached at the moment.")
    else:
        if reply.has_started:
            await reply.frame(jsonrpc.event(response), last=True)
        else:
            await reply.json(response, statuses.get(response.get("error", {}).get("code"), 200))
        return
    if not reply.has_started:
        raise refusal
    sentence = str((refusal.body or {}).get("error_description", "Internal server error"))
    await reply.frame(jsonrpc.event(jsonrpc.error(request_id, -32603, sentence)), last=True)
