"""Signing in at the identity provider: the way there, the way back, and what is believed of the answer.

OpenID Connect Core 1.0 §3.1 over mozilla-django-oidc, with its holes closed (T3, T4, T8): the journey is one row in the
database, bound to one browser; the ID token is checked whole; a person is found by issuer and subject alone; the
provider's tokens wait on the transaction until the person has consented.
"""

import base64
import hashlib
import json
import logging
import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit

import jwt
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.db import IntegrityError
from django.db.models import QuerySet
from django.db.transaction import atomic
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.generic import View
from mozilla_django_oidc.auth import OIDCAuthenticationBackend

from oauth_relay import audit, authorization, pages, sign_in, upstream_tokens, vault
from oauth_relay.identity_providers import (
    SIGNING_ALGORITHMS,
    Provider,
    ProviderRefused,
    ProviderUnavailable,
    TokenAnswer,
    UnknownKey,
    provider,
)
from oauth_relay.models import Identity, LoginTransaction, User

logger = logging.getLogger(__name__)

CLOCK_LEEWAY = 30
_LONGEST_PARAMETER = 4096
_LONGEST_ID = 255
_KEPT_CLAIMS = ("name", "nickname", "preferred_username", "email", "email_verified")
_PROMPTS = ("login", "select_account", "consent")


class LoginFailed(Exception):
    """The provider's answer proves nobody. The message is for the operator; the client hears a general sentence."""


# -- the way there -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Journey:
    """The secrets of one way to the provider and back. Only digests and sealed copies of them are stored."""

    state: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    nonce: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    code_verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48), repr=False)

    def code_challenge(self) -> str:
        """RFC 7636 §4.2, S256."""
        digest = hashlib.sha256(self.code_verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def forward(request: HttpRequest, transaction: LoginTransaction, provider_name: str) -> HttpResponse:
    """Send this person to the provider, because their POST of the sign-in page said so (DESIGN §4.3, T8).

    The decision is written before there is any state, and the state before there is any redirect.
    """
    upstream = provider(provider_name)
    try:
        endpoint = upstream.metadata()["authorization_endpoint"]
    except ProviderUnavailable as error:
        return _end(request, transaction, upstream, "temporarily_unavailable", str(error))
    journey = _Journey()
    if not _begin(transaction, upstream, journey):
        return _nothing_changed(request)
    separator = "&" if urlsplit(endpoint).query else "?"
    return _redirect(f"{endpoint}{separator}{urlencode(_authentication_request(transaction, upstream, journey))}")


def redirect_uri(provider_name: str) -> str:
    """Our own address for a provider's answer. The first provider keeps /callback, each other has its own (T29)."""
    first = next(iter(settings.UPSTREAM_PROVIDERS))
    return f"{settings.PUBLIC_URL}/callback" + ("" if provider_name == first else f"/{provider_name}")


def _redirect(location: str) -> HttpResponse:
    """> 303 … redirecting the user agent to a different resource (RFC 9110 §15.4.4): the form's fields stay here."""
    return HttpResponse(status=303, headers={"Location": location, "Cache-Control": "no-store"})


def _begin(transaction: LoginTransaction, upstream: Provider, journey: _Journey) -> bool:
    """Write decision and journey; False if the transaction has been answered or has expired meanwhile."""
    now = timezone.now()
    lifetime = timedelta(seconds=settings.UPSTREAM_STATE_LIFETIME)
    with atomic():
        begun = LoginTransaction.objects.filter(pk=transaction.pk, answered_at=None, expires_at__gt=now).update(
            provider=upstream.name,
            forward_decided_at=now,
            upstream_state_digest=_digest(journey.state),
            upstream_state_expires_at=min(now + lifetime, transaction.expires_at),
            upstream_state_spent_at=None,
            upstream_secrets=_seal_journey(transaction, upstream, journey),
        )
        if begun:
            audit.record_within(_event("upstream_login.forwarded", transaction, upstream))
    return bool(begun)


def _digest(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()


def _seal_journey(transaction: LoginTransaction, upstream: Provider, journey: _Journey) -> bytes:
    plaintext = json.dumps([journey.nonce, journey.code_verifier]).encode()
    return vault.seal(plaintext, **_journey_binding(transaction, upstream))


def _journey_binding(transaction: LoginTransaction, upstream: Provider) -> dict[str, Any]:
    return {
        "purpose": "upstream-login",
        "row": transaction.pk,
        "field": "login_transaction.upstream_secrets",
        "provider": upstream.name,
        "browser": transaction.browser_digest,
    }


def _authentication_request(transaction: LoginTransaction, upstream: Provider, journey: _Journey) -> dict[str, str]:
    """OpenID Connect Core 1.0 §3.1.2.1, with Auth0's `audience`."""
    prompt = [word for word in _PROMPTS if word in transaction.prompt.split()]
    optional = {
        "audience": upstream.audience,
        "login_hint": transaction.login_hint,
        "prompt": " ".join(prompt),
        # Silent single sign-on is not fresh (T30): the provider has to ask, and to say when it did.
        "max_age": "0" if "login" in prompt else "",
    }
    return {
        "response_type": "code",
        "client_id": upstream.client_id,
        "redirect_uri": redirect_uri(upstream.name),
        "scope": upstream.scope,
        "state": journey.state,
        "nonce": journey.nonce,
        "code_challenge": journey.code_challenge(),
        "code_challenge_method": "S256",
        **{name: value for name, value in optional.items() if value},
    }


# -- the way back ------------------------------------------------------------------------------------------------------


@method_decorator(never_cache, name="dispatch")
class CallbackView(View):
    """GET /callback: the provider sends the person back (OpenID Connect Core 1.0 §3.1.2.5).

    Nothing at all happens unless browser and state fit together (T3). HEAD is refused: a scanner that looks at the
    address must not spend the state.
    """

    http_method_names = ["get"]

    def get(self, request: HttpRequest, provider_name: str | None = None) -> HttpResponse:
        name = provider_name or next(iter(settings.UPSTREAM_PROVIDERS), "")
        transaction = _find_journey(request, name)
        if transaction is None or not _spend_state(transaction):
            return _nothing_changed(request)
        upstream = provider(name)
        try:
            return _arrive(request, transaction, upstream)
        except ProviderUnavailable as error:
            return _end(request, transaction, upstream, "temporarily_unavailable", str(error))
        except ProviderRefused as error:
            return _end(request, transaction, upstream, "temporarily_unavailable", f"token endpoint: {error.error}")
        except (LoginFailed, vault.VaultError) as error:
            return _end(request, transaction, upstream, "temporarily_unavailable", str(error))


def _find_journey(request: HttpRequest, provider_name: str) -> LoginTransaction | None:
    """The transaction whose state this is, if it is this browser's, at this provider, and still under way."""
    state = _single(request, "state")
    if not state:
        return None
    found = (
        LoginTransaction.objects.select_related("client", "user").filter(upstream_state_digest=_digest(state)).first()
    )
    if found is None or found.provider != provider_name or provider_name not in settings.UPSTREAM_PROVIDERS:
        return None
    presented = sign_in.browser_digest(request)
    # An absent cookie has an empty digest, and must not fit a row that has lost its own.
    if not presented or not constant_time_compare(presented, found.browser_digest):
        return None
    return found


def _single(request: HttpRequest, name: str) -> str | None:
    """A parameter that was sent once, is not empty, and has a sane length."""
    values = request.GET.getlist(name)
    return values[0] if len(values) == 1 and 0 < len(values[0]) <= _LONGEST_PARAMETER else None


def _spend_state(transaction: LoginTransaction) -> bool:
    """Use the state up, before the provider is asked anything: of two loads of one address, one goes on."""
    now = timezone.now()
    spent = LoginTransaction.objects.filter(
        pk=transaction.pk,
        upstream_state_digest=transaction.upstream_state_digest,
        upstream_state_spent_at=None,
        upstream_state_expires_at__gt=now,
        answered_at=None,
        expires_at__gt=now,
    ).update(upstream_state_spent_at=now)
    return bool(spent)


def _arrive(request: HttpRequest, transaction: LoginTransaction, upstream: Provider) -> HttpResponse:
    """From the provider's answer to our consent page. Raises what CallbackView names."""
    _check_issuer(request, upstream)
    if "error" in request.GET:
        return _provider_said_no(request, transaction, upstream)
    code = _single(request, "code")
    if code is None:
        raise LoginFailed("the provider sent neither a code nor an error")
    nonce, code_verifier = json.loads(
        vault.open_sealed(transaction.upstream_secrets or b"", **_journey_binding(transaction, upstream))
    )
    backend = UpstreamLoginBackend(upstream)
    user = backend.authenticate(
        request, code=code, nonce=nonce, code_verifier=code_verifier, fresh_since=_fresh_since(transaction)
    )
    if not user.is_active:
        return _end(request, transaction, upstream, "access_denied", "the person's account here is switched off")
    return _sign_in(request, transaction, backend, user)


def _check_issuer(request: HttpRequest, upstream: Provider) -> None:
    """> Clients MUST … compare the result to the issuer identifier of the authorization server … If the value does not
    > match …, the client MUST reject the authorization response (RFC 9207 §2.4); so with none where one is promised.
    """
    sent = request.GET.getlist("iss")
    promised = upstream.metadata().get("authorization_response_iss_parameter_supported") is True
    if (sent or promised) and sent != [upstream.issuer]:
        raise LoginFailed("the authorization response names another issuer")


def _provider_said_no(request: HttpRequest, transaction: LoginTransaction, upstream: Provider) -> HttpResponse:
    """OpenID Connect Core 1.0 §3.1.2.6. The person's own no is told apart; the rest is the provider's trouble."""
    error = _single(request, "error") or "unreadable"
    answer = "access_denied" if error == "access_denied" else "temporarily_unavailable"
    return _end(request, transaction, upstream, answer, f"the provider answered {error[:64]!r}")


def _fresh_since(transaction: LoginTransaction) -> float | None:
    """The moment after which the person must have been asked; None where any sign-in will do (T30)."""
    if "login" not in transaction.prompt.split():
        return None
    return transaction.created.timestamp() - CLOCK_LEEWAY


def _sign_in(
    request: HttpRequest, transaction: LoginTransaction, backend: "UpstreamLoginBackend", user: User
) -> HttpResponse:
    """Everything the answer proved, written at once: who it is, what the provider gave, and this browser's session."""
    assert backend.answer is not None and backend.claims is not None
    with atomic():
        settled = LoginTransaction.objects.filter(pk=transaction.pk, answered_at=None).update(
            user=user, signed_in_at=timezone.now(), upstream_secrets=None
        )
        if not settled:
            return _nothing_changed(request)
        transaction.refresh_from_db(fields=["user", "signed_in_at", "upstream_secrets"])
        upstream_tokens.stage(transaction, backend.answer, issuer=backend.claims["iss"], subject=backend.claims["sub"])
        if transaction.client_id is None:
            upstream_tokens.keep_after_visit(transaction)
        audit.record_within(_event("upstream_login.completed", transaction, backend.upstream, user))
        sign_in.open_session(request, user, backend.upstream.name)
    return authorization.resume(transaction)


def _nothing_changed(request: HttpRequest) -> HttpResponse:
    """An answer that belongs to nobody here: unknown, spent, too late, or another browser's. They all read the same."""
    logger.info("a sign-in came back that is not this browser's, or not open any more")
    what = "This sign-in was already used, has expired, or was begun in another browser. Nothing was changed."
    return pages.refusal(
        request, 400, "This sign-in cannot be finished", what, "Go back to the application and connect once more."
    )


_SENTENCES = {
    "access_denied": "The sign-in was refused at the identity provider.",
    "temporarily_unavailable": "The sign-in at the identity provider failed. Try again in a moment.",
}


def _end(
    request: HttpRequest, transaction: LoginTransaction, upstream: Provider | None, error: str, why: str
) -> HttpResponse:
    """End at the client: one sentence for it, the reason for the operator."""
    logger.warning("sign-in at %s: %s (%s)", upstream.name if upstream else "-", error, why)
    return authorization.refuse(request, transaction, error, _SENTENCES[error])


def _event(name: str, transaction: LoginTransaction, upstream: Provider, user: User | None = None) -> audit.Event:
    return audit.Event(
        name,
        pseudonym=user.pseudonym if user else None,
        client_id=transaction.client.client_id if transaction.client else "",
        detail={"provider": upstream.name, "transaction": str(transaction.pk)},
    )


# -- what is believed of the answer ------------------------------------------------------------------------------------


class UpstreamLoginBackend(OIDCAuthenticationBackend):
    """Bends mozilla-django-oidc's backend: endpoints by discovery, a whole check of the ID token, people by (iss, sub).

    Django makes one without a provider for each request of a signed-in person: that one only loads people.
    """

    def __init__(self, upstream: Provider | None = None) -> None:
        """Not the library's: it would read one provider's endpoints from flat settings."""
        self.UserModel = get_user_model()
        self._upstream = upstream
        self.answer: TokenAnswer | None = None
        self.claims: dict[str, Any] | None = None

    @property
    def upstream(self) -> Provider:
        if self._upstream is None:
            raise TypeError("This backend was made without a provider: it signs nobody in.")
        return self._upstream

    def authenticate(
        self,
        request: HttpRequest | None,
        *,
        code: str,
        nonce: str,
        code_verifier: str,
        fresh_since: float | None = None,
    ) -> User:
        """The person whom `code` proves. Raises LoginFailed, ProviderRefused, ProviderUnavailable.

        The library's own takes `redirect_uri` from the Host header and answers every failure with None. Its arguments
        are ours alone, so a password at /login or /admin/ never reaches it.
        """
        self.answer = self.get_token({"code": code, "code_verifier": code_verifier})
        self.claims = self.verify_token(self.answer.id_token, nonce=nonce)
        _check_freshness(self.claims, fresh_since)
        with atomic():
            user = self.get_or_create_user(None, None, self.claims)
        if not isinstance(user, User):
            raise LoginFailed("no person could be made of the ID token's claims")
        return user

    def get_token(self, payload: dict[str, str]) -> TokenAnswer:
        """Keeps the refresh token, which the library drops, and has a deadline, which it has not."""
        answer = self.upstream.exchange_code(
            payload["code"], redirect_uri=redirect_uri(self.upstream.name), code_verifier=payload["code_verifier"]
        )
        if answer.id_token is None:
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
        if not isinstance(nonce, str) or not constant_time_compare(nonce, kwargs["nonce"]):
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
            claims=_kept(claims),
            last_login=timezone.now(),
        )
        return user

    def update_user(self, user: User, claims: dict[str, Any]) -> User:
        """What the issuer says now. It is shown to people and decides nothing."""
        Identity.objects.filter(issuer=claims["iss"], subject=claims["sub"]).update(
            claims=_kept(claims), last_login=timezone.now()
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
    if claims.get("azp", None if isinstance(audience, list) and len(audience) > 1 else client_id) != client_id:
        raise LoginFailed("ID token: it was made for another client")
    subject = claims["sub"]
    if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_ID or "\0" in subject:
        raise LoginFailed("ID token: its subject is no subject")
    if len(claims["iss"]) > _LONGEST_ID:
        raise LoginFailed("ID token: its issuer is too long")


def _check_freshness(claims: dict[str, Any], fresh_since: float | None) -> None:
    """OpenID Connect Core 1.0 §3.1.3.7 (13): where `max_age` was sent, `auth_time` is looked at."""
    if fresh_since is None:
        return
    asked_at = claims.get("auth_time")
    if isinstance(asked_at, bool) or not isinstance(asked_at, int | float) or asked_at < fresh_since:
        raise LoginFailed("the provider did not ask the person anew")


def _kept(claims: dict[str, Any]) -> dict[str, Any]:
    """The few claims we keep: short, plain, and without NUL, which PostgreSQL would refuse."""
    kept: dict[str, Any] = {}
    for name in _KEPT_CLAIMS:
        value = claims.get(name)
        if isinstance(value, bool):
            kept[name] = value
        elif isinstance(value, str):
            kept[name] = "".join(character for character in value[:_LONGEST_ID] if character.isprintable())
    return kept
