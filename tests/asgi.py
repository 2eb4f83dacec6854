"""One request to an ASGI application, without a server: for what only the wire's shape decides."""

import asyncio
from dataclasses import dataclass
from typing import Any

HOST = [(b"host", b"localhost:8788")]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


async def ask(
    application: Any,
    path: str,
    method: str = "GET",
    headers: list[tuple[bytes, bytes]] | None = None,
    body: bytes = b"",
    client: tuple[str, int] = ("127.0.0.1", 40000),
    **scope: Any,
) -> Answer:
    """The whole answer to one request; fails if it takes longer than five seconds."""
    sent: list[dict[str, Any]] = []
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    full = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": HOST if headers is None else headers, "client": client, "root_path": "", "scheme": "http", **scope,
    }  # fmt: skip
    await asyncio.wait_for(application(full, receive, send), 5)
    start = sent[0]
    return Answer(
        start["status"],
        {key.decode().lower(): value.decode() for key, value in start["headers"]},
        b"".join(message.get("body", b"") for message in sent[1:]),
    )
