"""`manage.py rotate_client_secret CLIENT_ID`: another secret for a client; the old one stays good for a while."""

import re
from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError

from oauth_relay import client_secrets
from oauth_relay.client_secrets import NothingToRotate, OverlapUnderWay
from oauth_relay.management.rotation_command import RotationCommand, moment
from oauth_relay.models import Client

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
LONGEST_OVERLAP = timedelta(days=30)


def duration(text: str) -> timedelta:
    """`24h`, `90m`, `7d`, `0`."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd]?)", text)
    if found is None or (not found[2] and int(found[1])):
        raise ArgumentTypeError(f"{text!r} is no duration: write 24h, 90m or 7d; 0 for none")
    length = timedelta(**{_UNITS[found[2] or "s"]: int(found[1])})
    if length > LONGEST_OVERLAP:
        raise ArgumentTypeError("an overlap is at most 30d")
    return length


class Command(RotationCommand):
    help = "Make another secret for a confidential client and print it, once. The old one stays good for an overlap."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("client_id", help="the client's id, as the admin shows it")
        parser.add_argument(
            "--overlap",
            type=duration,
            default="24h",
            help="how long the old one stays good (%(default)s; 0: not at all)",
        )
        parser.add_argument("--again", action="store_true", help="even if an earlier change is still in its overlap")
        parser.add_argument("--end-overlap", action="store_true", help="make no secret; end the old ones now")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            client = client_secrets.client_to_rotate(options["client_id"])
            if options["dry_run"]:
                self._foretell(client)
            elif options["end_overlap"]:
                client_secrets.end_overlap(client)
                self.conclude(f"Only the newest secret of {client.display_name} is good.")
            else:
                self._rotate(client, options["overlap"], options["again"])
        except NothingToRotate as error:
            raise CommandError(str(error)) from None

    def _rotate(self, client: Client, overlap: timedelta, again: bool) -> None:
        """The secret alone goes to stdout, so that it can be piped to where it belongs."""
        try:
            raw_secret = client_secrets.rotate(client, overlap=overlap, again=again)
        except OverlapUnderWay as error:
            raise CommandError(
                f"The secret of {client.display_name} was changed already; the former one is good until "
                f"{moment(error.until)}. For yet another one add --again; to end the former one, --end-overlap."
            ) from None
        self.stdout.write(raw_secret)
        until = client_secrets.overlap_of(client)
        former = f"Former ones are good until {moment(until)}" if until else "Former ones are good no more"
        self.tell(
            f"That is the new secret of {client.display_name}, shown this once. {former}: give the client the new."
        )

    def _foretell(self, client: Client) -> None:
        until = client_secrets.overlap_of(client)
        under_way = f" An earlier change is in its overlap until {moment(until)}." if until else ""
        self.conclude(f"Nothing was changed. {client.display_name} would get another secret.{under_way}")
