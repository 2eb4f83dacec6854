"""GET /sse and POST /messages/ (2024-11-05), over ASGI. Two processes are in tests/mcp_gateway/test_clients.py."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings

from mcp_gateway import shutdown
from mcp_gateway.routing import routes
from mcp_gateway.sessions import Delivery, StreamSession
from mcp_gateway.transports import sse
from oauth_relay import access_tokens, withdrawals
from oauth_relay.access_tokens import PresentedToken
from oauth_relay.upstream_tokens import UpstreamLoginRequired, UpstreamUnavailable
from tests.mcp_gateway.asgi import WAIT, Exchange, asked, opened
from tests.mcp_gateway.conftest import FakeApi, FakeDoor, Holder, Workbench

pytestmark = pytest.mark.django_db(transaction=True)

Hold = Callable[..., Awaitable[Holder]]
JSON = {"Content-Type": "application/json"}


def message(method: str, number: Any = 1, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def stream_of(holder: Holder) -> Any:
    return opened(routes["/sse"], "GET", "/sse", holder.authorization)


async def endpoint_of(stream: Exchange) -> str:
    await stream.start()
    name, data = await stream.event()
    assert name == "endpoint"
    return data


async def post(holder: Holder, endpoint: str, body: Any, raw_token: str = "") -> Exchange:
    headers = {**JSON, **(holder.authorization if not raw_token else {"Authorization": f"Bearer {raw_token}"})}
    return await asked(routes["/messages/"], "POST", endpoint, headers, body)


# -- the stream --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2024-11-05", "2025-11-25"])
async def test_a_conversation(hold: Hold, version: str) -> None:
    ada = await hold()
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        assert stream.headers["content-type"] == "text/event-stream"
        assert endpoint.startswith("/messages/?session_id=")
        client = {"name": "t", "version": "1"}
        body = message("initialize", protocolVersion=version, capabilities={}, clientInfo=client)
        accepted = await post(ada, endpoint, body)
        assert (accepted.status, accepted.content) == (202, b"Accepted")
        assert (await stream.message())["result"]["protocolVersion"] == version
        assert (await post(ada, endpoint, {"jsonrpc": "2.0", "method": "notifications/initialized"})).status == 202
        await post(ada, endpoint, message("tools/call", "two", name="whoami", arguments={}))
        answer = await stream.message()
        assert answer["id"] == "two"
        assert "ada@example.com" in answer["result"]["content"][0]["text"]


async def test_a_post_to_the_stream_is_a_405_so_that_clients_try_get(hold: Hold) -> None:
    response = await asked(routes["/sse"], "POST", "/sse", JSON, message("initialize"))
    assert (response.status, response.headers["allow"]) == (405, "GET")


async def test_the_stream_challenges_for_its_own_resource(hold: Hold) -> None:
    for application, method, target in ((routes["/sse"], "GET", "/sse"), (routes["/messages/"], "POST", "/messages/")):
        response = await asked(application, method, target, JSON, message("ping"))
        assert response.status == 401
        assert "/.well-known/oauth-protected-resource/sse" in response.headers["www-authenticate"]


async def test_a_token_for_mcp_alone_opens_no_stream(hold: Hold) -> None:
    ada = await hold(resources=(settings.RESOURCES[0],))
    assert (await asked(routes["/sse"], "GET", "/sse", ada.authorization)).status == 401


async def test_an_idle_stream_is_kept_alive_by_comments(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_EVERY", 0.02)
    ada = await hold()
    async with stream_of(ada) as stream:
        await endpoint_of(stream)
        assert [await stream.frame(), await stream.frame()] == [b": ping\r\n\r\n"] * 2


async def test_a_disconnect_ends_the_stream_and_its_calls(hold: Hold, workbench: Workbench, audited: Any) -> None:
    ada = await hold()
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        await post(ada, endpoint, message("tools/call", name="wait", arguments={}))
        async with asyncio.timeout(WAIT):
            await workbench.started.wait()
    assert stream.task.done()
    assert workbench.cancelled.is_set()
    assert [event.outcome for event in await audited()] == ["cancelled"]


@pytest.mark.threat("T11")
async def test_a_stream_ends_within_a_second_of_the_withdrawal(hold: Hold) -> None:
    ada = await hold()
    async with stream_of(ada) as stream:
        await endpoint_of(stream)
        began = time.monotonic()
        await sync_to_async(withdrawals.withdraw_grant)(ada.grant.pk, "person")
        await stream.ended()
        assert time.monotonic() - began < 1.0


async def test_a_stream_outlives_its_token_while_a_newer_one_lives_and_then_ends(
    hold: Hold, another_token: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_EVERY", 0.02)
    monkeypatch.setattr(access_tokens, "STREAM_GRACE", timedelta(0))
    ada = await hold(lives=timedelta(seconds=0.4))
    async with stream_of(ada) as stream:
        await endpoint_of(stream)
        await another_token(ada, "read:todos", timedelta(seconds=1.2))
        began = time.monotonic()
        await stream.ended()
        assert 0.6 < time.monotonic() - began < 4


async def test_the_end_of_the_server_ends_streams(hold: Hold) -> None:
    ada = await hold()
    async with stream_of(ada) as stream:
        await endpoint_of(stream)
        async with asyncio.timeout(WAIT):
            await shutdown.end_streams()
        await stream.ended()


async def test_a_reader_too_slow_for_its_queue_is_let_go(
    hold: Hold, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "MOST_WAITING_BYTES", 600)
    ada = await hold()
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        await post(ada, endpoint, message("tools/list"))
        await stream.ended()


# -- the messages ------------------------------------------------------------------------------------------------------


@pytest.mark.threat("T34")
async def test_another_persons_session_reads_like_none(hold: Hold) -> None:
    ada, mallory = await hold(), await hold("mallory")
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        theirs = await post(mallory, endpoint, message("ping"))
        none = await post(mallory, "/messages/?session_id=abc", message("ping"))
        assert (theirs.status, none.status) == (404, 404)
        assert theirs.content == none.content
        assert (await post(ada, f"{endpoint}&session_id=x", message("ping"))).status == 404
        assert (await post(ada, "/messages/", message("ping"))).status == 404
        tampered = endpoint[:-3] + ("AAA" if not endpoint.endswith("AAA") else "BBB")
        assert (await post(ada, tampered, message("ping"))).status == 404


async def test_a_message_to_a_stream_that_is_gone_is_a_503(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "ACKNOWLEDGED_WITHIN", 0.05)
    ada = await hold()
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
    response = await post(ada, endpoint, message("ping"))
    assert (response.status, response.headers["retry-after"]) == (503, "5")


async def test_a_message_that_arrives_late_does_not_run(
    hold: Hold, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sent it has been told by then that nothing ran."""
    monkeypatch.setattr(sse, "ACKNOWLEDGED_WITHIN", 0.05)
    monkeypatch.setattr("mcp_gateway.sessions.STALE_AFTER", -1)
    ada = await hold()
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        response = await post(ada, endpoint, message("tools/call", name="wait", arguments={}))
        assert (response.status, workbench.runs) == (503, 0)


async def test_a_stream_with_too_many_calls_takes_no_more(
    hold: Hold, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "MOST_CALLS", 1)
    ada = await hold()
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        assert (await post(ada, endpoint, message("tools/call", 1, name="wait", arguments={}))).status == 202
        assert (await post(ada, endpoint, message("tools/call", 2, name="wait", arguments={}))).status == 503
        assert workbench.runs == 1


async def test_a_running_id_is_not_taken_twice(hold: Hold, workbench: Workbench) -> None:
    ada = await hold()
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        for _ in range(2):
            await post(ada, endpoint, message("tools/call", 1, name="wait", arguments={}))
        assert (await stream.message())["error"]["code"] == -32600
        workbench.may_go_on.set()
        assert (await stream.message())["result"]["content"][0]["text"] == "waited"
        assert workbench.runs == 1


async def test_a_cancelled_notification_cancels_the_call(hold: Hold, workbench: Workbench) -> None:
    ada = await hold()
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        await post(ada, endpoint, message("tools/call", 9, name="wait", arguments={}))
        async with asyncio.timeout(WAIT):
            await workbench.started.wait()
        body = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 9}}
        assert (await post(ada, endpoint, body)).status == 202
        async with asyncio.timeout(WAIT):
            await workbench.cancelled.wait()


async def test_progress_travels_on_the_stream(hold: Hold, workbench: Workbench) -> None:
    ada = await hold()
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        await post(ada, endpoint, message("tools/call", name="climb", arguments={}, _meta={"progressToken": 5}))
        assert (await stream.message())["params"]["progress"] == 1
        assert (await stream.message())["params"]["progress"] == 2
        assert (await stream.message())["id"] == 1


async def test_a_tool_that_chatters_does_not_cost_its_reader_the_stream(hold: Hold, workbench: Workbench) -> None:
    ada = await hold()
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        await post(ada, endpoint, message("tools/call", name="chatter", arguments={}, _meta={"progressToken": 5}))
        while "id" not in (answer := await stream.message()):
            pass
        assert answer["result"]["content"][0]["text"] == "said"


async def test_a_missing_scope_is_a_403_on_the_post(hold: Hold, workbench: Workbench) -> None:
    ada = await hold()
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        response = await post(ada, endpoint, message("tools/call", name="both", arguments={}))
        assert response.status == 403
        assert 'scope="read:billing read:todos"' in response.headers["www-authenticate"]
        assert workbench.runs == 0


async def test_the_scopes_that_count_are_those_of_the_posts_token(
    hold: Hold, workbench: Workbench, another_token: Any
) -> None:
    ada = await hold()
    wider = await another_token(ada, "read:todos read:billing")
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        body = message("tools/call", name="both", arguments={})
        assert (await post(ada, endpoint, body, raw_token=wider)).status == 202
        assert (await stream.message())["result"]["content"][0]["text"] == "both"


async def test_an_unknown_tool_is_answered_on_the_stream(hold: Hold) -> None:
    ada = await hold()
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        assert (await post(ada, endpoint, message("tools/call", name="nope", arguments={}))).status == 202
        assert (await stream.message())["error"]["code"] == -32602


async def test_a_needed_sign_in_is_a_401_on_the_post(hold: Hold, api: FakeApi, door: FakeDoor) -> None:
    ada = await hold()
    door.failure = UpstreamLoginRequired("gone")
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        response = await post(ada, endpoint, message("tools/call", name="list_todos", arguments={}))
        assert response.status == 401
        door.failure = UpstreamUnavailable("down", retry_after=9)
        assert (await post(ada, endpoint, message("tools/call", name="list_todos", arguments={}))).status == 202
        assert "9 seconds" in (await stream.message())["result"]["content"][0]["text"]


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "text/plain"}, b"{}", 415),
        (JSON, b"{", 400),
        (JSON, b"[]", 400),
        (JSON, b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', 400),
        (JSON, b'{"jsonrpc":"2.0"}', 400),
        (JSON, b" " * 2000, 413),
    ],
)
async def test_bad_messages_are_refused(
    hold: Hold, settings: Any, headers: dict[str, str], body: bytes, status: int
) -> None:
    settings.MCP_BODY_LIMIT = 1999
    ada = await hold()
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        response = await asked(routes["/messages/"], "POST", endpoint, {**headers, **ada.authorization}, body)
        assert (response.status, "error" in response.json) == (status, True)


async def test_a_channel_layer_that_is_away_is_a_503(hold: Hold, settings: Any) -> None:
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": ["redis://127.0.0.1:1"]},
        }
    }
    ada = await hold()
    opening = await asked(routes["/sse"], "GET", "/sse", ada.authorization)
    posting = await post(ada, "/messages/?session_id=x", message("ping"))
    assert (opening.status, posting.status) == (503, 503)


# -- the seals ---------------------------------------------------------------------------------------------------------


@pytest.mark.threat("T34")
async def test_what_travels_is_opaque_and_bound_to_its_purpose(hold: Hold) -> None:
    ada = await hold()
    presented = PresentedToken("Bearer", ada.raw_token, "GET", "http://x/sse", settings.RESOURCES[1])
    principal = await access_tokens.verify_access_token(presented)
    sealed = Delivery.of(message("ping"), principal, "back").sealed()
    assert "ping" not in sealed and "ada" not in sealed
    assert Delivery.unsealed(sealed).principal == principal
    session = StreamSession.opened_by(principal, "there").sealed()
    with pytest.raises(Exception, match="not ours"):
        Delivery.unsealed(session)


async def test_something_unsealed_on_the_channel_is_not_run(hold: Hold, workbench: Workbench, caplog: Any) -> None:
    ada = await hold()
    consumer = sse.SseConsumer()
    consumer.principal = None  # type: ignore[assignment]
    await consumer.relay_message({"type": "relay.message", "payload": "bm90IG91cnM"})
    assert (consumer.calls, ada.user.username) == ({}, "ada")
    assert "no worker of ours sealed" in caplog.text
