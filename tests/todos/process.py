"""The Todos API as a process of its own, started from a folder that holds `todos/` and nothing else of the checkout."""

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

PACKAGE = Path(__file__).resolve().parents[2] / "todos"
STARTS_WITHIN = 40.0
ENDS_WITHIN = 5.0


def lonely_copy(folder: Path) -> Path:
    """A copy of the package in `folder`: whatever it imports beside itself must be a library."""
    shutil.copytree(PACKAGE, folder / "todos", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


class TodosProcess:
    """`python -m todos` in `folder`. `url` is what it printed."""

    def __init__(self, folder: Path, **environment: str) -> None:
        plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.lines: list[str] = []
        self._unread: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "todos"],
            cwd=folder,
            env={**plain, "PORT": "0", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line)
            self._unread.put(line)
        self._unread.put(None)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def url(self) -> str:
        """Where it listens, once it does."""
        until = time.monotonic() + STARTS_WITHIN
        while line := self._unread.get(timeout=max(0.1, until - time.monotonic())):
            if found := re.search(r"http://127\.0\.0\.1:\d+(?=/api/health)", line):
                return found[0]
        raise AssertionError(f"it ended before it listened:\n{self.log}")

    def exit_code(self, within: float = STARTS_WITHIN) -> int:
        code = self.process.wait(within)
        self._reader.join(5)
        return code

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.exit_code(ENDS_WITHIN)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.exit_code()


@contextlib.contextmanager
def running(folder: Path, **environment: str) -> Iterator[TodosProcess]:
    process = TodosProcess(folder, **environment)
    try:
        yield process
    finally:
        process.close()


def ask(method: str, url: str, raw_token: str | None = None, **options: Any) -> requests.Response:
    headers = {**({"Authorization": f"Bearer {raw_token}"} if raw_token else {}), **options.pop("headers", {})}
    return requests.request(method, url, headers=headers, timeout=10, **options)
