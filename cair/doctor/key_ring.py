"""The keys in the database: of what age, under which master keys, and whether the running server uses the same."""

from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

from django.conf import settings
from django.utils import timezone

from cair.doctor.findings import Finding, failure, good, warning
from cair.doctor.network import NoAnswer
from cair.doctor.visit import Visit
from oauth_relay import key_rotation, keys, upstream_credentials, vault, vault_rotation
from oauth_relay.models import DataKey, SigningKey, Wrapping

OLD = timedelta(days=365)
LINGERING = timedelta(days=1)
"""How long a key may stay after it is no longer needed: an operator who rotates by hand comes back the next day."""
PREPARE = "Run: python manage.py prepare"


def signing_keys(visit: Visit) -> Iterator[Finding]:
    """The key that signs API tokens: that it opens, its age, and that the running server publishes it."""
    visit.need_tables()
    line = "signing keys"
    current = SigningKey.objects.filter(purpose=keys.API_TOKEN, state=SigningKey.State.CURRENT).first()
    if current is None:
        if any(api["token_source"] == upstream_credentials.CAIR for api in settings.UPSTREAM_APIS.values()):
            yield failure(line, "none is current, and CAIR issues API tokens", PREPARE)
        else:
            yield good(line, "none, and none needed: providers issue the API tokens")
        return
    if _is_published(visit, current) is False:
        found = "the server at PUBLIC_URL does not publish this database's current key: it uses another database"
        yield failure(line, found, "Give both the same DATABASE_URL, or run this where the server runs.")
        return
    try:
        keys.sign_api_token({})
    except vault.VaultError:
        yield failure(line, "the current one cannot be opened", "See the line “master keys”.")
        return
    over = timezone.now() - key_rotation.PUBLISHED_AFTER - LINGERING
    retired = SigningKey.objects.filter(purpose=keys.API_TOKEN, state=SigningKey.State.RETIRED, state_since__lt=over)
    if retired.exists():
        found = f"{retired.count()} retired and long unneeded, private half and all: a rotation was left unfinished"
        yield warning(line, found, "Run: python manage.py rotate_signing_key")
        return
    age = timezone.now() - current.state_since
    states = SigningKey.objects.filter(purpose=keys.API_TOKEN).values_list("state", flat=True)
    said = f"current for {age.days} days; {len(states)} in all"
    if age > OLD:
        yield warning(line, said, "Run: python manage.py rotate_signing_key")
    else:
        yield good(line, said)


def _is_published(visit: Visit, key: SigningKey) -> bool | None:
    """Whether the running server names `key`; None where no server can be asked."""
    if not visit.is_cair_at(settings.PUBLIC_URL):
        return None
    try:
        document = visit.network.get(f"{settings.PUBLIC_URL}/.well-known/jwks.json").json_object()
    except NoAnswer:
        return None
    published = document.get("keys")
    return isinstance(published, list) and str(key.pk) in [jwk.get("kid") for jwk in published if isinstance(jwk, dict)]


def data_keys(visit: Visit) -> Iterator[Finding]:
    """The keys that seal records: there, not too old, and the newest one really seals and opens."""
    visit.need_tables()
    line = "data keys"
    sealing = DataKey.objects.filter(retired_at=None).order_by("-created").first()
    if sealing is None:
        yield warning(line, "none yet: the first secret makes one", PREPARE)
        return
    try:
        row = uuid4()
        vault.open_sealed(vault.seal(b"", purpose="doctor", row=row), purpose="doctor", row=row)
    except vault.VaultError as error:
        yield failure(line, f"nothing can be sealed: {error}", "See the line “master keys”.")
        return
    over = timezone.now() - vault_rotation.SETTLED_AFTER - LINGERING
    if lingering := DataKey.objects.filter(retired_at__lt=over).count():
        found = f"{lingering} retired for more than a day and still here: a rotation was left unfinished"
        yield warning(line, found, "Run: python manage.py rotate_vault_key, which says what is still sealed under it")
        return
    age = timezone.now() - sealing.created
    said = f"{DataKey.objects.count()}, the newest {age.days} days old; it seals and opens"
    if age > OLD:
        yield warning(line, said, "Run: python manage.py rotate_vault_key")
    else:
        yield good(line, said)


def master_keys(visit: Visit) -> Iterator[Finding]:
    """Each data key is wrapped by the first key of CAIR_MASTER_KEYS; at least by one that is there (T20)."""
    visit.need_tables()
    line = "master keys"
    ours = [vault.master_key_id(key) for key in settings.MASTER_KEYS]
    if not ours:
        yield failure(line, "CAIR_MASTER_KEYS is empty", "Make one with: openssl rand -base64 32")
        return
    wrapped = {key.pk: set(key.wrappings.values_list("master_key_id", flat=True)) for key in DataKey.objects.all()}
    lost = [key for key, ids in wrapped.items() if not ids & set(ours)]
    if lost:
        absent_ids = sorted(set.union(*(wrapped[key] for key in lost)))
        found = (
            f"{len(lost)} data keys open under no key of CAIR_MASTER_KEYS; they are wrapped by {', '.join(absent_ids)}"
        )
        yield failure(
            line, found, "Put the former key back at the end of CAIR_MASTER_KEYS, or people must sign in again."
        )
    elif behind := [key for key, ids in wrapped.items() if ours[0] not in ids]:
        found = f"{len(behind)} of {len(wrapped)} data keys are not wrapped by the first one, {ours[0]}"
        yield warning(line, found, "Run: python manage.py rotate_master_key, and keep the former key until it is done.")
    else:
        yield good(line, _described(ours))


def _described(ours: list[str]) -> str:
    if not DataKey.objects.exists():
        return f"{ours[0]} is there; no data key yet"
    former = set(Wrapping.objects.values_list("master_key_id", flat=True)) - {ours[0]}
    others = f"; also wrapped by {', '.join(sorted(former))}" if former else ""
    return f"{ours[0]} wraps every data key{others}"
