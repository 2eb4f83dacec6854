"""What every command that rotates a key has in common: how it talks, and how it waits.

Progress goes to stderr, one last plain line to stdout: what is now true, and what to do next.
"""

import time
from argparse import ArgumentParser
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from oauth_relay.database import DATABASE_AWAY

_GO_ON = "What was done is whole; run the same command again to go on."
LOOK_EVERY = 1.0
TELL_EVERY = 30.0


class RotationCommand(BaseCommand):
    """Bends Django's command: --dry-run for all, and stderr that is no red alarm."""

    can_wait = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
        if self.can_wait:
            parser.add_argument("--wait", action="store_true", help="stay until the whole rotation is over")

    def execute(self, *args: Any, **options: Any) -> Any:
        self.stderr.style_func = None
        try:
            return super().execute(*args, **options)
        except KeyboardInterrupt:
            raise CommandError(f"Ended. {_GO_ON}", returncode=130) from None
        except DATABASE_AWAY as error:
            raise CommandError(f"The database is away ({error.__class__.__name__}). {_GO_ON}") from None

    def tell(self, line: str) -> None:
        """Progress, for whoever watches."""
        self.stderr.write(line)
        self.stderr.flush()

    def conclude(self, line: str) -> None:
        self.stdout.write(line)

    def wait_for(self, is_there: Callable[[], bool], what: str, due: datetime | None) -> None:
        """Look once a second, and tell now and then how long it will take. An operator may end it at any time."""
        told_at = float("-inf")
        while not is_there():
            if time.monotonic() - told_at >= TELL_EVERY:
                self.tell(f"  {what} {moment(due)}")
                told_at = time.monotonic()
            time.sleep(LOOK_EVERY)


def moment(due: datetime | None) -> str:
    """A moment in the operator's words: the time in UTC, and how far away it is."""
    if due is None:
        return "now"
    seconds = max(0, round((due - timezone.now()).total_seconds()))
    return f"{due:%Y-%m-%d %H:%M:%S} UTC (in {seconds // 60} min {seconds % 60} s)"
