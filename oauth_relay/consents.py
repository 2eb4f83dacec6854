"""What a person is shown before they consent, and the record of what they said (DESIGN §4.5)."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.http import HttpResponse
from django.utils import timezone
from oauth2_provider.scopes import get_scopes_backend

from oauth_relay import audit, redirect_uris
from oauth_relay.models import Client, Consent, Grant, LoginTransaction, User


def request_context(transaction: LoginTransaction) -> dict[str, Any]:
    """What both pages say of a request: who asks, where the answer goes, for what."""
    client = transaction.client
    return {
        "transaction_id": str(transaction.pk),
        "client": client_context(client) if client else None,
        "redirect": redirect_context(transaction.redirect_uri) if client else None,
        "api_name": settings.API_LABEL,
        "scopes": scope_rows(transaction.scopes),
    }


def client_context(client: Client) -> dict[str, Any]:
    """A client as far as its word can be taken: a name it chose, and who registered it."""
    return {"name": client.display_name, "verified_host": None, "is_operator_made": client.is_operator_made}


def redirect_context(uri: str) -> dict[str, Any]:
    return {
        "uri": uri,
        "host": redirect_uris.host_of(uri),
        "is_loopback": redirect_uris.is_loopback_redirect(uri),
        "is_custom_scheme": redirect_uris.is_custom_scheme(uri),
    }


def scope_rows(scopes: Iterable[str], granted: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Each scope in plain words, with the tools it opens. `offline_access` opens none and is not shown."""
    catalogue = get_scopes_backend()
    words = catalogue.get_all_scopes()
    return [
        {
            "name": scope,
            "words": words[scope],
            "tools": catalogue.tools_opened_by(scope),
            "granted": scope in granted,
            "new": bool(granted) and scope not in granted,
        }
        for scope in scopes
        if scope in words and scope != settings.OFFLINE_ACCESS
    ]


def allow_form_to_leave(response: HttpResponse, transaction: LoginTransaction) -> None:
    """Let the answer to this page's form go on to the client, or through the identity provider.

    Browsers hold a form's redirects to `form-action` too, each hop of them: providers pass people on to other hosts of
    theirs, hence https as a whole. An http or custom-scheme target is named exactly.
    """
    targets = ["'self'"]
    if transaction.client or settings.UPSTREAM_PROVIDERS:
        targets.append("https:")
    if transaction.client and not transaction.redirect_uri.startswith("https:"):
        targets.append(redirect_uris.origin_of(transaction.redirect_uri))
    for provider in settings.UPSTREAM_PROVIDERS.values():
        if provider["discovery"].startswith("http://"):
            targets.append(redirect_uris.origin_of(provider["discovery"]))
    response._csp_update = {"form-action": targets}  # type: ignore[attr-defined]


# -- the record --------------------------------------------------------------------------------------------------------


def covers(transaction: LoginTransaction, user: User) -> bool:
    """Whether a consent of this person, alive and unchanged, holds all that is asked now."""
    records = Consent.objects.alive().filter(
        grant__user=user,
        grant__client=transaction.client,
        client_digest=transaction.client_digest,
        redirect_uri=transaction.redirect_uri,
    )
    asked, resource = set(transaction.scopes), set(transaction.resource)
    return any(asked <= set(r.scope.split()) and resource <= set(r.resource) for r in records)


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
