"""The end of what the vault holds of a person: erased here at once, then revoked at the provider (RFC 7009).

What must be is one database transaction. Telling the provider comes after its commit, on threads of its own, with a
deadline: it may be slow, down, or not care, and none of that may keep anybody from withdrawing.
"""

import logging
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from django.conf import settings
from django.db import connections
from django.db.models import QuerySet
from django.db.transaction import atomic, on_commit

from oauth_relay import audit, vault
from oauth_relay.identity_providers import ProviderUnavailable, provider
from oauth_relay.models import LoginTransaction, UpstreamCredential, User, Withdrawal
from oauth_relay.upstream_credentials import Tokens, credential_event, open_tokens

logger = logging.getLogger(__name__)

_revokers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="upstream-revocation")


@dataclass(frozen=True)
class _Revocable:
    """Tokens that nobody here has any more, and what the audit may say of them."""

    row: UpstreamCredential
    pseudonym: uuid.UUID
    tokens: Tokens = field(repr=False)


def erase_credentials(user: User, why: str, provider_name: str | None = None) -> int:
    """Erase all that providers gave for this person, or that one did, wherever it waits. The number of credentials erased.

    Their clients stay connected: what needs a provider's token asks for a sign-in.
    """
    with atomic():
        of_provider = {} if provider_name is None else {"provider": provider_name}
        rows = list(UpstreamCredential.objects.select_for_update().filter(user=user, **of_provider))
        revocable = [found for row in rows if (found := _revocable(row, user))]
        UpstreamCredential.objects.filter(pk__in=[row.pk for row in rows]).delete()
        _erase_waiting(LoginTransaction.objects.filter(user=user, **of_provider))
        if rows:
            Withdrawal.objects.create(kind=Withdrawal.Kind.CREDENTIAL, reference=str(user.pk))
        for row in rows:
            audit.record_within(credential_event("upstream_token.erased", why, row, user.pseudonym))
        for found in revocable:
            on_commit(partial(_revokers.submit, _revoke, found))
    return len(rows)


def _erase_waiting(transactions: "QuerySet[LoginTransaction]") -> None:
    """What waits for a consent. One that is locked is being answered: whoever waited for it would hold up its grant."""
    free = transactions.exclude(staged_tokens=None).select_for_update(skip_locked=True).values_list("pk", flat=True)
    LoginTransaction.objects.filter(pk__in=list(free)).update(staged_tokens=None)


def _revocable(row: UpstreamCredential, user: User) -> _Revocable | None:
    """What the provider should be told of. A box that does not open is erased all the same."""
    if row.provider not in settings.UPSTREAM_PROVIDERS:
        return None
    try:
        tokens = open_tokens(row, user_id=user.pk, provider_name=row.provider, audience=row.audience)
    except vault.VaultError as error:
        logger.warning("credential %s is erased, but cannot be revoked at %s: %s", row.pk, row.provider, error)
        return None
    return _Revocable(row, user.pseudonym, tokens)


def _revoke(found: _Revocable) -> None:
    """Tell the provider once, and write down what came of it."""
    upstream, tokens = provider(found.row.provider), found.tokens
    try:
        outcome = "ok" if upstream.revoke(tokens.access_token, tokens.refresh_token) else "not_offered"
    except ProviderUnavailable as error:
        logger.warning("a token could not be revoked at %s: %s", found.row.provider, error)
        outcome = "unavailable"
    try:
        audit.record_within(credential_event("upstream_token.revoked", outcome, found.row, found.pseudonym))
    finally:
        connections.close_all()  # nobody else closes what this thread opened
