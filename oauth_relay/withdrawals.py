"""The end of a permission, and how every process learns of it within a second (T11, T12).

The truth is the log in the database. Each process reads it twice a second, with an overlap, because transactions may
commit in another order than they took their numbers. Nothing rests on a broadcast.
"""

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable
from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from oauth_relay import audit
from oauth_relay.database import DATABASE_AWAY, in_database
from oauth_relay.erasures import erase_credentials
from oauth_relay.models import AccessToken, Client, Consent, Grant, RefreshToken, Withdrawal
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
        now = timezone.now()
        ended = Grant.objects.open().filter(pk=grant_id).update(withdrawn_at=now, withdrawn_by=by)
        if not ended:
            return False
        grant = Grant.objects.select_related("user", "client").get(pk=grant_id)
        Consent.objects.filter(grant=grant, withdrawn_at=None).update(withdrawn_at=now)
        Withdrawal.objects.create(kind=Withdrawal.Kind.GRANT, reference=str(grant_id))
        if grant.user and not Grant.objects.open().filter(user=grant.user).exists():
            # Nobody needs the person's upstream tokens any more: they are not kept for a rainy day.
            erase_credentials(grant.user, "last_grant_withdrawn")
        audit.record_within(
            audit.Event(
                "grant.withdrawn",
                pseudonym=grant.user.pseudonym if grant.user else None,
                client_id=grant.client.client_id,
                grant_id=grant_id,
                detail={"by": by},
            )
        )
    return True


def withdraw_family(family: uuid.UUID, grant: Grant, why: str) -> None:
    """End one family of tokens: every token of it is over, and every process is told."""
    now = timezone.now()
    with transaction.atomic():
        Grant.objects.select_for_update().filter(pk=grant.pk).first()
        RefreshToken.objects.filter(token_family=family, revoked__isnull=True).update(revoked=now, updated=now)
        RefreshToken.objects.filter(token_family=family).update(replay_answer=None, access_token=None)
        AccessToken.objects.filter(family=family).delete()
        Withdrawal.objects.create(kind=Withdrawal.Kind.FAMILY, reference=str(family))
        audit.record_within(
            audit.Event(
                "token_family.ended",
                why,
                pseudonym=grant.user.pseudonym if grant.user else None,
                client_id=grant.client.client_id,
                grant_id=grant.pk,
            )
        )


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
