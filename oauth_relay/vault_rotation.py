"""A new data key for the vault, and every record sealed anew while people work (DESIGN §6, T21).

The new key seals at once everywhere, for each process asks before it seals. Records follow one by one, each by a
comparison with what was read: whoever writes at the same time, a refresh above all, wins. The old key opens until
nothing is sealed under it and nobody can still be writing under it; then its row goes, and with it every wrapping.
Where a rotation stands is in the rows alone: it goes on after a kill, and two at once do one's work between them.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import BinaryField, Model, QuerySet
from django.db.models.functions import Now, Substr
from django.db.transaction import atomic

from oauth_relay import audit, keys, linking, staged_tokens, upstream_credentials, upstream_login, vault
from oauth_relay.models import DataKey, LoginTransaction, SigningKey, UpstreamCredential
from oauth_relay.models.secrets import from_now

logger = logging.getLogger(__name__)

BATCH = 100
SETTLED_AFTER = timedelta(minutes=5)
"""How long after its retirement a key may be removed. A record being sealed at that moment has long been written then."""


@dataclass(frozen=True)
class SealedColumn:
    """One column of sealed records, its name in words, and what each record is sealed to."""

    name: str
    model: type[Model]
    column: str
    binding: Callable[[Any], dict[str, Any]]

    def under(self, data_keys: Iterable[DataKey]) -> "QuerySet[Any]":
        """The rows whose record needs one of `data_keys`, by their ids."""
        start = Substr(self.column, 1, len(vault.prefix_under(DataKey().pk)), output_field=BinaryField())
        rows = self.model._default_manager.annotate(sealed_start=start)
        return rows.filter(sealed_start__in=[vault.prefix_under(key.pk) for key in data_keys]).order_by("pk")

    def reseal(self, row: Any) -> bool:
        """Seal one record anew; False if it has been replaced meanwhile, which is as good. Raises VaultError."""
        old, binding = bytes(getattr(row, self.column)), self.binding(row)
        new = vault.seal(vault.open_sealed(old, **binding), **binding)
        unchanged = self.model._default_manager.filter(pk=row.pk, **{self.column: old})
        return bool(unchanged.update(**{self.column: new}))


SEALED_COLUMNS = (
    SealedColumn("upstream credentials", UpstreamCredential, "tokens", upstream_credentials.own_binding),
    SealedColumn("identities to link", LoginTransaction, "identity_to_link", linking.identity_binding),
    SealedColumn("staged tokens", LoginTransaction, "staged_tokens", staged_tokens.staged_binding),
    SealedColumn(
        "sign-ins under way",
        LoginTransaction,
        "upstream_secrets",
        lambda row: upstream_login.journey_binding(row, row.provider),
    ),
    SealedColumn("signing keys", SigningKey, "private_key", lambda row: keys.binding(row.pk, row.algorithm)),
)


@dataclass
class Progress:
    """How far one pass over a column has come. `unreadable` are rows that open under their own binding no more."""

    name: str
    total: int
    resealed: int = 0
    unreadable: list[str] = field(default_factory=list)


def retired_keys() -> list[DataKey]:
    """The data keys that open and no longer seal, oldest first."""
    return list(DataKey.objects.filter(retired_at__isnull=False).order_by("retired_at"))


def sealing_key() -> DataKey | None:
    """The data key that seals now."""
    return DataKey.objects.filter(retired_at=None).order_by("-created").first()


def begin() -> DataKey | None:
    """Make another data key and retire the rest; None if a rotation is under way, or if there is no key to replace.

    Raises VaultError where the master keys at hand do not open what is to be sealed anew.
    """
    with atomic():
        former = _locked()
        if not former or any(key.retired_at for key in former):
            return None
        for key in former:
            vault.opening_key(key.pk)  # whoever could not finish must not begin
        row = vault.make_key()
        DataKey.objects.filter(pk__in=[key.pk for key in former]).update(retired_at=Now())
        detail = {"data_key": row.pk, "retired": [key.pk for key in former]}
        audit.record_within(audit.Event("vault_key.made", detail=detail))
    return row


def reseal() -> Iterator[Progress]:
    """Seal anew what is sealed under a retired key. Yields after each batch. Raises VaultError if a key cannot be had."""
    LoginTransaction.objects.erase_expired_secrets()
    retired = retired_keys()
    for key in retired:
        vault.opening_key(key.pk)
    for column in SEALED_COLUMNS:
        yield from _reseal_column(column, retired)


def _reseal_column(column: SealedColumn, retired: list[DataKey]) -> Iterator[Progress]:
    rows = column.under(retired)
    progress = Progress(column.name, rows.count())
    batch = list(rows[:BATCH])
    while batch:
        for row in batch:
            _reseal_row(column, row, progress)
        yield progress
        batch = list(rows.filter(pk__gt=batch[-1].pk)[:BATCH])


def _reseal_row(column: SealedColumn, row: Any, progress: Progress) -> None:
    try:
        progress.resealed += column.reseal(row)
    except vault.VaultError as error:
        logger.error("%s: %s", column.name, error)
        progress.unreadable.append(str(row.pk))


def remaining() -> dict[str, int]:
    """How many records of each kind still need a retired key."""
    retired = retired_keys()
    return {column.name: column.under(retired).count() for column in SEALED_COLUMNS}


def removable_at() -> datetime | None:
    """When the last of the retired keys may be removed; None if there is none."""
    return max((key.retired_at + SETTLED_AFTER for key in retired_keys() if key.retired_at), default=None)


def is_settled() -> bool:
    """Whether every retired key has been retired long enough."""
    return not DataKey.objects.filter(retired_at__gt=from_now(-SETTLED_AFTER)).exists()


def remove_unused() -> list[DataKey]:
    """Remove retired keys under which nothing is sealed, and nothing can still be on its way."""
    with atomic():
        _locked()
        settled = DataKey.objects.filter(retired_at__lte=from_now(-SETTLED_AFTER)).order_by("pk")
        removed = [key for key in settled if not any(column.under([key]).exists() for column in SEALED_COLUMNS)]
        for key in removed:
            DataKey.objects.filter(pk=key.pk).delete()
            audit.record_within(audit.Event("vault_key.removed", detail={"data_key": key.pk}))
    return removed


def _locked() -> list[DataKey]:
    """Every data key, locked: one operator at a time. Who has waited reads anew what is there now."""
    list(DataKey.objects.order_by("pk").select_for_update().values_list("pk"))
    return list(DataKey.objects.order_by("created"))
