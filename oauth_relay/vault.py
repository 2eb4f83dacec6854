"""Sealing what must be sent on later: provider tokens, private keys, secrets of a journey (T20, T21).

Three layers. A master key from the environment wraps a data key; the data key, with 32 random bytes kept beside each
record, makes that record's own key; AES-256-GCM seals the record under it. Rotating a master key rewraps a few rows
and touches no record.

Whoever opens says what it believes it is opening: purpose, row and binding come from the asker, never out of the
record. A ciphertext copied to another row, person or version is noise there.
"""

import hashlib
import json
import logging
import os
import time
import uuid
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.db import IntegrityError
from django.db.transaction import atomic, on_commit

from oauth_relay.models import DataKey, Wrapping

logger = logging.getLogger(__name__)

_VERSION = b"\x01"
_SALT_BYTES = 32
_NONCE_BYTES = 12
_KEY_BYTES = 32
_ID_BYTES = 16
_TAG_BYTES = 16

# The first data key has this id in every installation: of two processes that make one at once, the primary key lets
# exactly one commit. Later keys, made by rotation, have random ids.
_FIRST_KEY_ID = uuid.uuid5(uuid.NAMESPACE_URL, "urn:cair:first-data-key")

SEALING_KEY_LIFETIME = 30.0
"""Seconds for which a process seals under a key without asking again: a rotation reaches everyone within it."""


class VaultError(Exception):
    """Something cannot be sealed or opened. The message is the operator's; an outsider learns nothing from it."""


@dataclass
class _Memory:
    """Unwrapped data keys of this process. Opening keys never change; the sealing key is looked up again now and then."""

    keys: dict[uuid.UUID, bytes] = field(default_factory=dict)
    sealing: uuid.UUID | None = None
    read_at: float = 0.0

    def keep(self, key_id: uuid.UUID, key: bytes, *, sealing: bool) -> None:
        self.keys[key_id] = key
        if sealing:
            self.sealing, self.read_at = key_id, time.monotonic()

    def sealing_key(self) -> tuple[uuid.UUID, bytes] | None:
        if self.sealing is None or time.monotonic() - self.read_at > SEALING_KEY_LIFETIME:
            return None
        return self.sealing, self.keys[self.sealing]


_memory = _Memory()


def forget_keys() -> None:
    """Drop every unwrapped key from memory: for a rotation's end, and for tests that empty the database."""
    global _memory
    _memory = _Memory()


def seal(plaintext: bytes, *, purpose: str, row: uuid.UUID, **binding: object) -> bytes:
    """`plaintext` as only `open_sealed` with the same purpose, row and binding can read it. Raises VaultError."""
    key_id, data_key = _sealing_key()
    return _VERSION + key_id.bytes + _encrypt(data_key, plaintext, _associated_data(key_id, purpose, row, binding))


def open_sealed(sealed: bytes | memoryview, *, purpose: str, row: uuid.UUID, **binding: object) -> bytes:
    """What was sealed for exactly this purpose, row and binding. Raises VaultError."""
    envelope = bytes(sealed)
    if envelope[:1] != _VERSION or len(envelope) < 1 + _ID_BYTES + _SALT_BYTES + _NONCE_BYTES + _TAG_BYTES:
        raise VaultError(f"{purpose} {row}: not a sealed record of a version known here")
    key_id = uuid.UUID(bytes=envelope[1 : 1 + _ID_BYTES])
    try:
        return _decrypt(
            _opening_key(key_id), envelope[1 + _ID_BYTES :], _associated_data(key_id, purpose, row, binding)
        )
    except InvalidTag:
        raise VaultError(f"{purpose} {row}: was not sealed for this row and binding") from None


def sealed_under(sealed: bytes | memoryview) -> uuid.UUID:
    """The id of the data key that a record needs: what a rotation asks before it re-encrypts."""
    return uuid.UUID(bytes=bytes(sealed)[1 : 1 + _ID_BYTES])


# -- records -----------------------------------------------------------------------------------------------------------


def _associated_data(key_id: uuid.UUID, purpose: str, row: uuid.UUID, binding: dict[str, object]) -> bytes:
    """JSON, so that no two different bindings can ever spell the same bytes."""
    named = {name: None if value is None else str(value) for name, value in binding.items()}
    return json.dumps([_VERSION.hex(), str(key_id), purpose, str(row), named], sort_keys=True).encode()


def _encrypt(key: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    return salt + nonce + AESGCM(_record_key(key, salt)).encrypt(nonce, plaintext, associated_data)


def _decrypt(key: bytes, box: bytes, associated_data: bytes) -> bytes:
    salt, nonce = box[:_SALT_BYTES], box[_SALT_BYTES : _SALT_BYTES + _NONCE_BYTES]
    return AESGCM(_record_key(key, salt)).decrypt(nonce, box[_SALT_BYTES + _NONCE_BYTES :], associated_data)


def _record_key(key: bytes, salt: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=salt, info=b"cair vault record 1").derive(key)


# -- data keys and the master keys that wrap them ----------------------------------------------------------------------


def master_key_id(master_key: bytes) -> str:
    """A short name for a master key, safe to store and to show: sixteen hexadecimal digits of a digest."""
    return hashlib.sha256(b"cair master key id" + master_key).hexdigest()[:16]


def wrap(data_key_id: uuid.UUID, data_key: bytes, master_key: bytes) -> bytes:
    """A data key as only `master_key` can read it."""
    return _encrypt(master_key, data_key, _wrapping_data(data_key_id, master_key))


def _wrapping_data(data_key_id: uuid.UUID, master_key: bytes) -> bytes:
    return json.dumps(["cair data key wrapping 1", str(data_key_id), master_key_id(master_key)]).encode()


def _sealing_key() -> tuple[uuid.UUID, bytes]:
    """The data key that seals now; made if this is the first secret of the installation."""
    if found := _memory.sealing_key():
        return found
    if not settings.MASTER_KEYS:
        raise VaultError("CAIR_MASTER_KEYS is empty: nothing can be sealed")
    key_id = _newest_key_id() or _make_first_key()
    data_key = _unwrap(key_id)
    _remember(key_id, data_key, sealing=True)
    return key_id, data_key


def _opening_key(key_id: uuid.UUID) -> bytes:
    if found := _memory.keys.get(key_id):
        return found
    data_key = _unwrap(key_id)
    _remember(key_id, data_key, sealing=False)
    return data_key


def _remember(key_id: uuid.UUID, data_key: bytes, *, sealing: bool) -> None:
    """Keep a key in memory once its row is certain.

    A key made, or only seen, inside a transaction that is rolled back later would seal records nobody can open.
    """
    on_commit(lambda: _memory.keep(key_id, data_key, sealing=sealing))


def _newest_key_id() -> uuid.UUID | None:
    newest = DataKey.objects.filter(retired_at__isnull=True).order_by("-created").first()
    return newest.pk if newest else None


def _make_first_key() -> uuid.UUID:
    """The first data key, wrapped by the first master key; whoever comes second finds the winner's."""
    data_key, master_key = os.urandom(_KEY_BYTES), settings.MASTER_KEYS[0]
    try:
        with atomic():
            row = DataKey.objects.create(pk=_FIRST_KEY_ID)
            Wrapping.objects.create(
                data_key=row,
                master_key_id=master_key_id(master_key),
                wrapped=wrap(row.pk, data_key, master_key),
            )
    except IntegrityError:
        logger.info("another process has made the first data key")
    return _FIRST_KEY_ID


def _unwrap(key_id: uuid.UUID) -> bytes:
    """A data key out of its row, by whichever of our master keys opens it. Raises VaultError."""
    ours = {master_key_id(key): key for key in settings.MASTER_KEYS}
    for wrapping in Wrapping.objects.filter(data_key_id=key_id, master_key_id__in=ours):
        master_key = ours[wrapping.master_key_id]
        try:
            return _decrypt(master_key, bytes(wrapping.wrapped), _wrapping_data(key_id, master_key))
        except InvalidTag:
            logger.error("data key %s: its wrapping under %s is damaged", key_id, wrapping.master_key_id)
    logger.error("data key %s opens under none of the %d keys in CAIR_MASTER_KEYS", key_id, len(ours))
    raise VaultError(f"data key {key_id} opens under no configured master key")
