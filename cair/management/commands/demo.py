"""`manage.py demo`: the whole job in the terminal, against a server of its own. What `make demo` runs."""

import logging
import os
import signal
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from cair.demo.own_server import is_healthy, own_server
from cair.demo.terminal import Terminal
from cair.demo.trouble import DemoFailed
from cair.demo.walk import Walk

_NO = frozenset({"", "0", "false", "no", "off"})


class Command(BaseCommand):
    help = "Walk from an unknown client to a tool call and back, saying at each step what happened."
    # The demo's server has an environment of its own; a wrong .env must not keep a newcomer from seeing the walk.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--url", default=os.environ.get("URL", ""), help="a running server; else the demo starts one"
        )
        parser.add_argument(
            "--headless",
            action="store_true",
            default=os.environ.get("HEADLESS", "").lower() not in _NO,
            help="play the demo user instead of opening the browser",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        terminal = Terminal(self.stdout, sys.stdout)
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        # Unwind, so that the server of our own ends with us.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            self._walk(terminal, options["url"].rstrip("/"), options["headless"])
        except DemoFailed as failure:
            terminal.failed(failure.what, failure.repair)
            sys.exit(1)
        except KeyboardInterrupt:
            terminal.failed("You ended it.", "Nothing is left running; run it again when you like.")
            sys.exit(1)

    def _walk(self, terminal: Terminal, url: str, is_headless: bool) -> None:
        terminal.say("\nAn AI client that nobody knows here comes to work on your todos. This is what happens.\n")
        if url:
            if not is_healthy(url):
                raise DemoFailed(f"No CAIR server answers at {url}.", "Start one with `make run`, or leave URL= away.")
            terminal.step("server", f"{url}, which was running already")
            Walk(url, terminal, is_headless=is_headless).run()
        else:
            with own_server(terminal.waiting) as own:
                terminal.step("server", f"{own}, the demo's own, with a throw-away database; sign in as demo / demo")
                Walk(own, terminal, is_headless=is_headless).run()
        terminal.say("\nThat was all of it. The same walk with a client of yours: make run\n")
