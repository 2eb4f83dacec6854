"""What one message may be: small enough to be read by everyone behind us."""

import json
from typing import Any

import pytest

from mcp_gateway import jsonrpc
from mcp_gateway.schemas import MOST_FAULTS_TOLD, Arguments
from mcp_gateway.tools import Call, ToolError


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"params": [[]] * (jsonrpc.MOST_VALUES + 1)}).encode(),
        json.dumps({str(number): 0 for number in range(jsonrpc.MOST_VALUES + 1)}).encode(),
        nested(jsonrpc.DEEPEST + 2),
        b"[" * 100_000,
    ],
)
def test_it_refuses_more_values_or_levels_than_anybody_needs(body: bytes) -> None:
    with pytest.raises(jsonrpc.Malformed):
        jsonrpc.parse(body)


@pytest.mark.parametrize(
    "body", [nested(jsonrpc.DEEPEST - 1), json.dumps({"a": "," * 100_000, "b": [0] * 10_000}).encode()]
)
def test_it_takes_what_is_merely_large(body: bytes) -> None:
    assert jsonrpc.parse(body) == json.loads(body)


def test_many_unknown_arguments_are_told_in_one_short_sentence() -> None:
    async def tool(call: Call, title: str) -> None: ...

    unknown: dict[str, Any] = {f"x{number}": number for number in range(MOST_FAULTS_TOLD + 1)}
    with pytest.raises(ToolError, match="title") as told:
        Arguments(tool).parse({"title": "a", **unknown})
    assert len(str(told.value)) < 200
