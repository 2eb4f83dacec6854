"""POST /backchannel-logout: a provider tells us that somebody has signed out there.

OpenID Connect Back-Channel Logout 1.0 (T37). The logout token is checked whole before anything happens. Then the person's
browser sessions end, their clients wait for a sign-in (`suspensions`), and every process learns of it within a second.
"""

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from django.conf import settings
from django.db.transaction import atomic
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_post_parameters

from oauth_relay import audit, suspensions
from oauth_relay.digests import digest_of
from oauth_relay.identity_providers import SIGNING_ALGORITHMS, Provider, ProviderUnavailable, UnknownKey, provider
from oauth_relay.models import Session, SpentLogoutToken, User
from oauth_relay.pages import oauth_error
from oauth_relay.upstream_identities import CLOCK_LEEWAY

logger = logging.getLogger(__name__)

EVENT = "http://schemas.openid.net/event/backchannel-logout"
TYPES = frozenset({"logout+jwt", "jwt"})
LONGEST_TOKEN = 16 * 1024
LONGEST_ID = 255
OLDEST = 300
"""Seconds after which a logout token without an end of its own comes too late."""
LONGEST_LIFE = 24 * 3600
ECHO_WITHIN = 60
"""Seconds within which a provider's word of a sign-out that began here is an echo, once, and no news."""


class InvalidLogoutToken(Exception):
    """The token proves nothing. The message is for the operator; the provider hears `invalid_request`."""


@method_decorator([csrf_exempt, sensitive_post_parameters()], name="dispatch")
class BackchannelLogoutView(View):
    """200 when it is done, 400 for everything else, both without a cache (§2.8)."""

    http_method_names = ["post"]

    def http_method_not_allowed(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return oauth_error("invalid_request", "Use POST.", 405, {"Allow": "POST"})

    def post(self, request: HttpRequest, provider_name: str | None = None) -> HttpResponse:
        name = provider_name or next(iter(settings.UPSTREAM_PROVIDERS), "")
        try:
            if name not in settings.UPSTREAM_PROVIDERS:
                raise InvalidLogoutToken("there is no such provider")
            upstream = provider(name)
            if not upstream.has_id_tokens:
                raise InvalidLogoutToken("this provider signs nothing")
            claims = verify_logout_token(upstream, _sent(request))
            with atomic():
                _spend(claims)
                _sign_out_everywhere(upstream, claims)
        except (InvalidLogoutToken, ProviderUnavailable) as error:
            logger.warning("back-channel logout at %r refused: %s", name[:64], error)
            return oauth_error("invalid_request", "The logout token cannot be accepted.")
        return HttpResponse(status=200, headers={"Cache-Control": "no-store"})


def _sent(request: HttpRequest) -> str:
    """§2.5: the token is the one form field that is read."""
    values = request.POST.getlist("logout_token")
    if len(values) != 1 or not 0 < len(values[0]) <= LONGEST_TOKEN:
        raise InvalidLogoutToken("not one logout_token")
    return values[0]


# -- the token, checked whole ------------------------------------------------------------------------------------------


def verify_logout_token(upstream: Provider, unverified_token: str) -> dict[str, Any]:
    """The claims of a logout token that holds in every point of §2.6. Raises InvalidLogoutToken, ProviderUnavailable."""
    try:
        claims = _verify_signature_and_parties(upstream, unverified_token)
    except (jwt.PyJWTError, UnknownKey, TypeError, ValueError, OverflowError) as error:
        raise InvalidLogoutToken(f"{error.__class__.__name__}: {error}") from error
    events = claims.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict):
        raise InvalidLogoutToken("its events name no back-channel logout")
    # > Verify that the Logout Token does not contain a nonce Claim: an ID token must never do for one.
    if "nonce" in claims:
        raise InvalidLogoutToken("it has a nonce")
    if not _is_text(claims["jti"]):
        raise InvalidLogoutToken("its jti is no text")
    named = [claims[key] for key in ("sub", "sid") if key in claims]
    if not named or not all(_is_text(value) for value in named):
        raise InvalidLogoutToken("it names nobody by sub or sid")
    if "exp" not in claims and claims["iat"] < time.time() - OLDEST:
        raise InvalidLogoutToken("it is too old")
    return claims


def _verify_signature_and_parties(upstream: Provider, unverified_token: str) -> dict[str, Any]:
    unverified_header = jwt.get_unverified_header(unverified_token)
    if str(unverified_header.get("typ", "JWT")).lower() not in TYPES:
        raise InvalidLogoutToken("its type is another")
    return jwt.decode(
        unverified_token,
        upstream.key_for(unverified_header),
        algorithms=list(SIGNING_ALGORITHMS),
        audience=upstream.client_id,
        issuer=upstream.issuer,
        leeway=CLOCK_LEEWAY,
        options={"require": ["iss", "aud", "iat", "jti", "events"]},
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_ID and value.isprintable()


def _spend(claims: dict[str, Any]) -> None:
    """A `jti` counts once, for as long as the token could be shown again."""
    end = min(float(claims.get("exp", claims["iat"] + OLDEST)), time.time() + LONGEST_LIFE) + 2 * CLOCK_LEEWAY
    digest = digest_of(f"{claims['iss']}\0{claims['jti']}")
    if not SpentLogoutToken.objects.spend(digest, datetime.fromtimestamp(end, UTC)):
        raise InvalidLogoutToken("it was used before")


# -- what it does ------------------------------------------------------------------------------------------------------


def _sign_out_everywhere(upstream: Provider, claims: dict[str, Any]) -> None:
    """Whoever is meant: by issuer and subject, else by the session of theirs that the provider named.

    All sessions of the person end, not the named one alone: their clients wait for a sign-in, and only one that is new
    tells who sits there now. A person we do not know has nothing to end.
    """
    for user in _people_meant(upstream, claims):
        if _is_echo(upstream, user, claims.get("sid")):
            continue
        user.sessions.all().delete()
        waiting = suspensions.suspend(user, upstream.name)
        event = "user.signed_out_by_provider"
        audit.record_within(
            audit.Event(event, pseudonym=user.pseudonym, detail={"provider": upstream.name, "grants": waiting})
        )


def expect_echo(upstream: Provider, user: User, sid: str) -> None:
    """This person ends their session by our own button: a logout token for it will have nothing left to do.

    Providers tell every client of a session that it is over, the one that asked for it too. And a sign-out here leaves
    connected clients alone.
    """
    until = timezone.now() + timedelta(seconds=ECHO_WITHIN)
    SpentLogoutToken.objects.update_or_create(digest=_echo_digest(upstream, user, sid), defaults={"until": until})


def _is_echo(upstream: Provider, user: User, sid: str | None) -> bool:
    """Whether all that the token says was done here a moment ago. While a session of that name is open, it is news."""
    if sid is None or user.sessions.filter(provider=upstream.name, upstream_sid=sid).exists():
        return False
    expected = SpentLogoutToken.objects.filter(digest=_echo_digest(upstream, user, sid), until__gt=timezone.now())
    return bool(expected.delete()[0])


def _echo_digest(upstream: Provider, user: User, sid: str) -> str:
    return digest_of(f"{upstream.name}\0{user.subject}\0{sid}")


def _people_meant(upstream: Provider, claims: dict[str, Any]) -> list[User]:
    if "sub" in claims:
        return list(User.objects.filter(identities__issuer=claims["iss"], identities__subject=claims["sub"]))
    sessions = Session.objects.filter(provider=upstream.name, upstream_sid=claims["sid"])
    return list(User.objects.filter(pk__in=sessions.values("user")))
