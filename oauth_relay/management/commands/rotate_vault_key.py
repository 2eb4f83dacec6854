"""`manage.py rotate_vault_key`: another data key, and every sealed record under it, while people work."""

from typing import Any

from django.core.management.base import CommandError

from oauth_relay import vault, vault_rotation
from oauth_relay.management.rotation_command import RotationCommand, moment

AGAIN = "python manage.py rotate_vault_key"


class Command(RotationCommand):
    help = "Change the key that seals the vault's records: begin a rotation, or go on with the one that is under way."
    can_wait = True

    def handle(self, *args: Any, **options: Any) -> None:
        if vault_rotation.sealing_key() is None:
            self.conclude("There is no data key yet, so there is nothing to rotate: the first secret makes one.")
            return
        if options["dry_run"]:
            self._foretell()
            return
        try:
            self._rotate(options["wait"])
        except vault.VaultError as error:
            repair = "Put the former master key back at the end of CAIR_MASTER_KEYS, and run again"
            raise CommandError(f"Nothing is lost, and not everything is done: {error}. {repair}: {AGAIN}") from None

    def _rotate(self, wait: bool) -> None:
        if made := vault_rotation.begin():
            self.tell(f"  data key {made.pk} seals from now on, in every process")
        self._reseal()
        if wait and not vault_rotation.is_settled():
            self.wait_for(vault_rotation.is_settled, "the former key can be removed at", vault_rotation.removable_at())
            self._reseal()
        for key in vault_rotation.remove_unused():
            self.tell(f"  data key {key.pk} is removed: nothing is sealed under it")
        self.conclude(_summary())

    def _reseal(self) -> None:
        unreadable: dict[str, list[str]] = {}
        for progress in vault_rotation.reseal():
            self.tell(f"  {progress.name}: {progress.resealed} of {progress.total} sealed anew")
            if progress.unreadable:
                unreadable[progress.name] = progress.unreadable
        if unreadable:
            raise CommandError(_unreadable(unreadable))

    def _foretell(self) -> None:
        retired = vault_rotation.retired_keys()
        under = retired or [key for key in [vault_rotation.sealing_key()] if key]
        for column in vault_rotation.SEALED_COLUMNS:
            self.tell(f"  {column.name}: {column.under(under).count()} would be sealed anew")
        what = "The rotation that is under way would go on" if retired else "A new data key would be made"
        self.conclude(f"Nothing was changed. {what}.")


def _unreadable(unreadable: dict[str, list[str]]) -> str:
    rows = "; ".join(f"{name} {', '.join(ids[:10])}" for name, ids in unreadable.items())
    return (
        f"These do not open as what their rows say they are, so the former key stays: {rows}. Nobody can use them "
        f"either. Staged tokens and sign-ins end by themselves within half an hour; a credential is replaced when its "
        f"person signs in, or is removed with the last connection. Then run again: {AGAIN}"
    )


def _summary() -> str:
    sealing, retired = vault_rotation.sealing_key(), vault_rotation.retired_keys()
    assert sealing is not None
    if not retired:
        return f"Everything is sealed under {sealing.pk}, and no former data key is left. Nothing more to do."
    left = sum(vault_rotation.remaining().values())
    return (
        f"{sealing.pk} seals; {left} records are under a former data key. "
        f"After {moment(vault_rotation.removable_at())} run again, to remove it: {AGAIN}"
    )
