"""The official Python client, in every era it speaks, against a real Daphne process; and streams across two of them."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from tests import servers
from tests.servers import Server

WAIT = 10.0

ISSUE = """
import secrets, uuid
from datetime import timedelta
from django.utils import timezone
from oauth2_provider.models import set_token_value
from oauth_relay.models import AccessToken, Client, Grant, User
user = User.objects.get(username="demo")
client, _ = Client.objects.get_or_create(name="Test client", client_type="public",
    authorization_grant_type="authorization-code", redirect_uris="http://127.0.0.1/cb")
grant, _ = Grant.objects.get_or_create(user=user, client=client, withdrawn_at=None)
raw_token = secrets.token_urlsafe(32)
token = AccessToken(user=user, application=client, grant=grant, family=uuid.uuid4(), scope="{scope}",
    resource=["{mcp}", "{sse}"], expires=timezone.now() + timedelta(minutes=10))
set_token_value(token, raw_token)
token.save()
print(raw_token)
"""


def issue(server: Server, scope: str = "read:todos write:todos") -> dict[str, str]:
    """A token of the demo user, as a header."""
    raw_token = server.shell(ISSUE.format(scope=scope, mcp=server.mcp, sse=server.sse)).splitlines()[-1]
    return {"Authorization": f"Bearer {raw_token}"}


@asynccontextmanager
async def connected(server: Server, kind: str, headers: dict[str, str]) -> AsyncIterator[Client]:
    if kind == "sse":
        async with Client(sse_client(server.sse, headers=headers), mode="legacy", read_timeout_seconds=WAIT) as client:
            yield client
        return
    async with (
        httpx2.AsyncClient(headers=headers, timeout=WAIT) as http_client,
        Client(
            streamable_http_client(server.mcp, http_client=http_client), mode=kind, read_timeout_seconds=WAIT
        ) as client,
    ):
        yield client


@pytest.mark.parametrize("kind", ["auto", "legacy", "2026-07-28", "sse"])
async def test_a_client_works_on_the_todos_of_its_person(sqlite_server: Server, kind: str) -> None:
    headers = await asyncio.to_thread(issue, sqlite_server)
    async with asyncio.timeout(30), connected(sqlite_server, kind, headers) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert names[:7] == [
            "whoami", "list_todos", "get_todo", "create_todo", "update_todo", "delete_todo", "list_billing",
        ]  # fmt: skip
        assert (await client.call_tool("whoami", {})).structured_content["username"] == "demo"

        made = await client.call_tool("create_todo", {"title": f"Tea, {kind}", "due": "2026-12-31"})
        assert made.is_error is not True, made
        todo = made.structured_content
        assert (todo["title"], todo["due"], todo["done"]) == (f"Tea, {kind}", "2026-12-31", False)
        changed = await client.call_tool("update_todo", {"id": todo["id"], "done": True, "due": ""})
        assert (changed.structured_content["done"], changed.structured_content["due"]) == (True, None)
        done = await client.call_tool("list_todos", {"done": True})
        assert todo["id"] in [item["id"] for item in done.structured_content["todos"]]
        assert (await client.call_tool("get_todo", {"id": todo["id"]})).structured_content["title"] == todo["title"]
        await client.call_tool("delete_todo", {"id": todo["id"]})
        gone = await client.call_tool("get_todo", {"id": todo["id"]})
        assert (gone.is_error, "Check the id" in gone.content[0].text) == (True, True)

        with pytest.raises(MCPError) as unknown:
            await client.call_tool("no_such_tool", {})
        assert unknown.value.code == -32602


async def test_billing_needs_its_scope_and_opens_with_it(sqlite_server: Server) -> None:
    narrow, wide = [await asyncio.to_thread(issue, sqlite_server, scope) for scope in ("read:todos", "read:billing")]
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list_billing", "arguments": {}}}
    accept = {"Accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(timeout=WAIT) as http_client:
        refused = await http_client.post(sqlite_server.mcp, json=body, headers={**narrow, **accept})
        assert refused.status_code == 403
        assert 'scope="read:billing"' in refused.headers["www-authenticate"]
        allowed = await http_client.post(sqlite_server.mcp, json=body, headers={**wide, **accept})
        assert "plan" in allowed.json()["result"]["structuredContent"]


# -- two processes -----------------------------------------------------------------------------------------------------


async def _is_up(url: str, host: str) -> None:
    async with asyncio.timeout(servers.STARTS_WITHIN), httpx2.AsyncClient(timeout=2) as http_client:
        while True:
            try:
                if (await http_client.get(f"{url}/health", headers={"Host": host})).status_code == 200:
                    return
            except httpx2.HTTPError:
                await asyncio.sleep(0.1)


@pytest.fixture
def two_servers() -> Iterator[tuple[Server, str]]:
    """One installation in two processes: the first, and the address of the second behind the same public URL."""
    with servers.database("sqlite") as url:
        shared = {"REDIS_URL": f"{servers.REDIS}/9"}
        with servers.serve(url, shared) as first:
            port = servers.free_port()
            with servers.serve(url, {**shared, "PORT": str(port), "PUBLIC_URL": first.url}):
                yield first, f"http://127.0.0.1:{port}"


@pytest.mark.redis
async def test_a_message_finds_its_stream_on_another_process(two_servers: tuple[Server, str]) -> None:
    first, second = two_servers
    host = first.url.removeprefix("http://")
    await _is_up(second, host)
    headers = {**await asyncio.to_thread(issue, first), "Host": host}
    async with asyncio.timeout(30), httpx2.AsyncClient(timeout=WAIT) as http_client:
        async with http_client.stream("GET", first.sse, headers=headers) as stream:
            lines = stream.aiter_lines()
            endpoint = await _data(lines)
            body = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {"name": "whoami", "arguments": {}}}
            accepted = await http_client.post(second + endpoint, json=body, headers=headers)
            assert accepted.status_code == 202
            answer = json.loads(await _data(lines))
            assert (answer["id"], answer["result"]["structuredContent"]["username"]) == (5, "demo")
        # The stream is gone: nobody acknowledges, and the client is told.
        began = time.monotonic()
        refused = await http_client.post(second + endpoint, json=body, headers=headers)
        assert refused.status_code == 503
        assert 4 < time.monotonic() - began < 8


async def _data(lines: Any) -> str:
    async for line in lines:
        if line.startswith("data: "):
            return str(line.removeprefix("data: "))
    raise AssertionError("the stream ended")


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_sigterm_ends_a_server_with_an_open_stream_in_good_order() -> None:
    with servers.database("sqlite") as url, servers.serve(url) as server:
        headers = await asyncio.to_thread(issue, server)
        async with asyncio.timeout(30), httpx2.AsyncClient(timeout=WAIT) as http_client:
            async with http_client.stream("GET", server.sse, headers=headers) as stream:
                lines = stream.aiter_lines()
                await _data(lines)
                server.process.send_signal(signal.SIGTERM)
                async for _ in lines:  # ends without an error: the response was completed
                    pass
            assert await asyncio.to_thread(server.end) < 5
