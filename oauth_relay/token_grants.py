"""/token and /revoke: our grants as oauthlib grant classes in one server class (RFC 6749 §4.1.3, §6; RFC 7009).

Each grant runs in one database transaction that locks the grant row first and reads everything again (T11): a code or
a refresh token is used once, whatever happens at the same time, and a withdrawal in between wins.
"""

import contextlib
import json
import logging
import secrets
from base64 import b64decode
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import unquote_plus

from django.db import transaction as database
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_post_parameters
from oauth2_provider.views import RevokeTokenView, TokenView
from oauthlib.oauth2 import AuthorizationEndpoint, RevocationEndpoint, TokenEndpoint
from oauthlib.oauth2.rfc6749 import errors
from oauthlib.oauth2.rfc6749.grant_types import AuthorizationCodeGrant, RefreshTokenGrant
from oauthlib.oauth2.rfc6749.tokens import BearerToken

from oauth_relay import client_assertions, client_metadata_documents, rechecks
from oauth_relay.digests import digest_of
from oauth_relay.models import RefreshToken
from oauth_relay.outbound_documents import DocumentUnavailable, InvalidDocument
from oauth_relay.pages import RETRY_AFTER, oauth_error
from oauth_relay.request_validator import seal_answer

logger = logging.getLogger(__name__)

LONGEST_PARAMETER = 8192


# -- the two grants ----------------------------------------------------------------------------------------------------


TokenResponse = tuple[dict, str, int]


class CodeGrant(AuthorizationCodeGrant):
    """RFC 6749 §4.1.3 in one transaction. Bends the library's at its outermost call: codes are stored hashed."""

    def create_token_response(self, request: Any, token_handler: Any) -> TokenResponse:
        if request.code:
            request.code = digest_of(request.code)
        return _once_proved(request, partial(super().create_token_response, request, token_handler))

    def validate_scopes(self, request: Any) -> None:
        """> Parameters sent without a value MUST be treated as if they were omitted from the request. (RFC 6749 §3.1)"""
        if not any(request.scopes or ()) and not (request.scope or "").strip():
            request.scope = request.scopes = None
        super().validate_scopes(request)

    def validate_token_request(self, request: Any) -> None:
        super().validate_token_request(request)
        _check_proved(request)


class RefreshGrant(RefreshTokenGrant):
    """RFC 6749 §6 in one transaction; the immediate predecessor gets its answer again (T13)."""

    def create_token_response(self, request: Any, token_handler: Any) -> TokenResponse:
        return _once_proved(request, partial(self._refresh, request, token_handler))

    def validate_token_request(self, request: Any) -> None:
        super().validate_token_request(request)
        _check_proved(request)

    def _refresh(self, request: Any, token_handler: Any) -> TokenResponse:
        headers, body, status = super().create_token_response(request, token_handler)
        if status == 200:
            body = self._remember_answer(request, body)
        return headers, body, status

    def _remember_answer(self, request: Any, body: str) -> str:
        """The first answer is kept for a retry, under a key that only the token presented yields."""
        if request.replayed_answer is not None:
            return str(request.replayed_answer)
        spent: RefreshToken = request.refresh_token_instance
        sealed = seal_answer(request.refresh_token, spent.pk, body)
        RefreshToken.objects.filter(pk=spent.pk).update(replay_answer=sealed)
        return body


def _once_proved(request: Any, attempt: Callable[[], TokenResponse]) -> TokenResponse:
    """`attempt` in one transaction. Where a provider must be asked about the person first (T37), that is undone, and made
    again afterwards: nobody waits for a provider with a grant's lock in hand."""
    try:
        return _attempted(request, attempt, is_asked=False)
    except rechecks.ProofDue as due:
        rechecks.ask_providers(due)
    return _attempted(request, attempt, is_asked=True)


def _attempted(request: Any, attempt: Callable[[], TokenResponse], *, is_asked: bool) -> TokenResponse:
    _forget_claimed_attributes(request)
    request.is_provider_asked = is_asked
    with database.atomic():
        return attempt()


def _check_proved(request: Any) -> None:
    """Last of all: the provider is asked for a client that is who it says, with a code or token that would be good."""
    if not request.is_provider_asked:
        rechecks.check_proved(request.user)
    elif request.relay_grant.suspended_at is not None:
        raise errors.InvalidGrantError("The person must sign in again.", request=request)


def _forget_claimed_attributes(request: Any) -> None:
    """The library's request answers for any attribute with the form field of that name: these are ours alone."""
    request.relay_grant = request.code_row = request.refresh_token_instance = request.replayed_answer = None


class RelayServer(AuthorizationEndpoint, TokenEndpoint, RevocationEndpoint):
    """The authorization server, with our grants and no others: no implicit, no password, no client credentials."""

    def __init__(self, request_validator: Any, **options: Any) -> None:
        bearer = BearerToken(request_validator, lambda request: secrets.token_urlsafe(32), options["token_expires_in"])
        code = CodeGrant(request_validator)
        grants = {"authorization_code": code, "refresh_token": RefreshGrant(request_validator)}
        AuthorizationEndpoint.__init__(self, "code", bearer, {"code": code})
        TokenEndpoint.__init__(self, "", bearer, {**grants, "": _NoGrant()})
        RevocationEndpoint.__init__(self, request_validator)


class _NoGrant:
    """What answers a missing or unknown grant_type; the library would take it for an authorization code."""

    def create_token_response(self, request: Any, token_handler: Any) -> tuple[dict, str, int]:
        error = errors.UnsupportedGrantTypeError(request=request)
        if not request.grant_type:
            error = errors.InvalidRequestError("Missing grant_type parameter.", request=request)
        return {"Content-Type": "application/json", "Cache-Control": "no-store"}, error.json, error.status_code


# -- the endpoints -----------------------------------------------------------------------------------------------------


def malformed(request: HttpRequest) -> HttpResponse | None:
    """What the library would take in silence: another content type, repeated or oversized parameters, a NUL."""
    if request.content_type != "application/x-www-form-urlencoded":
        return oauth_error("invalid_request", "Send application/x-www-form-urlencoded.")
    for name, values in request.POST.lists():
        if len(values) > 1 and name != "resource":
            return oauth_error("invalid_request", "A parameter was sent more than once.")
        if any("\0" in value or len(value) > LONGEST_PARAMETER for value in values):
            return oauth_error("invalid_request", "A parameter is too long or holds a NUL.")
    if request.GET:
        return oauth_error("invalid_request", "Send parameters in the body, not in the address.")
    if not request.headers.get("Authorization", "").isascii():  # the library's decoder raises what nobody catches
        return oauth_error("invalid_client", "The Authorization header cannot be read.", 401)
    return None


def _prove_client(request: HttpRequest) -> HttpResponse | None:
    """Check a client's signature before any transaction: its keys may have to be fetched (RFC 7523 §2.2).

    The proof travels to the validator in META, under a name that no header of a request can have there.
    """
    try:
        request.META[client_assertions.PROVED_CLIENT] = client_assertions.proved_client_id(request)
    except client_assertions.InvalidAssertion as refused:
        logger.info("client assertion refused: %s", refused)
        return oauth_error("invalid_client", "The client assertion cannot be accepted.", 401)
    except DocumentUnavailable as error:
        logger.warning("client assertion undecided: %s", error)
        return _undecided("The keys of the client cannot be read now.")
    return None


def _follow_document(request: HttpRequest) -> HttpResponse | None:
    """A client that is its document is read again when that is due, before any transaction: nobody else may ever visit.

    Not at /revoke: to end a permission needs nobody's description.
    """
    try:
        for client_id in _claimed_client_ids(request):
            client_metadata_documents.bring_up_to_date(client_id)
    except InvalidDocument as refused:
        logger.info("client refused by its own document: %s", refused)
        return oauth_error("invalid_client", "What the client says of itself cannot be accepted.", 401)
    except DocumentUnavailable as error:
        logger.warning("client undecided: %s", error)
        return _undecided("What the client says of itself cannot be read now.")
    return None


def _undecided(description: str) -> HttpResponse:
    return oauth_error("temporarily_unavailable", description, 503, {"Retry-After": RETRY_AFTER})


def _claimed_client_ids(request: HttpRequest) -> set[str]:
    """Who this request says it is from, proved or not: in the form, and as a user name, which needs no password to be one."""
    claimed = {request.POST.get("client_id", "")}
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme == "Basic":
        with contextlib.suppress(ValueError):
            claimed.add(unquote_plus(b64decode(credentials).decode().partition(":")[0]))
    return claimed


class ClientEndpoint:
    """What /token and /revoke share: JSON errors, and the challenge that belongs to a failed client."""

    http_method_names = ["post"]

    def http_method_not_allowed(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return oauth_error("invalid_request", "Use POST.", 405, {"Allow": "POST"})

    def _finish(self, body: str, status: int) -> HttpResponse:
        response = HttpResponse(body, status=status, content_type="application/json")
        response["Cache-Control"], response["Pragma"] = "no-store", "no-cache"
        if status == 401:
            # > … include the "WWW-Authenticate" response header field matching the authentication scheme used by the
            # > client. (RFC 6749 §5.2); Basic is the one scheme there is.
            response["WWW-Authenticate"] = 'Basic realm="CAIR"'
        return response


@method_decorator([csrf_exempt, sensitive_post_parameters()], name="dispatch")
class RelayTokenView(ClientEndpoint, TokenView):
    """POST /token. The library's view would look the issued token up again, and serve some errors as HTML."""

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if refused := malformed(request) or _prove_client(request) or _follow_document(request):
            return refused
        _, _, body, status = self.create_token_response(request)
        if status >= 400:
            logger.info("token request refused: %s", json.loads(body).get("error"))
        return self._finish(body, status)


@method_decorator([csrf_exempt, sensitive_post_parameters()], name="dispatch")
class RelayRevokeView(ClientEndpoint, RevokeTokenView):
    """POST /revoke (RFC 7009). An unknown token is no error: what was wanted is already so."""

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if refused := malformed(request) or _prove_client(request):
            return refused
        _, _, body, status = self.create_revocation_response(request)
        return self._finish(body or "", status)
