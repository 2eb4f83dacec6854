"""Declaring tools: what a plug-in author may write, and what they are told when it is wrong."""

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import Field
from typing_extensions import TypedDict

from mcp_gateway.schemas import Arguments, Result
from mcp_gateway.tools import Call, Registry, ToolError, Toolset


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_a_tool_is_what_its_function_says(registry: Registry) -> None:
    letters = Toolset("letters", scopes={"read:letters": "Read your letters"}, registry=registry)

    @letters.tool(scope="read:letters", read_only=True, permission="letters.view_letter")
    async def find_letter(call: Call, number: int, near: Annotated[str, Field(description="A place")] = "") -> str:
        """Find a letter.

        By its number.
        """
        return ""

    [tool] = registry.tools()
    assert (tool.name, tool.title, tool.scopes) == ("find_letter", "Find letter", frozenset({"read:letters"}))
    assert (tool.permission, tool.is_read_only) == ("letters.view_letter", True)
    assert tool.listing.description == "Find a letter.\n\nBy its number."
    assert tool.listing.input_schema == {
        "type": "object",
        "properties": {
            "number": {"type": "integer"},
            "near": {"type": "string", "default": "", "description": "A place"},
        },
        "required": ["number"],
        "additionalProperties": False,
    }
    assert tool.listing.output_schema is None


def test_scopes_and_tools_come_in_the_order_of_declaration(registry: Registry) -> None:
    for name in ("zebra", "apple"):
        toolset = Toolset(name, scopes={f"read:{name}": name}, registry=registry)

        async def tool(call: Call) -> str:
            """Do."""
            return ""

        tool.__name__ = f"{name}_tool"
        toolset.tool()(tool)
    assert list(registry.scopes()) == ["read:zebra", "read:apple"]
    assert [tool.name for tool in registry.tools()] == ["zebra_tool", "apple_tool"]
    assert registry.find("apple_tool") is registry.tools()[1]
    assert registry.find("nothing") is None


@pytest.mark.parametrize(
    ("options", "read_only", "destructive", "idempotent"),
    [
        ({}, False, True, False),
        ({"read_only": True}, True, False, True),
        ({"destructive": False}, False, False, False),
        ({"idempotent": True}, False, True, True),
    ],
)
def test_annotations_default_to_caution(
    registry: Registry, options: dict[str, bool], read_only: bool, destructive: bool, idempotent: bool
) -> None:
    @Toolset("plain", registry=registry).tool(**options)  # type: ignore[arg-type]
    async def act(call: Call) -> str:
        """Act."""
        return ""

    hints = registry.tools()[0].listing.annotations
    assert hints is not None
    assert (hints.read_only_hint, hints.destructive_hint, hints.idempotent_hint) == (read_only, destructive, idempotent)


def test_a_synchronous_function_and_one_without_words_are_refused(registry: Registry) -> None:
    plain = Toolset("plain", registry=registry)

    def slow(call: Call) -> str:
        """Block."""
        return ""

    async def silent(call: Call) -> str:
        return ""

    with pytest.raises(TypeError, match="async def"):
        plain.tool()(slow)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="docstring"):
        plain.tool()(silent)


def test_a_tool_without_an_api_is_told_so(principal: Any) -> None:
    with pytest.raises(RuntimeError, match="names no API"):
        _ = Call(principal, None, None).api  # type: ignore[arg-type]


def test_arguments_may_have_any_name_and_are_converted() -> None:
    async def function(call: Call, copy: int, json: list[str], schema: bool = False) -> None: ...

    parsed = Arguments(function).parse({"copy": 3, "json": ["a"]})
    assert parsed == {"copy": 3, "json": ["a"], "schema": False}


def test_every_fault_of_the_arguments_is_told_without_their_values() -> None:
    async def function(call: Call, count: int, name: Annotated[str, Field(max_length=3)]) -> None: ...

    with pytest.raises(ToolError) as failure:
        Arguments(function).parse({"name": "secret value", "other": 1})
    said = str(failure.value)
    assert "'count' is missing" in said
    assert "'name': string should have at most 3 characters" in said
    assert "'other' is not an argument of this tool (it has: count, name)" in said
    assert "secret value" not in said


class Letter(TypedDict):
    text: str


@dataclass
class Stamp:
    price: int


def test_results_are_structured_by_their_annotation() -> None:
    async def typed(call: Call) -> Letter: ...  # type: ignore[empty-body]
    async def data(call: Call) -> Stamp: ...  # type: ignore[empty-body]
    async def listed(call: Call) -> list[Letter]: ...  # type: ignore[empty-body]
    async def text(call: Call) -> str: ...  # type: ignore[empty-body]
    async def nothing(call: Call) -> None: ...

    assert Result(typed).shape({"text": "ä", "more": 1}) == ({"text": "ä"}, '{"text": "ä"}')
    assert Result(data).shape(Stamp(3)) == ({"price": 3}, '{"price": 3}')
    assert Result(listed).shape([{"text": "a"}]) == ({"result": [{"text": "a"}]}, '{"result": [{"text": "a"}]}')
    schema = Result(listed).schema
    assert schema is not None
    assert (schema["type"], schema["$defs"].keys()) == ("object", {"Letter"})
    assert Result(text).shape("a") == (None, "a")
    assert Result(nothing).shape(None) == (None, "")


def test_a_result_of_another_form_is_a_sentence_and_its_values_stay_out_of_the_log(caplog: Any) -> None:
    async def typed(call: Call) -> Letter: ...  # type: ignore[empty-body]

    with pytest.raises(ToolError, match="promised form"):
        Result(typed).shape({"text": {"private": "words"}})
    assert "text" in caplog.text and "words" not in caplog.text
