"""`manage.py rotate_signing_key`: another key for the API tokens that CAIR issues, without a refused call."""

import uuid
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from oauth_relay import key_rotation
from oauth_relay.key_rotation import Standing
from oauth_relay.management.rotation_command import RotationCommand, moment

AGAIN = "python manage.py rotate_signing_key"


class Command(RotationCommand):
    help = "Change the key that signs API tokens: begin a rotation, or go on with the one that is under way."
    can_wait = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--compromised", metavar="KID", type=uuid.UUID, help="withdraw this key at once")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["compromised"]:
            self._compromise(options["compromised"], options["dry_run"])
        elif options["dry_run"]:
            self._foretell(key_rotation.standing())
        else:
            self._rotate(options["wait"])

    def _rotate(self, wait: bool) -> None:
        """Each step is complete in itself: this may be ended, and started again, between any two."""
        standing = self._told(key_rotation.advance(may_begin=True))
        while wait and standing.is_under_way:
            self.wait_for(key_rotation.is_due, "the next step can be made at", standing.due)
            standing = self._told(key_rotation.advance(may_begin=False))
        self.conclude(_summary(standing))

    def _told(self, standing: Standing) -> Standing:
        for line in standing.did:
            self.tell(f"  {line}")
        return standing

    def _compromise(self, key_id: uuid.UUID, dry_run: bool) -> None:
        try:
            standing = key_rotation.standing() if dry_run else key_rotation.compromise(key_id)
        except key_rotation.UnknownKey:
            raise CommandError(f"No signing key has the id {key_id}. See them with: python manage.py keys") from None
        if dry_run:
            successor = standing.next or "a new key"
            also = f", and {successor} would be current at once" if standing.current == key_id else ""
            self.conclude(f"Nothing was changed. {key_id} would leave the published keys{also}.")
            return
        self._told(standing)
        self.conclude(
            f"{key_id} signs nothing and is not published; {standing.current} signs. Whatever it signed is refused as "
            "soon as an API reads the keys again: restart APIs that keep them long, and caches in between."
        )

    def _foretell(self, standing: Standing) -> None:
        if standing.current is None:
            self.conclude(_summary(standing))
        elif standing.is_under_way:
            what = f"{standing.next} would become current" if standing.next else "the retired key would be erased"
            self.conclude(f"Nothing was changed. A rotation is under way: {what} at {moment(standing.due)}.")
        else:
            self.conclude("Nothing was changed. A new key would be published, and sign nothing yet.")


def _summary(standing: Standing) -> str:
    if standing.current is None:
        return "There is no signing key, and none is needed: providers issue the API tokens."
    if standing.next is not None:
        return f"{standing.current} signs, {standing.next} is next. After {moment(standing.due)} run again: {AGAIN}"
    if standing.retired:
        former = ", ".join(str(key_id) for key_id in standing.retired)
        return (
            f"{standing.current} signs; {former} is still published for its last tokens. "
            f"After {moment(standing.due)} run again, to erase it: {AGAIN}"
        )
    return f"{standing.current} signs, and no former key is left. Nothing more to do."
