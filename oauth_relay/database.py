"""Database work from coroutines that live outside Django's requests.

Channels would run all of it on one shared thread; a thread of its own for each call costs more than the query.
A few threads, whose connections go back to the pool after each call, do neither.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from channels.db import database_sync_to_async
from django.db import InterfaceError, OperationalError, connection

DATABASE_AWAY = (OperationalError, InterfaceError)
"""What says that the database cannot be asked now. Every other DatabaseError is a fault of ours, and no reason to retry."""

P = ParamSpec("P")
R = TypeVar("R")

_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="database")


async def in_database(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `function` on a database thread and await its result."""
    call = database_sync_to_async(function, thread_sensitive=False, executor=_threads)
    return await call(*args, **kwargs)


def give_back_connection() -> None:
    """Nobody keeps one of the pool's few connections while somebody else's server takes its time."""
    if not connection.in_atomic_block:
        connection.close()
