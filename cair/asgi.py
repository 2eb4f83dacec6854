"""The process: guard → /mcp, /sse and /messages/ by exact path → everything else to Django.

Server-neutral: Daphne by default, uvicorn where throughput matters. Daphne sends no lifespan, so there a signal
handler of ours ends streams and calls; a server that sends lifespan is asked to stop in its own way.
"""

import asyncio
import fcntl
import logging
import os
import signal
import sys
import threading
from typing import IO

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cair.settings")
_django = get_asgi_application()

from django.conf import settings  # noqa: E402
from django.core import checks  # noqa: E402

from cair.guard import Application, Guard, Receive, Scope, Send  # noqa: E402
from mcp_gateway.routing import routes  # noqa: E402
from mcp_gateway.shutdown import end_streams  # noqa: E402

logger = logging.getLogger(__name__)

UNDER_DAPHNE = "daphne.server" in sys.modules
DRAIN_SECONDS = 3.0
ENDS_WITHIN = 4.5


def refuse_to_start_if_wrong() -> None:
    """Name everything that is wrong, each with its repair, and serve nothing. No server runs Django's checks for us."""
    found = checks.run_checks(include_deployment_checks=not settings.DEVELOPMENT, databases=["default"])
    serious = [message for message in found if message.is_serious() and not message.is_silenced()]
    if serious:
        lines = [f"{m.id}: {m.msg}\n        {m.hint}" for m in serious]
        sys.stderr.write("\nCAIR does not start:\n\n  " + "\n  ".join(lines) + "\n\n")
        raise SystemExit(1)


def hold_sqlite_alone() -> IO[str] | None:
    """In production one process serves from one SQLite file; a second is refused for as long as this file is open."""
    if settings.DEVELOPMENT or not settings.SQLITE:
        return None
    path = f"{settings.DATABASES['default']['NAME']}.lock"
    lock = open(path, "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stderr.write(f"\nCAIR does not start: another process serves from this SQLite file (it holds {path}).\n")
        sys.stderr.write("For more than one process, set DATABASE_URL to a PostgreSQL database.\n\n")
        raise SystemExit(1) from None
    return lock


class Process:
    """Dispatches by exact path (`//mcp` is not `/mcp`), and ends in good order."""

    def __init__(self) -> None:
        self.has_lifespan = False
        self.watched = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if not self.watched:
            self._watch_signals()
        application: Application = routes.get(scope["path"], _django)
        await application(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        self.has_lifespan = True
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await end_streams()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _watch_signals(self) -> None:
        """Under Daphne: let streams and calls end, then hand the signal to the server."""
        self.watched = True
        if self.has_lifespan or not UNDER_DAPHNE:
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain_and_stop)

    def _drain_and_stop(self) -> None:
        self.draining = asyncio.ensure_future(_drain_and_stop())


async def _drain_and_stop() -> None:
    """Let streams and calls end, within bounds, then end the server as its own signal handler would."""
    from twisted.internet import reactor

    # A view that waits for somebody (a slow provider) holds its thread, and so the process: not beyond our promise.
    last_resort = threading.Timer(ENDS_WITHIN, os._exit, [0])
    last_resort.daemon = True
    last_resort.start()
    try:
        await asyncio.wait_for(end_streams(), DRAIN_SECONDS)
    except TimeoutError:
        logger.warning("calls that were still under way after %s seconds are cut off", DRAIN_SECONDS)
    if reactor.running:
        reactor.stop()


refuse_to_start_if_wrong()
sqlite_lock = hold_sqlite_alone()
application: Application = Guard(Process())
if UNDER_DAPHNE:
    from cair.daphne_bounds import bounded

    application = bounded(application)
