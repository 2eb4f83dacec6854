"""When, from where and with which tool a connection was last used: for the person's own page, and for nothing else.

No call waits for it, and the row is written once a minute at most: a refresh locks it too.
"""

import asyncio
import ipaddress
import logging
import uuid
from datetime import datetime

from django.conf import settings
from django.db.models import Value
from django.db.models.functions import Coalesce, Greatest
from django.utils import timezone

from oauth_relay.database import DATABASE_AWAY, in_database
from oauth_relay.models import Grant
from oauth_relay.per_loop import PerLoop

logger = logging.getLogger(__name__)

WRITTEN_EVERY = 60.0
FULL, TRUNCATED, NONE = "FULL", "TRUNCATED", "NONE"
_KEPT_BITS = {4: 24, 6: 48}


def address_to_keep(address: str) -> str:
    """As much of a network address as CLIENT_ADDRESSES lets us keep; what it leaves out is never stored."""
    kept = settings.CLIENT_ADDRESSES
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    if kept == NONE:
        return ""
    return (
        str(parsed) if kept == FULL else str(ipaddress.ip_network((parsed, _KEPT_BITS[parsed.version]), strict=False))
    )


class _Uses:
    """The tools that were called last, on one event loop: each connection's first at once, later ones a minute on."""

    def __init__(self) -> None:
        self.latest: dict[uuid.UUID, tuple[str, str, datetime]] = {}
        self.tasks: dict[uuid.UUID, asyncio.Task[None]] = {}

    def note(self, grant_id: uuid.UUID, tool: str, address: str) -> None:
        self.latest[grant_id] = tool, address, timezone.now()
        if grant_id not in self.tasks:
            self.tasks[grant_id] = asyncio.create_task(self._follow(grant_id))

    async def _follow(self, grant_id: uuid.UUID) -> None:
        try:
            while (use := self.latest.pop(grant_id, None)) is not None:
                await in_database(_write, grant_id, *use)
                await asyncio.sleep(WRITTEN_EVERY)
        except DATABASE_AWAY as error:
            logger.info("the last use of grant %s is not written down: %s", grant_id, error.__class__.__name__)
        finally:
            del self.tasks[grant_id]


def _write(grant_id: uuid.UUID, tool: str, address: str, at: datetime) -> None:
    """Of two processes the one that writes last is believed about tool and place: to the minute, that is right."""
    latest = Greatest(Coalesce("last_used_at", Value(at)), Value(at))
    Grant.objects.filter(pk=grant_id).update(
        last_tool=tool[:128], last_address=address_to_keep(address), last_used_at=latest
    )


_uses = PerLoop(_Uses)


def note(grant_id: uuid.UUID, tool: str, address: str) -> None:
    _uses.get().note(grant_id, tool, address)
