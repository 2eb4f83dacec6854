"""The tools of the sample, as a model calls them: what they ask of the API, and what they give back."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcp_gateway.answer import Exchange, answer
from mcp_gateway.tools import registry
from oauth_relay import audit
from oauth_relay.access_tokens import Principal
from tests.mcp_gateway.conftest import FakeApi, api, door, principal

__all__ = ["api", "door", "principal"]

ROOT = Path(__file__).resolve().parents[2]
TODO = {
    "id": "7f", "title": "Tea", "description": "", "due": None, "done": False,
    "created": "2026-11-20T10:00:00Z", "owner": "ada",
}  # fmt: skip


@pytest.fixture(autouse=True)
def unaudited(monkeypatch: pytest.MonkeyPatch) -> None:
    async def record(event: audit.Event) -> None: ...

    monkeypatch.setattr(audit, "record", record)


async def call(principal: Principal, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    everything = frozenset({"read:todos", "write:todos", "read:billing"})
    exchange = Exchange(Principal(**{**vars(principal), "scopes": everything}), "test", "2025-11-25")
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
    result: dict[str, Any] = (await answer(message, exchange))["result"]
    return result


@pytest.mark.parametrize(
    ("name", "arguments", "method", "target", "body", "answered"),
    [
        ("list_todos", {}, "GET", "/api/todos", None, {"todos": [TODO]}),
        ("list_todos", {"done": True}, "GET", "/api/todos?done=true", None, {"todos": []}),
        ("get_todo", {"id": "7f"}, "GET", "/api/todos/7f", None, TODO),
        (
            "create_todo", {"title": "Tea"}, "POST", "/api/todos",
            {"title": "Tea", "description": "", "due": None}, TODO,
        ),
        (
            "create_todo", {"title": "Tea", "description": "green", "due": "2026-12-31"}, "POST", "/api/todos",
            {"title": "Tea", "description": "green", "due": "2026-12-31"}, TODO,
        ),
        ("update_todo", {"id": "7f", "done": True}, "PATCH", "/api/todos/7f", {"done": True}, TODO),
        ("update_todo", {"id": "7f", "due": ""}, "PATCH", "/api/todos/7f", {"due": None}, TODO),
        ("update_todo", {"id": "7f", "description": ""}, "PATCH", "/api/todos/7f", {"description": ""}, TODO),
        ("list_billing", {}, "GET", "/api/billing", None, {"plan": "solo", "invoices": []}),
    ],
)  # fmt: skip
async def test_each_tool_is_one_request(
    api: FakeApi, door: Any, principal: Principal,
    name: str, arguments: dict[str, Any], method: str, target: str, body: Any, answered: Any,
) -> None:  # fmt: skip
    api.will(answered)
    result = await call(principal, name, arguments)
    [request] = api.requests
    assert (request.method, request.raw_path) == (method, target)
    assert (json.loads(api.bodies[0]) if api.bodies[0] else None) == body
    assert result["structuredContent"] == answered


async def test_deleting_says_what_is_gone(api: FakeApi, door: Any, principal: Principal) -> None:
    api.will(None, status=204)
    result = await call(principal, "delete_todo", {"id": "7f"})
    assert (api.requests[0].method, api.requests[0].raw_path) == ("DELETE", "/api/todos/7f")
    assert result["structuredContent"] == {"deleted": "7f"}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("create_todo", {}),
        ("create_todo", {"title": ""}),
        ("create_todo", {"title": "x" * 201}),
        ("create_todo", {"title": "Tea", "due": "tomorrow"}),
        ("create_todo", {"title": "Tea", "owner": "mallory"}),
        ("update_todo", {"title": "Tea"}),
        ("get_todo", {"id": "../billing"}),
        ("get_todo", {"id": 7}),
    ],
)
async def test_wrong_arguments_never_reach_the_api(
    api: FakeApi, door: Any, principal: Principal, name: str, arguments: dict[str, Any]
) -> None:
    result = await call(principal, name, arguments)
    assert result["isError"] is True
    assert api.requests == []


def test_scopes_and_hints_are_as_promised() -> None:
    hints = {
        tool.name: (sorted(tool.scopes), tool.is_read_only, tool.listing.annotations.destructive_hint)
        for tool in registry.tools()
        if tool.api == "todos" and tool.listing.annotations is not None
    }
    assert hints == {
        "list_todos": (["read:todos"], True, False),
        "get_todo": (["read:todos"], True, False),
        "create_todo": (["write:todos"], False, False),
        "update_todo": (["write:todos"], False, True),
        "delete_todo": (["write:todos"], False, True),
        "list_billing": (["read:billing"], True, False),
    }


def test_the_page_that_explains_the_file_stays_short() -> None:
    page, file = (ROOT / "docs/plugging-in-an-api.md").read_text(), (ROOT / "todos/tools.py").read_text()
    assert len(page) < 1.5 * len(file)
    for said in ("upstream_scope", "permission", "ToolError", "progress", "UPSTREAM_APIS", "read_only"):
        assert said in page
