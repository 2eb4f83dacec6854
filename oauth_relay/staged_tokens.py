"""From a sign-in to the vault (T4): the provider's tokens wait, sealed, on the transaction until the person has consented.

Nothing that a person did not agree to is kept, and nothing that is kept is made less by a silent sign-in.
"""

import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import IntegrityError
from django.db.transaction import atomic
from django.utils import timezone
from oauth2_provider.scopes import get_scopes_backend

from oauth_relay import challenges, vault
from oauth_relay.identity_providers import Provider, TokenAnswer, provider
from oauth_relay.models import Grant, Identity, LoginTransaction, UpstreamCredential, User
from oauth_relay.models.secrets import LOST
from oauth_relay.models.transactions import NO_SECRETS
from oauth_relay.upstream_credentials import CAIR, Tokens, as_datetime, open_tokens, seal_tokens

logger = logging.getLogger(__name__)


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
    proved_at: datetime = field(default_factory=timezone.now)

    def tokens(self, refresh_token: str | None) -> Tokens:
        return Tokens.of(TokenAnswer(self.access_token, refresh_token, None, None, self.expires_at))


def stage(
    transaction: LoginTransaction, answer: TokenAnswer, *, issuer: str, subject: str, asked_scope: str = ""
) -> None:
    """Seal the provider's tokens onto the transaction of the person who has just signed in."""
    upstream = provider(transaction.provider)
    staged = {
        "issuer": issuer,
        "subject": subject,
        "audience": upstream.audience,
        # RFC 6749 §5.1: scope is "OPTIONAL, if identical to the scope requested by the client".
        "scope": answer.scope or asked_scope or upstream.scope,
        "access_token": answer.access_token,
        "refresh_token": answer.refresh_token,
        "expires_at": answer.expires_at,
    }
    transaction.staged_tokens = vault.seal(json.dumps(staged).encode(), **staged_binding(transaction))
    transaction.save(update_fields=["staged_tokens"])


def staged_binding(transaction: LoginTransaction) -> dict[str, Any]:
    """What the staged tokens are sealed to."""
    return {
        "purpose": "staged-tokens",
        "row": transaction.pk,
        "field": "login_transaction.staged_tokens",
        "user": transaction.user_id,
        "provider": transaction.provider,
    }


def scope_to_ask(user: User | None, upstream: Provider) -> str:
    """What to ask the provider for: what is configured, what this person has given before, and what a tool just lacked."""
    if user is None:
        return upstream.scope
    given = UpstreamCredential.objects.filter(user=user, provider=upstream.name, audience=upstream.audience).first()
    widened = challenges.wanted_upstream_scopes(user) if upstream.audience else []
    return " ".join(dict.fromkeys([*upstream.scope.split(), *(given.scope.split() if given else []), *widened]))


def erase_staged(transaction: LoginTransaction) -> None:
    """Forget what the provider gave: the person said no, came too late, or is somebody else."""
    LoginTransaction.objects.filter(pk=transaction.pk).update(**NO_SECRETS)
    transaction.staged_tokens = transaction.upstream_secrets = transaction.identity_to_link = None


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
        opened = json.loads(vault.open_sealed(sealed, **staged_binding(transaction)))
    except vault.VaultError as error:
        logger.error("staged tokens are lost, the person will be asked to sign in again: %s", error)
        return None
    # The provider stood by them when they came back from it; the consent may be half an hour later.
    proved_at = transaction.signed_in_at or timezone.now()
    staged = _Staged(user_id=transaction.user_id, provider=transaction.provider, **opened, proved_at=proved_at)
    own = Identity.objects.filter(user_id=staged.user_id, issuer=staged.issuer, subject=staged.subject)
    return staged if own.exists() else None


# -- into the vault ----------------------------------------------------------------------------------------------------


def _merge(staged: _Staged) -> None:
    """One credential per person, provider and audience; of two first ones at once the second becomes an update."""
    rows = UpstreamCredential.objects.filter(user_id=staged.user_id, provider=staged.provider, audience=staged.audience)
    row = rows.with_clock().select_for_update().first()
    if row is None:
        try:
            with atomic():
                return _insert(staged)
        except IntegrityError:
            row = rows.with_clock().select_for_update().get()
    keeps, refresh_token = _compare(row, staged)
    if keeps:
        rows.filter(proved_at__lt=staged.proved_at).update(proved_at=staged.proved_at)
    else:
        _replace(row, staged, refresh_token)


def _insert(staged: _Staged) -> None:
    row = UpstreamCredential(
        user_id=staged.user_id,
        provider=staged.provider,
        audience=staged.audience,
        issuer=staged.issuer,
        subject=staged.subject,
        scope=staged.scope,
        expires_at=as_datetime(staged.expires_at),
        proved_at=staged.proved_at,
    )
    row.tokens = seal_tokens(row, staged.tokens(staged.refresh_token), version=row.version)
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
    if staged.refresh_token is None and old.refresh_token is not None and row.is_leased:
        return True, None  # its refresh token is being spent at this moment
    return False, staged.refresh_token or old.refresh_token


def _alive_tokens(row: UpstreamCredential, staged: _Staged) -> Tokens | None:
    """The vault's tokens, if they are the same account's and still good for something."""
    same = (row.issuer, row.subject) == (staged.issuer, staged.subject)
    if not same or row.state == UpstreamCredential.State.SIGN_IN_NEEDED:
        return None
    try:
        old = open_tokens(row, user_id=row.user_id, provider_name=row.provider, audience=row.audience)
    except vault.VaultError as error:
        logger.error("a credential cannot be opened and is replaced: %s", error)
        return None
    expired = row.expires_at is not None and row.expires_at <= timezone.now()
    return None if expired and old.refresh_token is None else old


def _replace(row: UpstreamCredential, staged: _Staged, refresh_token: str | None) -> None:
    # A refresh token that is carried over may have been sent once already, with nothing to show for it (T14).
    is_carried_over = staged.refresh_token is None and refresh_token is not None
    row.failure = LOST if is_carried_over and row.lease_holder and row.lease_sent_at else ""
    row.issuer, row.subject, row.scope = staged.issuer, staged.subject, staged.scope
    row.expires_at, row.proved_at = as_datetime(staged.expires_at), staged.proved_at
    row.version += 1
    row.state = UpstreamCredential.State.GOOD
    row.lease_holder = row.lease_until = row.lease_sent_at = row.failed_at = None
    row.tokens = seal_tokens(row, staged.tokens(refresh_token), version=row.version)
    row.save()


def nobody_could_ask_about(user: User, way: str) -> bool:
    """Whether the provider by which a person came gave nothing to ask it with, later, whether it still stands by them (T37).

    So it is after a visit without any client, and after the last client was disconnected.
    """
    if not settings.UPSTREAM_RECHECK or way not in settings.UPSTREAM_PROVIDERS:
        return False
    return not UpstreamCredential.objects.filter(user=user, provider=way).exists()


def needs_sign_in(user: User, scopes: Collection[str] | None = None) -> bool:
    """Whether an API takes its tokens from a provider at which this person has no good credential, or too narrow a one.

    With `scopes`, only the APIs count that these scopes open: who uses none of them needs nobody else's word.
    """
    if scopes is None and challenges.wanted_upstream_scopes(user):
        return True
    names = settings.UPSTREAM_APIS if scopes is None else get_scopes_backend().apis_reached_with(scopes)
    apis = [settings.UPSTREAM_APIS[name] for name in names if name in settings.UPSTREAM_APIS]
    wanted = {(api["token_source"], api["audience"]) for api in apis if api["token_source"] != CAIR}
    if not wanted:
        return False
    good = UpstreamCredential.objects.filter(user=user).exclude(state=UpstreamCredential.State.SIGN_IN_NEEDED)
    return not wanted <= set(good.values_list("provider", "audience"))
