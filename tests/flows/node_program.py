"""A Node program under test: its lines as they come, orders to it, and a bound on every wait."""

import contextlib
import json
import os
import queue
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NODE = Path(__file__).resolve().parent.parent / "node"
STARTS_WITHIN = 30.0
ANSWERS_WITHIN = 15.0


class NodeProgram:
    """One process of `node`, in tests/node. Both its outputs are read as lines; `None` in the queue is the end."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.process = subprocess.Popen(
            ["node", *arguments],
            cwd=NODE, env={**kept, "NO_COLOR": "1", **(environment or {})}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.said: list[str] = []
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.complaints: queue.Queue[str | None] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self.complaints), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, into: "queue.Queue[str | None]") -> None:
        for line in stream:
            self.said.append(line)
            into.put(line)
        into.put(None)

    def write(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def line(self, within: float = ANSWERS_WITHIN, source: "queue.Queue[str | None] | None" = None) -> str:
        try:
            line = (source or self.lines).get(timeout=within)
        except queue.Empty:
            raise AssertionError(f"nothing came within {within} s; so far:\n{''.join(self.said)}") from None
        assert line is not None, f"the program ended:\n{''.join(self.said)}"
        return line

    def message(self, within: float = ANSWERS_WITHIN) -> dict[str, Any]:
        """The next JSON line of its standard output."""
        while True:
            line = self.line(within)
            if line.startswith("{"):
                message: dict[str, Any] = json.loads(line)
                return message

    def end(self) -> None:
        """The program, and its streams, are gone afterwards."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        for reader in self._readers:
            reader.join(5)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def node(*arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[NodeProgram]:
    program = NodeProgram(*arguments, environment=environment)
    try:
        yield program
    finally:
        program.end()
