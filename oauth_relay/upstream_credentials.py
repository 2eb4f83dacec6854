"""One upstream credential: what is sealed in it, what may be known of it, and how it comes to its end (T10, T21).

Who needs a token reads it here whole; `upstream_refresh` renews it, `staged_tokens` brings it. It leaves in the shape of
door 2: `UpstreamToken`, or one of two exceptions.
"""

import json
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import jwt
from django.db.models import QuerySet
from django.db.transaction import atomic

from oauth_relay import audit, vault
from oauth_relay.identity_providers import TokenAnswer
from oauth_relay.models import Grant, UpstreamCredential

if TYPE_CHECKING:
    from oauth_relay.access_tokens import Principal

CAIR = "cair"
"""The token source of an API whose tokens are made here; every other source is a provider's name."""

REFRESH_MARGIN = 60.0
_STILL_USABLE = 2.0


class UpstreamLoginRequired(Exception):
    """The person must sign in at the provider again before `api` can be called for them."""


class UpstreamRefused(Exception):
    """The API refuses what the provider gives for this person, and they were already sent to sign in for it."""


class UpstreamUnavailable(Exception):
    """The provider cannot be asked now. `retry_after` is in seconds. Nothing is revoked."""

    def __init__(self, message: str, retry_after: int = 30) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class UpstreamToken:
    """What goes into the request to the API: header name and value. `version` names the credential behind it."""

    header: str
    value: str = field(repr=False)
    version: str
    expires_at: float
    scopes: frozenset[str] | None = None
    """What the provider granted; None where the token is CAIR's own and has whatever the principal has."""


def check_alive(principal: "Principal") -> None:
    """What a token is made for must be alive when it is made: grant, person and client."""
    if not Grant.objects.live().filter(pk=principal.grant_id).exists():
        raise UpstreamLoginRequired("the permission behind this call has ended")


# -- what is sealed, and what is known of it ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """What is sealed in a credential. `refresh_at` is when a new access token is wanted, in epoch seconds."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    refresh_at: float | None

    @classmethod
    def of(cls, answer: TokenAnswer) -> "Tokens":
        """A minute before the end; a quarter of its life before, where the provider's tokens are that short."""
        if answer.expires_at is None:
            return cls(answer.access_token, answer.refresh_token, None)
        margin = min(REFRESH_MARGIN, max(0.0, answer.expires_at - time.time()) / 4)
        return cls(answer.access_token, answer.refresh_token, answer.expires_at - margin)

    def plaintext(self) -> bytes:
        return json.dumps([self.access_token, self.refresh_token, self.refresh_at]).encode()


@dataclass(frozen=True)
class Credential:
    """One credential as it was read: opened, with what the database's clock says of it."""

    row: UpstreamCredential
    tokens: Tokens
    is_leased: bool
    has_just_failed: bool
    was_just_renewed: bool

    @property
    def version(self) -> str:
        return f"{self.row.pk}.{self.row.version}"

    @property
    def expires_at(self) -> float:
        return self.row.expires_at.timestamp() if self.row.expires_at else float("inf")

    def is_due(self, rejected_version: str | None) -> bool:
        """Whether another access token is wanted."""
        at = self.tokens.refresh_at
        return self.version == rejected_version or (at is not None and at <= time.time())

    def is_usable(self, rejected_version: str | None) -> bool:
        """Whether this access token will do, for want of a better one."""
        return self.version != rejected_version and self.expires_at - time.time() > _STILL_USABLE

    def token(self) -> UpstreamToken:
        value, scopes = f"Bearer {self.tokens.access_token}", frozenset(self.row.scope.split())
        return UpstreamToken("Authorization", value, self.version, self.expires_at, scopes)


# -- the seal ----------------------------------------------------------------------------------------------------------


def open_tokens(row: UpstreamCredential, *, user_id: int | None, provider_name: str, audience: str) -> Tokens:
    """The tokens in `row`, if they were sealed for this person, provider and audience. Raises VaultError."""
    opened = vault.open_sealed(row.tokens, **_binding(row, user_id, provider_name, audience, row.version))
    return Tokens(*json.loads(opened))


def seal_tokens(row: UpstreamCredential, tokens: Tokens, *, version: int) -> bytes:
    """`tokens` sealed for `row` as it will be at `version`, and for no other."""
    return vault.seal(tokens.plaintext(), **_binding(row, row.user_id, row.provider, row.audience, version))


def own_binding(row: UpstreamCredential) -> dict[str, Any]:
    """What `row` is sealed to by its own account: for a rotation, which opens in order to seal for the same again."""
    return _binding(row, row.user_id, row.provider, row.audience, row.version)


def _binding(
    row: UpstreamCredential, user_id: int | None, provider_name: str, audience: str, version: int
) -> dict[str, Any]:
    return {
        "purpose": "upstream-credential",
        "row": row.pk,
        "field": "upstream_credential.tokens",
        "user": user_id,
        "provider": provider_name,
        "audience": audience,
        "issuer": row.issuer,
        "subject": row.subject,
        "version": version,
    }


@dataclass(frozen=True)
class CredentialFacts:
    """What an operator may know of a stored credential. Audiences are None where the access token is opaque."""

    has_refresh_token: bool
    unverified_audiences: tuple[str, ...] | None


def facts_of(row: UpstreamCredential) -> CredentialFacts:
    """For `manage.py doctor`: what came, never the tokens themselves. Raises VaultError."""
    tokens = open_tokens(row, user_id=row.user_id, provider_name=row.provider, audience=row.audience)
    try:
        unverified_claims = jwt.decode(tokens.access_token, options={"verify_signature": False})
    except jwt.PyJWTError:
        return CredentialFacts(bool(tokens.refresh_token), None)
    named = unverified_claims.get("aud")
    audiences = named if isinstance(named, list) else [named]
    return CredentialFacts(bool(tokens.refresh_token), tuple(name for name in audiences if isinstance(name, str)))


# -- the end of one ----------------------------------------------------------------------------------------------------


SIGNED_OUT = "signed_out"
"""Why a credential is over that the provider never called invalid: no refresh under way may make it good again."""

NO_LEASE: dict[str, Any] = {"lease_holder": None, "lease_until": None, "failed_at": None}


def mark_sign_in_needed(
    row: UpstreamCredential, why: str, pseudonym: uuid.UUID | None, rows: "QuerySet[UpstreamCredential]"
) -> None:
    """The credential is over, as far as `rows` and the version read still hold. The person's sign-in ends this state."""
    with atomic():
        marked = rows.filter(pk=row.pk, version=row.version).update(
            state=UpstreamCredential.State.SIGN_IN_NEEDED, **NO_LEASE, failure=why
        )
        if marked:
            audit.record_within(credential_event("upstream_token.sign_in_needed", why, row, pseudonym))


def credential_event(name: str, outcome: str, row: UpstreamCredential, pseudonym: uuid.UUID | None) -> audit.Event:
    """For the audit: which provider and audience, never the row."""
    return audit.Event(name, outcome, pseudonym=pseudonym, detail={"provider": row.provider, "audience": row.audience})


def as_datetime(epoch: float | None) -> datetime | None:
    return None if epoch is None else datetime.fromtimestamp(epoch, UTC)
