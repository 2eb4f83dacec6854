"""What the demo says: one numbered line per step, a line that is written over while it waits, and no colour in a file."""

import os
import textwrap
from typing import Any, TextIO


class Terminal:
    def __init__(self, output: Any, stream: TextIO) -> None:
        self._output = output
        self.is_tty = stream.isatty()
        self.has_colour = self.is_tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._number = 0
        self._is_waiting = False

    def _painted(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.has_colour else text

    def say(self, text: str = "") -> None:
        self._clear()
        self._output.write(f"{text}\n", ending="")
        self._output.flush()

    def step(self, name: str, what: str) -> None:
        """One step of the walk, in one line."""
        self._number += 1
        self.say(f"{self._painted('2', f'{self._number:>2}')}  {self._painted('1', f'{name:<13}')} {what}")

    def under(self, what: str) -> None:
        """A second line to the step above, where one does not hold it."""
        self.say(f"{'':17} {what}")

    def waiting(self, for_what: str) -> None:
        """Progress: written over on a terminal, said once elsewhere."""
        if self.is_tty:
            self._output.write(f"\r\033[K    … {for_what}", ending="")
            self._output.flush()
        elif not self._is_waiting:
            self.say(f"    … {for_what}")
        self._is_waiting = True

    def _clear(self) -> None:
        if self._is_waiting and self.is_tty:
            self._output.write("\r\033[K", ending="")
        self._is_waiting = False

    def failed(self, what: str, repair: str) -> None:
        self.say()
        self.say(f"{self._painted('31;1', 'The demo stopped.')} {what}")
        self.say(textwrap.fill(f"What to do: {repair}", 116))


def shortened(secret: str) -> str:
    """Enough of a token to recognise it by, and not enough to use it."""
    return f"{secret[:6]}…"
