"""What one event loop owns alone: caches and tasks that no other loop may touch."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One instance per running event loop, made on first use.

    Keyed by the loop itself, not by its id, which a later loop may bear. A closed loop's instance goes with the next
    one that is made: what holds a task holds its loop, so weak references would not let go.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._instances: dict[asyncio.AbstractEventLoop, T] = {}

    def get(self) -> T:
        loop = asyncio.get_running_loop()
        if loop not in self._instances:
            self._instances = {known: kept for known, kept in self._instances.items() if not known.is_closed()}
            self._instances[loop] = self._make()
        return self._instances[loop]

    def clear(self) -> None:
        self._instances.clear()
