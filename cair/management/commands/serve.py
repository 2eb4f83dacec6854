"""`manage.py serve`: prepare, say where everything is, and become the server. What `make run` runs."""

import os
import socket
import sys
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from oauth_relay.pages import how_to_connect


class Command(BaseCommand):
    help = "Prepare the database and serve with Daphne until Ctrl-C."

    def handle(self, *args: Any, **options: Any) -> None:
        self._check_port()
        call_command("prepare")
        self.stdout.write(self._banner())
        self.stdout.flush()
        daphne = [sys.executable, "-m", "daphne", "-b", settings.BIND, "-p", str(settings.PORT)]
        os.execv(  # noqa: S606 - signals must reach the server, not a parent that waits for it
            sys.executable,
            [*daphne, "-v", "0", "--no-server-name", "--application-close-timeout", "3", "cair.asgi:application"],
        )

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.BIND, settings.PORT))
            except OSError as error:
                hint = f"PORT={settings.PORT + 1} make run"
                raise CommandError(f"Port {settings.PORT} cannot be used ({error.strerror}). Try: {hint}") from error

    def _banner(self) -> str:
        mcp_url, sse_url = settings.RESOURCES
        rows = [("CAIR", settings.PUBLIC_URL), ("MCP endpoint", mcp_url), ("older clients", f"{sse_url}  (HTTP+SSE)")]
        if settings.DEMO_USER:
            rows.append(("sign in as", "demo / demo"))
        elif settings.UPSTREAM_PROVIDERS:
            rows.append(("sign in at", ", ".join(p["label"] for p in settings.UPSTREAM_PROVIDERS.values())))
        if settings.DEVELOPMENT:
            rows.append(("for", "you alone: a development server trusts every program on this machine"))
        rows += [(c["name"], c["line"]) for c in how_to_connect(mcp_url)]
        width = max(len(name) for name, _ in rows)
        lines = [f"  {name:<{width}}  {value}" for name, value in rows]
        return "\n" + "\n".join(lines) + "\n\n  Ctrl-C ends it. Watch the whole walk with: make demo\n"
