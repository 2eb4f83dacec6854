"""`python -m todos`: the sample API as a process of its own. Its variables are told in todos/standalone.py."""

import importlib
import os
import sys
from collections.abc import Awaitable, Callable
from threading import Timer
from typing import Any

ENDS_WITHIN = 3.0


def main() -> int:
    """Migrate, serve on 127.0.0.1 until a signal, and answer with the exit code."""
    # Whoever works on CAIR may have its settings in the shell: they are not ours.
    os.environ["DJANGO_SETTINGS_MODULE"] = "todos.standalone"
    from todos import standalone

    if standalone.PROBLEMS:
        _say(*standalone.PROBLEMS)
        return 2
    return _serve(standalone.PORT)


def _serve(port: int) -> int:
    # Daphne first: it installs its reactor, which no import may have done before.
    from daphne.server import Server, reactor  # isort: skip
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.core.management import call_command

    django.setup()
    importlib.import_module(settings.ROOT_URLCONF)  # what is broken shall break now, not at the first request
    call_command("migrate", interactive=False, verbosity=0)

    def announce() -> None:
        for host, bound in server.listening_addresses:
            _say(f"The Todos API answers at http://{host}:{bound}/api/health")
            _say(f"It accepts tokens for {settings.TODOS['AUDIENCE']} of the issuer at {settings.TODOS['DISCOVERY']}")

    server = Server(
        _at_its_own_paths(get_asgi_application()),
        endpoints=[f"tcp:port={port}:interface=127.0.0.1"],
        ready_callable=announce,
    )
    reactor.addSystemEventTrigger("before", "shutdown", _end_within, ENDS_WITHIN)
    server.run()
    return 0 if server.listening_addresses else 1


def _end_within(seconds: float) -> None:
    """End even while a thread waits for the issuer or the database: the event loop would wait for that thread.

    Nobody is answered any more, and what the thread has not committed, it has not done.
    """
    timer = Timer(seconds, os._exit, [0])
    timer.daemon = True
    timer.start()


def _at_its_own_paths(application: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """`application` over HTTP, without the root path that anyone could set with a Daphne-Root-Path header (T17)."""

    async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await application({**scope, "root_path": ""}, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})

    return answer


def _say(*lines: str) -> None:
    """To the terminal, at once, even where that is a pipe."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
