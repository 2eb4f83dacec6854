"""Door 2: the person's own token for an API, fresh, from the one source that the API's configuration names (T22).

Where the source is CAIR, the token is a short JWT signed here (RFC 9068). Where it is a provider, it is the access
token in the vault, which `upstream_refresh` keeps fresh (DESIGN §5).
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from oauth_relay import challenges, keys, vault, withdrawals
from oauth_relay.access_tokens import Principal, concerns
from oauth_relay.database import DATABASE_AWAY, in_database
from oauth_relay.models import Withdrawal
from oauth_relay.per_loop import PerLoop
from oauth_relay.upstream_credentials import (
    CAIR,
    UpstreamLoginRequired,
    UpstreamRefused,
    UpstreamToken,
    UpstreamUnavailable,
    check_alive,
)
from oauth_relay.upstream_refresh import token_from_vault

__all__ = [
    "UpstreamLoginRequired",
    "UpstreamRefused",
    "UpstreamToken",
    "UpstreamUnavailable",
    "is_lacking",
    "must_be_widened",
    "upstream_token_for",
]

logger = logging.getLogger(__name__)

API_TOKEN_LIFETIME = 120
API_TOKEN_MARGIN = 30.0
MEMORY_LIFETIME = 5.0
"""Seconds for which a process hands out a vault token without looking: a newer one reaches every session within them."""

CACHE_SIZE = 10_000


async def upstream_token_for(principal: Principal, api: str, rejected_version: str | None = None) -> UpstreamToken:
    """The token with which `api` (a key of settings.UPSTREAM_APIS) is called for `principal`.

    `rejected_version` says which version the API has just refused. Raises UpstreamLoginRequired, UpstreamRefused,
    UpstreamUnavailable.
    Does not suspend where a token is in memory.
    """
    memory = _memories.get()
    key = _key(principal, api)
    found = memory.find(key)
    if found is not None and found.version != rejected_version:
        return found
    return await memory.once((*key, rejected_version), lambda: _fetch(memory, key, principal, api, rejected_version))


def _key(principal: Principal, api: str) -> tuple[Any, ...]:
    return principal.grant_id, principal.subject, api, principal.scopes


async def must_be_widened(principal: Principal, api: str, upstream_scope: str) -> bool:
    """Whether the person, who is being asked anyway, is to let the provider give `upstream_scope` too: once a day.

    Raises as `upstream_token_for` does.
    """
    reason = challenges.reason_to_widen(upstream_scope)
    return await is_lacking(principal, api, upstream_scope) and await in_database(
        challenges.may_challenge, principal.grant_id, reason
    )


async def is_lacking(principal: Principal, api: str, upstream_scope: str) -> bool:
    """Whether the provider has not given `upstream_scope` for `api`. Raises as `upstream_token_for` does."""
    if settings.UPSTREAM_APIS[api]["token_source"] == CAIR:
        return False
    for _ in range(2):
        token = await upstream_token_for(principal, api)
        if token.scopes is None or upstream_scope in token.scopes:
            return False
        # What is in memory may be older than the sign-in that brought the scope: look into the vault before asking.
        _memories.get().entries.pop(_key(principal, api), None)
    return True


async def _fetch(
    memory: "_Memory", key: tuple[Any, ...], principal: Principal, api: str, rejected_version: str | None
) -> UpstreamToken:
    """A token that is not in memory; kept there unless a withdrawal came meanwhile (T12)."""
    try:
        await memory.reader.ready()
        seen = memory.reader.count
        if settings.UPSTREAM_APIS[api]["token_source"] == CAIR:
            token = await in_database(_issue, principal, api)
            good_until = token.expires_at - API_TOKEN_MARGIN
        else:
            token = await token_from_vault(principal, api, rejected_version)
            good_until = min(time.time() + MEMORY_LIFETIME, token.expires_at)
    except (*DATABASE_AWAY, TimeoutError) as error:
        raise UpstreamUnavailable(f"the database is away: {error.__class__.__name__}", retry_after=5) from error
    except vault.VaultError as error:
        logger.error("the vault cannot give a token for %s: %s", api, error)
        raise UpstreamUnavailable("the vault cannot be opened", retry_after=60) from error
    if memory.reader.count == seen:
        memory.keep(key, principal, token, good_until)
    return token


@dataclass(frozen=True)
class _Kept:
    principal: Principal
    token: UpstreamToken
    good_until: float


class _Memory:
    """Tokens in use on one event loop. Forgets whatever the withdrawal log names; fetches each missing token once."""

    def __init__(self, reader: withdrawals.WithdrawalReader) -> None:
        self.reader = reader
        self.entries: dict[tuple[Any, ...], _Kept] = {}
        self.flights: dict[tuple[Any, ...], asyncio.Task[UpstreamToken]] = {}
        reader.listeners.add(self.forget)

    def find(self, key: tuple[Any, ...]) -> UpstreamToken | None:
        kept = self.entries.get(key)
        if kept is None or self.reader.lateness() > withdrawals.LATE_AFTER:
            return None
        if kept.good_until <= time.time():
            del self.entries[key]
            return None
        return kept.token

    def keep(self, key: tuple[Any, ...], principal: Principal, token: UpstreamToken, good_until: float) -> None:
        self.entries.pop(key, None)
        if len(self.entries) >= CACHE_SIZE:
            self.entries.pop(next(iter(self.entries)))
        self.entries[key] = _Kept(principal, token, good_until)

    def forget(self, kind: str, reference: str) -> None:
        # This memory holds the person's tokens at a provider; all that it holds goes with them.
        kind = Withdrawal.Kind.USER if kind == Withdrawal.Kind.CREDENTIAL else kind
        self.entries = {
            key: kept for key, kept in self.entries.items() if not concerns(kept.principal, kind, reference)
        }

    async def once(self, key: tuple[Any, ...], work: Callable[[], Awaitable[UpstreamToken]]) -> UpstreamToken:
        """The result of `work`, shared by everyone who asks for the same meanwhile. A caller who goes away stops none."""
        flight = self.flights.get(key)
        if flight is None or flight.done():
            flight = self.flights[key] = asyncio.ensure_future(work())
            flight.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(flight)

    def _landed(self, key: tuple[Any, ...], flight: "asyncio.Task[UpstreamToken]") -> None:
        if self.flights.get(key) is flight:
            del self.flights[key]
        if not flight.cancelled():
            flight.exception()  # looked at, should every caller have gone away


_memories = PerLoop(lambda: _Memory(withdrawals.reader()))


def _issue(principal: Principal, api: str) -> UpstreamToken:
    """A JWT access token for one API, RFC 9068 §2.2: this grant's scopes, this person's subject, two minutes."""
    check_alive(principal)
    now, version = int(time.time()), str(uuid.uuid4())
    claims = {
        "iss": settings.PUBLIC_URL,
        "aud": settings.UPSTREAM_APIS[api]["audience"],
        "sub": principal.subject,
        "client_id": principal.client_id,
        "scope": " ".join(sorted(principal.scopes)),
        "iat": now,
        "exp": now + API_TOKEN_LIFETIME,
        "jti": version,
    }
    value = f"Bearer {keys.sign_api_token(claims)}"
    return UpstreamToken("Authorization", value, version, now + API_TOKEN_LIFETIME)
