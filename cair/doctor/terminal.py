"""How findings are told: a mark, a name and a line each; under it, where something is wrong, the repair."""

import os
import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import Any

from cair.doctor.findings import Finding, Status

_MARKS = {Status.GOOD: ("✓", "ok", "32"), Status.WARNING: ("!", "!", "33"), Status.FAILURE: ("✗", "x", "31;1")}
NAME_WIDTH = 27
LINE_WIDTH = 118


class Terminal:
    """Writes to a command's output. Colour only where a person looks, and wants it (https://no-color.org)."""

    def __init__(self, output: Any, *, is_tty: bool, may_colour: bool) -> None:
        self._output = output
        wanted = may_colour and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.has_colour = is_tty and wanted
        self.has_signs = _can_write(output, "✓✗→")

    def tell(self, finding: Finding) -> None:
        sign, plain, colour = _MARKS[finding.status]
        mark = self._painted(colour, sign if self.has_signs else f"{plain:<2}")
        self._say(f" {mark} {finding.name:<{NAME_WIDTH}} {finding.found}")
        if finding.repair:
            arrow = "→" if self.has_signs else "->"
            indent = " " * (NAME_WIDTH + 4)
            lines = textwrap.wrap(
                f"{arrow} {finding.repair}", LINE_WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
            self._say("\n".join(lines))

    def sum_up(self, findings: Iterable[Finding]) -> None:
        count = Counter(finding.status for finding in findings)
        failures, warnings = count[Status.FAILURE], count[Status.WARNING]
        if failures:
            told = f"{_counted(failures, 'failure')}, {_counted(warnings, 'warning')}. What is marked has its repair below it."
        elif warnings:
            told = f"No failure, {_counted(warnings, 'warning')}."
        else:
            told = "All is well."
        self._say(f"\n{self._painted('1', told)}")

    def _painted(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.has_colour else text

    def _say(self, text: str) -> None:
        if not self.has_signs:
            text = text.encode("ascii", "replace").decode()
        self._output.write(text)
        self._output.flush()


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _can_write(output: Any, signs: str) -> bool:
    """Whether the encoding of `output` has these characters: a log of an old machine may not."""
    try:
        signs.encode(getattr(output, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
