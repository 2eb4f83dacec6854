"""POST /mcp, in both eras, over ASGI."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.models import Permission
from django.db import OperationalError

from cair.log_lines import TracedFormatter
from mcp_gateway import shutdown
from mcp_gateway.transports import streamable_http as transport
from mcp_gateway.transports.streamable_http import streamable_http
from oauth_relay import audit, withdrawals
from oauth_relay.upstream_tokens import UpstreamLoginRequired, UpstreamUnavailable
from tests.mcp_gateway.asgi import WAIT, Exchange, asked, opened
from tests.mcp_gateway.conftest import FakeApi, FakeDoor, Holder, Workbench

pytestmark = pytest.mark.django_db(transaction=True)

Hold = Callable[..., Awaitable[Holder]]

BASIC = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
TODO = {
    "id": "7", "title": "Tea", "description": "", "due": None, "done": False,
    "created": "2026-11-20T10:00:00Z", "owner": "ada",
}  # fmt: skip


def modern(holder: Holder, method: str, name: str | None = None, **more: str) -> dict[str, str]:
    named = {"Mcp-Name": name} if name else {}
    return {
        **BASIC,
        **holder.authorization,
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": method,
        **named,
        **more,
    }


def message(method: str, number: int = 1, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


async def call_modern(holder: Holder, name: str, arguments: Any = None, **more: Any) -> Exchange:
    body = message("tools/call", name=name, arguments=arguments or {}, _meta={**META, **more.pop("meta", {})})
    return await asked(streamable_http, "POST", "/mcp", modern(holder, "tools/call", name, **more), body)


async def call_legacy(holder: Holder, name: str, arguments: Any = None, version: str = "2025-06-18") -> Exchange:
    headers = {**BASIC, **holder.authorization, "MCP-Protocol-Version": version}
    return await asked(
        streamable_http, "POST", "/mcp", headers, message("tools/call", name=name, arguments=arguments or {})
    )


def text_of(response: Exchange) -> str:
    return response.json["result"]["content"][0]["text"]


# -- who may come in ---------------------------------------------------------------------------------------------------


async def test_it_challenges_a_request_without_a_token(hold: Hold) -> None:
    response = await asked(streamable_http, "POST", "/mcp", BASIC, message("tools/list"))
    assert response.status == 401
    told = response.headers["www-authenticate"]
    assert f'resource_metadata="{settings.PUBLIC_URL}/.well-known/oauth-protected-resource/mcp"' in told
    assert 'scope="read:todos write:todos"' in told
    assert "error" not in told


@pytest.mark.pain("P12")
async def test_it_names_the_error_only_where_a_token_was_sent(hold: Hold) -> None:
    headers = {**BASIC, "Authorization": "Bearer unknown"}
    response = await asked(streamable_http, "POST", "/mcp", headers, message("tools/list"))
    assert response.status == 401
    assert 'error="invalid_token"' in response.headers["www-authenticate"]
    assert response.json["error"] == "invalid_token"


async def test_it_takes_no_token_from_the_query_or_the_body(hold: Hold) -> None:
    ada = await hold()
    target = f"/mcp?access_token={ada.raw_token}"
    body = {**message("tools/list"), "access_token": ada.raw_token}
    response = await asked(streamable_http, "POST", target, BASIC, body)
    assert response.status == 401


async def test_it_refuses_two_authorization_headers(hold: Hold) -> None:
    ada = await hold()
    headers = [*BASIC.items(), *ada.authorization.items(), *ada.authorization.items()]
    response = await asked(streamable_http, "POST", "/mcp", headers, message("tools/list"))
    assert (response.status, response.json["error"]) == (400, "invalid_request")


@pytest.mark.threat("T23")
async def test_it_refuses_a_token_for_the_other_resource(hold: Hold) -> None:
    ada = await hold(resources=(settings.RESOURCES[1],))
    response = await asked(streamable_http, "POST", "/mcp", {**BASIC, **ada.authorization}, message("tools/list"))
    assert response.status == 401


async def test_it_says_503_while_tokens_cannot_be_checked(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await hold()
    monkeypatch.setattr("oauth_relay.access_tokens._look_up", _database_away)
    response = await asked(streamable_http, "POST", "/mcp", {**BASIC, **ada.authorization}, message("tools/list"))
    assert response.status == 503
    assert int(response.headers["retry-after"]) > 0


def _database_away(*args: Any) -> None:
    raise OperationalError("away")


@pytest.mark.threat("T11")
async def test_a_withdrawn_grant_is_refused_within_a_second(hold: Hold) -> None:
    ada = await hold()
    assert (await call_modern(ada, "whoami")).status == 200
    await sync_to_async(withdrawals.withdraw_grant)(ada.grant.pk, "person")
    async with asyncio.timeout(1.5):
        while (await call_modern(ada, "whoami")).status == 200:
            await asyncio.sleep(0.05)
    assert (await call_modern(ada, "whoami")).status == 401


# -- what it refuses before it reads -----------------------------------------------------------------------------------


async def test_it_refuses_a_body_that_is_too_large(hold: Hold, settings: Any) -> None:
    settings.MCP_BODY_LIMIT = 1000
    ada = await hold()
    response = await asked(streamable_http, "POST", "/mcp", {**BASIC, **ada.authorization}, b" " * 1001)
    assert (response.status, response.json["error"]["code"]) == (413, -32600)


async def test_a_body_declared_too_large_is_not_even_read(hold: Hold, settings: Any) -> None:
    settings.MCP_BODY_LIMIT = 1000
    headers = {**BASIC, "Content-Length": "1001"}
    response = await asked(streamable_http, "POST", "/mcp", headers, b"")
    assert response.status == 413


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_it_has_nothing_but_post(hold: Hold, method: str) -> None:
    ada = await hold()
    response = await asked(streamable_http, method, "/mcp", {**BASIC, **ada.authorization})
    assert (response.status, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Content-Type", "text/plain", 415),
        ("Content-Type", "application/json; charset=utf-8", 200),
        ("Accept", "application/json", 406),
        ("Accept", "text/event-stream", 406),
        ("Accept", "*/*", 200),
    ],
)
async def test_it_minds_content_type_and_accept(hold: Hold, header: str, value: str, status: int) -> None:
    ada = await hold()
    headers = {**BASIC, **ada.authorization, header: value}
    response = await asked(streamable_http, "POST", "/mcp", headers, message("ping"))
    assert response.status == status


@pytest.mark.threat("T32")
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"", -32700),
        (b"\xff\xfe", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/list"}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":{"b":1,"b":2}}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\\ud800"}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":' + b"[" * 70 + b"]" * 70 + b"}}", -32700),
        (b"[" * 100_000, -32700),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600),
        (b'"ping"', -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', -32600),
    ],
)
@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
async def test_what_is_not_one_message_is_a_400_without_an_id(hold: Hold, body: bytes, code: int, version: str) -> None:
    ada = await hold()
    headers = {**BASIC, **ada.authorization, "MCP-Protocol-Version": version}
    response = await asked(streamable_http, "POST", "/mcp", headers, body)
    assert (response.status, response.json["error"]["code"], response.json["id"]) == (400, code, None)


# -- 2025-03-26 … 2025-11-25 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_initialize_agrees_on_the_version_asked_for(hold: Hold, version: str) -> None:
    ada = await hold()
    body = message("initialize", protocolVersion=version, capabilities={}, clientInfo={"name": "t", "version": "1"})
    response = await asked(streamable_http, "POST", "/mcp", {**BASIC, **ada.authorization}, body)
    assert response.json["result"]["protocolVersion"] == version
    assert response.json["result"]["serverInfo"]["name"] == "CAIR"
    assert "mcp-session-id" not in response.headers


async def test_initialize_offers_the_newest_handshake_version_for_an_unknown_one(hold: Hold) -> None:
    ada = await hold()
    body = message("initialize", protocolVersion="1999", capabilities={}, clientInfo={"name": "t", "version": "1"})
    response = await asked(streamable_http, "POST", "/mcp", {**BASIC, **ada.authorization}, body)
    assert response.json["result"]["protocolVersion"] == "2025-11-25"


async def test_notifications_and_responses_are_accepted_without_a_body(hold: Hold) -> None:
    ada = await hold()
    for body in (
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 4, "result": {}},
        {"jsonrpc": "2.0", "id": 4, "error": {"code": -1, "message": "no"}},
    ):
        response = await asked(streamable_http, "POST", "/mcp", {**BASIC, **ada.authorization}, body)
        assert (response.status, response.content) == (202, b"")


async def test_errors_of_the_protocol_are_answers_in_the_handshake_era(hold: Hold) -> None:
    ada = await hold()
    unknown = await asked(streamable_http, "POST", "/mcp", {**BASIC, **ada.authorization}, message("no/such"))
    assert (unknown.status, unknown.json["error"]["code"]) == (200, -32601)
    tool = await call_legacy(ada, "no_such_tool")
    assert (tool.status, tool.json["error"]["code"]) == (200, -32602)


@pytest.mark.parametrize("version", ["1999-01-01", "", "2025-06-18, 2025-06-18"])
async def test_an_unknown_version_header_is_a_400(hold: Hold, version: str) -> None:
    ada = await hold()
    headers = {**BASIC, **ada.authorization, "MCP-Protocol-Version": version}
    response = await asked(streamable_http, "POST", "/mcp", headers, message("ping"))
    assert response.status == 400


async def test_two_version_headers_are_a_400(hold: Hold) -> None:
    ada = await hold()
    twice = [("MCP-Protocol-Version", "2025-06-18")] * 2
    headers = [*BASIC.items(), *ada.authorization.items(), *twice]
    response = await asked(streamable_http, "POST", "/mcp", headers, message("ping"))
    assert (response.status, response.json["error"]["code"]) == (400, -32020)


# -- 2026-07-28 --------------------------------------------------------------------------------------------------------


async def test_discover_says_what_is_served(hold: Hold) -> None:
    ada = await hold()
    body = message("server/discover", _meta=META)
    response = await asked(streamable_http, "POST", "/mcp", modern(ada, "server/discover"), body)
    result = response.json["result"]
    assert result["supportedVersions"] == ["2026-07-28"]
    assert result["cacheScope"] == "private"
    assert result["resultType"] == "complete"
    assert "tools" in result["capabilities"]


@pytest.mark.parametrize(
    ("headers", "params", "status", "code"),
    [
        ({"Mcp-Method": "tools/list"}, {}, 400, -32602),  # no _meta
        ({"Mcp-Method": "tools/call"}, {"_meta": META}, 400, -32020),
        ({}, {"_meta": META}, 400, -32020),
        (
            {"Mcp-Method": "tools/list", "MCP-Protocol-Version": "2027-01-01"},
            {"_meta": {**META, "io.modelcontextprotocol/protocolVersion": "2027-01-01"}},
            400,
            -32022,
        ),
    ],
)
async def test_the_header_ladder(
    hold: Hold, headers: dict[str, str], params: dict[str, Any], status: int, code: int
) -> None:
    ada = await hold()
    whole = {**BASIC, **ada.authorization, "MCP-Protocol-Version": "2026-07-28", **headers}
    response = await asked(streamable_http, "POST", "/mcp", whole, message("tools/list", **params))
    assert (response.status, response.json["error"]["code"], response.json["id"]) == (status, code, 1)


async def test_a_name_header_that_differs_from_the_body_is_refused(hold: Hold, workbench: Workbench) -> None:
    ada = await hold()
    body = message("tools/call", name="both", arguments={}, _meta=META)
    response = await asked(streamable_http, "POST", "/mcp", modern(ada, "tools/call", "whoami"), body)
    assert (response.status, response.json["error"]["code"]) == (400, -32020)


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Mcp-Param-Region": "eu"}, 200), ({"Mcp-Param-Region": "us"}, 400), ({}, 400)],
)
async def test_a_mirrored_argument_says_what_the_body_says(
    hold: Hold, workbench: Workbench, headers: dict[str, str], status: int
) -> None:
    response = await call_modern(await hold(), "route", {"region": "eu"}, **headers)
    assert response.status == status
    if status == 400:
        assert response.json["error"]["code"] == -32020


@pytest.mark.parametrize("method", ["no/such", "initialize", "ping", "resources/list", "subscriptions/listen"])
async def test_methods_that_are_not_served_are_a_404(hold: Hold, method: str) -> None:
    ada = await hold()
    response = await asked(
        streamable_http, "POST", "/mcp", modern(ada, method), message(method, notifications={}, _meta=META)
    )
    assert (response.status, response.json["error"]["code"], response.json["id"]) == (404, -32601, 1)


async def test_notifications_of_a_served_version_are_accepted(hold: Hold) -> None:
    ada = await hold()
    body = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    accepted = await asked(streamable_http, "POST", "/mcp", modern(ada, "notifications/cancelled"), body)
    assert (accepted.status, accepted.content) == (202, b"")
    headers = {**BASIC, **ada.authorization, "MCP-Protocol-Version": "2027-01-01"}
    refused = await asked(streamable_http, "POST", "/mcp", headers, body)
    assert (refused.status, refused.json["error"]["code"]) == (400, -32022)


# -- tools -------------------------------------------------------------------------------------------------------------


async def test_the_list_is_private_in_order_and_the_same_for_every_scope(hold: Hold) -> None:
    ada = await hold(scope="read:todos")
    body = message("tools/list", _meta=META)
    response = await asked(streamable_http, "POST", "/mcp", modern(ada, "tools/list"), body)
    result = response.json["result"]
    assert [tool["name"] for tool in result["tools"]][:2] == ["whoami", "list_todos"]
    assert "list_billing" in [tool["name"] for tool in result["tools"]]
    assert (result["cacheScope"], result["ttlMs"] > 0) == ("private", True)
    listed = next(tool for tool in result["tools"] if tool["name"] == "delete_todo")
    assert listed["annotations"]["destructiveHint"] is True
    assert listed["inputSchema"]["additionalProperties"] is False


async def test_an_unknown_cursor_is_refused(hold: Hold) -> None:
    ada = await hold()
    body = message("tools/list", cursor="2", _meta=META)
    response = await asked(streamable_http, "POST", "/mcp", modern(ada, "tools/list"), body)
    assert (response.status, response.json["error"]["code"]) == (400, -32602)


@pytest.mark.parametrize("call", [call_modern, call_legacy])
async def test_whoami_tells_who_and_never_a_token(hold: Hold, call: Callable[..., Awaitable[Exchange]]) -> None:
    ada = await hold()
    response = await call(ada, "whoami")
    assert response.status == 200
    assert response.json["result"]["structuredContent"] == {
        "subject": ada.user.subject,
        "username": "ada",
        "name": "Ada",
        "email": "ada@example.com",
        "provider": "cair",
        "scopes": ["read:todos", "write:todos"],
    }
    assert ada.raw_token.encode() not in response.content


@pytest.mark.threat("T23")
async def test_a_tool_calls_the_api_with_the_upstream_token_and_never_with_ours(
    hold: Hold, api: FakeApi, door: FakeDoor
) -> None:
    ada = await hold()
    api.will({"todos": [TODO]})
    response = await call_modern(ada, "list_todos", {"done": False})
    assert response.json["result"]["structuredContent"] == {"todos": [TODO]}
    assert json.loads(text_of(response)) == {"todos": [TODO]}
    assert str(api.requests[0].rel_url) == "/api/todos?done=false"
    assert api.requests[0].headers["Authorization"] == "Bearer upstream-secret-of-ada-1"
    assert ada.raw_token not in str(api.requests[0].headers)


@pytest.mark.parametrize("call", [call_modern, call_legacy])
async def test_a_missing_scope_is_a_403_before_anything_ran(
    hold: Hold, workbench: Workbench, audited: Any, call: Callable[..., Awaitable[Exchange]]
) -> None:
    ada = await hold()
    response = await call(ada, "both")
    assert response.status == 403
    told = response.headers["www-authenticate"]
    assert 'error="insufficient_scope"' in told
    assert 'scope="read:billing read:todos"' in told
    assert "oauth-protected-resource/mcp" in told
    assert workbench.runs == 0
    assert [(event.outcome, event.detail["tool"]) for event in await audited()] == [("insufficient_scope", "both")]


@pytest.mark.threat("T32")
@pytest.mark.parametrize("call", [call_modern, call_legacy])
async def test_a_tool_that_is_not_permitted_answers_like_one_that_is_unknown(
    hold: Hold, workbench: Workbench, call: Callable[..., Awaitable[Exchange]]
) -> None:
    ada = await hold()
    hidden, unknown = await call(ada, "secret_tool"), await call(ada, "no_such_one")
    assert hidden.status == unknown.status
    assert hidden.content.replace(b"secret_tool", b"no_such_one") == unknown.content
    assert hidden.json["error"]["code"] == -32602


async def test_a_permission_shows_and_opens_a_tool(hold: Hold, workbench: Workbench) -> None:
    ada = await hold()
    listing = message("tools/list", _meta=META)
    before = await asked(streamable_http, "POST", "/mcp", modern(ada, "tools/list"), listing)
    assert b"secret_tool" not in before.content
    permission = await Permission.objects.aget(codename="view_auditevent")
    await sync_to_async(ada.user.user_permissions.add)(permission)
    after = await asked(streamable_http, "POST", "/mcp", modern(ada, "tools/list"), listing)
    assert b"secret_tool" in after.content
    assert text_of(await call_modern(ada, "secret_tool")) == "seen"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"nonsense": 1}, "'nonsense' is not an argument of this tool (it has: done)"),
        ({"done": "perhaps"}, "'done': input should be a valid boolean"),
    ],
)
async def test_wrong_arguments_are_a_sentence_for_the_model(
    hold: Hold, api: FakeApi, door: FakeDoor, arguments: dict[str, Any], said: str
) -> None:
    ada = await hold()
    response = await call_modern(ada, "list_todos", arguments)
    assert response.status == 200
    assert response.json["result"]["isError"] is True
    assert said in text_of(response)
    assert api.requests == []


async def test_a_sayable_error_reaches_the_model(hold: Hold, workbench: Workbench, audited: Any) -> None:
    ada = await hold()
    response = await call_modern(ada, "decline")
    assert (response.json["result"]["isError"], text_of(response)) == (True, "Ask for something else.")
    assert [event.outcome for event in await audited()] == ["tool_error"]


@pytest.mark.parametrize("call", [call_modern, call_legacy])
async def test_the_unforeseen_is_an_error_with_a_trace_id_and_no_detail(
    hold: Hold, workbench: Workbench, audited: Any, caplog: Any, call: Callable[..., Awaitable[Exchange]]
) -> None:
    ada = await hold()
    audit.trace_id.set("0123456789abcdef")
    response = await call(ada, "stumble")
    assert response.status == 200
    assert response.json["error"] == {
        "code": -32603, "message": "Internal server error", "data": {"trace_id": "0123456789abcdef"},
    }  # fmt: skip
    [line] = [TracedFormatter().format(record) for record in caplog.records if record.levelname == "ERROR"]
    assert "0123456789abcdef" in line
    assert "ZeroDivisionError" in line
    assert [(event.outcome, event.trace_id) for event in await audited()] == [("failed", "0123456789abcdef")]


async def test_each_call_is_written_down_before_its_answer_leaves(hold: Hold, audited: Any) -> None:
    ada = await hold()
    await call_modern(ada, "whoami")
    [event] = await audited()
    assert (event.outcome, event.pseudonym, event.client_id) == ("ok", ada.user.pseudonym, ada.client.client_id)
    assert event.grant_id == ada.grant.pk
    assert (event.detail["tool"], event.detail["transport"]) == ("whoami", "streamable-http")
    assert event.detail["ms"] >= 0


async def test_what_cannot_be_written_down_is_not_answered(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await hold()

    async def away(event: audit.Event) -> None:
        raise OperationalError("away")

    monkeypatch.setattr(audit, "record", away)
    response = await call_modern(ada, "whoami")
    assert (response.status, response.headers["retry-after"]) == (503, "5")
    assert b"ada" not in response.content


async def test_a_name_that_is_no_tool_stays_out_of_the_audit(hold: Hold, audited: Any) -> None:
    ada = await hold()
    await call_modern(ada, "sk-a-secret-somebody-pasted")
    assert [(event.outcome, event.detail["tool"]) for event in await audited()] == [("unknown_tool", None)]


@pytest.mark.pain("P12")
@pytest.mark.pain("P14")
async def test_a_needed_sign_in_is_a_401_while_nothing_was_sent(
    hold: Hold, api: FakeApi, door: FakeDoor, audited: Any
) -> None:
    ada = await hold()
    door.failure = UpstreamLoginRequired("gone")
    response = await call_modern(ada, "list_todos")
    assert response.status == 401
    assert 'error="invalid_token"' in response.headers["www-authenticate"]
    assert [event.outcome for event in await audited()] == ["sign_in_needed"]


async def test_a_provider_that_is_down_is_a_sentence_with_a_time(hold: Hold, api: FakeApi, door: FakeDoor) -> None:
    ada = await hold()
    door.failure = UpstreamUnavailable("down", retry_after=17)
    response = await call_modern(ada, "list_todos")
    assert response.json["result"]["isError"] is True
    assert "17 seconds" in text_of(response)


# -- long answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2025-06-18", "2026-07-28"])
async def test_progress_turns_the_answer_into_a_stream(hold: Hold, workbench: Workbench, version: str) -> None:
    ada = await hold()
    headers = {**modern(ada, "tools/call", "climb"), "MCP-Protocol-Version": version}
    body = message("tools/call", name="climb", arguments={}, _meta={**META, "progressToken": "p"})
    async with opened(streamable_http, "POST", "/mcp", headers, body) as exchange:
        await exchange.start()
        assert exchange.headers["content-type"] == "text/event-stream"
        assert exchange.headers["x-accel-buffering"] == "no"
        first, second, last = [await exchange.message() for _ in range(3)]
    assert first["params"] == {"progressToken": "p", "progress": 1, "total": 2, "message": "half"}
    assert second["params"] == {"progressToken": "p", "progress": 2, "total": 2}
    assert last["result"]["content"][0]["text"] == "there"
    assert exchange.is_finished


async def test_without_a_progress_token_the_answer_stays_one_document(hold: Hold, workbench: Workbench) -> None:
    ada = await hold()
    response = await call_modern(ada, "climb")
    assert response.headers["content-type"] == "application/json"


async def test_a_silent_call_becomes_a_stream_that_is_kept_alive(
    hold: Hold, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "PING_EVERY", 0.02)
    ada = await hold()
    body = message("tools/call", name="wait", arguments={}, _meta=META)
    async with opened(streamable_http, "POST", "/mcp", modern(ada, "tools/call", "wait"), body) as exchange:
        await exchange.start()
        assert [await exchange.frame(), await exchange.frame()] == [b": ping\r\n\r\n"] * 2
        workbench.may_go_on.set()
        assert (await exchange.message())["result"]["content"][0]["text"] == "waited"


async def test_a_sign_in_needed_after_the_stream_began_is_an_error_result(
    hold: Hold, api: FakeApi, door: FakeDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "PING_EVERY", 0.02)
    ada = await hold()
    may_go_on = asyncio.Event()

    async def late(*args: Any, **kwargs: Any) -> None:
        await may_go_on.wait()
        raise UpstreamLoginRequired("gone")

    monkeypatch.setattr("oauth_relay.upstream_tokens.upstream_token_for", late)
    body = message("tools/call", name="list_todos", arguments={}, _meta=META)
    async with opened(streamable_http, "POST", "/mcp", modern(ada, "tools/call", "list_todos"), body) as exchange:
        await exchange.start()
        await exchange.frame()
        may_go_on.set()
        assert (await exchange.message())["result"]["isError"] is True


async def test_a_client_that_leaves_cancels_the_call_and_its_upstream_request(
    hold: Hold, api: FakeApi, door: FakeDoor, audited: Any
) -> None:
    ada = await hold()
    api.will_hang()
    body = message("tools/call", name="list_todos", arguments={}, _meta=META)
    async with opened(streamable_http, "POST", "/mcp", modern(ada, "tools/call", "list_todos"), body):
        async with asyncio.timeout(WAIT):
            await api.arrived.wait()
    async with asyncio.timeout(WAIT):
        await api.abandoned.wait()
    assert [event.outcome for event in await audited()] == ["cancelled"]


@pytest.mark.threat("T11")
async def test_a_running_call_ends_within_a_second_of_the_withdrawal(hold: Hold, workbench: Workbench) -> None:
    ada = await hold()
    body = message("tools/call", name="wait", arguments={}, _meta=META)
    async with opened(streamable_http, "POST", "/mcp", modern(ada, "tools/call", "wait"), body) as exchange:
        async with asyncio.timeout(WAIT):
            await workbench.started.wait()
        began = time.monotonic()
        await sync_to_async(withdrawals.withdraw_grant)(ada.grant.pk, "person")
        await exchange.whole()
        assert time.monotonic() - began < 1.0
        assert (exchange.status, workbench.cancelled.is_set()) == (401, True)


async def test_a_server_that_says_by_oserror_that_nobody_is_there_is_believed(hold: Hold) -> None:
    ada = await hold()

    async def gone(message: Any) -> None:
        raise OSError("disconnected")

    async def ask(application: Any, receive: Any, send: Any) -> None:
        await streamable_http(application, receive, gone)

    async with opened(ask, "POST", "/mcp", {**BASIC, **ada.authorization}, message("ping")) as exchange:
        async with asyncio.timeout(WAIT):
            await exchange.task


async def test_the_end_of_the_server_waits_for_calls_and_then_says_so(
    hold: Hold, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutdown, "PATIENCE", 0.05)
    ada = await hold()
    body = message("tools/call", name="wait", arguments={}, _meta=META)
    async with opened(streamable_http, "POST", "/mcp", modern(ada, "tools/call", "wait"), body) as exchange:
        async with asyncio.timeout(WAIT):
            await workbench.started.wait()
            await shutdown.end_streams()
        await exchange.whole()
        assert (exchange.status, workbench.cancelled.is_set()) == (503, True)


async def test_a_call_that_ends_in_time_is_answered_at_shutdown(hold: Hold, workbench: Workbench) -> None:
    ada = await hold()
    body = message("tools/call", name="wait", arguments={}, _meta=META)
    async with opened(streamable_http, "POST", "/mcp", modern(ada, "tools/call", "wait"), body) as exchange:
        async with asyncio.timeout(WAIT):
            await workbench.started.wait()
            ending = asyncio.create_task(shutdown.end_streams())
            workbench.may_go_on.set()
            await ending
        await exchange.whole()
        assert (exchange.status, text_of(exchange)) == (200, "waited")
