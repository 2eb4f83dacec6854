"""/token and /revoke: our grants as oauthlib grant classes in one server class (RFC 6749 §4.1.3, §6; RFC 7009).

Each grant runs in one database transaction that locks the grant row first and reads everything again (T11): a code or
a refresh token is used once, whatever happens at the same time, and a withdrawal in between wins.
"""

import hashlib
import json
import logging
import os
import secrets
import uuid
from datetime import timedelta
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.db import transaction as database
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_post_parameters
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauth2_provider.settings import oauth2_settings
from oauth2_provider.views import RevokeTokenView, TokenView
from oauthlib.oauth2 import AuthorizationEndpoint, RevocationEndpoint, TokenEndpoint
from oauthlib.oauth2.rfc6749 import errors
from oauthlib.oauth2.rfc6749.grant_types import AuthorizationCodeGrant, RefreshTokenGrant
from oauthlib.oauth2.rfc6749.tokens import BearerToken

from oauth_relay import audit, withdrawals
from oauth_relay.models import AccessToken, AuthorizationCode, Client, Grant, RefreshToken
from oauth_relay.pages import oauth_error

logger = logging.getLogger(__name__)

LONGEST_PARAMETER = 8192
MOST_REPLAYS = 20
REPLAY_AFTER_USE = timedelta(seconds=30)
REPLAY_AT_MOST = timedelta(hours=24)


def digest_of(raw: str) -> str:
    return hashlib.sha256(raw.encode()).hexdigest()


def live_grant_for(grant_id: Any, request: Any) -> Grant:
    """The grant, locked and read again. Raises `invalid_grant` where it, its person or its client is over."""
    grant = Grant.objects.select_for_update().filter(pk=grant_id).first()
    # Asked again under the lock: a withdrawal that committed while we waited for it must win.
    if grant is None or grant.user_id is None or not Grant.objects.live().filter(pk=grant_id).exists():
        raise errors.InvalidGrantError("The permission was withdrawn.", request=request)
    return grant


# -- the two grants ----------------------------------------------------------------------------------------------------


class CodeGrant(AuthorizationCodeGrant):
    """RFC 6749 §4.1.3 in one transaction. Bends the library's at its outermost call: codes are stored hashed."""

    def create_token_response(self, request: Any, token_handler: Any) -> tuple[dict, str, int]:
        _forget_claimed_attributes(request)
        if request.code:
            request.code = digest_of(request.code)
        with database.atomic():
            return super().create_token_response(request, token_handler)


class RefreshGrant(RefreshTokenGrant):
    """RFC 6749 §6 in one transaction; the immediate predecessor gets its answer again (T13)."""

    def create_token_response(self, request: Any, token_handler: Any) -> tuple[dict, str, int]:
        _forget_claimed_attributes(request)
        with database.atomic():
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


def _forget_claimed_attributes(request: Any) -> None:
    """The library's request answers for any attribute with the form field of that name: these are ours alone."""
    request.relay_grant = request.code_row = request.refresh_token_instance = request.replayed_answer = None


def _answer_key(raw_token: str, salt: bytes) -> AESGCM:
    return AESGCM(HKDF(hashes.SHA256(), 32, salt, b"cair refresh answer").derive(raw_token.encode()))


def seal_answer(raw_token: str, row: int, answer: str) -> bytes:
    """An answer that nobody can read without the raw token, which is not stored."""
    salt, nonce = os.urandom(32), os.urandom(12)
    return salt + nonce + _answer_key(raw_token, salt).encrypt(nonce, answer.encode(), str(row).encode())


def open_answer(raw_token: str, row: int, sealed: bytes) -> str:
    salt, nonce, box = sealed[:32], sealed[32:44], sealed[44:]
    return _answer_key(raw_token, salt).decrypt(nonce, box, str(row).encode()).decode()


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


# -- the library's validator, bent at its joints -----------------------------------------------------------------------


class RelayRequestValidator(OAuth2Validator):
    """What the library leaves to policy: single use, the grant as the anchor, our resources, hashed codes."""

    def _load_application(self, client_id: str, request: Any) -> Client | None:
        """The client of that id. Basic credentials may decode to anything, a NUL too, which PostgreSQL cannot be asked."""
        return super()._load_application(client_id, request) if client_id and client_id.isprintable() else None

    # -- authorization code --------------------------------------------------------------------------------------------

    def _create_authorization_code(self, request: Any, code: dict[str, str], expires: Any = None) -> AuthorizationCode:
        lifetime = timedelta(seconds=oauth2_settings.AUTHORIZATION_CODE_EXPIRE_SECONDS)
        return AuthorizationCode.objects.create(
            application=request.client,
            user=request.user,
            grant=request.relay_grant,
            family=uuid.uuid4(),
            code=digest_of(code["code"]),
            expires=timezone.now() + lifetime,
            redirect_uri=request.redirect_uri,
            scope=" ".join(request.scopes),
            code_challenge=request.code_challenge,
            code_challenge_method=request.code_challenge_method,
            resource=request.resource,
        )

    def validate_code(self, client_id: str, code: str, client: Any, request: Any, *args: Any, **kwargs: Any) -> bool:
        """Whether this code is this client's, fresh and unused; its grant is locked from here on.

        > If an authorization code is used more than once, the authorization server MUST deny the request and SHOULD
        > revoke (when possible) all tokens previously issued based on that authorization code. (RFC 6749 §4.1.2)
        """
        row = AuthorizationCode.objects.filter(code=code, application=client).first()
        if row is None:
            return False
        request.relay_grant = live_grant_for(row.grant_id, request)
        row.refresh_from_db()
        if row.used_at is not None:
            end_family(row.family, row.grant, "code_replayed")
            return False
        if row.is_expired():
            return False
        request.code_row, request.user, request.scopes = row, row.user, row.scope.split()
        request.resource = narrowed_resource(request, row.resource)
        return True

    def get_default_redirect_uri(self, client_id: str, request: Any, *args: Any, **kwargs: Any) -> str:
        """OAuth 2.1 §4.1.3 no longer asks for `redirect_uri` at /token: the code knows its own, and PKCE binds the client.

        At /authorize there is no code yet, and a client with one redirect URI may leave it away (RFC 6749 §3.1.2.3).
        """
        row = getattr(request, "code_row", None)
        return str(row.redirect_uri if isinstance(row, AuthorizationCode) else request.client.redirect_uris.split()[0])

    def invalidate_authorization_code(self, client_id: str, code: str, request: Any, *args: Any, **kwargs: Any) -> None:
        """Compare-and-swap: where the database ignores row locks, this decides who was first."""
        now = timezone.now()
        if not AuthorizationCode.objects.filter(pk=request.code_row.pk, used_at__isnull=True).update(used_at=now):
            raise errors.InvalidGrantError(request=request)

    # -- refresh token -------------------------------------------------------------------------------------------------

    def validate_refresh_token(self, refresh_token: str, client: Any, request: Any, *args: Any, **kwargs: Any) -> bool:
        """Whether this refresh token is this client's and alive, or a retry that deserves the answer it missed (T13)."""
        row = RefreshToken.objects.filter(token_checksum=digest_of(refresh_token), application=client).first()
        if row is None:
            return False
        request.relay_grant = grant = live_grant_for(row.grant_id, request)
        row.refresh_from_db()
        if grant.suspended_at is not None or (row.revoked is None and row.expires_at <= timezone.now()):
            return False
        request.user, request.refresh_token, request.refresh_token_instance = row.user, refresh_token, row
        request.resource = narrowed_resource(request, row.resource)
        return row.revoked is None or self._may_replay(refresh_token, row, request)

    def _may_replay(self, refresh_token: str, row: RefreshToken, request: Any) -> bool:
        """The immediate predecessor, soon after its successor was first used, gets the identical answer; else theft."""
        successor = RefreshToken.objects.filter(predecessor=row).first()
        if successor is None or row.replay_answer is None:
            return False  # withdrawn, not rotated: nothing to replay, and nothing left to end
        now = timezone.now()
        until = row.revoked + REPLAY_AT_MOST
        if successor.first_used_at is not None:
            until = min(until, successor.first_used_at + REPLAY_AFTER_USE)
        if now > until or row.replays >= MOST_REPLAYS:
            end_family(row.token_family, request.relay_grant, "refresh_token_reused")
            return False
        asks_else = request.scope or (request.decoded_body and any(k == "resource" for k, _ in request.decoded_body))
        if asks_else and (
            (request.scope and set(request.scope.split()) != set(row.scope.split()))
            or set(request.resource) != set(row.resource)
        ):
            raise errors.InvalidScopeError("A retry must ask for what was asked.", request=request)
        try:
            request.replayed_answer = open_answer(refresh_token, row.pk, bytes(row.replay_answer))
        except InvalidTag:
            return False
        RefreshToken.objects.filter(pk=row.pk).update(replays=row.replays + 1)
        audit.record_within(_event("token.replayed", request, {"replays": row.replays + 1}))
        return True

    def get_original_scopes(self, refresh_token: str, request: Any, *args: Any, **kwargs: Any) -> str:
        return str(request.refresh_token_instance.scope)

    # -- issuing -------------------------------------------------------------------------------------------------------

    def save_bearer_token(self, token: dict[str, Any], request: Any, *args: Any, **kwargs: Any) -> None:
        """Write the pair under the locked grant. A replay writes nothing: its answer is already there."""
        if request.replayed_answer is not None:
            return
        spent: RefreshToken | None = request.refresh_token_instance
        family = spent.token_family if spent else request.code_row.family
        now = timezone.now()
        if spent is not None:
            if not RefreshToken.objects.filter(pk=spent.pk, revoked__isnull=True).update(revoked=now, updated=now):
                raise errors.InvalidGrantError(request=request)
            RefreshToken.objects.filter(pk=spent.pk, first_used_at__isnull=True).update(first_used_at=now)
        access = self._save_access_token(token, request, family)
        self._save_refresh_token(token, request, family, access, spent)
        # After the commit: whoever holds a grant's lock takes no client's (see Grant).
        clients = Client.objects.filter(pk=request.client.pk)
        database.on_commit(lambda: clients.update(last_used_at=now))
        audit.record_within(_event("token.refreshed" if spent else "token.issued", request, {"scopes": request.scopes}))

    def _save_access_token(self, token: dict[str, Any], request: Any, family: uuid.UUID) -> AccessToken:
        access = AccessToken(
            user=request.user,
            application=request.client,
            grant=request.relay_grant,
            family=family,
            scope=token["scope"],
            resource=request.resource,
            expires=timezone.now() + timedelta(seconds=token["expires_in"]),
        )
        self._set_token_value(access, token["access_token"])
        access.save()
        return access

    def _save_refresh_token(
        self, token: dict[str, Any], request: Any, family: uuid.UUID, access: AccessToken, spent: RefreshToken | None
    ) -> None:
        """> If a new refresh token is issued, the refresh token scope MUST be identical to that of the refresh token
        > included by the client in the request. (RFC 6749 §6)"""
        refresh = RefreshToken(
            user=request.user,
            application=request.client,
            grant=request.relay_grant,
            token_family=family,
            access_token=access,
            predecessor=spent,
            scope=spent.scope if spent else token["scope"],
            resource=spent.resource if spent else request.resource,
            expires_at=timezone.now() + timedelta(seconds=settings.REFRESH_TOKEN_IDLE_LIFETIME),
        )
        self._set_token_value(refresh, token["refresh_token"])
        refresh.save()

    # -- revoking ------------------------------------------------------------------------------------------------------

    def revoke_token(self, token: str, token_type_hint: str | None, request: Any, *args: Any, **kwargs: Any) -> None:
        """RFC 7009 §2.1: the family of the token ends, on this device; other devices of the same client go on."""
        digest = digest_of(token)
        with database.atomic():
            for model, family_field in ((RefreshToken, "token_family"), (AccessToken, "family")):
                row = (
                    model.objects.select_related("grant")
                    .filter(token_checksum=digest, application=request.client)
                    .first()
                )
                if row is not None and row.grant is not None:
                    end_family(getattr(row, family_field), row.grant, "revoked_by_client")
                    return


def narrowed_resource(request: Any, granted: list[str]) -> list[str]:
    """RFC 8707 §2.2: the same resource as granted, or less; anything else is `invalid_target`."""
    named = [value for key, value in request.decoded_body or [] if key == "resource"]
    if not set(named) <= set(granted):
        description = "The resource goes beyond what was authorized."
        raise errors.CustomOAuth2Error(error="invalid_target", description=description, request=request)
    return list(dict.fromkeys(named)) or list(granted)


def end_family(family: uuid.UUID, grant: Grant, why: str) -> None:
    """End every token of one family, in the caller's transaction, and say so to every process."""
    now = timezone.now()
    Grant.objects.select_for_update().filter(pk=grant.pk).first()
    RefreshToken.objects.filter(token_family=family, revoked__isnull=True).update(revoked=now, updated=now)
    RefreshToken.objects.filter(token_family=family).update(replay_answer=None, access_token=None)
    AccessToken.objects.filter(family=family).delete()
    withdrawals.withdraw_family(family)
    audit.record_within(
        audit.Event(
            "token_family.ended",
            why,
            pseudonym=grant.user.pseudonym if grant.user else None,
            client_id=grant.client.client_id,
            grant_id=grant.pk,
        )
    )


def _event(name: str, request: Any, detail: dict[str, Any]) -> audit.Event:
    return audit.Event(
        name,
        pseudonym=request.user.pseudonym,
        client_id=request.client.client_id,
        grant_id=request.relay_grant.pk,
        detail=detail,
    )


# -- the endpoints -----------------------------------------------------------------------------------------------------


def _malformed(request: HttpRequest) -> HttpResponse | None:
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
    return None


class _ClientEndpoint:
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
class RelayTokenView(_ClientEndpoint, TokenView):
    """POST /token. The library's view would look the issued token up again, and serve some errors as HTML."""

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if refused := _malformed(request):
            return refused
        _, _, body, status = self.create_token_response(request)
        if status >= 400:
            logger.info("token request refused: %s", json.loads(body).get("error"))
        return self._finish(body, status)


@method_decorator([csrf_exempt, sensitive_post_parameters()], name="dispatch")
class RelayRevokeView(_ClientEndpoint, RevokeTokenView):
    """POST /revoke (RFC 7009). An unknown token is no error: what was wanted is already so."""

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if refused := _malformed(request):
            return refused
        _, _, body, status = self.create_revocation_response(request)
        return self._finish(body or "", status)
