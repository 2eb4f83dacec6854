"""Between good and over: a grant that waits until its person signs in again (DESIGN §4.8, T10).

Clients refresh before they re-authorize. So while an API that a family of tokens opens cannot be called for the person,
refreshing answers `invalid_grant`, and nothing else happens: no token is spent, nothing is revoked, and after any sign-in
of that person the same refresh token and the same MCP session go on.

Whether a provider's credential is good is written on the credential, and only there. `Grant.suspended_at` is for the other
reason: the provider has said that the person signed out (OpenID Connect Back-Channel Logout 1.0), or no longer stands by
them (`rechecks`).
"""

from collections.abc import Collection

from django.db.transaction import atomic
from django.utils import timezone

from oauth_relay import staged_tokens
from oauth_relay.models import Grant, UpstreamCredential, User, Withdrawal
from oauth_relay.upstream_credentials import SIGNED_OUT, mark_sign_in_needed


def is_suspended(grant: Grant, scopes: Collection[str]) -> bool:
    """Whether tokens of this grant with these scopes wait for a sign-in of the person."""
    if grant.suspended_at is not None:
        return True
    return grant.user is not None and staged_tokens.needs_sign_in(grant.user, scopes)


def has_waiting_clients(user: User) -> bool:
    """Whether a sign-in of this person at the provider would let a client of theirs go on."""
    return Grant.objects.open().filter(user=user).exists() and staged_tokens.needs_sign_in(user)


def suspend(user: User, provider_name: str) -> int:
    """The person has signed out at a provider: their clients wait, and so does what it gave. The number of the clients.

    > Refresh tokens issued with the offline_access property to a session being logged out SHOULD NOT be revoked.
    > (OpenID Connect Back-Channel Logout 1.0 §2.7)
    """
    with atomic():
        lock_grants(user)
        waiting = Grant.objects.open().filter(user=user, suspended_at=None).update(suspended_at=timezone.now())
        # Also what is over already: a late success beats the provider's `invalid_grant`, and must not beat this.
        rows = UpstreamCredential.objects.exclude(failure=SIGNED_OUT)
        for row in rows.filter(user=user, provider=provider_name).select_for_update():
            mark_sign_in_needed(row, SIGNED_OUT, user.pseudonym, UpstreamCredential.objects.all())
        Withdrawal.objects.create(kind=Withdrawal.Kind.USER, reference=str(user.pk))
    return waiting


def resume(user: User) -> None:
    """The person has signed in: what waited for that goes on."""
    with atomic():
        if Grant.objects.open().filter(user=user).exclude(suspended_at=None).exists():
            lock_grants(user)
            Grant.objects.open().filter(user=user).exclude(suspended_at=None).update(suspended_at=None)


def lock_grants(user: User) -> None:
    """All of a person's open grants, in one order, before anything else of theirs. Within a transaction."""
    list(Grant.objects.open().filter(user=user).order_by("pk").select_for_update().values_list("pk"))
