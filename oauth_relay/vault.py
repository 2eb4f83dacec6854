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
import uuid
from collections.abc import Sequence
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


class VaultError(Exception):
    """Something cannot be sealed or opened. The message is the operator's; an outsider learns nothing from it."""


@dataclass
class _Memory:
    """Unwrapped data keys of this process. Which one seals is asked each time: sealing is rare, and a rotation is at once."""

    keys: dict[uuid.UUID, bytes] = field(default_factory=dict)

    def keep_only(self, key_ids: set[uuid.UUID]) -> None:
        """Forget keys that a rotation has taken away."""
        self.keys = {key_id: key for key_id, key in self.keys.items() if key_id in key_ids}


_memory = _Memory()


def forget_keys() -> None:
    """Drop every unwrapped key from memory: for a rotation's end, and for tests that empty the database."""
    global _memory
    _memory = _Memory()


def seal(plaintext: bytes, *, purpose: str, row: uuid.UUID, **binding: object) -> bytes:
    """`plaintext` as only `open_sealed` with the same purpose, row and binding can read it. Raises VaultError."""
    key_id, data_key = _sealing_key()
    return prefix_under(key_id) + _encrypt(data_key, plaintext, _associated_data(key_id, purpose, row, binding))


def open_sealed(sealed: bytes | memoryview, *, purpose: str, row: uuid.UUID, **binding: object) -> bytes:
    """What was sealed for exactly this purpose, row and binding. Raises VaultError."""
    envelope = bytes(sealed)
    if envelope[:1] != _VERSION or len(envelope) < 1 + _ID_BYTES + _SALT_BYTES + _NONCE_BYTES + _TAG_BYTES:
        raise VaultError(f"{purpose} {row}: not a sealed record of a version known here")
    key_id = uuid.UUID(bytes=envelope[1 : 1 + _ID_BYTES])
    try:
        return _decrypt(opening_key(key_id), envelope[1 + _ID_BYTES :], _associated_data(key_id, purpose, row, binding))
    except InvalidTag:
        raise VaultError(f"{purpose} {row}: was not sealed for this row and binding") from None


def sealed_under(sealed: bytes | memoryview) -> uuid.UUID:
    """The id of the data key that a record needs."""
    return uuid.UUID(bytes=bytes(sealed)[1 : 1 + _ID_BYTES])


def prefix_under(key_id: uuid.UUID) -> bytes:
    """How every record begins that is sealed under this data key: what a rotation looks for."""
    return _VERSION + key_id.bytes


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
    if not settings.MASTER_KEYS:
        raise VaultError("CAIR_MASTER_KEYS is empty: nothing can be sealed")
    key_id = _newest_key_id() or _make_first_key()
    return key_id, opening_key(key_id)


def opening_key(key_id: uuid.UUID) -> bytes:
    """The data key of that id, unwrapped; from memory if it has been opened before. Raises VaultError."""
    if found := _memory.keys.get(key_id):
        return found
    try:
        data_key = unwrap(key_id, settings.MASTER_KEYS)
    except VaultError as error:
        logger.error("%s; CAIR_MASTER_KEYS has %d", error, len(settings.MASTER_KEYS))
        raise
    _remember(key_id, data_key)
    return data_key


def _remember(key_id: uuid.UUID, data_key: bytes) -> None:
    """Keep a key in memory once its row is certain.

    A key made, or only seen, inside a transaction that is rolled back later would seal records nobody can open.
    """
    on_commit(lambda: _memory.keys.__setitem__(key_id, data_key))


def _newest_key_id() -> uuid.UUID | None:
    rows = list(DataKey.objects.order_by("-created").values_list("pk", "retired_at"))
    _memory.keep_only({key_id for key_id, _ in rows})
    return next((key_id for key_id, retired_at in rows if retired_at is None), None)


def make_key() -> DataKey:
    """A new data key, wrapped by the first master key. Whoever makes one retires the others with it."""
    if not settings.MASTER_KEYS:
        raise VaultError("CAIR_MASTER_KEYS is empty: nothing can wrap a data key")
    return _make_key(uuid.uuid4())


def _make_key(key_id: uuid.UUID) -> DataKey:
    data_key, master_key = os.urandom(_KEY_BYTES), settings.MASTER_KEYS[0]
    row = DataKey.objects.create(pk=key_id)
    wrapped = wrap(key_id, data_key, master_key)
    Wrapping.objects.create(data_key=row, master_key_id=master_key_id(master_key), wrapped=wrapped)
    return row


def _make_first_key() -> uuid.UUID:
    """The first data key; whoever comes second finds the winner's."""
    try:
        with atomic():
            _make_key(_FIRST_KEY_ID)
    except IntegrityError:
        logger.info("another process has made the first data key")
    return _FIRST_KEY_ID


def unwrap(key_id: uuid.UUID, master_keys: Sequence[bytes]) -> bytes:
    """A data key out of its row, by whichever of `master_keys` opens it. Raises VaultError."""
    ours = {master_key_id(key): key for key in master_keys}
    for wrapping in Wrapping.objects.filter(data_key_id=key_id, master_key_id__in=ours):
        master_key = ours[wrapping.master_key_id]
        try:
            return _decrypt(master_key, bytes(wrapping.wrapped), _wrapping_data(key_id, master_key))
        except InvalidTag:
            logger.error("data key %s: its wrapping under %s is damaged", key_id, wrapping.master_key_id)
    raise VaultError(f"data key {key_id} opens under no configured master key")
