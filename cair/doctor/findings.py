"""What a check found: one line each, and the repair where something is wrong."""

from dataclasses import dataclass
from enum import StrEnum

from django.conf import settings

LONGEST_QUOTE = 200


class Status(StrEnum):
    GOOD = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """One line of the report. `name` stays the same from run to run, for scripts; `repair` is empty where all is well."""

    name: str
    status: Status
    found: str
    repair: str = ""

    def as_json(self) -> dict[str, str]:
        return {"name": self.name, "status": str(self.status), "found": self.found, "repair": self.repair}


class NotLookedAt(Exception):
    """A check that cannot be made before another one is mended: why, and what to mend first."""

    def __init__(self, why: str, repair: str) -> None:
        super().__init__(why)
        self.why, self.repair = why, repair


def good(name: str, found: str) -> Finding:
    return Finding(name, Status.GOOD, found)


def warning(name: str, found: str, repair: str) -> Finding:
    return Finding(name, Status.WARNING, found, repair)


def failure(name: str, found: str, repair: str) -> Finding:
    return Finding(name, Status.FAILURE, found, repair)


def absent(name: str, found: str, repair: str) -> Finding:
    """Something that a production server needs and a development server can do without."""
    return warning(name, found, repair) if settings.DEVELOPMENT else failure(name, found, repair)


def quoted(text: str) -> str:
    """Somebody else's words on one line of ours: cut, and without what a terminal would obey."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    words = " ".join(plain.split())
    return words if len(words) <= LONGEST_QUOTE else f"{words[: LONGEST_QUOTE - 1]}…"
