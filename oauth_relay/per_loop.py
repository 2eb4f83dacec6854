"""What one event loop owns alone: caches and tasks that no other loop may touch."""

import asyncio
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One instance per running event loop, made on first use; it goes with its loop, never to a later one."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._instances: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, T] = weakref.WeakKeyDictionary()

    def get(self) -> T:
        loop = asyncio.get_running_loop()
        found = self._instances.get(loop)
        if found is None:
            found = self._instances[loop] = self._make()
        return found

    def clear(self) -> None:
        self._instances.clear()
