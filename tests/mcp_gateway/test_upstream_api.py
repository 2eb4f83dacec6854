"""The API client: what it sends, what it makes of answers, and where it never goes."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web

from mcp_gateway import upstream_api
from mcp_gateway.answer import Exchange, answer
from mcp_gateway.tools import Call, ToolError, Toolset
from mcp_gateway.upstream_api import UpstreamApi, address
from oauth_relay import audit, upstream_tokens
from oauth_relay.access_tokens import Principal
from oauth_relay.upstream_tokens import UpstreamRefused
from tests.mcp_gateway.conftest import UPSTREAM_SECRET, FakeApi, FakeDoor, Workbench


@pytest.fixture
def todos(api: FakeApi, door: FakeDoor, principal: Principal) -> UpstreamApi:
    return UpstreamApi("todos", principal, "read:todos")


async def test_it_sends_the_credential_of_door_2_and_reads_json(api: FakeApi, todos: UpstreamApi) -> None:
    api.will({"a": 1})
    assert await todos.get("/api/todos", "a b%é", params={"done": True, "page": 2, "left_out": None}) == {"a": 1}
    [request] = api.requests
    assert request.headers["Authorization"] == f"Bearer {UPSTREAM_SECRET}-1"
    assert request.raw_path == "/api/todos/a%20b%25%C3%A9?done=true&page=2"


async def test_it_sends_json_with_every_method(api: FakeApi, todos: UpstreamApi) -> None:
    for method in ("post", "put", "patch"):
        api.will({"made": method})
        assert await getattr(todos, method)("/api/todos", json={"title": "Tea"}) == {"made": method}
        assert (api.requests[-1].method, api.bodies[-1]) == (method.upper(), b'{"title": "Tea"}')
    api.will(web.Response(status=204))
    assert await todos.delete("/api/todos", "7") is None


async def test_it_names_the_configured_host(api: FakeApi, door: FakeDoor, principal: Principal, settings: Any) -> None:
    settings.UPSTREAM_APIS["todos"]["host"] = "localhost:8788"
    api.will({})
    await UpstreamApi("todos", principal).get("/api/me")
    assert api.requests[0].headers["Host"] == "localhost:8788"


async def test_it_keeps_no_cookies_and_knows_no_proxy(
    api: FakeApi, todos: UpstreamApi, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    # By name: no client keeps cookies of a bare address.
    settings.UPSTREAM_APIS["todos"]["base_url"] = api.url.replace("127.0.0.1", "localhost")
    first = web.json_response({})
    first.set_cookie("session", "ada")
    api.will(first, {})
    await todos.get("/api/todos")
    await todos.get("/api/todos")
    assert "Cookie" not in api.requests[1].headers


@pytest.mark.threat("T10")
async def test_a_401_asks_for_another_token_once_and_tries_once_more(
    api: FakeApi, door: FakeDoor, todos: UpstreamApi
) -> None:
    api.will(web.json_response({}, status=401), {"ok": True})
    assert await todos.get("/api/todos") == {"ok": True}
    assert door.rejected == [None, "1"]
    assert api.requests[1].headers["Authorization"].endswith("-2")


async def test_a_second_401_is_a_sentence(api: FakeApi, door: FakeDoor, todos: UpstreamApi) -> None:
    api.will(*[web.json_response({}, status=401) for _ in range(2)])
    with pytest.raises(ToolError, match="does not accept this sign-in"):
        await todos.get("/api/todos")
    assert (len(api.requests), door.rejected) == (2, [None, "1"])


@pytest.mark.threat("T10")
async def test_what_signing_in_again_did_not_mend_is_a_sentence(
    todos: UpstreamApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*args: Any, **kwargs: Any) -> Any:
        raise UpstreamRefused("todos refuses a token that was made a moment ago")

    monkeypatch.setattr(upstream_tokens, "upstream_token_for", refuse)
    with pytest.raises(ToolError, match="does not accept this sign-in"):
        await todos.get("/api/todos")


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (403, {}, "It needs the API permission read:todos"),
        (404, {}, "Check the id"),
        (429, {"Retry-After": "17"}, "Try again in 17 seconds"),
        (429, {"Retry-After": "soon"}, "Try again in a minute"),
        (500, {}, r"has a fault \(HTTP 500\). Try again in a minute"),
        (503, {"Retry-After": "3"}, "Try again in 3 seconds"),
        (503, {"Retry-After": "99999999"}, "Try again in 86400 seconds"),
        (302, {"Location": "http://127.0.0.1:1/"}, "redirect .* not followed"),
        (418, {}, r"refuses this request \(HTTP 418\)"),
    ],
)
async def test_each_failure_is_a_sentence_to_act_on(
    api: FakeApi, todos: UpstreamApi, status: int, headers: dict[str, str], said: str
) -> None:
    api.will(web.Response(status=status, headers=headers, text="Traceback (most recent call last): secret"))
    with pytest.raises(ToolError, match=said) as failure:
        await todos.get("/api/todos")
    assert "Traceback" not in str(failure.value)
    assert len(api.requests) == 1


async def test_a_retry_after_may_be_a_date(api: FakeApi, todos: UpstreamApi) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    api.will(web.Response(status=503, headers={"Retry-After": date}))
    with pytest.raises(ToolError, match=r"in (99|100) seconds"):
        await todos.get("/api/todos")


async def test_a_refusal_says_what_the_api_said_cut_and_in_one_line(api: FakeApi, todos: UpstreamApi) -> None:
    api.will({"error": "invalid_request", "error_description": "title:\x1b[0m too long" + "!" * 400}, status=400)
    with pytest.raises(ToolError, match=r"title:.* too long!+ Correct") as failure:
        await todos.post("/api/todos", json={})
    assert "\x1b" not in str(failure.value) and len(str(failure.value)) < 420


@pytest.mark.parametrize(
    "response",
    [
        lambda: web.Response(text="<html>", content_type="text/html"),
        lambda: web.Response(body=b'{"a":', content_type="application/json"),
        lambda: web.Response(body=b"[" * 100_000, content_type="application/json"),
        lambda: web.Response(body=b"\xff", content_type="application/json"),
    ],
)
async def test_what_is_not_json_is_a_sentence(api: FakeApi, todos: UpstreamApi, response: Any) -> None:
    api.will(response())
    with pytest.raises(ToolError, match="not JSON"):
        await todos.get("/api/todos")


async def test_an_answer_without_end_is_cut_off(
    api: FakeApi, todos: UpstreamApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_api, "RESPONSE_LIMIT", 1000)
    api.will(web.Response(body=b"[" + b"1," * 1000 + b"1]", content_type="application/json"))
    with pytest.raises(ToolError, match="Ask for less"):
        await todos.get("/api/todos")


async def test_silence_is_told_apart_for_reading_and_changing(
    api: FakeApi, todos: UpstreamApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    await upstream_api.close()
    monkeypatch.setattr(upstream_api, "TOTAL_TIMEOUT", 0.1)
    api.will_hang()
    with pytest.raises(ToolError, match=r"did not answer in time\. Try again"):
        await todos.get("/api/todos")
    api.will_hang()
    with pytest.raises(ToolError, match="not known whether the change was made"):
        await todos.post("/api/todos", json={})


async def test_nobody_there_is_a_sentence(api: FakeApi, door: FakeDoor, principal: Principal, settings: Any) -> None:
    settings.UPSTREAM_APIS["todos"]["base_url"] = "http://127.0.0.1:1"
    with pytest.raises(ToolError, match="cannot be reached"):
        await UpstreamApi("todos", principal).get("/api/todos")


@pytest.mark.threat("T35")
@pytest.mark.parametrize(
    "segment", ["", ".", "..", "../billing", "a/b", "a\\b", "a?b", "a#b", "a\0b", "%2e%2e", "%2E.", "a%2fb", "a\nb"]
)
async def test_a_path_value_is_one_segment(api: FakeApi, todos: UpstreamApi, segment: str) -> None:
    with pytest.raises(ToolError, match="not a valid id"):
        await todos.get("/api/todos", segment)
    assert api.requests == []


@pytest.mark.parametrize("path", ["api", "/api/../admin", "/api?x=1", "/api#x", "/a\\b", "/%2e%2e/admin", "@evil/x"])
def test_a_path_stays_within_the_base(path: str) -> None:
    with pytest.raises(ToolError, match="cannot be a path"):
        address("http://api.test/base", path, (), None)


def test_the_query_cannot_change_the_path() -> None:
    url = address("http://api.test/base", "/todos", ("7",), {"q": "a&b=../c#d"})
    assert str(url) == "http://api.test/base/todos/7?q=a%26b%3D..%2Fc%23d"


# -- the credential never comes back -----------------------------------------------------------------------------------


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[audit.Event]:
    events: list[audit.Event] = []

    async def record(event: audit.Event) -> None:
        events.append(event)

    monkeypatch.setattr(audit, "record", record)
    return events


async def _call(principal: Principal, name: str, told: list[Any]) -> Any:
    async def carry(notification: Any) -> None:
        told.append(notification)

    exchange = Exchange(principal, "test", "2025-06-18", carry=carry)
    params = {"name": name, "arguments": {}, "_meta": {"progressToken": 1}}
    return await answer({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}, exchange)


@pytest.mark.threat("T23")
@pytest.mark.parametrize("where", ["result", "error", "progress"])
async def test_a_result_with_the_credential_in_it_is_dropped_and_audited(
    where: str, api: FakeApi, door: FakeDoor, principal: Principal, workbench: Workbench, recorded: list[audit.Event]
) -> None:
    echoing = Toolset("echoing", api="todos")

    @echoing.tool()
    async def echo(call: Call) -> dict[str, Any]:
        """Ask an API that says what it heard."""
        document = await call.api.get("/echo")
        if where == "progress":
            await call.progress(1, message=document["heard"])
            return {}
        return document

    heard = f"Bearer {UPSTREAM_SECRET}-1"
    if where == "error":
        api.will({"error": "no", "error_description": heard}, status=400)
    else:
        # Escaped on the wire: what counts is what would be passed on.
        api.will(
            web.Response(
                text=f'{{"heard": "{heard.replace("u", chr(92) + "u0075")}"}}', content_type="application/json"
            )
        )
    told: list[Any] = []
    response = await _call(principal, "echo", told)
    assert UPSTREAM_SECRET not in str(response) + str(told)
    if where != "progress":
        assert response["result"]["isError"] is True
        assert [event.outcome for event in recorded] == ["credential_in_result"]


async def test_a_cancelled_call_ends_its_request(api: FakeApi, door: FakeDoor, todos: UpstreamApi) -> None:
    api.will_hang()
    running = asyncio.create_task(todos.get("/api/todos"))
    async with asyncio.timeout(5):
        await api.arrived.wait()
        running.cancel()
        await api.abandoned.wait()
