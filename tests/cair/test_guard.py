"""The outermost layer: who may ask, from where, and what never leaves it."""

import asyncio
from typing import Any

import pytest

from cair.guard import Guard
from tests.asgi import HOST, ask

REACHED = b"reached"


async def inner(scope: dict[str, Any], receive: Any, send: Any) -> None:
    inner.scope = scope  # type: ignore[attr-defined]
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"access-control-allow-origin", b"https://x")]}
    )
    await send({"type": "http.response.body", "body": REACHED})


guard = Guard(inner)


async def test_it_lets_a_request_from_this_machine_through() -> None:
    answer = await ask(guard, "/mcp")
    assert (answer.status, answer.body) == (200, REACHED)
    assert len(answer.headers["x-trace-id"]) == 16


@pytest.mark.threat("T1")
@pytest.mark.parametrize("path", ["/", "/mcp", "/health", "/login", "/api/todos"])
@pytest.mark.parametrize(
    "headers",
    [
        [(b"host", b"abc.ngrok.app")],
        [*HOST, (b"x-forwarded-for", b"203.0.113.9")],
        [*HOST, (b"x-forwarded-host", b"abc.ngrok.app")],
        [*HOST, (b"forwarded", b"for=203.0.113.9")],
        [*HOST, (b"x-real-ip", b"203.0.113.9")],
        [*HOST, (b"via", b"1.1 tunnel")],
        [*HOST, (b"cf-connecting-ip", b"203.0.113.9")],
    ],
)
async def test_it_answers_no_tunnel_in_development(path: str, headers: list[tuple[bytes, bytes]]) -> None:
    answer = await ask(guard, path, headers=headers)
    assert answer.status == 421
    assert b"CAIR_ENV=production" in answer.body


@pytest.mark.threat("T1")
async def test_it_answers_no_other_machine_in_development() -> None:
    assert (await ask(guard, "/", client=("192.0.2.7", 4711))).status == 421
    assert (await ask(guard, "/", client=("::ffff:127.0.0.1", 4711))).status == 200


async def test_in_production_a_proxy_is_welcome_and_the_host_still_exact(settings: Any) -> None:
    settings.DEVELOPMENT, settings.ON_LOOPBACK = False, False
    settings.PUBLIC_URL, settings.PUBLIC_HOST = "https://cair.example.com", "cair.example.com"
    forwarded = [(b"host", b"cair.example.com"), (b"x-forwarded-for", b"203.0.113.9")]
    assert (await ask(guard, "/mcp", headers=forwarded, client=("10.0.0.1", 1))).status == 200
    assert (await ask(guard, "/mcp", headers=[(b"host", b"evil.example")], client=("10.0.0.1", 1))).status == 421
    assert (await ask(guard, "/health", headers=[(b"host", b"10.0.0.5")], client=("10.0.0.1", 1))).status == 200


@pytest.mark.threat("T17")
@pytest.mark.parametrize(
    "headers",
    [[], [(b"host", b"localhost:1")], [(b"host", b"localhost")], [*HOST, *HOST], [(b"host", b"127.0.0.1:8788")]],
)
async def test_it_compares_the_host_exactly(headers: list[tuple[bytes, bytes]]) -> None:
    answer = await ask(guard, "/mcp", headers=headers)
    assert answer.status == 421
    assert answer.headers["content-type"] == "application/json"


async def test_it_sends_a_page_asked_for_at_another_loopback_name_to_ours() -> None:
    answer = await ask(guard, "/connections", headers=[(b"host", b"127.0.0.1:8788")], query_string=b"a=b")
    assert answer.status == 307
    assert answer.headers["location"] == "http://localhost:8788/connections?a=b"


@pytest.mark.threat("T28")
@pytest.mark.parametrize("path", ["//evil.example", "/\\evil.example"])
async def test_its_redirect_never_leaves_this_server(path: str) -> None:
    answer = await ask(guard, path, headers=[(b"host", b"127.0.0.1:8788")])
    assert answer.status == 421
    assert "location" not in answer.headers


@pytest.mark.threat("T28")
async def test_a_target_without_a_slash_goes_nowhere() -> None:
    answer = await ask(guard, "/@evil.example/", headers=[(b"host", b"127.0.0.1:8788")], raw_path=b"%2f@evil.example/")
    assert answer.status == 421


async def test_the_scheme_is_the_public_one_whatever_the_proxy_spoke(settings: Any) -> None:
    settings.DEVELOPMENT, settings.PUBLIC_URL, settings.PUBLIC_HOST = (
        False,
        "https://cair.example.com",
        "cair.example.com",
    )
    await ask(guard, "/connections", headers=[(b"host", b"cair.example.com")], client=("10.0.0.1", 1))
    assert inner.scope["scheme"] == "https"  # type: ignore[attr-defined]


@pytest.mark.threat("T17")
async def test_it_drops_the_root_path_that_a_client_may_send() -> None:
    await ask(guard, "/mcp", root_path="/elsewhere")
    assert inner.scope["root_path"] == ""  # type: ignore[attr-defined]


@pytest.mark.parametrize("origin", [b"http://localhost:6274", b"http://127.0.0.1:3000", b"http://[::1]:3000"])
async def test_in_development_a_loopback_origin_may_call_mcp(origin: bytes) -> None:
    answer = await ask(guard, "/mcp", "POST", [*HOST, (b"origin", origin)])
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == origin.decode()
    assert "www-authenticate" in answer.headers["access-control-expose-headers"].lower()
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.threat("T17")
@pytest.mark.parametrize("path", ["/mcp", "/sse", "/messages/"])
@pytest.mark.parametrize(
    "origin", [b"https://evil.example", b"null", b"http://localhost.evil.example", b"http://localhost:x"]
)
async def test_any_other_origin_gets_403_at_the_mcp_endpoints(path: str, origin: bytes) -> None:
    answer = await ask(guard, path, "POST", [*HOST, (b"origin", origin)])
    assert answer.status == 403
    assert answer.body != REACHED
    assert "access-control-allow-origin" not in answer.headers


async def test_two_origins_are_none(settings: Any) -> None:
    twice = [*HOST, (b"origin", b"http://localhost:1"), (b"origin", b"http://localhost:2")]
    assert (await ask(guard, "/mcp", "POST", twice)).status == 403


@pytest.mark.parametrize(
    "path", ["/token", "/register", "/revoke", "/register/abc", "/.well-known/oauth-protected-resource"]
)
async def test_any_origin_may_read_what_is_public_never_with_credentials(path: str) -> None:
    answer = await ask(guard, path, "POST", [*HOST, (b"origin", b"https://client.example")])
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


async def test_pages_say_nothing_to_other_origins() -> None:
    answer = await ask(guard, "/connections", headers=[*HOST, (b"origin", b"https://evil.example")])
    assert "*" not in answer.headers.get("access-control-allow-origin", "")


@pytest.mark.parametrize("path", ["/mcp", "/token", "/register", "/.well-known/oauth-authorization-server"])
async def test_it_answers_a_preflight_itself(path: str) -> None:
    asked = [
        (b"origin", b"http://localhost:6274"),
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", b"authorization, mcp-protocol-version, mcp-param-city"),
    ]
    answer = await ask(guard, path, "OPTIONS", [*HOST, *asked])
    assert (answer.status, answer.body) == (204, b"")
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert {"authorization", "content-type", "mcp-protocol-version", "mcp-param-city"} <= set(allowed.split(", "))


@pytest.mark.pain("P22")
async def test_an_exception_before_the_answer_becomes_a_500_with_a_trace_id() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("a secret detail")

    answer = await ask(Guard(failing), "/mcp")
    assert answer.status == 500
    assert answer.headers["x-trace-id"].encode() in answer.body
    assert b"secret" not in answer.body


async def test_an_exception_after_the_answer_began_never_reaches_the_server() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError

    answer = await ask(Guard(failing), "/mcp")  # does not raise: Daphne's reaper would stop for good
    assert answer.body == b"half"


async def test_the_access_log_has_no_query_and_no_way_to_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="cair.access"):
        await ask(guard, "/callback\nGET /forged 200", query_string=b"code=secret")
    assert [record.getMessage() for record in caplog.records] == ["GET /callback\\nGET /forged 200 200"]


async def test_cancelling_passes_through() -> None:
    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    task = asyncio.ensure_future(ask(Guard(waiting), "/mcp"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
