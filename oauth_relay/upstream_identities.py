"""Who a provider's answer proves, and the person we know them as: by issuer and subject alone (T4).

OpenID Connect Core 1.0 §3.1.3 over mozilla-django-oidc, with its holes closed: the ID token is checked whole.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.db import IntegrityError
from django.db.models import QuerySet
from django.db.transaction import atomic
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from mozilla_django_oidc.auth import OIDCAuthenticationBackend

from oauth_relay import admission
from oauth_relay.identity_providers import SIGNING_ALGORITHMS, Provider, TokenAnswer, UnknownKey
from oauth_relay.models import Identity, User
from oauth_relay.providers.github import GitHub

CLOCK_LEEWAY = 30
_LONGEST_ID = 255
_KEPT_CLAIMS = ("name", "nickname", "preferred_username", "email", "email_verified")


class LoginFailed(Exception):
    """The provider's answer proves nobody. The message is for the operator; the client hears a general sentence."""


@dataclass(frozen=True)
class Proof:
    """What an authorization code turned out to prove: the claims about a person, and the tokens that came along."""

    claims: dict[str, Any] = field(repr=False)
    answer: TokenAnswer = field(repr=False)


class UpstreamLoginBackend(OIDCAuthenticationBackend):
    """Bends mozilla-django-oidc's backend: endpoints by discovery, a whole check of the ID token, people by (iss, sub).

    Django makes one without a provider for each request of a signed-in person: that one only loads people.
    """

    def __init__(self, upstream: Provider | None = None) -> None:
        """Not the library's: it would read one provider's endpoints from flat settings."""
        self.UserModel = get_user_model()
        self._upstream = upstream

    @property
    def upstream(self) -> Provider:
        if self._upstream is None:
            raise TypeError("This backend was made without a provider: it signs nobody in.")
        return self._upstream

    def authenticate(self, request: HttpRequest | None, **credentials: Any) -> None:
        """Nobody: Django asks every backend with the passwords of /login and /admin/. The way in here is `verify_code`.

        The library's own takes `redirect_uri` from the Host header and answers every failure with None.
        """

    def verify_code(
        self, code: str, *, redirect_uri: str, nonce: str, code_verifier: str, fresh_since: float | None = None
    ) -> Proof:
        """What `code` proves. Raises LoginFailed, ProviderRefused, ProviderUnavailable."""
        answer = self.get_token({"code": code, "redirect_uri": redirect_uri, "code_verifier": code_verifier})
        claims = self._claims_of(answer, nonce)
        _check_freshness(claims, fresh_since)
        return Proof(claims, answer)

    def person_of(self, proof: Proof) -> User:
        """The person whom `proof` is about, made at their first sign-in. Raises LoginFailed, NotAdmitted."""
        with atomic():
            admission.check_admitted(self.upstream, proof.claims)
            user = self.get_or_create_user(None, None, proof.claims)
            if not isinstance(user, User):
                raise LoginFailed("no person could be made of the ID token's claims")
            admission.set_groups(user, proof.claims)
        return user

    def find_person(self, proof: Proof) -> User | None:
        """The person whom `proof` is about, if they are known."""
        return self.filter_users_by_claims(proof.claims).first()

    def _claims_of(self, answer: TokenAnswer, nonce: str) -> dict[str, Any]:
        """By the ID token; where a provider has none, by what its API says to the access token that has just come."""
        if isinstance(self.upstream, GitHub):
            return self.upstream.claims_of(answer.access_token)
        return self.verify_token(answer.id_token, nonce=nonce)

    def get_token(self, payload: dict[str, str]) -> TokenAnswer:
        """Keeps the refresh token, which the library drops, and has a deadline, which it has not."""
        answer = self.upstream.exchange_code(
            payload["code"], redirect_uri=payload["redirect_uri"], code_verifier=payload["code_verifier"]
        )
        if answer.id_token is None and self.upstream.has_id_tokens:
            raise LoginFailed("the token endpoint sent no ID token")
        return answer

    def verify_token(self, token: str | None, **kwargs: Any) -> dict[str, Any]:
        """The claims of an ID token that holds in every point of OpenID Connect Core 1.0 §3.1.3.7. Raises LoginFailed.

        The library's checks the signature and the nonce, and neither issuer, audience nor expiry.
        """
        try:
            claims = self._verify_signature_and_claims(token or "")
        except (jwt.PyJWTError, UnknownKey, TypeError, OverflowError) as error:  # the last two: `exp` that is no time
            raise LoginFailed(f"ID token: {error}") from error
        _check_parties(claims, self.upstream.client_id)
        nonce = claims.get("nonce")
        if not isinstance(nonce, str) or not nonce:
            raise LoginFailed("ID token: it has no nonce")
        if not constant_time_compare(nonce, kwargs["nonce"]):
            raise LoginFailed("ID token: the nonce is not the one sent")
        return claims

    def _verify_signature_and_claims(self, id_token: str) -> dict[str, Any]:
        unverified_header = jwt.get_unverified_header(id_token)
        key = self.upstream.key_for(unverified_header)
        return jwt.decode(
            id_token,
            key,
            algorithms=list(SIGNING_ALGORITHMS),
            audience=self.upstream.client_id,
            issuer=self.upstream.issuer,
            leeway=CLOCK_LEEWAY,
            options={"require": ["iss", "sub", "aud", "exp", "iat"]},
        )

    def get_userinfo(self, access_token: str | None, id_token: str | None, payload: dict[str, Any]) -> dict[str, Any]:
        """The ID token's claims: real providers refuse a token for an API's audience at their userinfo endpoint."""
        return payload

    def verify_claims(self, claims: dict[str, Any]) -> bool:
        """Proved above; the library's asks for an e-mail address, which decides nothing here."""
        return True

    def filter_users_by_claims(self, claims: dict[str, Any]) -> QuerySet[User]:
        """By issuer and subject, never by e-mail: an address is whatever somebody typed at some provider."""
        return User.objects.filter(identities__issuer=claims["iss"], identities__subject=claims["sub"])

    def create_user(self, claims: dict[str, Any]) -> User:
        """A person not seen before. Two tabs may bring them at once: the pair (issuer, subject) lets one in."""
        try:
            with atomic():
                return self._create_person(claims)
        except IntegrityError:
            identity = Identity.objects.select_related("user").get(issuer=claims["iss"], subject=claims["sub"])
            return identity.user

    def _create_person(self, claims: dict[str, Any]) -> User:
        # The name is random: one made of claims could be, or look like, somebody's own account.
        user = User.objects.create_user(f"{self.upstream.name}-{secrets.token_hex(12)}", password=None)
        Identity.objects.create(
            user=user,
            provider=self.upstream.name,
            issuer=claims["iss"],
            subject=claims["sub"],
            claims=kept_claims(claims),
            last_login=timezone.now(),
        )
        return user

    def update_user(self, user: User, claims: dict[str, Any]) -> User:
        """What the issuer says now. It is shown to people and decides nothing."""
        Identity.objects.filter(issuer=claims["iss"], subject=claims["sub"]).update(
            claims=kept_claims(claims), last_login=timezone.now()
        )
        return user

    def get_settings(self, attr: str, *default: Any) -> Any:
        """The library's switches stay at their defaults, whatever a settings file may hold."""
        return default[0] if default else None

    def get_user(self, user_id: int) -> User | None:
        """Django's, which leaves inactive people out; the library's lets them in."""
        return ModelBackend.get_user(self, user_id)


def _check_parties(claims: dict[str, Any], client_id: str) -> None:
    """Whom the token is about, and for whom, beyond what the library compares."""
    audience = claims["aud"]
    # > If the ID Token contains multiple audiences, the Client SHOULD verify that an azp Claim is present.
    # > If an azp Claim is present, the Client SHOULD verify that its client_id is the Claim Value. (§3.1.3.7)
    if "azp" not in claims and isinstance(audience, list) and len(audience) > 1:
        raise LoginFailed("ID token: it has several audiences and no authorized party")
    if claims.get("azp", client_id) != client_id:
        raise LoginFailed("ID token: it was made for another client")
    subject = claims["sub"]
    if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_ID:
        raise LoginFailed("ID token: its subject is empty, or too long")
    if not _is_storable(subject):
        raise LoginFailed("ID token: its subject holds what no database keeps")
    if len(claims["iss"]) > _LONGEST_ID:
        raise LoginFailed("ID token: its issuer is too long")


def _check_freshness(claims: dict[str, Any], fresh_since: float | None) -> None:
    """OpenID Connect Core 1.0 §3.1.3.7 (13): where `max_age` was sent, `auth_time` is looked at."""
    if fresh_since is None:
        return
    asked_at = claims.get("auth_time")
    if isinstance(asked_at, bool) or not isinstance(asked_at, int | float) or not asked_at >= fresh_since:
        raise LoginFailed("the provider did not ask the person anew")


def _is_storable(text: str) -> bool:
    """Whether a database can hold it: no NUL, which PostgreSQL refuses, and no half of a character."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def kept_claims(claims: Mapping[str, Any]) -> dict[str, Any]:
    """The few claims we keep: short, plain, and without NUL, which PostgreSQL would refuse."""
    kept: dict[str, Any] = {}
    for name in _KEPT_CLAIMS:
        value = claims.get(name)
        if isinstance(value, bool):
            kept[name] = value
        elif isinstance(value, str):
            kept[name] = "".join(character for character in value[:_LONGEST_ID] if character.isprintable())
    return kept
