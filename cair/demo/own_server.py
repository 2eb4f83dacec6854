"""A server of the demo's own: a free port, a throw-away database, ended with the demo."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import requests

from cair.demo.trouble import DemoFailed

STARTS_WITHIN = 60.0
ENDS_WITHIN = 8.0
ROOT = Path(__file__).resolve().parent.parent.parent
# What a process needs of its surroundings. Nothing else is handed on: a provider configured for the real server would
# otherwise decide who can sign in to this one.
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_healthy(url: str) -> bool:
    session = requests.Session()
    session.trust_env = False
    with contextlib.suppress(requests.RequestException):
        return session.get(f"{url}/health", timeout=2).status_code == 200
    return False


@contextlib.contextmanager
def own_server(waiting: Callable[[str], None]) -> Iterator[str]:
    """The URL of a running server. `waiting` is told, again and again, that it is still starting."""
    with tempfile.TemporaryDirectory(prefix="cair-demo-") as folder:
        process, log, url = _start(Path(folder), free_port())
        try:
            _wait(process, log, url, waiting)
            yield url
        finally:
            _end(process)


def _start(folder: Path, port: int) -> tuple[subprocess.Popen[bytes], Path, str]:
    log = folder / "server.log"
    environment = {name: os.environ[name] for name in KEPT if name in os.environ} | {
        "CAIR_ENV": "development",
        "CAIR_ENV_FILE": os.devnull,
        "DATABASE_URL": f"sqlite:///{folder}/demo.sqlite3",
        "PORT": str(port),
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, str(ROOT / "manage.py"), "serve"],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends its server in good order
        )  # fmt: skip
    return process, log, f"http://localhost:{port}"


def _wait(process: subprocess.Popen[bytes], log: Path, url: str, waiting: Callable[[str], None]) -> None:
    until = time.monotonic() + STARTS_WITHIN
    while not is_healthy(url):
        if process.poll() is not None:
            raise DemoFailed(f"The demo's own server did not start:\n{_tail(log)}", "Mend what it says, and try again.")
        if time.monotonic() > until:
            raise DemoFailed(
                f"The demo's own server is not ready after {STARTS_WITHIN:.0f} s:\n{_tail(log)}", "Try again."
            )
        waiting("starting a server of its own")
        # Between two questions to a process that says nothing when it is ready.
        time.sleep(0.2)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()[-12:]
    return "\n".join(f"    {line}" for line in lines)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(ENDS_WITHIN)
