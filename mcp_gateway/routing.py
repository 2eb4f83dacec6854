"""Which application serves which path, exactly: `//mcp` is not `/mcp`."""

from collections.abc import Awaitable, Callable
from typing import Any

from mcp_gateway.transports.sse import MessagesConsumer, SseConsumer
from mcp_gateway.transports.streamable_http import streamable_http

Application = Callable[[Any, Any, Any], Awaitable[None]]

routes: dict[str, Application] = {
    "/mcp": streamable_http,
    "/sse": SseConsumer.as_asgi(),
    "/messages/": MessagesConsumer.as_asgi(),
}
