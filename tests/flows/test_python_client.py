"""The official Python client does everything itself: discovery, registration, the browser's part, tools, step-up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import mcp.client.session
import pytest
from mcp import Client, MCPError
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider, OAuthFlowError, TokenStorage
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import AnyUrl

from tests.servers import Server
from tests.walk import REDIRECT_URI, Person, parameters_of

BOUND = 20.0
TOOLS = ["whoami", "list_todos", "get_todo", "create_todo", "update_todo", "delete_todo", "list_billing"]


class Memory(TokenStorage):
    """What a client remembers between two starts."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


class SignIn:
    """The client's browser and its callback: the scripted person opens the address, reads, and presses a button."""

    def __init__(self, server: Server, endpoint: str = "mcp", button: str = "allow") -> None:
        self.person = Person(server.url)
        self.button = button
        self.memory = Memory()
        self.opened: list[str] = []
        self.endpoint = f"{server.url}/{endpoint}"
        self._answer: dict[str, str] = {}

    def provider(self) -> OAuthClientProvider:
        metadata = OAuthClientMetadata(
            client_name="Python SDK",
            redirect_uris=[AnyUrl(REDIRECT_URI)],
            grant_types=["authorization_code", "refresh_token"],
            token_endpoint_auth_method="none",
        )
        self.oauth = OAuthClientProvider(self.endpoint, metadata, self.memory, self._open, self._wait)
        return self.oauth

    async def _open(self, url: str) -> None:
        self.opened.append(url)
        page = await asyncio.to_thread(self.person.consent_page, url)
        self._answer = await asyncio.to_thread(self.person.answer, page, self.button)

    async def _wait(self) -> AuthorizationCodeResult:
        answer = self._answer
        return AuthorizationCodeResult(code=answer.get("code", ""), state=answer["state"], iss=answer["iss"])

    @contextlib.asynccontextmanager
    async def connected(self, mode: str = "auto") -> AsyncIterator[Client]:
        async with asyncio.timeout(BOUND):
            async with httpx2.AsyncClient(auth=self.provider(), trust_env=False, timeout=10) as http:
                async with Client(streamable_http_client(self.endpoint, http_client=http), mode=mode) as client:
                    yield client


async def structured(client: Client, tool: str, **arguments: Any) -> Any:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return result.structured_content


async def work_on_todos(client: Client) -> None:
    """The main job: read, add, read again, change, remove, as the person who signed in."""
    assert [tool.name for tool in (await client.list_tools()).tools] == TOOLS
    me = await structured(client, "whoami")
    assert "demo" in str(me.values()) and "Demo User" in str(me.values())
    made = await structured(client, "create_todo", title="From the Python client")
    listed = await structured(client, "list_todos")
    assert made["id"] in [todo["id"] for todo in listed["todos"]]
    changed = await structured(client, "update_todo", id=made["id"], done=True)
    assert changed["done"] is True
    await structured(client, "delete_todo", id=made["id"])
    left = await structured(client, "list_todos")
    assert made["id"] not in [todo["id"] for todo in left["todos"]]


@pytest.mark.parametrize(
    ("mode", "speaks"), [("auto", "2026-07-28"), ("2026-07-28", "2026-07-28"), ("legacy", "2025-11-25")]
)
async def test_it_connects_signs_in_and_works_on_the_persons_todos(server: Server, mode: str, speaks: str) -> None:
    sign_in = SignIn(server)
    async with sign_in.connected(mode) as client:
        assert client.protocol_version == speaks
        await work_on_todos(client)
    assert len(sign_in.opened) == 1
    assert parameters_of(sign_in.opened[0])["resource"] == f"{server.url}/mcp"


@pytest.mark.parametrize("revision", [v for v in HANDSHAKE_PROTOCOL_VERSIONS if v >= "2025-03-26"])
async def test_it_works_in_every_older_revision_it_can_be_made_to_speak(
    server: Server, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    monkeypatch.setattr(mcp.client.session, "LATEST_HANDSHAKE_VERSION", revision)
    async with SignIn(server).connected("legacy") as client:
        assert client.protocol_version == revision
        await work_on_todos(client)


async def test_it_comes_back_without_a_browser(server: Server) -> None:
    """A client that was closed and started again finds its tokens good; nobody is asked anything."""
    sign_in = SignIn(server)
    for _ in range(2):
        async with sign_in.connected() as client:
            await structured(client, "list_todos")
    assert len(sign_in.opened) == 1


async def test_it_refreshes_by_itself_when_its_token_has_run_out(server: Server) -> None:
    sign_in = SignIn(server)
    async with sign_in.connected() as client:
        before = sign_in.memory.tokens
        sign_in.oauth.context.token_expiry_time = 1.0
        await structured(client, "list_todos")
        after = sign_in.memory.tokens
    assert before is not None and after is not None
    assert after.access_token != before.access_token and after.refresh_token != before.refresh_token
    assert len(sign_in.opened) == 1


async def test_it_asks_the_person_for_more_when_a_tool_needs_more(server: Server) -> None:
    """403 insufficient_scope → a second authorization for what is new, and the call goes through (DESIGN §4.9)."""
    sign_in = SignIn(server)
    async with sign_in.connected() as client:
        await structured(client, "list_todos")
        await structured(client, "list_billing")
        await structured(client, "list_todos")
    assert len(sign_in.opened) == 2
    assert "read:billing" not in parameters_of(sign_in.opened[0])["scope"]
    assert set(parameters_of(sign_in.opened[1])["scope"].split()) >= {"read:todos", "write:todos", "read:billing"}


async def test_it_learns_that_the_person_refused(server: Server) -> None:
    sign_in = SignIn(server, button="deny")
    with pytest.raises(BaseExceptionGroup) as refused:
        async with sign_in.connected():
            pass
    assert refused.group_contains(OAuthFlowError, match="No authorization code")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_mistakes_come_back_as_words_a_model_can_act_on(server: Server, mode: str) -> None:
    async with SignIn(server).connected(mode) as client:
        with pytest.raises(MCPError) as unknown:
            await client.call_tool("no_such_tool", {})
        assert unknown.value.error.code == -32602
        wrong = await client.call_tool("create_todo", {"titel": "misspelled"})
        assert wrong.is_error and "title" in str(wrong.content)
        missing = await client.call_tool("get_todo", {"id": "00000000-0000-4000-8000-000000000000"})
        assert missing.is_error and "Traceback" not in str(missing.content)
        await structured(client, "list_todos")


async def test_two_people_never_see_each_others_todos(server: Server) -> None:
    server.shell(
        "from oauth_relay.models import User\n"
        "if not User.objects.filter(username='mallory').exists():\n"
        "    User.objects.create_user('mallory', password='correct horse battery')\n"
    )
    mallory = SignIn(server)
    mallory.person = Person(server.url, username="mallory", password="correct horse battery")
    async with SignIn(server).connected() as hers, mallory.connected() as theirs:
        made = await structured(hers, "create_todo", title="Private")
        assert made["id"] not in str(await structured(theirs, "list_todos"))
        for tool, more in (("get_todo", {}), ("update_todo", {"done": True}), ("delete_todo", {})):
            result = await theirs.call_tool(tool, {"id": made["id"], **more})
            assert result.is_error, tool
        assert (await structured(hers, "get_todo", id=made["id"]))["done"] is False


@pytest.mark.parametrize("revision", ["2024-11-05", "2025-11-25"])
async def test_the_sse_client_signs_in_and_works_on_the_persons_todos(
    server: Server, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    monkeypatch.setattr(mcp.client.session, "LATEST_HANDSHAKE_VERSION", revision)
    sign_in = SignIn(server, "sse")
    async with asyncio.timeout(BOUND):
        async with Client(sse_client(sign_in.endpoint, auth=sign_in.provider()), mode="legacy") as client:
            await work_on_todos(client)
    assert parameters_of(sign_in.opened[0])["resource"] == f"{server.url}/sse"
