"""Door 1: from what a client presents to the principal it speaks for (RFC 6750, RFC 8707).

The look-up is synchronous where the token was seen before, and never older than the withdrawal log allows (T12).
"""

import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from django.utils import timezone

from oauth_relay import challenges, last_uses, withdrawals
from oauth_relay.database import DATABASE_AWAY, in_database
from oauth_relay.digests import digest_of
from oauth_relay.models import AccessToken, Grant, RefreshToken, Withdrawal
from oauth_relay.per_loop import PerLoop

CACHE_SIZE = 10_000
LAST_USE_EVERY = timedelta(minutes=1)
STREAM_GRACE = timedelta(seconds=60)


class InvalidToken(Exception):
    """The token is not good here. The message is for the operator; the client learns no more than `invalid_token`."""


class TokensUnavailable(Exception):
    """Whether the token is good cannot be said now: the database is away."""


@dataclass(frozen=True)
class PresentedToken:
    """What came in: the authorization scheme, the raw token, and the request it came with.

    Method and URL are for proofs of possession (RFC 9449), which a later scheme will check.
    """

    scheme: str
    raw_token: str = field(repr=False)
    method: str
    url: str
    resource: str
    address: str = ""
    """Where it came from on the network, for the person's page."""


@dataclass(frozen=True)
class Principal:
    """Who speaks: a person (or service) through a client, within what was granted. Times are epoch seconds, UTC."""

    subject: str
    user_id: int | None
    client_id: str
    grant_id: uuid.UUID
    scopes: frozenset[str]
    resource: str
    expires_at: float
    claims: Mapping[str, Any]
    pseudonym: uuid.UUID | None = None
    family: uuid.UUID | None = None
    client_pk: int = 0
    address: str = field(default="", compare=False, repr=False)
    """Where this request came from on the network, for the person's page."""


class _Cache:
    """Principals by token digest and resource, for one event loop; forgets whatever the withdrawal log names."""

    def __init__(self, reader: withdrawals.WithdrawalReader) -> None:
        self.reader = reader
        self.entries: dict[tuple[str, str], Principal] = {}
        reader.listeners.add(self.forget)

    def find(self, key: tuple[str, str], address: str) -> Principal | None:
        """Who is behind `key`, now speaking from `address`: whoever stole a token in use calls from elsewhere."""
        principal = self.entries.get(key)
        if principal is None or self.reader.lateness() > withdrawals.LATE_AFTER:
            return None
        if principal.expires_at <= timezone.now().timestamp():
            del self.entries[key]
            return None
        if principal.address != address:
            principal = self.entries[key] = replace(principal, address=address)
        return principal

    def keep(self, key: tuple[str, str], principal: Principal) -> None:
        if len(self.entries) >= CACHE_SIZE:
            self.entries.pop(next(iter(self.entries)))
        self.entries[key] = principal

    def forget(self, kind: str, reference: str) -> None:
        self.entries = {key: p for key, p in self.entries.items() if not outdates(p, kind, reference)}


def outdates(principal: Principal, kind: str, reference: str) -> bool:
    """Whether what is remembered of `principal` is no longer so: it has ended, or may do less."""
    is_narrower = kind == Withdrawal.Kind.NARROWED and str(principal.grant_id) == reference
    return is_narrower or concerns(principal, kind, reference)


def concerns(principal: Principal, kind: str, reference: str) -> bool:
    """Whether a line of the withdrawal log ends what `principal` may do."""
    match kind:
        case Withdrawal.Kind.GRANT:
            return str(principal.grant_id) == reference
        case Withdrawal.Kind.FAMILY:
            return str(principal.family) == reference
        case Withdrawal.Kind.CLIENT:
            return str(principal.client_pk) == reference
        case Withdrawal.Kind.USER:
            return str(principal.user_id) == reference
        case Withdrawal.Kind.CREDENTIAL:
            return False  # of the provider's tokens: ours are as good as before
        case Withdrawal.Kind.NARROWED:
            return False  # its streams and sessions go on, with less: see `outdates`
    return True  # a kind this version does not know: forget rather than trust


_caches = PerLoop(lambda: _Cache(withdrawals.reader()))


async def verify_access_token(presented: PresentedToken) -> Principal:
    """The principal that `presented` proves.

    Raises InvalidToken, or TokensUnavailable when the database, or the withdrawal log, has been away for 5 s.
    Suspends only on a cache miss.
    """
    if presented.scheme.lower() != "bearer":
        raise InvalidToken(f"scheme {presented.scheme[:20]!r} is not Bearer")
    cache = _caches.get()
    key = (digest_of(presented.raw_token), presented.resource)
    if principal := cache.find(key, presented.address):
        return principal
    try:
        await cache.reader.ready()
        seen = cache.reader.count
        principal = await in_database(_look_up, key[0], presented.resource, presented.address)
    except (*DATABASE_AWAY, TimeoutError) as error:
        raise TokensUnavailable(str(error.__class__.__name__)) from error
    if cache.reader.lateness() > withdrawals.DEAD_AFTER:
        raise TokensUnavailable("the withdrawal log is not being read")
    if cache.reader.count == seen:  # a withdrawal since our SELECT may be about this very token
        cache.keep(key, principal)
    return principal


def live_token(raw_token: str) -> AccessToken:
    """The row of a token that opens this door at some resource of ours now: asked of the database, of no memory.

    Raises InvalidToken. To ask is to use: whoever asks was presented it.
    """
    row = _live_row(digest_of(raw_token))
    assert row.grant is not None
    _note_use(row.grant, row)
    return row


def _live_row(digest: str) -> AccessToken:
    """The row behind a digest, if everything it hangs from is alive."""
    row = AccessToken.objects.select_related("grant", "user", "application").filter(token_checksum=digest).first()
    if row is None:
        raise InvalidToken("unknown token")
    if row.is_expired():
        raise InvalidToken("expired")
    if row.grant is None or not row.grant.is_open:
        raise InvalidToken("its grant is withdrawn")
    if row.grant.suspended_at is not None:
        raise InvalidToken("its person must sign in at the provider again")
    if row.user is None or not row.user.is_active:
        raise InvalidToken("its person is no longer active")
    if row.application is None or row.application.blocked_at is not None:
        raise InvalidToken("its client is blocked")
    return row


def _look_up(digest: str, resource: str, address: str = "") -> Principal:
    """The principal of the token behind a digest, at `resource`."""
    row = _live_row(digest)
    # Audience: exactly this resource is named, RFC 8707 §2. An empty list is no permission for everything.
    if resource not in row.resource:
        raise InvalidToken("issued for another resource")
    grant, user, client = row.grant, row.user, row.application
    assert grant is not None and user is not None and client is not None
    _note_use(grant, row, last_uses.address_to_keep(address))
    identity = user.newest_identity()
    return Principal(
        subject=user.subject,
        user_id=user.pk,
        client_id=client.client_id,
        grant_id=grant.pk,
        scopes=frozenset(row.scope.split()),
        resource=resource,
        expires_at=row.expires.timestamp(),
        claims={
            "username": user.get_username(),
            "name": user.get_full_name() or (identity.claims.get("name") if identity else None) or user.get_username(),
            "email": user.email or (identity.claims.get("email") if identity else None),
            "provider": identity.provider if identity else "cair",
            "client_name": client.display_name,
        },
        pseudonym=user.pseudonym,
        family=row.family,
        client_pk=client.pk,
        address=address,
    )


def _note_use(grant: Grant, row: AccessToken, address: str | None = None) -> None:
    """Last use, to the minute, for people's pages; first use of the pair, after which no retry is honest for long (T13)."""
    now = timezone.now()
    RefreshToken.objects.filter(access_token=row, first_used_at__isnull=True).update(first_used_at=now)
    is_due = grant.last_used_at is None or now - grant.last_used_at > LAST_USE_EVERY
    if is_due or address not in (None, grant.last_address):
        known = {} if address is None else {"last_address": address}
        Grant.objects.filter(pk=grant.pk).update(last_used_at=now, **known)


def note_tool(principal: Principal, tool: str) -> None:
    """The tool that was just called, and from where, for the person's page.

    Waits for nothing; written down once a minute at most.
    """
    last_uses.note(principal.grant_id, tool, principal.address)


async def may_step_up(principal: Principal, scopes: Collection[str]) -> bool:
    """Whether the client may now be sent to ask its person for `scopes`, which its token lacks (T33)."""
    return await in_database(challenges.may_step_up, principal.grant_id, principal.family, scopes)


async def may_widen(principal: Principal, upstream_scope: str) -> bool:
    """Whether the client may now be sent to sign in for an upstream scope alone: its token lacks nothing of ours (T10)."""
    return await in_database(challenges.may_widen, principal.grant_id, principal.family, upstream_scope)


def when_withdrawn(principal: Principal, end: Callable[[], None]) -> Callable[[], None]:
    """Call `end`, once, when a withdrawal concerns `principal`. Returns what takes the watch off again."""
    reader = withdrawals.reader()

    def listen(kind: str, reference: str) -> None:
        if concerns(principal, kind, reference):
            reader.listeners.discard(listen)
            end()

    reader.listeners.add(listen)
    return lambda: reader.listeners.discard(listen)


async def stream_expiry(principal: Principal) -> float:
    """Until when a stream of this grant may live: the newest token of the grant, plus a grace. Epoch seconds; 0 if dead."""
    return await in_database(_stream_expiry, principal.grant_id)


def _stream_expiry(grant_id: uuid.UUID) -> float:
    # Asked after the token was looked up: whatever ended in between must end the stream too.
    waits = Grant.objects.live().filter(pk=grant_id, suspended_at=None)
    newest = (
        AccessToken.objects.filter(grant_id__in=waits.values("pk"))
        .order_by("-expires")
        .values_list("expires", flat=True)
        .first()
    )
    return (newest + STREAM_GRACE).timestamp() if newest else 0.0
