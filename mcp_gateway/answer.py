"""One message in, one response out: the only protocol engine, for every transport and every revision.

The SDK's `serve_one` dispatches; here are our two methods (tools/list, tools/call), what is judged before a call runs,
and what is written down after it.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import mcp_types as types
from django.conf import settings
from django.contrib.auth import get_user_model
from mcp.server.caching import CacheHint
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.runner import serve_one
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.jsonrpc_dispatcher import handler_exception_to_error_data, progress_token_from_params
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.transport_context import TransportContext

from mcp_gateway import VERSION, jsonrpc
from mcp_gateway.errors import InsufficientScope, ToolError
from mcp_gateway.tools import Call, Tool, registry
from mcp_gateway.upstream_api import UpstreamApi
from oauth_relay import access_tokens, audit, upstream_tokens
from oauth_relay.access_tokens import Principal
from oauth_relay.audit import Event
from oauth_relay.database import DATABASE_AWAY, in_database
from oauth_relay.upstream_tokens import UpstreamLoginRequired, UpstreamRefused, UpstreamUnavailable

logger = logging.getLogger(__name__)

LIST_LIFETIME_MS = 60_000
NOT_ASKED = (
    "This tool needs a permission that was not given ({}), and the person is not asked for it now: they refused it within "
    "the last day, or were asked for permissions three times within the hour. Go on without it. Should they want it after "
    f"all, they can disconnect this client at {settings.PUBLIC_URL}/connections and connect it again."
)
INSTRUCTIONS = "The tools act as the signed-in person, within the permissions that this person gave to this client."


@dataclass
class Exchange:
    """One message under way, as its transport knows it."""

    principal: Principal
    transport: str
    protocol_version: str
    client_info: Any = None
    client_capabilities: Any = None
    carry: Callable[[jsonrpc.Message], Awaitable[None]] | None = None
    """Takes a notification to the client, beside the response."""
    may_challenge: Callable[[], bool] = lambda: False
    """Whether the response can still become an HTTP 401."""
    examine: Callable[[Tool], None] | None = None
    """What the transport wants to see right before a tool runs. May raise MCPError."""
    not_asked_for: frozenset[str] = frozenset()
    """Scopes that the call lacks and that the person is not to be asked for now (T33)."""


async def answer(message: jsonrpc.Message, exchange: Exchange) -> jsonrpc.Message:
    """The response to one request, given its parsed message.

    Raises InsufficientScope before anything ran, UpstreamLoginRequired while `may_challenge`, and one of DATABASE_AWAY when
    what happened could not be written down: then there is no answer. Every other failure is a JSON-RPC error.
    """
    request_id, method, params = message["id"], message["method"], message.get("params")
    try:
        tool = await judge(message, exchange)
        if tool is not None and exchange.examine is not None:
            exchange.examine(tool)
        dispatch = _Dispatch(exchange, request_id, params)
        connection = Connection.from_envelope(
            exchange.protocol_version, exchange.client_info, exchange.client_capabilities
        )
        result = await serve_one(_server(), dispatch, method, params, connection=connection, lifespan_state={})
    except (InsufficientScope, UpstreamLoginRequired, *DATABASE_AWAY):
        raise
    except Exception as error:  # noqa: BLE001 - what nobody foresaw is answered in the protocol's form, and logged
        return jsonrpc.error_from(request_id, _error_data(error))
    return jsonrpc.result(request_id, result)


def _error_data(error: Exception) -> types.ErrorData:
    foreseen = handler_exception_to_error_data(error)
    if foreseen is not None:
        return foreseen
    trace_id = audit.trace_id.get()
    logger.error("unforeseen", exc_info=error)
    return types.ErrorData(code=types.INTERNAL_ERROR, message="Internal server error", data={"trace_id": trace_id})


# -- before a tool runs ------------------------------------------------------------------------------------------------


async def judge(message: jsonrpc.Message, exchange: Exchange) -> Tool | None:
    """The tool that `message` may call; None if it is no tool call. In this order: known → permitted → scope.

    Raises MCPError (-32602) alike for a tool that does not exist and one that this person may not know of (T32), and
    InsufficientScope. Where the person is not to be asked for what is missing, the tool's answer will say so (T33).
    """
    params = message.get("params")
    name = params.get("name") if isinstance(params, Mapping) else None
    if message["method"] != "tools/call" or not isinstance(name, str):
        return None
    tool = registry.find(name)
    if tool is None or not await is_permitted(tool, exchange.principal):
        await _record(exchange, tool, "unknown_tool")
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {name[:128]}")
    lacks = tool.scopes - exchange.principal.scopes
    if lacks and not await access_tokens.may_step_up(exchange.principal, lacks):
        exchange.not_asked_for = lacks
        return tool
    must_be_widened = await _must_be_widened(tool, exchange.principal, bool(lacks))
    if lacks or must_be_widened:
        await _record(exchange, tool, "insufficient_scope" if lacks else "insufficient_upstream_scope")
        raise InsufficientScope(tool.scopes)
    return tool


async def _must_be_widened(tool: Tool, principal: Principal, is_asked_anyway: bool) -> bool:
    """Whether the person is now asked, this once, for what the provider has not given yet (DESIGN §4.9).

    Where they are asked for a scope of ours anyway, that one authorization is for both.
    """
    if tool.api is None or tool.upstream_scope is None:
        return False
    try:
        if is_asked_anyway:
            return await upstream_tokens.must_be_widened(principal, tool.api, tool.upstream_scope)
        is_lacking = await upstream_tokens.is_lacking(principal, tool.api, tool.upstream_scope)
    except (UpstreamLoginRequired, UpstreamRefused, UpstreamUnavailable):
        return False  # the call itself meets the same, and says so
    return is_lacking and await access_tokens.may_widen(principal, tool.upstream_scope)


async def is_permitted(tool: Tool, principal: Principal) -> bool:
    """Whether this person may ever use `tool`."""
    if tool.permission is None:
        return True
    return principal.user_id is not None and await in_database(_has_permission, principal.user_id, tool.permission)


def _has_permission(user_id: int, permission: str) -> bool:
    user = get_user_model()._default_manager.filter(pk=user_id).first()
    return user is not None and user.has_perm(permission)


# -- the two methods ---------------------------------------------------------------------------------------------------


@functools.cache
def _server() -> Server[Any]:
    server: Server[Any] = Server(
        "CAIR",
        version=VERSION,
        title="CAIR",
        instructions=INSTRUCTIONS,
        website_url=settings.PUBLIC_URL,
        cache_hints={
            "tools/list": CacheHint(ttl_ms=LIST_LIFETIME_MS, scope="private"),
            "server/discover": CacheHint(ttl_ms=LIST_LIFETIME_MS, scope="private"),
        },
        on_list_tools=_list_tools,
        on_call_tool=_call_tool,
    )
    # The SDK opens an OpenTelemetry span per message even where nobody listens.
    server.middleware.clear()
    return server


async def _list_tools(ctx: ServerRequestContext[Any], params: Any) -> types.ListToolsResult:
    """All tools that this person may ever have, whatever this token's scopes: a call says which are missing."""
    if params is not None and params.cursor is not None:
        raise MCPError(types.INVALID_PARAMS, "Unknown cursor: the list has one page")
    principal = _exchange(ctx).principal
    return types.ListToolsResult(
        tools=[tool.listing for tool in registry.tools() if await is_permitted(tool, principal)]
    )


async def _call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
    """Run a tool that has been judged, and write down how it ended before anyone is told."""
    exchange = _exchange(ctx)
    tool = registry.find(params.name)
    if tool is None:
        raise LookupError("a tool call reached its handler without having been judged")
    began, outcome = time.monotonic(), "failed"
    try:
        if exchange.not_asked_for:
            outcome = "step_up_withheld"
            return _error_result(NOT_ASKED.format(", ".join(sorted(exchange.not_asked_for))))
        access_tokens.note_tool(exchange.principal, tool.name)
        result, outcome = await _run(tool, params.arguments or {}, exchange, ctx.session.report_progress)
    except UpstreamLoginRequired:
        outcome = "sign_in_needed"
        if exchange.may_challenge():
            raise
        return _error_result("The person must sign in again before this tool works. Ask them to reconnect this server.")
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    finally:
        await _record(exchange, tool, outcome, ms=round((time.monotonic() - began) * 1000))
    return result


async def _run(
    tool: Tool, unverified_arguments: Mapping[str, Any], exchange: Exchange, report: Callable[..., Awaitable[None]]
) -> tuple[types.CallToolResult, str]:
    """The result of `tool`, and its outcome for the audit."""
    api = UpstreamApi(tool.api, exchange.principal, tool.upstream_scope) if tool.api is not None else None
    try:
        arguments = tool.arguments.parse(unverified_arguments)
        value = await tool.function(Call(exchange.principal, api, _rising(report, api)), **arguments)
        structured, text = tool.result.shape(value)
        result, outcome = _result(structured, text), "ok"
    except ToolError as error:
        text = str(error)
        result, outcome = _error_result(text), "tool_error"
    except UpstreamUnavailable as error:
        text = f"The sign-in service cannot be asked at the moment. Try again in {error.retry_after} seconds."
        return _error_result(text), "upstream_unavailable"
    if api is not None and api.is_revealed_by(text):
        logger.error("the answer of %s held the credential it was asked with; dropped", tool.api)
        return _error_result("The API's answer cannot be passed on. Tell the operator."), "credential_in_result"
    return result, outcome


def _result(structured: dict[str, Any] | None, text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)], structured_content=structured)


def _error_result(sentence: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=sentence)], is_error=True)


def _rising(report: Callable[..., Awaitable[None]], api: UpstreamApi | None) -> Callable[..., Awaitable[None]]:
    """> The progress value MUST increase with each notification. (MCP, Progress)

    What does not rise is not sent, nor a message with a credential in it.
    """
    last = float("-inf")

    async def rising(done: float, total: float | None, message: str | None) -> None:
        nonlocal last
        if done <= last or (message and api is not None and api.is_revealed_by(message)):
            return
        last = done
        await report(done, total, message)

    return rising


async def _record(exchange: Exchange, tool: Tool | None, outcome: str, **detail: Any) -> None:
    principal = exchange.principal
    # A name that is nobody's tool is the client's text, not ours: it stays out of the audit.
    name = tool.name if tool is not None else None
    await audit.record(
        Event(
            "tool.called",
            outcome,
            pseudonym=principal.pseudonym,
            client_id=principal.client_id,
            grant_id=principal.grant_id,
            detail={"tool": name, "transport": exchange.transport, **detail},
        )
    )


# -- what the SDK wants of a transport ---------------------------------------------------------------------------------


def _exchange(ctx: ServerRequestContext[Any]) -> Exchange:
    if not isinstance(ctx.request, Exchange):
        raise TypeError("a request reached the handlers without its exchange")
    return ctx.request


class _Dispatch:
    """The SDK's `DispatchContext` for one message. No server asks its client anything here."""

    can_send_request = False

    def __init__(self, exchange: Exchange, request_id: Any, params: Mapping[str, Any] | None) -> None:
        self.transport = TransportContext(kind=exchange.transport, can_send_request=False)
        self.request_id = request_id
        self.message_metadata = ServerMessageMetadata(request_context=exchange, can_send_request=False)
        self.cancel_requested = anyio.Event()
        self._carry = exchange.carry
        self._progress_token = progress_token_from_params(params)

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        if self._carry is not None:
            await self._carry(jsonrpc.notification(method, params))

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        if self._progress_token is None:
            return
        told = {"progressToken": self._progress_token, "progress": progress, "total": total, "message": message}
        params = {name: value for name, value in told.items() if value is not None}
        await self.notify("notifications/progress", params)
