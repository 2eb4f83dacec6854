"""The library's request validator, bent at its joints: single use, the grant as the anchor, our resources (T11, T13).

oauthlib asks it at each step of /token and /revoke; every question is answered under the locked grant. RFC 8707 §2.2 is
here too: a token is for the resources that were granted, or for fewer.
"""

import json
import logging
import os
import uuid
from datetime import datetime, timedelta
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

from oauth_relay import audit, challenges, consents, suspensions
from oauth_relay.client_assertions import PROVED_CLIENT, signs
from oauth_relay.client_metadata_documents import find_remembered, is_admitted
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
    row.refresh_from_db()  # the person may have narrowed it while we waited
    if not consents.still_covers(grant, row.scope.split(), row.resource):
        raise errors.InvalidGrantError("The consent has run out or was withdrawn.", request=request)
    return grant


class RelayRequestValidator(OAuth2Validator):
    """What the library leaves to policy: single use, the grant as the anchor, our resources, hashed codes."""

    def _load_application(self, client_id: str, request: Any) -> Client | None:
        """The client of that id, if the policy for documents admits it; never a fetch (T24).

        Basic credentials may decode to anything, a NUL too, which PostgreSQL cannot be asked.
        """
        client = super()._load_application(client_id, request) if client_id and client_id.isprintable() else None
        if client is not None and not is_admitted(client):
            client = request.client = None
        return client

    def validate_client_id(self, client_id: str, request: Any, *args: Any, **kwargs: Any) -> bool:
        """At /authorize, and nowhere else, a client may be here by its document alone: /token knows rows (T24)."""
        if super().validate_client_id(client_id, request, *args, **kwargs):
            return True
        request.client = find_remembered(client_id)
        return request.client is not None

    def authenticate_client(self, request: Any, *args: Any, **kwargs: Any) -> bool:
        """A client that signs is proved by its signature and by nothing else; it was checked before the transaction."""
        proved = request.headers.get(PROVED_CLIENT, "")
        if proved:
            client = self._load_application(proved, request)
            return client is not None and signs(client)
        return bool(super().authenticate_client(request, *args, **kwargs)) and not signs(request.client)

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
        if suspensions.is_suspended(grant, row.scope.split()):
            # Before anything is judged, spent or counted: the same token is good again after the person's sign-in.
            logger.info("refresh refused: grant %s waits for its person to sign in again", grant.pk)
            return False
        if request.client.restart_on_step_up and challenges.must_restart(grant.pk, row.token_family):
            # A client that answers a challenge by refreshing alone: this moves it. Nothing is spent or revoked.
            logger.info("refresh refused: client %s is to ask for what its tokens lack", request.client.client_id)
            return False
        if row.revoked is None and _ends_at(row) <= timezone.now():
            return False
        request.user, request.refresh_token, request.refresh_token_instance = row.user, refresh_token, row
        request.resource = narrowed_resource(request, row.resource)
        return row.revoked is None or self._may_replay(refresh_token, row, request)

    def _may_replay(self, refresh_token: str, row: RefreshToken, request: Any) -> bool:
        """The immediate predecessor, soon after its successor was first used, gets the identical answer; else theft."""
        family = RefreshToken.objects.filter(token_family=row.token_family, revoked=None)
        living = family.select_related("access_token", "application").first()
        if living is None:
            return False  # the family has ended: nothing to replay, and nothing left to end
        if living.predecessor_id != row.pk or _is_too_late(row, living):
            withdraw_family(row.token_family, request.relay_grant, "refresh_token_reused")
            return False
        if row.replay_answer is None or _ends_at(living) <= timezone.now():
            return False
        if not _asks_for_the_same(request, row, living.access_token or living):
            raise errors.InvalidScopeError("A retry must ask for what was asked.", request=request)
        try:
            answer = open_answer(refresh_token, row.pk, bytes(row.replay_answer))
        except InvalidTag:
            return False
        request.replayed_answer = _as_narrowed(answer, living.scope)
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
        now = timezone.now()
        family_since = spent.family_since if spent else now
        refresh = RefreshToken(
            user=request.user,
            application=request.client,
            grant=request.relay_grant,
            token_family=family,
            family_since=family_since,
            access_token=access,
            predecessor=spent,
            scope=spent.scope if spent else token["scope"],
            resource=spent.resource if spent else request.resource,
            expires_at=_lasts_until(request.client, used_at=now, family_since=family_since),
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


# -- for how long a refresh token is good, and a retry of it -----------------------------------------------------------


def _lasts_until(client: Client, *, used_at: datetime, family_since: datetime) -> datetime:
    """Each use lends the idle lifetime anew, within the absolute one of the family. A client may have its own of either."""
    idle, absolute = client.refresh_idle_lifetime, client.refresh_absolute_lifetime
    if idle is None:
        idle = timedelta(seconds=settings.REFRESH_TOKEN_IDLE_LIFETIME)
    if absolute is None:
        absolute = timedelta(seconds=settings.REFRESH_TOKEN_ABSOLUTE_LIFETIME)
    return min(used_at + idle, family_since + absolute)


def _ends_at(row: RefreshToken) -> datetime:
    """An operator who shortens a lifetime means the tokens that are out as well; a longer one begins with the next."""
    return min(row.expires_at, _lasts_until(row.application, used_at=row.created, family_since=row.family_since))


def _is_too_late(row: RefreshToken, successor: RefreshToken) -> bool:
    """Whether a retry with `row` can no longer be that of a client that missed the answer."""
    until = row.revoked + REPLAY_AT_MOST
    if successor.first_used_at is not None:
        until = min(until, successor.first_used_at + REPLAY_AFTER_USE)
    return timezone.now() > until or row.replays >= MOST_REPLAYS


def _asks_for_the_same(request: Any, row: RefreshToken, given: AccessToken | RefreshToken) -> bool:
    """Whether a retry asks for what was asked first: its answer is for that, and may have been for less than `row` is."""
    scopes = request.scope.split() if request.scope else row.scope.split()
    return set(scopes) == set(given.scope.split()) and set(request.resource) == set(given.resource)


def _as_narrowed(answer: str, scope: str) -> str:
    """The kept answer, byte for byte; unless the person has taken something away since: it must not promise that."""
    said = json.loads(answer)
    left = [one for one in said.get("scope", "").split() if one in scope.split()]
    return answer if " ".join(left) == said.get("scope", "") else json.dumps(said | {"scope": " ".join(left)})


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
