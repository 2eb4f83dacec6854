"""Data keys under another master key: rewrapped, never re-made, so no record is touched (DESIGN §6, T20).

The order that no node notices: the new key at the end of CAIR_MASTER_KEYS, restart every node; to the front, restart
every node; rewrap; take the old key out, restart; drop its wrappings.
"""

import uuid

from django.conf import settings
from django.db.transaction import atomic

from oauth_relay import audit, vault
from oauth_relay.models import DataKey, Wrapping


class NobodyCouldOpen(Exception):
    """Some data keys open under no configured master key. `wrapped_by` says which ids would open them."""

    def __init__(self, data_keys: list[uuid.UUID]) -> None:
        self.data_keys = data_keys
        rows = Wrapping.objects.filter(data_key_id__in=data_keys)
        self.wrapped_by = sorted(set(rows.values_list("master_key_id", flat=True)))
        super().__init__(f"{len(data_keys)} data keys open under no key of CAIR_MASTER_KEYS")


def configured_ids() -> list[str]:
    """The ids of the master keys in CAIR_MASTER_KEYS; the first of them wraps."""
    return [vault.master_key_id(key) for key in settings.MASTER_KEYS]


def check_openable() -> None:
    """Raises NobodyCouldOpen, before anything is changed, where a data key is beyond every configured master key."""
    closed = [key.pk for key in DataKey.objects.all() if not _opens(key.pk, settings.MASTER_KEYS)]
    # Asked again: the vault's own rotation may have removed one meanwhile.
    if lost := list(DataKey.objects.filter(pk__in=closed).values_list("pk", flat=True)):
        raise NobodyCouldOpen(lost)


def unwrapped_by_first() -> list[uuid.UUID]:
    """The data keys that the first master key does not open yet."""
    return [key.pk for key in DataKey.objects.order_by("created") if not _opens(key.pk, settings.MASTER_KEYS[:1])]


def rewrap(key_id: uuid.UUID) -> None:
    """Wrap one data key under the first master key too, and prove that it opens there. Raises VaultError."""
    first = settings.MASTER_KEYS[0]
    with atomic():
        if DataKey.objects.select_for_update().filter(pk=key_id).first() is None:
            return  # removed meanwhile, by the vault's own rotation
        data_key = vault.unwrap(key_id, settings.MASTER_KEYS)
        # An update only where the first one's own wrapping was damaged: of two operators at once, both are right.
        Wrapping.objects.update_or_create(
            data_key_id=key_id,
            master_key_id=vault.master_key_id(first),
            defaults={"wrapped": vault.wrap(key_id, data_key, first)},
        )
        if vault.unwrap(key_id, [first]) != data_key:
            raise vault.VaultError(f"data key {key_id} does not come back from its new wrapping")
        detail = {"data_key": key_id, "master_key": vault.master_key_id(first)}
        audit.record_within(audit.Event("vault_key.rewrapped", detail=detail))


def unneeded_ids() -> list[str]:
    """The ids of master keys other than the first that still wrap something; none is needed once all is rewrapped."""
    ids = Wrapping.objects.exclude(master_key_id__in=configured_ids()[:1]).values_list("master_key_id", flat=True)
    return sorted(set(ids))


def drop() -> int:
    """Remove the wrappings under keys that are not configured, of each data key that the first one opens."""
    dropped = 0
    for key in DataKey.objects.order_by("created"):
        with atomic():
            if _opens(key.pk, settings.MASTER_KEYS[:1]):
                foreign = Wrapping.objects.filter(data_key=key).exclude(master_key_id__in=configured_ids())
                count, _ = foreign.delete()
                dropped += count
    if dropped:
        audit.record_within(audit.Event("master_key.dropped", detail={"wrappings": dropped}))
    return dropped


def _opens(key_id: uuid.UUID, master_keys: list[bytes]) -> bool:
    try:
        vault.unwrap(key_id, master_keys)
    except vault.VaultError:
        return False
    return True
