"""The record of what a person said yes to, and what follows from it later (DESIGN §4.5, T9)."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from oauth_relay import audit, redirect_uris
from oauth_relay.models import Client, Consent, Grant, LoginTransaction, User


def covers(transaction: LoginTransaction, user: User) -> bool:
    """Whether a consent of this person, alive and unchanged, holds all that is asked now."""
    records = Consent.objects.alive().filter(
        grant__user=user,
        grant__client=transaction.client,
        client_digest=transaction.client_digest,
        redirect_uri=transaction.redirect_uri,
    )
    return _one_holds(records, transaction.scopes, transaction.resource)


def still_covers(grant: Grant, scopes: list[str], resource: list[str]) -> bool:
    """Whether what was issued under this grant still rests on a consent that is alive."""
    return _one_holds(Consent.objects.alive().filter(grant=grant), scopes, resource)


def _one_holds(records: Iterable[Consent], scopes: Iterable[str], resource: Iterable[str]) -> bool:
    asked, places = set(scopes), set(resource)
    return any(asked <= set(record.scope.split()) and places <= set(record.resource) for record in records)


def granted_scopes(user: User, client: Client | None) -> set[str]:
    """What this person lets this client do already."""
    records = Consent.objects.alive().filter(grant__user=user, grant__client=client)
    return {scope for record in records for scope in record.scope.split()}


def has_consented_before(client: Client, redirect_uri: str, user: User | None) -> bool:
    """Whether this person once let this client answer at this redirect URI (T28)."""
    return (
        user is not None
        and Consent.objects.filter(
            grant__user=user, grant__client=client, redirect_uri=redirect_uri, withdrawn_at__isnull=True
        ).exists()
    )


def lasts_until() -> Any:
    return timezone.now() + timedelta(seconds=settings.CONSENT_LIFETIME)


def live_grant(user: User, client: Client) -> Grant:
    """The one live grant of this person for this client, locked; made if there is none. Within a transaction."""
    grant = Grant.objects.open().select_for_update().filter(user=user, client=client).first()
    # Two tabs at once: the second insert waits for the first, finds it, and goes on with it.
    return grant or Grant.objects.get_or_create(user=user, client=client, withdrawn_at=None)[0]


def record(transaction: LoginTransaction, user: User, scopes: list[str]) -> Grant:
    """Write down what the person allowed. Within the transaction that also issues the code."""
    client = transaction.client
    assert client is not None
    grant = live_grant(user, client)
    Consent.objects.create(
        grant=grant,
        client_digest=transaction.client_digest,
        redirect_uri=transaction.redirect_uri,
        resource=transaction.resource,
        scope=" ".join(scopes),
        expires_at=lasts_until(),
    )
    audit.record_within(
        audit.Event(
            "consent.given",
            pseudonym=user.pseudonym,
            client_id=client.client_id,
            grant_id=grant.pk,
            detail={"scopes": scopes, "host": redirect_uris.host_of(transaction.redirect_uri)},
        )
    )
    return grant
