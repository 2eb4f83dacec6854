"""The ends of a transaction: allowed with a code, refused with an error, or gone; each once (RFC 6749 §4.1.2, DESIGN §4.2).

Whatever goes back to a client leaves from here, so `iss` and `state` are never forgotten (RFC 9207).
"""

from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from django.conf import settings
from django.db import transaction as database
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from oauth2_provider.exceptions import OAuthToolkitError
from oauth2_provider.views.mixins import OAuthLibMixin

from oauth_relay import audit, challenges, client_metadata_documents, consents, pages, redirect_uris, staged_tokens
from oauth_relay.browsers import signed_in_person
from oauth_relay.models import Client, LoginTransaction, User

_ADD_AGAIN = "Your account is as it was. You can add a way to sign in from your connections page."


class AuthorizationRefused(Exception):
    """The request is wrong in a way that the client may be told."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error
        self.description = description


def resume(transaction: LoginTransaction) -> HttpResponse:
    """After sign-in: on to the consent page, or to where the visit wanted to go."""
    if transaction.link_provider:
        return pages.see_other(f"/link?transaction={transaction.pk}")
    if transaction.client is None:
        close(transaction, LoginTransaction.Outcome.ALLOWED)
        return pages.see_other(transaction.next_page)
    return pages.see_other(f"/authorize?transaction={transaction.pk}")


def allow(
    request: HttpRequest, transaction: LoginTransaction, person: User, scopes: list[str], *, was_asked: bool = True
) -> HttpResponse:
    """Record the consent, keep what the provider sent, issue the code: all in one transaction, once.

    Whoever was not asked gave their consent before: it must still be there under the grant's lock (T9, T11).
    """
    try:
        with database.atomic():
            if not close(transaction, LoginTransaction.Outcome.ALLOWED):
                return gone(request, transaction)
            client_metadata_documents.keep(transaction)
            if not was_asked:
                _check_still_covered(transaction, person)
            grant = consents.record(transaction, person, scopes)
            challenges.forget_refusal(grant, scopes)
            _check_unchanged(transaction)
            staged_tokens.keep_staged(transaction)
            location = _issue_code(request, transaction, scopes, grant)
    except AuthorizationRefused as refused:
        return refuse(request, transaction, refused.error, refused.description, by_person=False)
    return _send_back(request, transaction.client, location)


def _check_still_covered(transaction: LoginTransaction, person: User) -> None:
    """Raises AuthorizationRefused where the consent was withdrawn or narrowed a moment ago."""
    assert transaction.client is not None
    consents.live_grant(person, transaction.client)
    if not consents.covers(transaction, person):
        raise AuthorizationRefused("consent_required", "The person would have to be asked first.")


def _check_unchanged(transaction: LoginTransaction) -> None:
    """The client must still be what the person was shown; read again under the grant's lock (T11, T31)."""
    client = Client.objects.filter(pk=transaction.client_row_id).first()
    if client is None or client.digest() != transaction.client_digest or not client.is_usable(None):
        raise AuthorizationRefused("access_denied", "The client changed while the page was open.")


def _issue_code(request: HttpRequest, transaction: LoginTransaction, scopes: list[str], grant: object) -> str:
    """The redirect that carries the code. The library checks client, redirect URI and PKCE once more."""
    assert transaction.client is not None
    credentials = {
        "client_id": transaction.client.client_id,
        "redirect_uri": transaction.redirect_uri,
        "response_type": "code",
        "state": transaction.state or None,
        "code_challenge": transaction.code_challenge,
        "code_challenge_method": "S256",
        "resource": transaction.resource,
        "relay_grant": grant,
    }
    core = OAuthLibMixin.get_oauthlib_core()
    try:
        location, *_ = core.create_authorization_response(request, scopes, credentials, True)
    except OAuthToolkitError as error:
        raise AuthorizationRefused(error.oauthlib_error.error, error.oauthlib_error.description or "") from error
    return str(location)


def refuse(
    request: HttpRequest, transaction: LoginTransaction, error: str, description: str, *, by_person: bool = True
) -> HttpResponse:
    """End a transaction with an error, at the client: the person came here by their own click.

    A visit has no client: it ends on a page.
    """
    staged_tokens.erase_staged(transaction)
    client, denied = transaction.client, error == "access_denied"
    with database.atomic():
        if not close(transaction, LoginTransaction.Outcome.DENIED if denied else LoginTransaction.Outcome.FAILED):
            return gone(request, transaction)
        # Who cancels on the sign-in page is known by their session, if at all.
        person = transaction.user or signed_in_person(request)
        if denied and by_person and person and client:
            challenges.note_refusal(person, client, transaction.scopes)
        audit.record_within(
            audit.Event(
                "authorization.refused",
                error,
                pseudonym=transaction.user.pseudonym if transaction.user else None,
                client_id=client.client_id if client else "",
                detail={"description": description},
            )
        )
    if transaction.link_provider:
        link = pages.Link("/connections", "Back to your connections", "")
        return pages.refusal(request, 403 if denied else 503, "Nothing was added", description, _ADD_AGAIN, link)
    if client is None:
        what = "You cancelled." if denied else description
        return pages.refusal(
            request, 403 if denied else 503, "Not signed in", what, "You can try again from the start page."
        )
    return _send_back(request, client, _error_location(transaction.redirect_uri, error, description, transaction.state))


def refuse_in_silence(request: HttpRequest, transaction: LoginTransaction, error: str) -> HttpResponse:
    """End a transaction that nobody has looked at (`prompt=none`): there was no click, so no redirect goes with one."""
    close(transaction, LoginTransaction.Outcome.FAILED)
    assert transaction.client is not None
    refused = AuthorizationRefused(error, "The person would have to be asked first.")
    return refuse_request(request, transaction.client, transaction.redirect_uri, transaction.state, refused)


def refuse_request(
    request: HttpRequest, client: Client, redirect_uri: str, state: str, refused: AuthorizationRefused
) -> HttpResponse:
    """A wrong request goes back by itself only to where that can hurt nobody (T28)."""
    audit.record_within(
        audit.Event(
            "authorization.refused", refused.error, client_id=client.client_id, detail={"why": refused.description}
        )
    )
    location = _error_location(redirect_uri, refused.error, refused.description, state)
    person = signed_in_person(request)
    if (
        client.is_operator_made
        or redirect_uris.is_loopback_redirect(redirect_uri)
        or consents.has_consented_before(client, redirect_uri, person)
    ):
        return _send_back(request, client, location)
    host = redirect_uris.host_of(redirect_uri)
    return pages.refusal(
        request,
        400,
        "The request was not right",
        f"{client.display_name} asked for access in a way this server cannot accept: {refused.description}",
        "Close this page, or go back to the application with the link below: it will be told what was wrong.",
        pages.Link(location, f"Return to {client.display_name}", host),
    )


def _send_back(request: HttpRequest, client: Client | None, location: str) -> HttpResponse:
    """To the client's redirect URI; for a browser and an app of this device, by way of a page with a link.

    A browser asks before it opens an app, and some open none unless the person pressed something: with a bare redirect
    the form that was just answered stays before them, and nothing says what to do. On loopback a redirect always
    leads somewhere. Programs, which send no Sec-Fetch-Mode (Fetch Metadata §2.3), are redirected everywhere.
    """
    if client and redirect_uris.is_custom_scheme(location) and request.headers.get("Sec-Fetch-Mode") == "navigate":
        return pages.hand_off(request, client.display_name, location, redirect_uris.host_of(location))
    return pages.redirect(location)


def gone(request: HttpRequest, transaction: LoginTransaction | None) -> HttpResponse:
    """A form sent twice, too late, or from another browser: nothing is recorded."""
    if transaction is not None and transaction.answered_at:
        what = "You have already answered this request, so nothing was changed now."
        repair = "Go back to the application. To see or end what is connected, open “Connections”."
    else:
        what = "This sign-in has expired, or was begun in another browser. Nothing was changed."
        repair = "Go back to the application and connect again."
    link = pages.Link("/connections", "See your connections", "")
    return pages.refusal(request, 409, "Nothing was changed", what, repair, link)


def close(transaction: LoginTransaction, outcome: str) -> bool:
    """Answer the transaction once; False if another tab, or a second click, was first."""
    now = timezone.now()
    closed = LoginTransaction.objects.filter(pk=transaction.pk, answered_at__isnull=True).update(
        answered_at=now, outcome=outcome
    )
    transaction.answered_at, transaction.outcome = now, outcome
    return bool(closed)


def _error_location(redirect_uri: str, error: str, description: str, state: str) -> str:
    """RFC 6749 §4.1.2.1, with `iss` on errors too (RFC 9207 §2)."""
    answer = {"error": error, "error_description": description, "iss": settings.PUBLIC_URL}
    if state:
        answer["state"] = state
    parts = urlsplit(redirect_uri)
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in answer]
    return urlunsplit(parts._replace(query=urlencode([*kept, *answer.items()])))
