"""Door 2: the person's own token for an API, fresh, from the one source that the API's configuration names (T22).

Where the source is CAIR, the token is a short JWT signed here (RFC 9068). Where it is a provider, it is the access
token in the vault, refreshed before it ends: exactly one refresh call per credential, whatever number of processes
want one, by a lease in the row and a comparison of its version (DESIGN §5, T14).
"""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from channels.db import database_sync_to_async
from django.conf import settings
from django.db import DatabaseError, IntegrityError, InterfaceError, OperationalError, connection
from django.db.models import BooleanField, Case, DateTimeField, ExpressionWrapper, F, Q, QuerySet, Value, When
from django.db.models.functions import Now
from django.db.transaction import atomic
from django.utils import timezone

from oauth_relay import audit, keys, vault, withdrawals
from oauth_relay.access_tokens import Principal, concerns
from oauth_relay.database import in_database
from oauth_relay.identity_providers import (
    CONNECT_TIMEOUT,
    ProviderRefused,
    ProviderUnavailable,
    TokenAnswer,
    provider,
)
from oauth_relay.models import Grant, Identity, LoginTransaction, UpstreamCredential, User
from oauth_relay.per_loop import PerLoop

logger = logging.getLogger(__name__)

CAIR = "cair"
API_TOKEN_LIFETIME = 120
API_TOKEN_MARGIN = 30.0
REFRESH_MARGIN = 60.0
MEMORY_LIFETIME = 5.0
"""Seconds for which a process hands out a vault token without looking: a newer one reaches every session within them."""

FAILURE_KEPT = timedelta(seconds=5)
POLL_EVERY = 0.1
REJECTION_PATIENCE = timedelta(minutes=5)
"""How long a token made because an API refused the last one is not replaced for being refused by it too (T10)."""

LAST_USE_EVERY = timedelta(minutes=1)
CACHE_SIZE = 10_000
_LOST = "lost"
_STILL_USABLE = 2.0

# Refresh calls have threads of their own: a provider that hangs must not hold up the database's.
_refreshers = ThreadPoolExecutor(max_workers=8, thread_name_prefix="upstream-refresh")


class UpstreamLoginRequired(Exception):
    """The person must sign in at the provider again before `api` can be called for them."""


class UpstreamUnavailable(Exception):
    """The provider cannot be asked now. `retry_after` is in seconds. Nothing is revoked."""

    def __init__(self, message: str, retry_after: int = 30) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class UpstreamToken:
    """What goes into the request to the API: header name and value. `version` names the credential behind it."""

    header: str
    value: str = field(repr=False)
    version: str
    expires_at: float


# -- the door ----------------------------------------------------------------------------------------------------------


async def upstream_token_for(principal: Principal, api: str, rejected_version: str | None = None) -> UpstreamToken:
    """The token with which `api` (a key of settings.UPSTREAM_APIS) is called for `principal`.

    `rejected_version` says which version the API has just refused. Raises UpstreamLoginRequired, UpstreamUnavailable.
    Does not suspend where a token is in memory.
    """
    memory = _memories.get()
    key = (principal.grant_id, principal.subject, api, principal.scopes)
    found = memory.find(key)
    if found is not None and found.version != rejected_version:
        return found
    return await memory.once((*key, rejected_version), lambda: _fetch(memory, key, principal, api, rejected_version))


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
            token = await _from_vault(principal, api, rejected_version)
            good_until = min(time.time() + MEMORY_LIFETIME, token.expires_at)
    except (DatabaseError, TimeoutError) as error:
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


_memories: PerLoop[_Memory] = PerLoop(lambda: _Memory(withdrawals.reader()))


def _check_alive(principal: Principal) -> None:
    """What a token is made for must be alive when it is made: grant, person and client."""
    alive = Grant.objects.filter(
        Q(user=None) | Q(user__is_active=True),
        pk=principal.grant_id,
        withdrawn_at=None,
        client__blocked_at=None,
    )
    if not alive.exists():
        raise UpstreamLoginRequired("the permission behind this call has ended")


# -- source: CAIR itself -----------------------------------------------------------------------------------------------


def _issue(principal: Principal, api: str) -> UpstreamToken:
    """A JWT access token for one API, RFC 9068 §2.2: this grant's scopes, this person's subject, two minutes."""
    _check_alive(principal)
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


# -- source: a provider's tokens in the vault --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tokens:
    """What is sealed in a credential. `refresh_at` is when a new access token is wanted, in epoch seconds."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    refresh_at: float | None

    @classmethod
    def of(cls, answer: TokenAnswer) -> "_Tokens":
        """A minute before the end; a quarter of its life before, where the provider's tokens are that short."""
        if answer.expires_at is None:
            return cls(answer.access_token, answer.refresh_token, None)
        margin = min(REFRESH_MARGIN, max(0.0, answer.expires_at - time.time()) / 4)
        return cls(answer.access_token, answer.refresh_token, answer.expires_at - margin)

    def plaintext(self) -> bytes:
        return json.dumps([self.access_token, self.refresh_token, self.refresh_at]).encode()


@dataclass(frozen=True)
class _Credential:
    """One credential as it was read: opened, with what the database's clock says of it."""

    row: UpstreamCredential
    tokens: _Tokens
    is_leased: bool
    has_just_failed: bool
    was_just_renewed: bool

    @property
    def version(self) -> str:
        return f"{self.row.pk}.{self.row.version}"

    @property
    def expires_at(self) -> float:
        return self.row.expires_at.timestamp() if self.row.expires_at else float("inf")

    def is_due(self, rejected_version: str | None) -> bool:
        """Whether another access token is wanted."""
        at = self.tokens.refresh_at
        return self.version == rejected_version or (at is not None and at <= time.time())

    def is_usable(self, rejected_version: str | None) -> bool:
        """Whether this access token will do, for want of a better one."""
        return self.version != rejected_version and self.expires_at - time.time() > _STILL_USABLE

    def token(self) -> UpstreamToken:
        return UpstreamToken("Authorization", f"Bearer {self.tokens.access_token}", self.version, self.expires_at)


def _lease_seconds() -> float:
    """Longer than two calls of a provider, so that a holder's call ends well within its lease (T14)."""
    return 2 * _call_seconds() + 4


def _call_seconds() -> float:
    return settings.UPSTREAM_TIMEOUT + CONNECT_TIMEOUT


async def _from_vault(principal: Principal, api: str, rejected_version: str | None) -> UpstreamToken:
    """The person's access token, refreshed if it must be. Everyone who waits reads the row again until it is decided."""
    wait_until = time.monotonic() + _lease_seconds()
    while time.monotonic() < wait_until:
        credential = await in_database(_open_credential, principal, api)
        if token := _decided(credential, api, rejected_version):
            return token
        if credential.is_leased:
            await asyncio.sleep(POLL_EVERY)
        else:
            renew = database_sync_to_async(_renew, thread_sensitive=False, executor=_refreshers)
            await renew(credential, api if credential.version == rejected_version else "", principal.pseudonym)
    raise UpstreamUnavailable("a refresh at the provider takes too long", retry_after=5)


def _decided(credential: _Credential, api: str, rejected_version: str | None) -> UpstreamToken | None:
    """The token to use; None if one has to be fetched, or waited for. Raises where neither would help."""
    if not credential.is_due(rejected_version):
        return credential.token()
    usable = credential.is_usable(rejected_version)
    if credential.tokens.refresh_token is None and not usable:
        raise UpstreamLoginRequired("the provider gave no refresh token")
    if usable and (credential.is_leased or credential.has_just_failed or credential.tokens.refresh_token is None):
        return credential.token()
    if credential.has_just_failed:
        raise UpstreamUnavailable(f"the provider: {credential.row.failure}", round(FAILURE_KEPT.total_seconds()))
    renewed_for_it = credential.was_just_renewed and credential.row.failure == _rejected_by(api)
    if credential.version == rejected_version and renewed_for_it:
        raise UpstreamLoginRequired(f"{api} refuses a token that was made a moment ago")
    return None


def _rejected_by(api: str) -> str:
    return f"rejected:{api}"[:64]


def _open_credential(principal: Principal, api: str) -> _Credential:
    """The person's credential for `api`. Person, provider and audience come from the asker, never from the row (T21)."""
    _check_alive(principal)
    name, audience = settings.UPSTREAM_APIS[api]["token_source"], settings.UPSTREAM_APIS[api]["audience"]
    if principal.user_id is None:  # a service reaches no person's vault (T37)
        raise UpstreamLoginRequired("no person stands behind this call")
    rows = UpstreamCredential.objects.filter(user_id=principal.user_id, provider=name, audience=audience)
    row = _with_clock(rows).first()
    if row is None or row.state == UpstreamCredential.State.SIGN_IN_NEEDED:
        raise UpstreamLoginRequired(f"no good credential at {name}")
    tokens = _open(row, user_id=principal.user_id, provider_name=name, audience=audience)
    _note_use(row)
    if tokens.refresh_token is None and row.expires_at and row.expires_at <= timezone.now():
        _mark_sign_in_needed(row, "expired", principal.pseudonym, UpstreamCredential.objects.filter(lease_holder=None))
        raise UpstreamLoginRequired("the access token has expired and the provider gave no refresh token")
    if row.lease_is_lost:  # type: ignore[attr-defined]
        _mark_sign_in_needed(row, _LOST, principal.pseudonym, UpstreamCredential.objects.filter(_lease_is_lost()))
        raise UpstreamLoginRequired("two refreshes in a row ended without an answer")
    return _Credential(row, tokens, row.is_leased, row.has_just_failed, row.was_just_renewed)  # type: ignore[attr-defined]


def _open(row: UpstreamCredential, *, user_id: int | None, provider_name: str, audience: str) -> _Tokens:
    opened = vault.open_sealed(row.tokens, **_binding(row, user_id, provider_name, audience))
    return _Tokens(*json.loads(opened))


@dataclass(frozen=True)
class CredentialFacts:
    """What an operator may know of a stored credential. Audiences are None where the access token is opaque."""

    has_refresh_token: bool
    unverified_audiences: tuple[str, ...] | None


def facts_of(row: UpstreamCredential) -> CredentialFacts:
    """For `manage.py doctor`: what came, never the tokens themselves. Raises VaultError."""
    tokens = _open(row, user_id=row.user_id, provider_name=row.provider, audience=row.audience)
    try:
        unverified_claims = jwt.decode(tokens.access_token, options={"verify_signature": False})
    except jwt.PyJWTError:
        return CredentialFacts(bool(tokens.refresh_token), None)
    named = unverified_claims.get("aud")
    audiences = named if isinstance(named, list) else [named]
    return CredentialFacts(bool(tokens.refresh_token), tuple(name for name in audiences if isinstance(name, str)))


def _binding(row: UpstreamCredential, user_id: int | None, provider_name: str, audience: str) -> dict[str, Any]:
    return {
        "purpose": "upstream-credential",
        "row": row.pk,
        "field": "upstream_credential.tokens",
        "user": user_id,
        "provider": provider_name,
        "audience": audience,
        "issuer": row.issuer,
        "subject": row.subject,
        "version": row.version,
    }


def _seal(row: UpstreamCredential, tokens: _Tokens) -> bytes:
    return vault.seal(tokens.plaintext(), **_binding(row, row.user_id, row.provider, row.audience))


def _note_use(row: UpstreamCredential) -> None:
    """Last use, to the minute."""
    now = timezone.now()
    if row.last_used_at is None or now - row.last_used_at > LAST_USE_EVERY:
        UpstreamCredential.objects.filter(pk=row.pk).update(last_used_at=now)


# -- the lease: every deadline on the database's clock (T14) -----------------------------------------------------------


def _from_now(delta: timedelta) -> ExpressionWrapper:
    return ExpressionWrapper(Now() + Value(delta), output_field=DateTimeField())


def _lease_is_lost() -> Q:
    """A call was sent, nobody recorded its end, it was tried again, and that too was lost."""
    return Q(lease_holder__isnull=False, lease_until__lte=Now(), lease_sent_at__isnull=False, failure=_LOST)


def _is_claimable() -> Q:
    """Nobody holds the lease, or the holder's time is over: a claim that was not sent is retaken freely, a sent one once."""
    over = Q(lease_until__lte=Now())
    return Q(lease_holder=None) | (over & (Q(lease_sent_at=None) | ~Q(failure=_LOST)))


def _with_clock(rows: "QuerySet[UpstreamCredential]") -> "QuerySet[UpstreamCredential]":
    """`rows` with what only the database's clock can say."""

    def holds(condition: Q) -> Case:
        return Case(When(condition, then=Value(True)), default=Value(False), output_field=BooleanField())

    return rows.annotate(
        is_leased=holds(Q(lease_holder__isnull=False, lease_until__gt=Now())),
        lease_is_lost=holds(_lease_is_lost()),
        has_just_failed=holds(Q(failed_at__gt=_from_now(-FAILURE_KEPT))),
        was_just_renewed=holds(Q(lease_holder=None, lease_sent_at__gt=_from_now(-REJECTION_PATIENCE))),
    )


def _renew(credential: _Credential, rejected_by: str, pseudonym: uuid.UUID | None) -> None:
    """Try to be the one who refreshes. Whatever comes of it is in the row afterwards; nothing is returned.

    The provider's documents are read before the claim: a lease is for one call and no more.
    """
    row, upstream = credential.row, provider(credential.row.provider)
    assert credential.tokens.refresh_token is not None
    try:
        upstream.metadata()
    except ProviderUnavailable as error:
        return _record_failure(row, None, str(error))
    started = time.monotonic()
    holder = _claim(row)
    if holder is None:
        return None
    if time.monotonic() - started > _lease_seconds() - _call_seconds() - 2 or not _mark_sent(row, holder):
        # This process was paused: its time may be somebody else's already, so it does not send.
        return _release(row, holder)
    try:
        answer = upstream.refresh(credential.tokens.refresh_token)
    except ProviderUnavailable as error:
        return _record_failure(row, holder, str(error))
    except ProviderRefused as error:
        return _record_refusal(row, holder, error.error, pseudonym)
    return _record_success(row, answer, _rejected_by(rejected_by) if rejected_by else "", pseudonym)


def _claim(row: UpstreamCredential) -> uuid.UUID | None:
    """The lease, if it could be had for exactly this version. One statement: of many claims one changes the row."""
    holder = uuid.uuid4()
    sent_and_lost = When(Q(lease_holder__isnull=False, lease_sent_at__isnull=False), then=Value(_LOST))
    claimed = (
        UpstreamCredential.objects.filter(_is_claimable(), pk=row.pk, version=row.version)
        .filter(Q(failed_at=None) | Q(failed_at__lte=_from_now(-FAILURE_KEPT)))
        .exclude(state=UpstreamCredential.State.SIGN_IN_NEEDED)
        .update(
            failure=Case(sent_and_lost, default=F("failure")),
            lease_holder=holder,
            lease_until=_from_now(timedelta(seconds=_lease_seconds())),
            lease_sent_at=None,
        )
    )
    return holder if claimed else None


def _mark_sent(row: UpstreamCredential, holder: uuid.UUID) -> bool:
    """Committed before the first byte leaves: whoever finds this lease expired knows what may have been spent."""
    held = UpstreamCredential.objects.filter(pk=row.pk, version=row.version, lease_holder=holder, lease_until__gt=Now())
    return bool(held.update(lease_sent_at=Now()))


def _release(row: UpstreamCredential, holder: uuid.UUID) -> None:
    UpstreamCredential.objects.filter(pk=row.pk, lease_holder=holder).update(lease_holder=None, lease_until=None)


def _record_success(row: UpstreamCredential, answer: TokenAnswer, note: str, pseudonym: uuid.UUID | None) -> None:
    """Keep what the provider gave, if nobody has kept something newer.

    It beats any failure recorded on the same version. The old refresh token is spent by now, so a database that is
    away for a moment is waited for.
    """
    give_up = time.monotonic() + _lease_seconds()
    while True:
        try:
            return _store(row, answer, note, pseudonym)
        except (OperationalError, InterfaceError):
            if time.monotonic() > give_up or connection.in_atomic_block:
                raise
            connection.close()
            time.sleep(0.5)


def _store(row: UpstreamCredential, answer: TokenAnswer, note: str, pseudonym: uuid.UUID | None) -> None:
    base = row.version
    renewed = UpstreamCredential(
        pk=row.pk,
        user_id=row.user_id,
        provider=row.provider,
        audience=row.audience,
        issuer=row.issuer,
        subject=row.subject,
        version=base + 1,
    )
    with atomic():
        stored = UpstreamCredential.objects.filter(pk=row.pk, version=base).update(
            tokens=_seal(renewed, _Tokens.of(answer)),
            version=base + 1,
            scope=answer.scope or row.scope,
            expires_at=_as_datetime(answer.expires_at),
            state=UpstreamCredential.State.GOOD,
            **_NO_LEASE,
            failure=note,
        )
        if stored:
            audit.record_within(_event("upstream_token.refreshed", "ok", row, pseudonym))
    if not stored:
        logger.info("credential %s: a refresh came too late, something newer is kept", row.pk)


_NO_LEASE: dict[str, Any] = {"lease_holder": None, "lease_until": None, "failed_at": None}


def _record_failure(row: UpstreamCredential, holder: uuid.UUID | None, why: str) -> None:
    """The provider gave no answer: remembered for some seconds, so that a storm of calls costs it one."""
    logger.warning("credential %s: %s", row.pk, why)
    rows = UpstreamCredential.objects.filter(pk=row.pk, version=row.version, lease_holder=holder)
    rows.update(lease_holder=None, lease_until=None, failed_at=Now(), failure="unavailable")


def _record_refusal(row: UpstreamCredential, holder: uuid.UUID, error: str, pseudonym: uuid.UUID | None) -> None:
    """Only `invalid_grant` says that this credential is over (T10); every other code is about us, or about today."""
    logger.warning("credential %s: the provider refuses a refresh: %s", row.pk, error)
    mine = UpstreamCredential.objects.filter(lease_holder=holder)
    if error == "invalid_grant":
        _mark_sign_in_needed(row, error, pseudonym, mine)
    else:
        mine.filter(pk=row.pk, version=row.version).update(
            lease_holder=None, lease_until=None, failed_at=Now(), failure=error
        )


def _mark_sign_in_needed(
    row: UpstreamCredential, why: str, pseudonym: uuid.UUID | None, rows: "QuerySet[UpstreamCredential]"
) -> None:
    """The credential is over, as far as `rows` and the version read still hold. The person's sign-in ends this state."""
    with atomic():
        marked = rows.filter(pk=row.pk, version=row.version).update(
            state=UpstreamCredential.State.SIGN_IN_NEEDED, **_NO_LEASE, failure=why
        )
        if marked:
            audit.record_within(_event("upstream_token.sign_in_needed", why, row, pseudonym))


def _event(name: str, outcome: str, row: UpstreamCredential, pseudonym: uuid.UUID | None) -> audit.Event:
    return audit.Event(name, outcome, pseudonym=pseudonym, detail={"provider": row.provider, "audience": row.audience})


def _as_datetime(epoch: float | None) -> datetime | None:
    return None if epoch is None else datetime.fromtimestamp(epoch, UTC)


# -- from a sign-in to the vault (T4) ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Staged:
    """What a provider gave at a sign-in, waiting for the person's consent."""

    user_id: int
    provider: str
    issuer: str
    subject: str
    audience: str
    scope: str
    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_at: float | None

    def tokens(self, refresh_token: str | None) -> _Tokens:
        return _Tokens.of(TokenAnswer(self.access_token, refresh_token, None, None, self.expires_at))


def stage(transaction: LoginTransaction, answer: TokenAnswer, *, issuer: str, subject: str) -> None:
    """Seal the provider's tokens onto the transaction of the person who has just signed in."""
    upstream = provider(transaction.provider)
    staged = {
        "issuer": issuer,
        "subject": subject,
        "audience": upstream.audience,
        # RFC 6749 §5.1: scope is "OPTIONAL, if identical to the scope requested by the client".
        "scope": answer.scope or upstream.scope,
        "access_token": answer.access_token,
        "refresh_token": answer.refresh_token,
        "expires_at": answer.expires_at,
    }
    transaction.staged_tokens = vault.seal(json.dumps(staged).encode(), **_staged_binding(transaction))
    transaction.save(update_fields=["staged_tokens"])


def _staged_binding(transaction: LoginTransaction) -> dict[str, Any]:
    return {
        "purpose": "staged-tokens",
        "row": transaction.pk,
        "field": "login_transaction.staged_tokens",
        "user": transaction.user_id,
        "provider": transaction.provider,
    }


def erase_staged(transaction: LoginTransaction) -> None:
    """Forget what the provider gave: the person said no, came too late, or is somebody else."""
    LoginTransaction.objects.filter(pk=transaction.pk).update(staged_tokens=None, upstream_secrets=None)
    transaction.staged_tokens = transaction.upstream_secrets = None


def keep_staged(transaction: LoginTransaction) -> None:
    """Merge the staged tokens into the vault, within the database transaction that records the consent."""
    staged = _open_staged(transaction)
    if staged is not None:
        _merge(staged)
    erase_staged(transaction)


def keep_after_visit(transaction: LoginTransaction) -> None:
    """A sign-in without a client: its tokens serve the clients this person has allowed, or nobody."""
    if Grant.objects.filter(user=transaction.user, withdrawn_at=None).exists():
        keep_staged(transaction)
    else:
        erase_staged(transaction)


def _open_staged(transaction: LoginTransaction) -> _Staged | None:
    """The staged tokens, if they are there, can be opened, and are this person's own."""
    sealed = LoginTransaction.objects.filter(pk=transaction.pk).values_list("staged_tokens", flat=True).first()
    if sealed is None or transaction.user_id is None:
        return None
    try:
        opened = json.loads(vault.open_sealed(sealed, **_staged_binding(transaction)))
    except vault.VaultError as error:
        logger.error("staged tokens are lost, the person will be asked to sign in again: %s", error)
        return None
    staged = _Staged(user_id=transaction.user_id, provider=transaction.provider, **opened)
    own = Identity.objects.filter(user_id=staged.user_id, issuer=staged.issuer, subject=staged.subject)
    return staged if own.exists() else None


def _merge(staged: _Staged) -> None:
    """One credential per person, provider and audience; of two first ones at once the second becomes an update."""
    rows = UpstreamCredential.objects.filter(user_id=staged.user_id, provider=staged.provider, audience=staged.audience)
    row = _with_clock(rows.select_for_update()).first()
    if row is None:
        try:
            with atomic():
                return _insert(staged)
        except IntegrityError:
            row = _with_clock(rows.select_for_update()).get()
    keeps, refresh_token = _compare(row, staged)
    if not keeps:
        _replace(row, staged, refresh_token)


def _insert(staged: _Staged) -> None:
    row = UpstreamCredential(
        user_id=staged.user_id,
        provider=staged.provider,
        audience=staged.audience,
        issuer=staged.issuer,
        subject=staged.subject,
        scope=staged.scope,
        expires_at=_as_datetime(staged.expires_at),
    )
    row.tokens = _seal(row, staged.tokens(staged.refresh_token))
    row.save(force_insert=True)


def _compare(row: UpstreamCredential, staged: _Staged) -> tuple[bool, str | None]:
    """Whether the vault's credential stays, and else which refresh token goes with the new access token.

    Silent single sign-on, started by any client's link, may bring less than what is there: never a refresh token
    replaced by none, never scopes by fewer (T4). What is dead, or another account's, is replaced whole.
    """
    old = _alive_tokens(row, staged)
    if old is None:
        return False, staged.refresh_token
    if set(row.scope.split()) - set(staged.scope.split()):
        return True, None
    if staged.refresh_token is None and old.refresh_token is not None and row.is_leased:  # type: ignore[attr-defined]
        return True, None  # its refresh token is being spent at this moment
    return False, staged.refresh_token or old.refresh_token


def _alive_tokens(row: UpstreamCredential, staged: _Staged) -> _Tokens | None:
    """The vault's tokens, if they are the same account's and still good for something."""
    same = (row.issuer, row.subject) == (staged.issuer, staged.subject)
    if not same or row.state == UpstreamCredential.State.SIGN_IN_NEEDED:
        return None
    try:
        old = _open(row, user_id=row.user_id, provider_name=row.provider, audience=row.audience)
    except vault.VaultError as error:
        logger.error("a credential cannot be opened and is replaced: %s", error)
        return None
    expired = row.expires_at is not None and row.expires_at <= timezone.now()
    return None if expired and old.refresh_token is None else old


def _replace(row: UpstreamCredential, staged: _Staged, refresh_token: str | None) -> None:
    row.issuer, row.subject, row.scope = staged.issuer, staged.subject, staged.scope
    row.expires_at = _as_datetime(staged.expires_at)
    row.version += 1
    row.state = UpstreamCredential.State.GOOD
    row.lease_holder = row.lease_until = row.lease_sent_at = row.failed_at = None
    row.failure = ""
    row.tokens = _seal(row, staged.tokens(refresh_token))
    row.save()


def needs_sign_in(user: User) -> bool:
    """Whether some API takes its tokens from a provider at which this person has no good credential."""
    good = UpstreamCredential.objects.filter(user=user).exclude(state=UpstreamCredential.State.SIGN_IN_NEEDED)
    have = set(good.values_list("provider", "audience"))
    wanted = {(api["token_source"], api["audience"]) for api in settings.UPSTREAM_APIS.values()}
    return any(source != CAIR and (source, audience) not in have for source, audience in wanted)
