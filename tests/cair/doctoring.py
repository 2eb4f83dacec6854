"""What the tests of `manage.py doctor` share: the command as an operator runs it, and small servers that misbehave."""

import contextlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.servers import ROOT, database, free_port, server_environment

ENDS_WITHIN = 60.0


@dataclass
class Report:
    """What one run said. `printed` is everything on both streams."""

    code: int
    printed: str
    checks: list[dict[str, str]] = field(default_factory=list)

    def __getitem__(self, name: str) -> dict[str, str]:
        """The one finding of that name."""
        found = [check for check in self.checks if check["name"] == name]
        assert len(found) == 1, f"{name}: {found or self.printed}"
        return found[0]

    def status(self, name: str) -> str:
        return self[name]["status"]

    def failures(self) -> list[str]:
        return [check["name"] for check in self.checks if check["status"] == "failure"]


def examine(environment: Mapping[str, str], *arguments: str, unseen: tuple[str, ...] = ()) -> Report:
    """Run `doctor --json`. Whatever it finds: one object, the exit status that goes with it, a repair for every wrong
    line, no stack trace, nothing logged, and none of `unseen` nor of the environment's own secrets."""
    done = run(environment, "--json", *arguments)
    secrets = [
        environment.get(name, "") for name in ("COOKIE_ENCRYPTION_KEY", "CAIR_MASTER_KEYS", "AUTH0_CLIENT_SECRET")
    ]
    assert not [secret for secret in (*secrets, *unseen) if secret and secret in done.stdout + done.stderr]
    assert "Traceback" not in done.stdout + done.stderr and "eyJ" not in done.stdout
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert set(found) == {"ok", "checks"}
    report = Report(done.returncode, done.stdout, found["checks"])
    assert all(set(check) == {"name", "status", "found", "repair"} for check in report.checks)
    assert all(bool(check["repair"]) == (check["status"] != "ok") for check in report.checks), report.printed
    assert found["ok"] is (not report.failures()) and report.code == (1 if report.failures() else 0)
    assert "this check itself failed" not in report.printed, report.printed
    return report


def run(environment: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "manage.py", "doctor", *arguments],
        cwd=ROOT, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ENDS_WITHIN,
        check=False,
    )  # fmt: skip


def manage(environment: Mapping[str, str], *arguments: str) -> str:
    command = [sys.executable, "manage.py", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(environment), capture_output=True, text=True, timeout=ENDS_WITHIN, check=True
    )
    return done.stdout


@contextlib.contextmanager
def prepared() -> Iterator[dict[str, str]]:
    """The environment of a development checkout that is ready, and serves nothing yet."""
    with database("sqlite") as url:
        environment = server_environment(free_port(), url)
        manage(environment, "prepare")
        yield environment


def database_file(environment: Mapping[str, str]) -> str:
    return environment["DATABASE_URL"].removeprefix("sqlite:///")


# -- servers that say what a test wants --------------------------------------------------------------------------------


@dataclass
class Reply:
    """What goes out: `body` as JSON, or as HTML if it is text; `headers` win over the usual ones, None leaves one out."""

    status: int = 200
    body: Any = ""
    headers: Mapping[str, str | None] = field(default_factory=dict)


@dataclass
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Answerer = Callable[[Request], Reply]


@contextlib.contextmanager
def serving(answer: Answerer, wrap: Callable[[Any], Any] | None = None, port: int = 0) -> Iterator[str]:
    """The origin of a small server. `wrap` may put TLS around its socket."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            reply = answer(Request(self.command, self.path, dict(self.headers), self.rfile.read(length)))
            is_text = isinstance(reply.body, str | bytes)
            body = reply.body if is_text else json.dumps(reply.body)
            body = body if isinstance(body, bytes) else body.encode()
            usual = {
                "Date": self.date_time_string(),
                "Content-Type": "text/html; charset=utf-8" if is_text else "application/json",
                "Content-Length": str(len(body)),
            }
            self.send_response_only(reply.status)
            for name, value in {**usual, **reply.headers}.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: tests look at what the doctor says."""

    server = _Server(("127.0.0.1", port), Handler)
    if wrap:
        server.socket = wrap(server.socket)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever looks at a certificate and goes away is no error."""


def with_provider(environment: Mapping[str, str], origin: str, **changes: str) -> dict[str, str]:
    """The same set-up, with the identity provider at `origin`."""
    from tests import identity_provider

    return {**environment, **identity_provider.environment(origin), **changes}
