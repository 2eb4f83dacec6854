"""The vault: what it opens, what it refuses, and its keys (DESIGN §6, T20, T21)."""

import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction

from oauth_relay import vault
from oauth_relay.models import DataKey, Wrapping
from tests import servers
from tests.oauth_relay import racing

ROW = uuid.UUID("11111111-1111-4111-8111-111111111111")
BINDING: dict[str, Any] = {
    "purpose": "upstream-credential",
    "row": ROW,
    "field": "tokens",
    "user": 7,
    "provider": "auth0",
    "issuer": "https://issuer.example/",
    "subject": "ada",
    "version": 3,
}


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    vault.forget_keys()
    yield
    vault.forget_keys()


@pytest.mark.django_db
def test_it_opens_what_it_sealed() -> None:
    assert vault.open_sealed(vault.seal(b"secret", **BINDING), **BINDING) == b"secret"


@pytest.mark.django_db
def test_it_opens_what_postgresql_hands_back_as_a_memoryview() -> None:
    assert vault.open_sealed(memoryview(vault.seal(b"secret", **BINDING)), **BINDING) == b"secret"


@pytest.mark.django_db
def test_it_seals_the_same_bytes_differently_each_time_and_shows_none_of_them() -> None:
    first, second = vault.seal(b"a secret of some length", **BINDING), vault.seal(b"a secret of some length", **BINDING)
    assert first != second
    assert b"secret" not in first


@pytest.mark.threat("T21")
@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("purpose", "signing-key"),
        ("row", uuid.UUID("22222222-2222-4222-8222-222222222222")),
        ("field", "staged_tokens"),
        ("user", 8),
        ("provider", "github"),
        ("issuer", "https://other.example/"),
        ("subject", "mallory"),
        ("version", 2),
    ],
)
def test_it_refuses_a_record_that_was_moved(name: str, value: object) -> None:
    sealed = vault.seal(b"secret", **BINDING)
    with pytest.raises(vault.VaultError):
        vault.open_sealed(sealed, **{**BINDING, name: value})


@pytest.mark.threat("T21")
@pytest.mark.django_db
def test_it_refuses_a_binding_that_only_spells_alike() -> None:
    sealed = vault.seal(b"secret", purpose="p", row=ROW, user="1", name="")
    for other in ({"user": "", "name": "1"}, {"user": "1"}, {"user": "1", "name": None}, {"user": "1", "eman": ""}):
        with pytest.raises(vault.VaultError):
            vault.open_sealed(sealed, purpose="p", row=ROW, **other)


@pytest.mark.django_db
def test_it_refuses_every_changed_byte() -> None:
    sealed = vault.seal(b"secret", **BINDING)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(vault.VaultError):
            vault.open_sealed(bytes(changed), **BINDING)


@pytest.mark.django_db
@pytest.mark.parametrize("garbage", [b"", b"\x01", b"\x02" * 200, b"\x01" * 60])
def test_it_refuses_what_is_no_record(garbage: bytes) -> None:
    with pytest.raises(vault.VaultError):
        vault.open_sealed(garbage, **BINDING)


@pytest.mark.django_db
def test_its_table_holds_the_data_key_only_wrapped(settings: Any) -> None:
    vault.seal(b"secret", **BINDING)
    key_id, data_key = vault._sealing_key()
    wrapping = Wrapping.objects.get(data_key_id=key_id)
    assert data_key not in bytes(wrapping.wrapped)
    assert wrapping.master_key_id == vault.master_key_id(settings.MASTER_KEYS[0])


# -- master keys (T20) -------------------------------------------------------------------------------------------------


@pytest.mark.threat("T20")
@pytest.mark.django_db
def test_it_wraps_with_the_first_master_key_and_opens_with_any(settings: Any) -> None:
    old, new = os.urandom(32), os.urandom(32)
    settings.MASTER_KEYS = [old]
    sealed = vault.seal(b"secret", **BINDING)
    for keys in ([old, new], [new, old]):
        vault.forget_keys()
        settings.MASTER_KEYS = keys
        assert vault.open_sealed(sealed, **BINDING) == b"secret"
    row = Wrapping.objects.get()
    Wrapping.objects.create(
        data_key=row.data_key,
        master_key_id=vault.master_key_id(new),
        wrapped=vault.wrap(row.data_key_id, vault.opening_key(row.data_key_id), new),
    )
    for keys in ([old], [new]):  # a node that has not been restarted yet, and one that has
        vault.forget_keys()
        settings.MASTER_KEYS = keys
        assert vault.open_sealed(sealed, **BINDING) == b"secret"


@pytest.mark.django_db
def test_it_opens_nothing_without_the_master_key_and_says_so_to_the_operator_only(settings: Any, caplog: Any) -> None:
    sealed = vault.seal(b"secret", **BINDING)
    vault.forget_keys()
    settings.MASTER_KEYS = [os.urandom(32)]
    with pytest.raises(vault.VaultError):
        vault.open_sealed(sealed, **BINDING)
    assert "CAIR_MASTER_KEYS" in caplog.text
    with pytest.raises(vault.VaultError):  # nor does it quietly begin anew beside a key it cannot open
        vault.seal(b"secret", **BINDING)
    assert DataKey.objects.count() == 1


@pytest.mark.django_db
def test_it_seals_nothing_without_any_master_key(settings: Any) -> None:
    settings.MASTER_KEYS = []
    with pytest.raises(vault.VaultError, match="CAIR_MASTER_KEYS"):
        vault.seal(b"secret", **BINDING)


@pytest.mark.django_db
def test_it_seals_with_the_newest_key_and_still_opens_with_the_retired_one(settings: Any) -> None:
    sealed = vault.seal(b"secret", **BINDING)
    data_key, master_key = os.urandom(32), settings.MASTER_KEYS[0]
    newer = DataKey.objects.create()
    Wrapping.objects.create(
        data_key=newer,
        master_key_id=vault.master_key_id(master_key),
        wrapped=vault.wrap(newer.pk, data_key, master_key),
    )
    assert vault.sealed_under(vault.seal(b"secret", **BINDING)) == newer.pk
    assert vault.open_sealed(sealed, **BINDING) == b"secret"


# -- the first key -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_it_forgets_a_key_whose_making_was_rolled_back() -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        vault.seal(b"secret", **BINDING)
        raise ZeroDivisionError
    sealed = vault.seal(b"secret", **BINDING)
    vault.forget_keys()
    assert vault.open_sealed(sealed, **BINDING) == b"secret"


SEAL_AND_OPEN = """
import uuid
from oauth_relay import vault
def act():
    row = uuid.uuid4()
    sealed = vault.seal(b"secret", purpose="race", row=row)
    vault.forget_keys()
    assert vault.open_sealed(sealed, purpose="race", row=row) == b"secret"
    return str(vault.sealed_under(sealed))
"""


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_processes_that_seal_at_once_end_with_one_key(kind: str) -> None:
    with servers.database(kind) as url:
        environment = racing.environment(url)
        racing.migrate(environment)
        used = racing.race(environment, SEAL_AND_OPEN)
    assert len(used) == 6
    assert len(set(used)) == 1
