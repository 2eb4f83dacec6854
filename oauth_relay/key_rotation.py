"""Signing keys that change while people work: next → current → retired → gone (DESIGN §6, T20).

No verifier may meet a token whose key it cannot have read: a key is published for a whole lifetime of the document
before it signs, and stays published until its last token is over. Every step is one transaction under a lock, and
where a rotation stands is in the rows alone: it goes on after any interruption, and two operators make one rotation.
Deadlines are on the database's clock, as those of a lease (T14).
"""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import QuerySet
from django.db.models.functions import Now
from django.db.transaction import atomic

from oauth_relay import audit, keys
from oauth_relay.models import SigningKey
from oauth_relay.models.secrets import from_now
from oauth_relay.upstream_tokens import API_TOKEN_LIFETIME

MARGIN = timedelta(seconds=30)
PUBLISHED_BEFORE = timedelta(seconds=keys.JWKS_MAX_AGE) + MARGIN
"""How long a key is published before it signs: whoever read the document a moment earlier has read it again by then."""
PUBLISHED_AFTER = timedelta(seconds=API_TOKEN_LIFETIME + keys.JWKS_MAX_AGE) + MARGIN
"""How long a key stays published when it signs no more: its last token's life, and one lifetime of the document."""

State = SigningKey.State


class UnknownKey(LookupError):
    """No signing key has this id."""


@dataclass(frozen=True)
class Standing:
    """Where a rotation stands. `did` is what the last step changed, in words; `due` is when the next can be made."""

    current: uuid.UUID | None
    next: uuid.UUID | None
    retired: tuple[uuid.UUID, ...]
    due: datetime | None
    did: tuple[str, ...] = ()

    @property
    def is_under_way(self) -> bool:
        return self.next is not None or bool(self.retired)


def standing(did: tuple[str, ...] = ()) -> Standing:
    """Where the rotation stands now. Changes nothing."""
    current, coming, retired = _in(State.CURRENT).first(), _next(), list(_in(State.RETIRED).order_by("state_since"))
    waits = [row.state_since + PUBLISHED_AFTER for row in retired]
    if coming is not None:
        waits.append(coming.state_since + PUBLISHED_BEFORE)
    return Standing(
        current.pk if current else None,
        coming.pk if coming else None,
        tuple(row.pk for row in retired),
        min(waits, default=None),
        did,
    )


def is_due() -> bool:
    """Whether a step can be made now, or nothing is left to do."""
    ripe = _in(State.NEXT).filter(state_since__lte=from_now(-PUBLISHED_BEFORE))
    over = _in(State.RETIRED).filter(state_since__lte=from_now(-PUBLISHED_AFTER))
    return ripe.exists() or over.exists() or not standing().is_under_way


def advance(*, may_begin: bool) -> Standing:
    """Do what is due: erase what has been retired long enough, promote what has been published long enough.

    Begins another rotation only if `may_begin`, nothing was due, and none is under way.
    """
    with atomic():
        _lock()
        if keys.ensure_current() is None:
            return standing()
        did = [*_erase_retired(), *_promote_next()]
        if may_begin and not did and not standing().is_under_way:
            did.append(_begin())
        return standing(tuple(did))


def compromise(key_id: uuid.UUID) -> Standing:
    """Take a key out of the document and out of use, and make another current, at once. Raises UnknownKey.

    What is published already goes first: verifiers may have read it.
    """
    with atomic():
        _lock()
        row = SigningKey.objects.filter(purpose=keys.API_TOKEN, pk=key_id).first()
        if row is None:
            raise UnknownKey(str(key_id))
        if row.state == State.COMPROMISED:
            return standing()
        _move(row, State.COMPROMISED)
        did = [f"{key_id} is compromised: withdrawn from the document, its private half erased"]
        if row.state == State.CURRENT:
            did.append(_replace_at_once())
        return standing(tuple(did))


# -- the steps ---------------------------------------------------------------------------------------------------------


def _lock() -> None:
    """One operator at a time. Who has waited reads anew; on SQLite the transaction itself is the lock."""
    list(SigningKey.objects.filter(purpose=keys.API_TOKEN).order_by("pk").select_for_update().values_list("pk"))


def _in(state: SigningKey.State) -> "QuerySet[SigningKey]":
    return SigningKey.objects.filter(purpose=keys.API_TOKEN, state=state)


def _next() -> SigningKey | None:
    return _in(State.NEXT).order_by("created").first()


def _begin() -> str:
    row = keys.make(State.NEXT)
    SigningKey.objects.filter(pk=row.pk).update(state_since=Now())
    audit.record_within(audit.Event("signing_key.next", detail={"kid": row.pk}))
    return f"{row.pk} is next: published, and signs nothing yet"


def _promote_next() -> list[str]:
    row = _in(State.NEXT).filter(state_since__lte=from_now(-PUBLISHED_BEFORE)).order_by("created").first()
    if row is None:
        return []
    did = []
    for former in _in(State.CURRENT):
        _move(former, State.RETIRED)
        did.append(f"{former.pk} is retired: published, and signs no more")
    _move(row, State.CURRENT)
    return [*did, f"{row.pk} is current: every server signs with it within a second"]


def _erase_retired() -> list[str]:
    did = []
    for row in _in(State.RETIRED).filter(state_since__lte=from_now(-PUBLISHED_AFTER)):
        _move(row, State.GONE)
        did.append(f"{row.pk} is gone: no longer published, its private half erased")
    return did


def _replace_at_once() -> str:
    row = _next()
    if row is not None:
        _move(row, State.CURRENT)
    else:
        row = keys.make(State.CURRENT)
        audit.record_within(audit.Event("signing_key.current", detail={"kid": row.pk}))
    return f"{row.pk} is current: every server signs with it within a second"


def _move(row: SigningKey, state: SigningKey.State) -> None:
    """Into `state`, since now. What will never sign again keeps no private half. `row` itself stays as it was read."""
    erased = {"private_key": b""} if state in (State.GONE, State.COMPROMISED) else {}
    SigningKey.objects.filter(pk=row.pk).update(state=state, state_since=Now(), **erased)
    audit.record_within(audit.Event(f"signing_key.{state.value}", detail={"kid": row.pk, "was": row.state}))
