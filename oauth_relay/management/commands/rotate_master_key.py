"""`manage.py rotate_master_key`: every data key under the first of CAIR_MASTER_KEYS."""

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from oauth_relay import master_key_rotation
from oauth_relay.management.rotation_command import RotationCommand
from oauth_relay.master_key_rotation import NobodyCouldOpen
from oauth_relay.models import DataKey


class Command(RotationCommand):
    help = "Wrap every data key under the first of CAIR_MASTER_KEYS, so that a former master key can go."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--drop", action="store_true", help="also remove the wrappings under keys that are not configured any more"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.MASTER_KEYS:
            raise CommandError("CAIR_MASTER_KEYS is empty. Make a key with: openssl rand -base64 32")
        try:
            master_key_rotation.check_openable()
        except NobodyCouldOpen as error:
            raise CommandError(_repair(error)) from None
        behind = master_key_rotation.unwrapped_by_first()
        if options["dry_run"]:
            self._foretell(len(behind), options["drop"])
            return
        for number, key_id in enumerate(behind, start=1):
            master_key_rotation.rewrap(key_id)
            self.tell(f"  {number} of {len(behind)}: data key {key_id} is wrapped by {self._first}")
        if options["drop"]:
            self.tell(f"  {master_key_rotation.drop()} wrappings under keys that are not configured are removed")
        self.conclude(f"{self._first} wraps all {DataKey.objects.count()} data keys. {_next_step()}")

    @property
    def _first(self) -> str:
        return master_key_rotation.configured_ids()[0]

    def _foretell(self, behind: int, drop: bool) -> None:
        also = f" Wrappings under {', '.join(_not_configured()) or 'no key'} would be removed." if drop else ""
        self.conclude(f"Nothing was changed. {behind} data keys would be wrapped by {self._first}.{also}")


def _not_configured() -> list[str]:
    configured = master_key_rotation.configured_ids()
    return [key_id for key_id in master_key_rotation.unneeded_ids() if key_id not in configured]


def _next_step() -> str:
    """What is left to do, in the order of T20."""
    configured, gone = master_key_rotation.configured_ids()[1:], _not_configured()
    if configured:
        return (
            f"No longer needed: {', '.join(configured)}. Take it out of CAIR_MASTER_KEYS on every node, restart them, "
            "then run: python manage.py rotate_master_key --drop"
        )
    if gone:
        return (
            f"Wrappings under {', '.join(gone)} are left. Once every node runs without that key: "
            "python manage.py rotate_master_key --drop"
        )
    return "No other master key opens anything. Nothing more to do."


def _repair(error: NobodyCouldOpen) -> str:
    ids = ", ".join(error.wrapped_by) or "nothing"
    return (
        f"Nothing was changed: {error}. They are wrapped by {ids}. Put that key back at the end of CAIR_MASTER_KEYS "
        "and run again. If it is lost, what they seal is lost: people sign in again."
    )
