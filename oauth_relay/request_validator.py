"""The library's request validator, bent at its joints: single use, the grant as the anchor, our resources (T11, T13).

oauthlib asks it at each step of /token and /revoke; every question is answered under the locked grant. RFC 8707 §2.2 is
here too: a token is for the resources that were granted, or for fewer.
"""

import logging
import os
import uuid
from datetime import timedelta
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.db import transaction as database
from django.utils import timezone
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauth2_provider.settings import oauth2_settings
from oauthlib.oauth2.rfc6749 import errors

from oauth_relay import audit, consents, suspensions
from oauth_relay.digests import digest_of
from oauth_relay.models import AccessToken, AuthorizationCode, Client, FormerSecret, Grant, RefreshToken
from oauth_relay.withdrawals import withdraw_family

logger = logging.getLogger(__name__)

MOST_REPLAYS = 20
REPLAY_AFTER_USE = timedelta(seconds=30)
REPLAY_AT_MOST = timedelta(hours=24)


def live_grant_for(row: AuthorizationCode | RefreshToken, request: Any) -> Grant:
    """The grant behind a code or refresh token, locked and read again.

    Raises `invalid_grant` where it, its person or its client is over, or no consent covers the row any more (T11).
    """
    grant = Grant.objects.select_for_update().filter(pk=row.grant_id).first()
    # Asked again under the lock: a withdrawal that committed while we waited for it must win.
    if grant is None or grant.user_id is None or not Grant.objects.live().filter(pk=grant.pk).exists():
        raise errors.InvalidGrantError("The permission was withdrawn.", request=request)
    if not consents.still_covers(grant, row.scope.split(), row.resource):
        raise errors.InvalidGrantError("The consent has run out or was withdrawn.", request=request)
    return grant


class RelayRequestValidator(OAuth2Validator):
    """What the library leaves to policy: single use, the grant as the anchor, our resources, hashed codes."""

    def _load_application(self, client_id: str, request: Any) -> Client | None:
        """The client of that id. Basic credentials may decode to anything, a NUL too, which PostgreSQL cannot be asked."""
        return super()._load_application(client_id, request) if client_id and client_id.isprintable() else None

    def _check_secret(self, provided_secret: str, stored_secret: str) -> bool:
        """Whether this is the client's secret, or one that was rotated out and is in its overlap (rotate_client_secret).

        The library names no client here; the hash of 128 random characters is one client's and nobody else's.
        """
        if super()._check_secret(provided_secret, stored_secret):
            return True
        former = FormerSecret.objects.good().filter(client__client_secret=stored_secret) if stored_secret else ()
        return any(row.fits(provided_secret) for row in former)

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
        request.relay_grant = live_grant_for(row, request)
        row.refresh_from_db()
        if row.used_at is not None:
            withdraw_family(row.family, row.grant, "code_replayed")
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
        request.relay_grant = grant = live_grant_for(row, request)
        row.refresh_from_db()
        if suspensions.is_suspended(grant, row.scope.split()):
            # Before anything is judged, spent or counted: the same token is good again after the person's sign-in.
            logger.info("refresh refused: grant %s waits for its person to sign in again", grant.pk)
            return False
        if row.revoked is None and row.expires_at <= timezone.now():
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
            withdraw_family(row.token_family, request.relay_grant, "refresh_token_reused")
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
                    withdraw_family(getattr(row, family_field), row.grant, "revoked_by_client")
                    return


def narrowed_resource(request: Any, granted: list[str]) -> list[str]:
    """RFC 8707 §2.2: the same resource as granted, or less; anything else is `invalid_target`."""
    named = [value for key, value in request.decoded_body or [] if key == "resource"]
    if not set(named) <= set(granted):
        description = "The resource goes beyond what was authorized."
        raise errors.CustomOAuth2Error(error="invalid_target", description=description, request=request)
    return list(dict.fromkeys(named)) or list(granted)


def _event(name: str, request: Any, detail: dict[str, Any]) -> audit.Event:
    return audit.Event(
        name,
        pseudonym=request.user.pseudonym,
        client_id=request.client.client_id,
        grant_id=request.relay_grant.pk,
        detail=detail,
    )


# -- the answer that a retry gets again --------------------------------------------------------------------------------


def _answer_key(raw_token: str, salt: bytes) -> AESGCM:
    return AESGCM(HKDF(hashes.SHA256(), 32, salt, b"cair refresh answer").derive(raw_token.encode()))


def seal_answer(raw_token: str, row: int, answer: str) -> bytes:
    """An answer that nobody can read without the raw token, which is not stored."""
    salt, nonce = os.urandom(32), os.urandom(12)
    return salt + nonce + _answer_key(raw_token, salt).encrypt(nonce, answer.encode(), str(row).encode())


def open_answer(raw_token: str, row: int, sealed: bytes) -> str:
    salt, nonce, box = sealed[:32], sealed[32:44], sealed[44:]
    return _answer_key(raw_token, salt).decrypt(nonce, box, str(row).encode()).decode()
