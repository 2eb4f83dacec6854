"""A token from the vault, refreshed before it ends: one call at the provider per credential, however many ask (T14).

The lease is in the row, with every deadline on the database's clock; what a call brings is stored by a comparison of the
version. So it holds for any number of processes, and for those that are paused in the middle.
"""

import asyncio
import logging
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from channels.db import database_sync_to_async
from django.conf import settings
from django.db import connection
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Now
from django.db.transaction import atomic
from django.utils import timezone

from oauth_relay import audit, challenges
from oauth_relay.access_tokens import Principal
from oauth_relay.database import DATABASE_AWAY, give_back_connection, in_database
from oauth_relay.identity_providers import (
    CONNECT_TIMEOUT,
    ProviderRefused,
    ProviderUnavailable,
    TokenAnswer,
    provider,
)
from oauth_relay.models import UpstreamCredential, User
from oauth_relay.models.secrets import FAILURE_KEPT, LOST, from_now
from oauth_relay.upstream_credentials import (
    NO_LEASE,
    SIGNED_OUT,
    Credential,
    Tokens,
    UpstreamLoginRequired,
    UpstreamRefused,
    UpstreamToken,
    UpstreamUnavailable,
    as_datetime,
    check_alive,
    credential_event,
    mark_sign_in_needed,
    open_tokens,
    seal_tokens,
)

logger = logging.getLogger(__name__)

POLL_EVERY = 0.1
LAST_USE_EVERY = timedelta(minutes=1)

# Refresh calls have threads of their own: a provider that hangs must not hold up the database's.
_refreshers = ThreadPoolExecutor(max_workers=8, thread_name_prefix="upstream-refresh")


# -- the token to use now ----------------------------------------------------------------------------------------------


async def token_from_vault(principal: Principal, api: str, rejected_version: str | None) -> UpstreamToken:
    """The person's access token, refreshed if it must be. Everyone who waits reads the row again until it is decided."""
    # Whoever has waited behind a holder that died still has the time to ask the provider, and to read what came of it.
    wait_until = time.monotonic() + _lease_seconds() + _call_seconds()
    while time.monotonic() < wait_until:
        credential = await in_database(_open_credential, principal, api)
        try:
            if token := _decided(credential, api, rejected_version):
                return token
        except UpstreamRefused as error:
            # Signing in again may help, once; a challenge at every call would send person and client round in circles.
            if await in_database(challenges.may_challenge, principal.grant_id, f"refused by {api}"):
                raise UpstreamLoginRequired(str(error)) from error
            raise
        if credential.is_leased:
            await asyncio.sleep(POLL_EVERY)
        else:
            renew = database_sync_to_async(_renew, thread_sensitive=False, executor=_refreshers)
            await renew(credential, api if credential.version == rejected_version else "", principal.pseudonym)
    raise UpstreamUnavailable("a refresh at the provider takes too long", retry_after=5)


def _decided(credential: Credential, api: str, rejected_version: str | None) -> UpstreamToken | None:
    """The token to use; None if one has to be fetched, or waited for. Raises where neither would help."""
    if not credential.is_due(rejected_version):
        return credential.token()
    usable = credential.is_usable(rejected_version)
    if credential.tokens.refresh_token is None and not usable:
        if credential.version == rejected_version:
            raise UpstreamRefused(f"{api} refuses a token that cannot be refreshed")
        raise UpstreamLoginRequired("the provider gave no refresh token")
    if usable and (credential.is_leased or credential.has_just_failed or credential.tokens.refresh_token is None):
        return credential.token()
    if credential.has_just_failed:
        raise UpstreamUnavailable(f"the provider: {credential.row.failure}", round(FAILURE_KEPT.total_seconds()))
    renewed_for_it = credential.was_just_renewed and credential.row.failure == _rejected_by(api)
    if credential.version == rejected_version and renewed_for_it:
        raise UpstreamRefused(f"{api} refuses a token that was made a moment ago")
    return None


def _rejected_by(api: str) -> str:
    return f"rejected:{api}"[:64]


def _open_credential(principal: Principal, api: str) -> Credential:
    """The person's credential for `api`. Person, provider and audience come from the asker, never from the row (T21)."""
    check_alive(principal)
    name, audience = settings.UPSTREAM_APIS[api]["token_source"], settings.UPSTREAM_APIS[api]["audience"]
    if principal.user_id is None:  # a service reaches no person's vault (T37)
        raise UpstreamLoginRequired("no person stands behind this call")
    rows = UpstreamCredential.objects.filter(user_id=principal.user_id, provider=name, audience=audience)
    row = rows.with_clock().first()
    if row is None or row.state == UpstreamCredential.State.SIGN_IN_NEEDED:
        raise UpstreamLoginRequired(f"no good credential at {name}")
    credential = _opened(row, principal.user_id, name, audience, principal.pseudonym)
    _note_use(row)
    return credential


def _opened(row: UpstreamCredential, user_id: int, name: str, audience: str, pseudonym: uuid.UUID | None) -> Credential:
    """The credential in `row`, which was read with the database's clock. Raises UpstreamLoginRequired, VaultError."""
    tokens = open_tokens(row, user_id=user_id, provider_name=name, audience=audience)
    if tokens.refresh_token is None and row.expires_at and row.expires_at <= timezone.now():
        mark_sign_in_needed(row, "expired", pseudonym, UpstreamCredential.objects.filter(lease_holder=None))
        raise UpstreamLoginRequired("the access token has expired and the provider gave no refresh token")
    if row.lease_is_lost:
        mark_sign_in_needed(row, LOST, pseudonym, UpstreamCredential.objects.lost())
        raise UpstreamLoginRequired("two refreshes in a row ended without an answer")
    return Credential(row, tokens, row.is_leased, row.has_just_failed, row.was_just_renewed)


def _note_use(row: UpstreamCredential) -> None:
    """Last use, to the minute."""
    now = timezone.now()
    if row.last_used_at is None or now - row.last_used_at > LAST_USE_EVERY:
        UpstreamCredential.objects.filter(pk=row.pk).update(last_used_at=now)


# -- the provider's word, token or no token (T37) ----------------------------------------------------------------------


def prove(user: User, row: UpstreamCredential, give_up_at: float) -> None:
    """Have the provider stand by a credential, or end it. Whatever comes of it is in the row; nothing is returned.

    By the same lease as every refresh: of many who want to know, one asks and the others wait for it. Raises
    UpstreamLoginRequired where nobody can be asked any more, VaultError.
    """
    was_asked = False
    while time.monotonic() < give_up_at and (credential := _unproved(user, row)) is not None:
        can_refresh = credential.tokens.refresh_token is not None
        if not can_refresh and not provider(row.provider).vouches_for_access_tokens:
            return  # nothing to ask with: doctor names such a provider
        if credential.is_leased or was_asked:
            give_back_connection()
            time.sleep(POLL_EVERY)
        if not credential.is_leased:
            was_asked = True
            _renew(credential, "", user.pseudonym) if can_refresh else _vouch(credential, user.pseudonym)


def _unproved(user: User, row: UpstreamCredential) -> Credential | None:
    """The credential as it is now; None once it is proved, over, or was asked about in vain a moment ago."""
    rows = UpstreamCredential.objects.filter(pk=row.pk, user=user, proved_at__lte=row.proved_at)
    found = rows.exclude(state=UpstreamCredential.State.SIGN_IN_NEEDED).with_clock().first()
    if found is None or found.has_just_failed:
        return None
    audience = settings.UPSTREAM_PROVIDERS[row.provider]["audience"]
    return _opened(found, user.pk, row.provider, audience, user.pseudonym)


def _vouch(credential: Credential, pseudonym: uuid.UUID | None) -> None:
    """Ask with the access token itself. Nothing is spent by it, so a claim that was lost in mid-call may be retaken."""
    row = credential.row
    holder = _claim(row)
    if holder is None:
        return None
    give_back_connection()
    try:
        provider(row.provider).check_access_token(credential.tokens.access_token)
    except ProviderUnavailable as error:
        return _record_failure(row, holder, str(error))
    except ProviderRefused as error:
        return _record_refusal(row, holder, error.error, pseudonym)
    mine = UpstreamCredential.objects.filter(pk=row.pk, version=row.version, lease_holder=holder)
    mine.update(proved_at=Now(), failure="", **NO_LEASE)
    return None


# -- the lease ---------------------------------------------------------------------------------------------------------


def _lease_seconds() -> float:
    """Longer than two calls of a provider, so that a holder's call ends well within its lease (T14)."""
    return 2 * _call_seconds() + 4


def _call_seconds() -> float:
    return settings.UPSTREAM_TIMEOUT + CONNECT_TIMEOUT


def _renew(credential: Credential, rejected_by: str, pseudonym: uuid.UUID | None) -> None:
    """Try to be the one who refreshes. Whatever comes of it is in the row afterwards; nothing is returned.

    The provider's documents are read before the claim: a lease is for one call and no more.
    """
    row, upstream = credential.row, provider(credential.row.provider)
    assert credential.tokens.refresh_token is not None
    try:
        upstream.metadata()
    except ProviderUnavailable as error:
        return _record_unsent(row, str(error))
    started = time.monotonic()
    holder = _claim(row)
    if holder is None:
        return None
    if not _mark_sent(row, holder) or time.monotonic() - started > _lease_seconds() - _call_seconds() - 2:
        # This process was paused: its time may be somebody else's already, so it does not send. Looked at last, for the
        # mark may have had to wait too.
        return _release(row, holder)
    give_back_connection()
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
    sent_and_lost = When(Q(lease_holder__isnull=False, lease_sent_at__isnull=False), then=Value(LOST))
    claimed = (
        UpstreamCredential.objects.filter(_is_claimable(), pk=row.pk, version=row.version)
        .filter(Q(failed_at=None) | Q(failed_at__lte=from_now(-FAILURE_KEPT)))
        .exclude(state=UpstreamCredential.State.SIGN_IN_NEEDED)
        .update(
            failure=Case(sent_and_lost, default=F("failure")),
            lease_holder=holder,
            lease_until=from_now(timedelta(seconds=_lease_seconds())),
            lease_sent_at=None,
        )
    )
    return holder if claimed else None


def _is_claimable() -> Q:
    """Nobody holds the lease, or the holder's time is over: a claim that was not sent is retaken freely, a sent one once."""
    over = Q(lease_until__lte=Now())
    return Q(lease_holder=None) | (over & (Q(lease_sent_at=None) | ~Q(failure=LOST)))


def _mark_sent(row: UpstreamCredential, holder: uuid.UUID) -> bool:
    """Committed before the first byte leaves: whoever finds this lease expired knows what may have been spent."""
    held = UpstreamCredential.objects.filter(pk=row.pk, version=row.version, lease_holder=holder, lease_until__gt=Now())
    return bool(held.update(lease_sent_at=Now()))


def _release(row: UpstreamCredential, holder: uuid.UUID) -> None:
    mine = UpstreamCredential.objects.filter(pk=row.pk, lease_holder=holder)
    mine.update(lease_holder=None, lease_until=None, lease_sent_at=None)


# -- what came of the call ---------------------------------------------------------------------------------------------


def _record_success(row: UpstreamCredential, answer: TokenAnswer, note: str, pseudonym: uuid.UUID | None) -> None:
    """Keep what the provider gave, if nobody has kept something newer.

    It beats any failure recorded on the same version. The old refresh token is spent by now, so a database that is
    away for a moment is waited for.
    """
    give_up = time.monotonic() + _lease_seconds()
    while True:
        try:
            return _store(row, answer, note, pseudonym)
        except DATABASE_AWAY:
            if time.monotonic() > give_up or connection.in_atomic_block:
                raise
            connection.close()
            time.sleep(0.5)


def _store(row: UpstreamCredential, answer: TokenAnswer, note: str, pseudonym: uuid.UUID | None) -> None:
    base = row.version
    with atomic():
        stored = (
            UpstreamCredential.objects.filter(pk=row.pk, version=base)
            .exclude(failure=SIGNED_OUT)
            .update(
                tokens=seal_tokens(row, Tokens.of(answer), version=base + 1),
                version=base + 1,
                scope=answer.scope or row.scope,
                expires_at=as_datetime(answer.expires_at),
                state=UpstreamCredential.State.GOOD,
                proved_at=Now(),
                **NO_LEASE,
                failure=note,
            )
        )
        if stored:
            audit.record_within(credential_event("upstream_token.refreshed", "ok", row, pseudonym))
    if not stored:
        logger.info("credential %s: a refresh came too late, something newer is kept", row.pk)


def _record_unsent(row: UpstreamCredential, why: str) -> None:
    """The provider cannot be found: nobody tries again for some seconds, and nothing else is changed.

    Neither the lease of a holder that died nor its loss is forgotten, nor why a credential is over.
    """
    logger.warning("credential %s: %s", row.pk, why)
    rows = UpstreamCredential.objects.filter(Q(lease_holder=None) | Q(lease_until__lte=Now()))
    rows = rows.filter(pk=row.pk, version=row.version).exclude(state=UpstreamCredential.State.SIGN_IN_NEEDED)
    lost = When(failure=LOST, then=Value(LOST))
    rows.update(failed_at=Now(), failure=Case(lost, default=Value("unavailable")))


def _record_failure(row: UpstreamCredential, holder: uuid.UUID, why: str) -> None:
    """The provider gave no answer: remembered for some seconds, so that a storm of calls costs it one."""
    logger.warning("credential %s: %s", row.pk, why)
    rows = UpstreamCredential.objects.filter(pk=row.pk, version=row.version, lease_holder=holder)
    rows.update(lease_holder=None, lease_until=None, failed_at=Now(), failure="unavailable")


def _record_refusal(row: UpstreamCredential, holder: uuid.UUID, error: str, pseudonym: uuid.UUID | None) -> None:
    """Only `invalid_grant` says that this credential is over (T10); every other code is about us, or about today."""
    logger.warning("credential %s: the provider refuses a refresh: %s", row.pk, error)
    mine = UpstreamCredential.objects.filter(lease_holder=holder)
    if error == "invalid_grant":
        mark_sign_in_needed(row, error, pseudonym, mine)
    else:
        mine.filter(pk=row.pk, version=row.version).update(
            lease_holder=None, lease_until=None, failed_at=Now(), failure=error
        )
