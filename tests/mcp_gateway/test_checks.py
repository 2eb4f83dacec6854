"""Mistakes in declarations are system checks with an id and a hint."""

from typing import Any

import pytest

from mcp_gateway.checks import check_tools, faults
from mcp_gateway.tools import Call, Registry, Toolset


def _declare(registry: Registry, toolset: str, **options: object) -> None:
    scope = options.pop("scope", ())

    @Toolset(toolset, registry=registry, **options).tool(scope=scope)  # type: ignore[arg-type]
    async def do(call: Call) -> str:
        """Do."""
        return ""


@pytest.fixture
def registry() -> Registry:
    return Registry()


def _ids(registry: Registry) -> list[str | None]:
    return [fault.id for fault in faults(registry)]


def test_what_is_declared_here_is_right() -> None:
    assert check_tools(None) == []


def test_two_tools_of_one_name(registry: Registry) -> None:
    _declare(registry, "one")
    _declare(registry, "two")
    assert _ids(registry) == ["mcp_gateway.E001"]


def test_an_undeclared_scope(registry: Registry) -> None:
    _declare(registry, "one", scopes={"read:a": "A"}, scope=("read:a", "read:b"))
    [fault] = faults(registry)
    assert (fault.id, "read:b" in fault.msg, "docs/plugging-in-an-api.md" in (fault.hint or "")) == (
        "mcp_gateway.E002", True, True,
    )  # fmt: skip


def test_an_unknown_api(registry: Registry) -> None:
    _declare(registry, "one", api="nowhere")
    assert _ids(registry) == ["mcp_gateway.E003"]


def test_one_scope_in_two_wordings(registry: Registry) -> None:
    _declare(registry, "one", scopes={"read:a": "A"})
    Toolset("two", scopes={"read:a": "Another A"}, registry=registry)
    assert _ids(registry) == ["mcp_gateway.E004"]


@pytest.mark.parametrize(
    ("changed", "number", "said"),
    [
        ({"audience": ""}, 5, "has no audience"),
        ({"base_url": None}, 5, "has no base_url"),
        ({"token_source": ""}, 5, "has no token_source"),
        ({"token_source": "auth0"}, 6, "'auth0', which is not known here"),
    ],
)
def test_an_api_that_could_never_be_called_is_named_with_its_repair(
    settings: Any, changed: dict[str, Any], number: int, said: str
) -> None:
    settings.UPSTREAM_APIS = {
        "orders": {"base_url": "https://o.example", "audience": "o", "token_source": "cair"} | changed
    }
    found = [fault for fault in faults(Registry()) if fault.id == f"mcp_gateway.E{number:03}"]
    assert [said in fault.msg for fault in found] == [True]


def test_a_parameter_without_a_type_is_said_so_when_it_is_declared() -> None:
    async def list_orders(call, open_only=False):  # type: ignore[no-untyped-def]
        """List orders."""

    with pytest.raises(TypeError, match="annotate open_only"):
        Toolset("orders", registry=Registry()).tool()(list_orders)
