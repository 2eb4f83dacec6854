"""Who may register a client, how many, and for how long one stays that nobody uses (T6, T24).

Before a sign-in the only key is the network, and whole vendors share one (pains P10): the limits are ceilings against a
heap of rows, not a measure of anybody. They count rows of the table itself, so they hold in every process alike. No
client that somebody has ever consented to is counted, refused or removed.
"""

import ipaddress
import logging
from datetime import timedelta

from django.conf import settings
from django.db.models import DateTimeField, QuerySet
from django.db.models.functions import Coalesce
from django.db.transaction import atomic
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from oauth_relay import audit
from oauth_relay.digests import digest_of
from oauth_relay.models import Client, Grant, LoginTransaction

logger = logging.getLogger(__name__)

OPEN, TOKEN, CLOSED = "OPEN", "TOKEN", "CLOSED"
UNUSED_LIFETIME = timedelta(hours=24)
SAFE_FOR = timedelta(minutes=5)
"""How long nobody's flood removes a client: its person is on the way from /register to /authorize."""
USE_NOTED_EVERY = timedelta(minutes=10)
WINDOW = timedelta(minutes=1)
MOST_AT_ONCE = 100
_IPV6_HOUSEHOLD = 64


class RegistrationRefused(Exception):
    """Nobody may register like that here, or not now. Carries what a program is told."""

    def __init__(self, status: int, error: str, description: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(description)
        self.status, self.error, self.description, self.headers = status, error, description, headers or {}


def network_of(address: str) -> str:
    """What limits are counted by: the address; of IPv6 the /64, which is one household's or one machine's."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, _IPV6_HOUSEHOLD), strict=False))
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


# -- who may -----------------------------------------------------------------------------------------------------------


def check_may_register(authorization: str, network: str) -> None:
    """Whether a registration from `network` with that Authorization header may go on. Raises RegistrationRefused."""
    if settings.REGISTRATION == CLOSED:
        said = "Clients do not register themselves here. Ask an operator of this service for a client id."
        raise RegistrationRefused(403, "access_denied", said)
    if settings.REGISTRATION == TOKEN:
        _check_initial_access_token(authorization)
    newest = Client.objects.filter(
        registration_source=Client.RegistrationSource.DCR, registered_from=network, created__gt=timezone.now() - WINDOW
    )
    if settings.REGISTRATION_LIMIT and newest.count() >= settings.REGISTRATION_LIMIT:
        logger.warning("registration refused: more than %s a minute from %s", settings.REGISTRATION_LIMIT, network)
        said = "Too many clients were registered from this network. Try again in a minute."
        raise RegistrationRefused(429, "too_many_requests", said, {"Retry-After": str(int(WINDOW.total_seconds()))})


def _check_initial_access_token(authorization: str) -> None:
    """> … an OAuth 2.0 access token … to make calls to the client registration endpoint. (RFC 7591 §1.2, §3)"""
    scheme, _, raw_token = authorization.partition(" ")
    presented = digest_of(raw_token.strip())
    fits = [constant_time_compare(presented, digest_of(good)) for good in settings.REGISTRATION_TOKENS]
    if scheme.lower() != "bearer" or not any(fits):
        said = "Registration needs an initial access token. Ask an operator of this service for one."
        challenge = 'Bearer error="invalid_token"' if raw_token else "Bearer"
        raise RegistrationRefused(401, "invalid_token", said, {"WWW-Authenticate": challenge})


# -- what nobody uses --------------------------------------------------------------------------------------------------


def unused_clients() -> "QuerySet[Client]":
    """Clients that registered themselves, for whom nobody ever consented, and with whom nobody is busy right now."""
    busy = LoginTransaction.objects.filter(answered_at=None, expires_at__gt=timezone.now(), client_row__isnull=False)
    return (
        Client.objects.filter(registration_source=Client.RegistrationSource.DCR, approved_at=None)
        .exclude(pk__in=Grant.objects.values("client"))
        .exclude(pk__in=busy.values("client_row"))
        .annotate(last_seen=Coalesce("last_used_at", "created", output_field=DateTimeField()))
    )


def make_room(network: str) -> int:
    """Remove what has expired, and the oldest of a network that has too many; the number removed.

    A part of it at each registration: the heap stays bounded without anybody sweeping it.
    """
    expired = unused_clients().filter(last_seen__lte=timezone.now() - UNUSED_LIFETIME)
    removed = _remove(expired, "expired", MOST_AT_ONCE)
    if settings.UNUSED_CLIENTS_PER_NETWORK:
        of_network = unused_clients().filter(registered_from=network)
        over = of_network.count() - settings.UNUSED_CLIENTS_PER_NETWORK + 1  # and one for who is about to come
        removable = of_network.filter(last_seen__lte=timezone.now() - SAFE_FOR)
        removed += _remove(removable, "network_full", min(over, MOST_AT_ONCE))
    return removed


def _remove(rows: "QuerySet[Client]", why: str, most: int) -> int:
    """Remove the oldest, each looked at again under its lock: a consent that came meanwhile keeps its client."""
    removed = 0
    for key in list(rows.order_by("last_seen").values_list("pk", flat=True)[: max(0, most)]):
        with atomic():
            locked = Client.objects.select_for_update(skip_locked=True).filter(pk=key).first()
            if locked is None or not unused_clients().filter(pk=key).exists():
                continue
            audit.record_within(audit.Event("client.removed", why, client_id=locked.client_id))
            locked.delete()
            removed += 1
    return removed


def note_use(client: Client) -> None:
    """Somebody opened this client's authorization request: one that waits for its first consent lives on."""
    now = timezone.now()
    seen = client.last_used_at
    if seen is None or now - seen > USE_NOTED_EVERY:
        Client.objects.filter(pk=client.pk).update(last_used_at=now)
