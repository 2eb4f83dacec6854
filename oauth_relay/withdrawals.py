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

from django.db import transaction
from django.utils import timezone

from oauth_relay import audit
from oauth_relay.database import DATABASE_AWAY, in_database
from oauth_relay.models import Client, Consent, Grant, UpstreamCredential, Withdrawal
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
        if grant.user_id and not Grant.objects.open().filter(user_id=grant.user_id).exists():
            # Nobody needs the person's upstream tokens any more: they are not kept for a rainy day.
            UpstreamCredential.objects.filter(user_id=grant.user_id).delete()
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


def withdraw_family(family: uuid.UUID) -> None:
    """Log the end of one token family; its rows are the caller's business, in the caller's transaction."""
    Withdrawal.objects.create(kind=Withdrawal.Kind.FAMILY, reference=str(family))


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
        floor = self._floors[0][1] if self._floors else None
        rows = await in_database(_read_rows, floor)
        if floor is None:
            # Nothing is cached yet, so older lines concern nobody here.
            self._seen.update(number for number, _, _ in rows)
            rows = []
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


def _read_rows(floor: int | None) -> list[tuple[int, str, str]]:
    rows = Withdrawal.objects.order_by("id").values_list("id", "kind", "reference")
    if floor is None:
        return list(rows.order_by("-id")[:1])
    return list(rows.filter(id__gt=floor))


_readers = PerLoop(WithdrawalReader)


def reader() -> WithdrawalReader:
    """The reader of the running event loop."""
    return _readers.get()
