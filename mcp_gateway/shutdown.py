"""The orderly end: streams are closed at once, calls get a moment to finish; each says its last word (DESIGN §8)."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from mcp_gateway import upstream_api

PATIENCE = 2.0
"""Seconds for running calls; under the server's own patience, so that a cut call can still say so."""
LAST_WORD = 0.5

_Ends = dict[asyncio.Task[Any], Callable[[], object]]
_streams: _Ends = {}
_calls: _Ends = {}


@contextmanager
def _known_to(ends: _Ends, end: Callable[[], object]) -> Iterator[None]:
    request = asyncio.current_task()
    if request is None:
        raise RuntimeError("requests are served in tasks")
    ends[request] = end
    try:
        yield
    finally:
        ends.pop(request, None)


def open_stream(end: Callable[[], object]) -> AbstractContextManager[None]:
    """While entered, `end_streams` calls `end` at once and waits for this request."""
    return _known_to(_streams, end)


def running_call(end: Callable[[], object]) -> AbstractContextManager[None]:
    """While entered, `end_streams` waits for this request, and calls `end` when patience is over."""
    return _known_to(_calls, end)


async def end_streams() -> None:
    """End every open stream and call of this process; returns when all have sent their last word, or time is up."""
    requests = {*_streams, *_calls}
    for end in list(_streams.values()):
        end()
    await _over(requests, PATIENCE)
    for end in list(_calls.values()):
        end()
    await _over(requests, LAST_WORD)
    await upstream_api.close()


async def _over(requests: set[asyncio.Task[Any]], patience: float) -> None:
    if requests:
        await asyncio.wait(requests, timeout=patience)
