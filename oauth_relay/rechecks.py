"""Whether the provider still stands by a person whose client wants another access token (T37).

A provider without back-channel logout tells nobody whom it has disabled. So it is asked, when its last word about the
person is nearly UPSTREAM_RECHECK old: by a refresh, or by its API. Only its no ends anything, and that as its logout
token would: the person's clients wait for a sign-in, nothing is revoked. A provider that is away ends nothing.
"""

import logging
import time
from datetime import timedelta

from django.conf import settings
from django.db.models import F, Q
from django.db.transaction import atomic
from oauth2_provider.settings import oauth2_settings

from oauth_relay import audit, suspensions, vault
from oauth_relay.identity_providers import CONNECT_TIMEOUT
from oauth_relay.models import UpstreamCredential, User
from oauth_relay.models.secrets import FAILURE_KEPT, LOST, from_now
from oauth_relay.upstream_credentials import SIGNED_OUT, UpstreamLoginRequired
from oauth_relay.upstream_refresh import prove

logger = logging.getLogger(__name__)

_OVER = ("invalid_grant", LOST)
"""Why a credential is over that could be asked about: whoever heard it, a tool's call or we, nobody has acted on it yet."""


class ProofDue(Exception):
    """A provider has not stood by `user` for too long. Raised under the grant's lock, so that leaving it gives that back."""

    def __init__(self, user: User, credentials: list[UpstreamCredential]) -> None:
        super().__init__("the provider must be asked about the person first")
        self.user = user
        self.credentials = credentials


def check_proved(user: User) -> None:
    """Raise ProofDue unless every provider's word about this person holds. One query; none where nobody can be asked."""
    if not settings.UPSTREAM_RECHECK or not settings.UPSTREAM_PROVIDERS:
        return
    if due := [row for row in _due(user) if row.audience == settings.UPSTREAM_PROVIDERS[row.provider]["audience"]]:
        raise ProofDue(user, due)


def _due(user: User) -> list[UpstreamCredential]:
    """Old enough that an access token made now would outlive the word. What failed a moment ago is left for later."""
    holds = timedelta(seconds=max(0, settings.UPSTREAM_RECHECK - oauth2_settings.ACCESS_TOKEN_EXPIRE_SECONDS))
    needs_sign_in = Q(state=UpstreamCredential.State.SIGN_IN_NEEDED)
    has_just_failed = Q(failed_at__isnull=False, failed_at__gt=from_now(-FAILURE_KEPT))
    rows = UpstreamCredential.objects.filter(
        (needs_sign_in & Q(failure__in=_OVER)) | (~needs_sign_in & ~has_just_failed),
        user=user,
        provider__in=list(settings.UPSTREAM_PROVIDERS),
        proved_at__lte=from_now(-holds),
    )
    # Of several providers, one that hangs must not use up the time of the others again and again.
    return list(rows.order_by(F("failed_at").asc(nulls_first=True)))


def ask_providers(due: ProofDue) -> None:
    """Ask about each credential, in no transaction, for as long as one call may take; the rest waits for the next time."""
    give_up_at = time.monotonic() + settings.UPSTREAM_TIMEOUT + CONNECT_TIMEOUT
    for row in due.credentials:
        try:
            prove(due.user, row, give_up_at)
        except UpstreamLoginRequired as error:
            logger.info("credential %s: %s", row.pk, error)
        except vault.VaultError as error:
            logger.error("credential %s cannot be asked about: %s", row.pk, error)
        _act_on_refusal(due.user, row)


def _act_on_refusal(user: User, row: UpstreamCredential) -> None:
    """Where the provider stands by the person no more: as if it had said that they signed out. Once, whoever comes first.

    A process that is killed before this leaves the refusal on the row, where the next refresh finds it.
    """
    refused = UpstreamCredential.objects.filter(
        pk=row.pk, state=UpstreamCredential.State.SIGN_IN_NEEDED, failure__in=_OVER
    )
    if not refused.exists():
        return
    with atomic():
        # Grants before credentials, as everywhere: a logout token may arrive at this very moment.
        suspensions.lock_grants(user)
        if not refused.update(failure=SIGNED_OUT):
            return
        user.sessions.all().delete()
        waiting = suspensions.suspend(user, row.provider)
        detail = {"provider": row.provider, "grants": waiting}
        audit.record_within(audit.Event("user.refused_by_provider", pseudonym=user.pseudonym, detail=detail))
