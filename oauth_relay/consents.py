"""The record of what a person said yes to, and what follows from it later (DESIGN §4.5, T9)."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from oauth_relay import audit, client_metadata_documents, client_names, redirect_uris
from oauth_relay.client_names import KnownClient, NameWarning
from oauth_relay.models import Client, Consent, Grant, LoginTransaction, User


def covers(transaction: LoginTransaction, user: User) -> bool:
    """Whether a consent of this person, alive and unchanged, holds all that is asked now."""
    client = transaction.client
    assert client is not None
    records = Consent.objects.alive().filter(
        grant__user=user,
        grant__client__client_id=client.client_id,
        client_digest=transaction.client_digest,
        redirect_uri=transaction.redirect_uri,
    )
    return _one_holds(records, transaction.scopes, transaction.resource)


def still_covers(grant: Grant, scopes: list[str], resource: list[str]) -> bool:
    """Whether what was issued under this grant still rests on a consent that is alive, to the client as it is now.

    A client that has changed waits for the person: nothing is spent or revoked, and once they have allowed it as it is,
    the same refresh token works again (T31).
    """
    records = Consent.objects.alive().filter(grant=grant, client_digest=grant.client.digest())
    return _one_holds(records, scopes, resource)


def is_assured(client: Client, redirect_uri: str) -> bool:
    """Whether it is certain who gets the answer, so that a yes may be remembered (T9).

    It is about this request's redirect URI: an https host is one party's. Behind a loopback address or a custom scheme
    is whichever program came first. And the client must be somebody: an operator's, or whoever holds the host that its
    client id names.
    """
    is_at_a_host = redirect_uri.startswith("https:") and not redirect_uris.is_loopback_redirect(redirect_uri)
    return is_at_a_host and (client.is_operator_made or answers_at_its_own_host(client, redirect_uri))


def answers_at_its_own_host(client: Client, redirect_uri: str) -> bool:
    """Whether the answer goes to the host that publishes this client's description, or below it.

    Only then does the host vouch for who gets the answer: many hosts publish what strangers wrote.
    """
    published, here = client_metadata_documents.verified_host(client), redirect_uris.host_of(redirect_uri)
    return published is not None and (here == published or here.endswith(f".{published}"))


def _one_holds(records: Iterable[Consent], scopes: Iterable[str], resource: Iterable[str]) -> bool:
    asked, places = set(scopes), set(resource)
    return any(asked <= set(record.scope.split()) and places <= set(record.resource) for record in records)


def granted_scopes(user: User, client: Client | None) -> set[str]:
    """What this person lets this client do already. By its name: it may have no row yet."""
    if client is None:
        return set()
    records = Consent.objects.alive().filter(grant__user=user, grant__client__client_id=client.client_id)
    return {scope for record in records for scope in record.scope.split()}


def has_consented_before(client: Client, redirect_uri: str, user: User | None) -> bool:
    """Whether this person once let this client answer at this redirect URI (T28)."""
    return (
        user is not None
        and Consent.objects.filter(
            grant__user=user,
            grant__client__client_id=client.client_id,
            redirect_uri=redirect_uri,
            withdrawn_at__isnull=True,
        ).exists()
    )


def name_warnings(client: Client, redirect_uri: str, user: User | None) -> list[NameWarning]:
    """What is odd about the name of this client; nothing, where an operator vouches for it (T31)."""
    if client.is_operator_made:
        return []
    known = _other_clients(user, client) if user else []
    is_elsewhere = redirect_uri.startswith("https:") and not answers_at_its_own_host(client, redirect_uri)
    host = None if is_elsewhere else client_metadata_documents.verified_host(client)
    return client_names.warnings_for(client.display_name, redirect_uri, verified_host=host, known=known)


def _other_clients(user: User, client: Client) -> list[KnownClient]:
    """The other clients that this person has connected, with every place where each may be answered."""
    grants = Grant.objects.open().filter(user=user).exclude(client_id=client.pk).select_related("client")
    return [
        KnownClient(one.client.display_name, frozenset(map(client_names.place_of, one.client.redirect_uris.split())))
        for one in grants
    ]


def lasts_until() -> Any:
    return timezone.now() + timedelta(seconds=settings.CONSENT_LIFETIME)


def live_grant(user: User, client: Client) -> Grant:
    """The one live grant of this person for this client, locked; made if there is none. Within a transaction."""
    locked = Grant.objects.open().select_for_update().filter(user=user, client=client)
    if grant := locked.first():
        return grant
    # Two tabs at once: the second insert waits for the first, finds it, and goes on with it, once it has its lock.
    made, _ = Grant.objects.get_or_create(user=user, client=client, withdrawn_at=None)
    return locked.filter(pk=made.pk).get()


def record(transaction: LoginTransaction, user: User, scopes: list[str]) -> Grant:
    """Write down what the person allowed. Within the transaction that also issues the code."""
    client = transaction.client
    assert client is not None
    flagged = [warning.kind for warning in name_warnings(client, transaction.redirect_uri, user)]
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
            detail={"scopes": scopes, "host": redirect_uris.host_of(transaction.redirect_uri)}
            | ({"flagged": flagged} if flagged else {}),
        )
    )
    return grant
