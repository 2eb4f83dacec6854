"""Door 3: what happened is written down, durably, before anyone is answered.

`record` is for coroutines and commits in groups: whatever waits is taken, committed, and answered, without a timer.
`record_within` is for code inside a database transaction: the row commits, or not, with what it tells of.
"""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.utils import timezone

from oauth_relay.database import in_database
from oauth_relay.models import AuditEvent
from oauth_relay.per_loop import PerLoop
from oauth_relay.traces import trace_id

MOST_PER_COMMIT = 500
_LONGEST_VALUE = 500


@dataclass(frozen=True)
class Event:
    """What happened: `event` names it (`token.issued`, `tool.called`), `outcome` how it ended (`ok`, or an error code).

    `detail` holds short plain values. Never a token, code, secret, claim or argument.
    """

    event: str
    outcome: str = "ok"
    pseudonym: uuid.UUID | None = None
    client_id: str = ""
    grant_id: uuid.UUID | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    at: datetime = field(default_factory=timezone.now)
    trace_id: str = field(default_factory=trace_id.get)


def _row(event: Event) -> AuditEvent:
    return AuditEvent(
        at=event.at,
        event=event.event,
        outcome=event.outcome[:32],
        pseudonym=event.pseudonym,
        client_id=event.client_id[:255],
        grant_id=event.grant_id,
        trace_id=event.trace_id,
        detail={key: _plain(value) for key, value in event.detail.items()},
    )


def _plain(value: Any) -> Any:
    """A value fit for a log: short, without control or direction-changing characters."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(value))[
        :_LONGEST_VALUE
    ]


def record_within(event: Event) -> None:
    """Write one event in the caller's transaction."""
    _row(event).save(force_insert=True)


class _Writer:
    """Commits waiting events in groups, one group at a time, on one event loop."""

    def __init__(self) -> None:
        self.waiting: list[tuple[AuditEvent, asyncio.Future[None]]] = []
        self.task: asyncio.Task[None] | None = None

    async def write(self, row: AuditEvent) -> None:
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((row, written))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._drain())
        # A caller who is cancelled leaves its row behind: what happened, happened.
        await asyncio.shield(written)

    async def _drain(self) -> None:
        while self.waiting:
            group, self.waiting = self.waiting[:MOST_PER_COMMIT], self.waiting[MOST_PER_COMMIT:]
            outcome: BaseException | None = None
            try:
                await in_database(AuditEvent.objects.bulk_create, [row for row, _ in group])
            except BaseException as error:  # noqa: BLE001 - handed to each caller below, never swallowed
                outcome = error
            for _, written in group:
                if written.done():
                    continue
                if outcome is None:
                    written.set_result(None)
                else:
                    written.set_exception(outcome)
            if isinstance(outcome, asyncio.CancelledError):
                raise outcome


_writers = PerLoop(_Writer)


async def record(event: Event) -> None:
    """Write one event; durable when this returns. Raises what the database raises: no row, no answer."""
    await _writers.get().write(_row(event))
