"""Real server processes for tests: Daphne on a free loopback port, with a database of its own, ended with the test."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

ROOT = Path(__file__).resolve().parent.parent
POSTGRES = "postgres://postgres@127.0.0.1:5432"
REDIS = "redis://127.0.0.1:6379"
STARTS_WITHIN = 40.0
ENDS_WITHIN = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 0), timeout=1):
            return True
    except OSError:
        return False


@dataclass
class Server:
    """One CAIR process. `log` grows while it runs; `environment` is what it was started with."""

    url: str
    process: subprocess.Popen[str]
    environment: Mapping[str, str]
    log: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where this very process listens, whatever its public name."""
        return f"http://127.0.0.1:{self.environment['PORT']}"

    @property
    def mcp(self) -> str:
        return f"{self.url}/mcp"

    @property
    def sse(self) -> str:
        return f"{self.url}/sse"

    def manage(self, *arguments: str, stdin: str | None = None) -> str:
        """Run a management command on this server's database, and give what it printed."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT, env=dict(self.environment), input=stdin, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def shell(self, code: str) -> str:
        """Run Python in this server's Django, and give what it printed."""
        return self.manage("shell", "--no-imports", "--command", code).strip()

    def wait_until_ready(self) -> None:
        until = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{''.join(self.log)}")
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                with urllib.request.urlopen(f"{self.address}/health", timeout=2) as response:
                    if response.status == 200:
                        return
            time.sleep(0.05)
        raise AssertionError(f"the server did not start:\n{''.join(self.log)}")

    def log_with(self, text: str) -> str:
        """The log so far, once it holds `text`: what a process prints arrives a moment later."""
        until = time.monotonic() + 5
        while text not in (log := "".join(list(self.log))):
            assert time.monotonic() < until, f"{text!r} is not in the log:\n{log}"
            time.sleep(0.02)
        return log

    def end(self, number: int = signal.SIGTERM) -> float:
        """Ask it to end, and give the seconds it took. Kills it, and fails, if it does not."""
        started = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
                raise AssertionError(f"the server did not end:\n{''.join(self.log)}") from None
        return time.monotonic() - started


@contextlib.contextmanager
def database(kind: str) -> Iterator[str]:
    """The URL of an empty database of this kind, gone afterwards."""
    if kind == "postgres":
        name = f"cair_test_{secrets.token_hex(6)}"
        with psycopg.connect(f"{POSTGRES}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        try:
            yield f"{POSTGRES}/{name}"
        finally:
            with psycopg.connect(f"{POSTGRES}/postgres", autocommit=True) as connection:
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    else:
        with tempfile.TemporaryDirectory(prefix="cair-") as folder:
            yield f"sqlite:///{folder}/cair.sqlite3"


def server_environment(port: int, database_url: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/tmp"),
        "PYTHONUNBUFFERED": "1",
        "CAIR_ENV": "development",
        "CAIR_ENV_FILE": os.devnull,
        "PORT": str(port),
        "DATABASE_URL": database_url,
        **(extra or {}),
    }


@contextlib.contextmanager
def serve(
    database_url: str, extra: Mapping[str, str] | None = None, command: list[str] | None = None
) -> Iterator[Server]:
    """A running server. `extra` goes into its environment; `command` replaces `manage.py serve`."""
    port = int((extra or {}).get("PORT", 0)) or free_port()
    environment = server_environment(port, database_url, extra)
    process = subprocess.Popen(
        [sys.executable, *(command or ["manage.py", "serve"])],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    server = Server(environment.get("PUBLIC_URL", f"http://localhost:{port}"), process, environment)
    reader = threading.Thread(target=lambda: [server.log.append(line) for line in process.stdout or ()], daemon=True)
    reader.start()
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.end()
        reader.join(5)
