"""A small ASGI server side for tests: one request at a time, every wait bounded, nothing hidden."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

WAIT = 5.0


class Exchange:
    """One request to an ASGI application, and its response as it comes."""

    def __init__(self, application: Callable[..., Any], scope: dict[str, Any], body: bytes) -> None:
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._events.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self._sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.content = b""
        self.is_finished = False
        self.task = asyncio.create_task(application(scope, self._events.get, self._sent.put))

    def disconnect(self) -> None:
        self._events.put_nowait({"type": "http.disconnect"})

    async def _next(self) -> dict[str, Any]:
        """The next thing sent; the application's own failure, if it failed instead."""
        sent = asyncio.create_task(self._sent.get())
        try:
            async with asyncio.timeout(WAIT):
                await asyncio.wait({sent, self.task}, return_when=asyncio.FIRST_COMPLETED)
                if not sent.done() and self._sent.empty():
                    self.task.result()
                    raise AssertionError("the application returned without an answer")
                return await sent
        finally:
            sent.cancel()

    async def start(self) -> "Exchange":
        message = await self._next()
        assert message["type"] == "http.response.start"
        self.status = message["status"]
        self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        return self

    async def frame(self) -> bytes:
        message = await self._next()
        assert message["type"] == "http.response.body"
        self.is_finished = not message.get("more_body", False)
        return message.get("body", b"")

    async def event(self) -> tuple[str, str]:
        """Name and data of the next server-sent event; comments are passed over."""
        while True:
            frame = (await self.frame()).decode()
            if frame.startswith(":"):
                continue
            assert frame, "the stream ended"
            lines = dict(line.split(": ", 1) for line in frame.strip().split("\r\n"))
            return lines["event"], lines["data"]

    async def message(self) -> Any:
        name, data = await self.event()
        assert name == "message"
        return json.loads(data)

    async def whole(self) -> "Exchange":
        await self.start()
        while not self.is_finished:
            self.content += await self.frame()
        async with asyncio.timeout(WAIT):
            await self.task
        return self

    async def ended(self) -> None:
        """Wait until the response is finished and the application has returned."""
        while not self.is_finished:
            await self.frame()
        async with asyncio.timeout(WAIT):
            await self.task

    @property
    def json(self) -> Any:
        return json.loads(self.content)


def _scope(method: str, target: str, headers: list[tuple[str, str]]) -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
    }


@asynccontextmanager
async def opened(
    application: Callable[..., Any],
    method: str,
    target: str,
    headers: Mapping[str, str] | list[tuple[str, str]] = (),  # type: ignore[assignment]
    body: bytes | Any = b"",
) -> AsyncIterator[Exchange]:
    """A request under way; on leaving, the client hangs up and the application must have ended."""
    listed = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    exchange = Exchange(application, _scope(method, target, listed), content)
    try:
        yield exchange
    finally:
        exchange.disconnect()
        async with asyncio.timeout(WAIT):
            await asyncio.wait({exchange.task})


async def asked(
    application: Callable[..., Any], method: str, target: str, headers: Any = (), body: Any = b""
) -> Exchange:
    """The complete response."""
    async with opened(application, method, target, headers, body) as exchange:
        return await exchange.whole()
