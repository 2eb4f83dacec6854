"""Where nobody is to be asked for more, every transport says so in the tool's answer, and nothing runs (T33)."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.mcp_gateway.asgi import Exchange
from tests.mcp_gateway.conftest import Holder, Workbench
from tests.mcp_gateway.transports.test_sse import endpoint_of, message, post, stream_of
from tests.mcp_gateway.transports.test_streamable_http import call_legacy, call_modern

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.threat("T33")]

Hold = Callable[..., Awaitable[Holder]]


def is_told_to_go_on(result: dict[str, Any]) -> bool:
    return result["isError"] and "read:billing" in result["content"][0]["text"] and "structuredContent" not in result


@pytest.mark.parametrize("call", [call_modern, call_legacy])
async def test_the_fourth_challenge_of_the_hour_is_a_sentence(
    hold: Hold, workbench: Workbench, audited: Any, call: Callable[..., Awaitable[Exchange]]
) -> None:
    ada = await hold()
    assert [(await call(ada, "both")).status for _ in range(3)] == [403, 403, 403]
    response = await call(ada, "both")
    assert response.status == 200 and is_told_to_go_on(response.json["result"])
    assert workbench.runs == 0
    assert [event.outcome for event in await audited()] == ["insufficient_scope"] * 3 + ["step_up_withheld"]


async def test_it_is_a_sentence_on_the_stream_too(hold: Hold, workbench: Workbench, audited: Any) -> None:
    """Judged at the POST and once more on the stream: counted and written down once."""
    ada = await hold()
    call = message("tools/call", name="both", arguments={})
    async with stream_of(ada) as stream:
        endpoint = await endpoint_of(stream)
        assert [(await post(ada, endpoint, call)).status for _ in range(3)] == [403, 403, 403]
        assert (await post(ada, endpoint, call)).status == 202
        assert is_told_to_go_on((await stream.message())["result"])
    assert workbench.runs == 0
    assert [event.outcome for event in await audited()] == ["insufficient_scope"] * 3 + ["step_up_withheld"]


async def test_what_needs_no_more_runs_all_the_same(hold: Hold, workbench: Workbench) -> None:
    ada = await hold()
    for _ in range(4):
        await call_modern(ada, "both")
    response = await call_modern(ada, "whoami")
    assert response.status == 200 and not response.json["result"].get("isError")
