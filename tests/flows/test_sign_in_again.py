"""The sign-in at the provider ends while people work: the official clients find back by themselves (DESIGN §4.8, T10)."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from mcp import Client
from mcp.client.sse import sse_client

from tests.flows.node_program import node
from tests.flows.sign_in_at_provider import Installation, PersonWithProvider, installation
from tests.flows.test_python_client import BOUND, SignIn, structured
from tests.flows.test_typescript_client import GENERATIONS, TypeScript
from tests.identity_provider import SCOPE
from tests.walk import REDIRECT_URI, OAuthClient, challenge_of

pytestmark = pytest.mark.node

ACCESS_TOKEN_LIFETIME = 4
WITHIN = 15.0


@pytest.fixture(scope="module")
def running() -> Iterator[Installation]:
    with installation(ACCESS_TOKEN_LIFETIME=str(ACCESS_TOKEN_LIFETIME)) as found:
        yield found


def ticks(within: float = WITHIN) -> Iterator[None]:
    """Again and again, a few times a second; fails when it has taken too long."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        yield
        time.sleep(0.2)
    raise AssertionError(f"not within {within} s")


async def async_ticks() -> AsyncIterator[None]:
    until = time.monotonic() + WITHIN
    while time.monotonic() < until:
        yield
        await asyncio.sleep(0.2)
    raise AssertionError(f"not within {WITHIN} s")


# -- by hand, step by step ---------------------------------------------------------------------------------------------


@pytest.mark.threat("T10")
def test_a_suspended_family_goes_on_after_a_sign_in_for_another_client(running: Installation) -> None:
    person = PersonWithProvider(running.server.url)
    client = OAuthClient(running.server.url).connect(person)
    client.todos()
    running.end_the_sign_in()
    for _ in ticks():
        response = client.call("list_todos")
        if response.status_code != 200:
            break
    assert response.status_code == 401
    assert challenge_of(response)["error"] == "invalid_token"
    for _ in range(3):
        refused = client.refresh(client.tokens["refresh_token"])
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
    assert client.call("whoami").status_code == 200  # it needs nobody's API
    OAuthClient(running.server.url, name="Another").connect(person)
    client.todos()
    refreshed = client.refresh(client.tokens["refresh_token"])
    assert refreshed.status_code == 200, refreshed.text
    client.tokens = refreshed.json()
    client.todos()


# -- the official clients ----------------------------------------------------------------------------------------------


@pytest.mark.threat("T10")
@pytest.mark.pain("P12")
@pytest.mark.pain("P16")
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_python_client_signs_in_again_and_its_session_goes_on(running: Installation, mode: str) -> None:
    sign_in = SignIn(running.server)
    sign_in.person = PersonWithProvider(running.server.url)
    async with sign_in.connected(mode) as client:
        await structured(client, "list_todos")
        await asyncio.to_thread(running.end_the_sign_in)
        async for _ in async_ticks():
            await structured(client, "list_todos")  # never an error: at worst the person is asked on the way
            if len(sign_in.opened) > 1:
                break
        await structured(client, "list_todos")
    assert len(sign_in.opened) == 2


@pytest.mark.threat("T10")
@pytest.mark.pain("P14")
@pytest.mark.pain("P16")
@pytest.mark.parametrize(("generation", "mode"), GENERATIONS)
def test_the_typescript_client_refreshes_in_vain_then_signs_in_again(
    running: Installation, generation: str, mode: str
) -> None:
    with node("clients/typescript.mjs", generation, f"{running.server.url}/mcp", REDIRECT_URI, mode) as program:
        client = TypeScript(running.server, program)
        client.person = PersonWithProvider(running.server.url)
        client.order("connect")
        client.call("list_todos")
        running.end_the_sign_in()
        for _ in ticks():
            client.call("list_todos")
            if len(client.opened) > 1:
                break
        client.call("list_todos")
    assert len(client.opened) == 2
    assert {"forgot": "tokens"} in client.told, "its refresh was not refused with invalid_grant"


@pytest.mark.parametrize("revision", ["2024-11-05"])
async def test_an_open_sse_session_calls_with_the_token_of_the_last_refresh(
    running: Installation, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    """The provider's tokens live four seconds: one stream outlives several of them."""
    import mcp.client.session

    monkeypatch.setattr(mcp.client.session, "LATEST_HANDSHAKE_VERSION", revision)
    sign_in = SignIn(running.server, "sse")
    sign_in.person = PersonWithProvider(running.server.url)
    first: Any = None
    async with asyncio.timeout(BOUND):
        async with Client(sse_client(sign_in.endpoint, auth=sign_in.provider()), mode="legacy") as client:
            async for _ in async_ticks():
                await structured(client, "list_todos")
                version = int(await asyncio.to_thread(running.server.shell, NEWEST_VERSION))
                first = version if first is None else first
                if version >= first + 2:
                    break
            await structured(client, "list_todos")
    assert len(sign_in.opened) == 1


NEWEST_VERSION = (
    "from oauth_relay.models import UpstreamCredential\n"
    "print(max(UpstreamCredential.objects.values_list('version', flat=True)))"
)


@pytest.mark.threat("T10")
def test_messages_are_challenged_where_the_stream_could_only_say_it(running: Installation) -> None:
    """POST /messages/ answers 401 for a call that needs the provider's token; afterwards the same stream goes on."""
    person = PersonWithProvider(running.server.url)
    client = OAuthClient(running.server.url).connect(person, resource=f"{running.server.url}/sse")
    bearer = {"Authorization": f"Bearer {client.tokens['access_token']}"}
    with client.http.get(f"{running.server.url}/sse", headers=bearer, stream=True, timeout=5) as stream:
        lines = stream.iter_lines(chunk_size=1)
        address = next(line.decode()[6:] for line in lines if line.startswith(b"data: "))
        running.end_the_sign_in()
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list_todos"}}
        for _ in ticks():
            response = client.http.post(f"{running.server.url}{address}", json=message, headers=bearer, timeout=5)
            if response.status_code != 202:
                break
        assert response.status_code == 401
        assert challenge_of(response)["error"] == "invalid_token"
        OAuthClient(running.server.url, name="Another").connect(person)
        message["id"] = "after the sign-in"
        response = client.http.post(f"{running.server.url}{address}", json=message, headers=bearer, timeout=5)
        assert response.status_code == 202
        answer = next(line for line in lines if b"after the sign-in" in line)
    assert b'"isError":true' not in answer.replace(b" ", b"") and b"todos" in answer


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_tool_that_needs_more_at_the_provider_gets_it_in_one_authorization(
    narrow: Installation, mode: str
) -> None:
    """Ours and the provider's permission together, asked once (DESIGN §4.9); the call goes through."""
    sign_in = SignIn(narrow.server)
    sign_in.person = PersonWithProvider(narrow.server.url)
    async with sign_in.connected(mode) as client:
        await structured(client, "list_todos")
        await structured(client, "list_billing")
    assert len(sign_in.opened) == 2


@pytest.fixture
def narrow() -> Iterator[Installation]:
    """By configuration, the provider is asked for less than the tools need."""
    with installation(environment={"AUTH0_SCOPE": SCOPE.replace(" read:billing", "")}) as found:
        yield found
