"""The end of a permission, or of a part of it, and how every process learns of it within a second (T11, T12).

The truth is the log in the database. Each process reads it twice a second, with an overlap, because transactions may
commit in another order than they took their numbers. Nothing rests on a broadcast.
"""

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone
from oauth2_provider.scopes import get_scopes_backend

from oauth_relay import audit, challenges
from oauth_relay.database import DATABASE_AWAY, in_database
from oauth_relay.erasures import erase_credentials
from oauth_relay.models import (
    AccessToken,
    AuthorizationCode,
    Client,
    Consent,
    Grant,
    RefreshToken,
    UpstreamCredential,
    User,
    Withdrawal,
)
from oauth_relay.per_loop import PerLoop

logger = logging.getLogger(__name__)

READ_EVERY = 0.5
LATE_AFTER = 1.0
DEAD_AFTER = 5.0
OVERLAP_SECONDS = 10.0


def withdraw_grant(grant_id: uuid.UUID, by: str) -> bool:
    """End a grant: one update on its row decides, the log tells everybody. What only it needed goes with it.

    True if this call ended it, False if it had ended before.
    """
    with transaction.atomic():
        _lock_grants_of_the_person(grant_id)
        now = timezone.now()
        ended = Grant.objects.open().filter(pk=grant_id).update(withdrawn_at=now, withdrawn_by=by)
        if not ended:
            return False
        grant = Grant.objects.select_related("user", "client").get(pk=grant_id)
        Consent.objects.filter(grant=grant, withdrawn_at=None).update(withdrawn_at=now)
        Withdrawal.objects.create(kind=Withdrawal.Kind.GRANT, reference=str(grant_id))
        if grant.user:
            _erase_what_nothing_needs(grant.user)
        audit.record_within(_event("grant.withdrawn", grant, by=by))
    return True


def narrow_grant(grant_id: uuid.UUID, lost: Collection[str], by: str) -> set[str]:
    """Take scopes from a grant and from all that hangs on it, tokens in use too. The scopes that it really lost.

    Streams and sessions go on: they are the client's, and each call is judged by what its token may do now. To narrow
    is to refuse: for a day the client is not sent to ask for the same again (T33).
    """
    with transaction.atomic():
        _lock_grants_of_the_person(grant_id)
        grant = Grant.objects.open().select_related("user", "client").filter(pk=grant_id).first()
        gone = _narrow_consents(grant, set(lost)) if grant else set()
        if grant is None or not gone:
            return set()
        for rows in (AuthorizationCode.objects, AccessToken.objects, RefreshToken.objects):
            _narrow_rows(rows.filter(grant=grant), gone)
        Withdrawal.objects.create(kind=Withdrawal.Kind.NARROWED, reference=str(grant_id))
        if grant.user:
            challenges.note_refusal(grant.user, grant.client, gone)
            _erase_what_nothing_needs(grant.user)
        audit.record_within(_event("grant.narrowed", grant, by=by, scopes=sorted(gone)))
    return gone


def _lock_grants_of_the_person(grant_id: uuid.UUID) -> None:
    """All of a person's, in one order: of two last ones that end at once, the second must see that the first has."""
    whose = Grant.objects.filter(pk=grant_id).values_list("user_id", flat=True).first()
    of_person = Q(pk=grant_id) if whose is None else Q(pk=grant_id) | Q(user_id=whose, withdrawn_at=None)
    list(Grant.objects.filter(of_person).order_by("pk").select_for_update().values_list("pk"))


def _narrow_consents(grant: Grant, lost: set[str]) -> set[str]:
    """A record is never changed: each that holds too much is withdrawn, and another says what is left of it."""
    gone: set[str] = set()
    for record in Consent.objects.alive().filter(grant=grant):
        held = record.scope.split()
        if not lost & set(held):
            continue
        gone |= lost & set(held)
        Consent.objects.filter(pk=record.pk).update(withdrawn_at=timezone.now())
        Consent.objects.create(
            grant=grant,
            client_digest=record.client_digest,
            redirect_uri=record.redirect_uri,
            resource=record.resource,
            scope=" ".join(scope for scope in held if scope not in lost),
            expires_at=record.expires_at,
        )
    return gone


def _narrow_rows(rows: QuerySet, gone: set[str]) -> None:
    """One update for each wording there is. Spent tokens too: a thief's retry must still be known for what it is."""
    for scope in set(rows.order_by().values_list("scope", flat=True)):
        left = " ".join(one for one in scope.split() if one not in gone)
        if left != scope:
            rows.filter(scope=scope).update(scope=left)


def _event(name: str, grant: Grant, **detail: object) -> audit.Event:
    return audit.Event(
        name,
        pseudonym=grant.user.pseudonym if grant.user else None,
        client_id=grant.client.client_id,
        grant_id=grant.pk,
        detail=detail,
    )


def _erase_what_nothing_needs(user: User) -> None:
    """Nobody's upstream tokens are kept for a rainy day: what no connection of the person needs is erased.

    A provider that is not configured may be missing by mistake, and could not be told: its tokens go with the last.
    """
    if not Grant.objects.open().filter(user=user).exists():
        erase_credentials(user, "last_grant_withdrawn")
        return
    of_provider = UpstreamCredential.objects.filter(user=user, provider__in=list(settings.UPSTREAM_PROVIDERS))
    held = set(of_provider.values_list("provider", "audience"))
    needed = {provider for provider, audience in held if _is_asked(provider, audience)} | _reached_by(user)
    for provider in sorted({provider for provider, _ in held} - needed):
        erase_credentials(user, "nothing_needs_it", provider)


def _is_asked(provider: str, audience: str) -> bool:
    """Whether every connection of a person rests on this provider's word, so that it must stay possible to ask (T37)."""
    return bool(settings.UPSTREAM_RECHECK) and settings.UPSTREAM_PROVIDERS[provider]["audience"] == audience


def _reached_by(user: User) -> set[str]:
    """The providers of the APIs that some connection of this person can reach."""
    by_grant: dict[uuid.UUID, set[str]] = {}
    for grant_id, scope in Consent.objects.alive().filter(grant__user=user).values_list("grant_id", "scope"):
        by_grant.setdefault(grant_id, set()).update(scope.split())
    catalogue = get_scopes_backend()
    names = {name for scopes in by_grant.values() for name in catalogue.apis_reached_with(scopes)}
    return {settings.UPSTREAM_APIS[name]["token_source"] for name in names if name in settings.UPSTREAM_APIS}


def withdraw_family(family: uuid.UUID, grant: Grant, why: str) -> None:
    """End one family of tokens: every token of it is over, and every process is told."""
    now = timezone.now()
    with transaction.atomic():
        Grant.objects.select_for_update().filter(pk=grant.pk).first()
        RefreshToken.objects.filter(token_family=family, revoked__isnull=True).update(revoked=now, updated=now)
        RefreshToken.objects.filter(token_family=family).update(replay_answer=None, access_token=None)
        AccessToken.objects.filter(family=family).delete()
        Withdrawal.objects.create(kind=Withdrawal.Kind.FAMILY, reference=str(family))
        audit.record_within(replace(_event("token_family.ended", grant), outcome=why))


def block_client(client: Client) -> None:
    """An operator stops a client: nothing it holds is accepted from now on."""
    with transaction.atomic():
        Client.objects.filter(pk=client.pk).update(blocked_at=timezone.now())
        Withdrawal.objects.create(kind=Withdrawal.Kind.CLIENT, reference=str(client.pk))
        audit.record_within(audit.Event("client.blocked", client_id=client.client_id))


class WithdrawalReader:
    """Reads the log for one event loop, and tells listeners of each withdrawal once.

    `count` grows with every withdrawal seen: whoever caches compares it before and after its own SELECT.
    """

    def __init__(self) -> None:
        self.count = 0
        self.listeners: set[Callable[[str, str], None]] = set()
        self._read_at = 0.0
        self._floors: deque[tuple[float, int]] = deque()
        self._seen: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()

    def lateness(self) -> float:
        """Seconds since the log was last read; infinite before the first time."""
        return time.monotonic() - self._read_at if self._read_at else float("inf")

    async def ready(self) -> None:
        """Start reading, if nobody has, and wait for the first read (bounded: a dead database answers late)."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._read_for_ever())
        if not self._first.is_set():
            await asyncio.wait_for(self._first.wait(), DEAD_AFTER)

    async def _read_for_ever(self) -> None:
        while True:
            try:
                await self.read()
            except DATABASE_AWAY as error:
                logger.warning("the withdrawal log cannot be read: %s", error.__class__.__name__)
            await asyncio.sleep(READ_EVERY)

    async def read(self) -> None:
        """Read what is new, plus the overlap, and tell the listeners."""
        started = time.monotonic()
        if not self._floors:
            # Nothing is remembered yet, so what is there concerns nobody here; what commits late still will.
            floor = await in_database(_first_floor)
            self._floors.append((started, floor))
            self._seen.update(number for number, _, _ in await in_database(_read_rows, floor))
        rows = await in_database(_read_rows, self._floors[0][1])
        for number, kind, reference in rows:
            if number not in self._seen:
                self._seen.add(number)
                self.count += 1
                for listener in list(self.listeners):
                    listener(kind, reference)
        self._floors.append((started, max(self._seen, default=0)))
        while len(self._floors) > 1 and started - self._floors[1][0] > OVERLAP_SECONDS:
            self._floors.popleft()
        self._seen = {number for number in self._seen if number > self._floors[0][1]} | {max(self._seen, default=0)}
        self._read_at = started
        self._first.set()


def _first_floor() -> int:
    """The newest line that no transaction still under way can be older than."""
    settled = Withdrawal.objects.filter(at__lt=timezone.now() - timedelta(seconds=OVERLAP_SECONDS))
    return settled.order_by("-id").values_list("id", flat=True).first() or 0


def _read_rows(floor: int) -> list[tuple[int, str, str]]:
    return list(Withdrawal.objects.filter(id__gt=floor).order_by("id").values_list("id", "kind", "reference"))


_readers = PerLoop(WithdrawalReader)


def reader() -> WithdrawalReader:
    """The reader of the running event loop."""
    return _readers.get()
