"""Who is in front of the page: the browser, the session, and the token of a form (DESIGN §4.3).

A session remembers how it was opened, and only ways that are enabled for users now count (T5). /admin/ signs in staff
for /admin/ alone: its sessions carry no way at all.
"""

import secrets
import uuid
from typing import Any

from django.conf import settings
from django.contrib import auth
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.crypto import constant_time_compare, salted_hmac

from oauth_relay import audit, suspensions
from oauth_relay.digests import digest_of
from oauth_relay.models import LoginTransaction, User

OWN = "own"
_SIGNED_OUT = "signed_out"
_LONGEST_SID = 255
OWN_BACKEND = "django.contrib.auth.backends.ModelBackend"
PROVIDER_BACKEND = "oauth_relay.upstream_identities.UpstreamLoginBackend"

# -- the browser -------------------------------------------------------------------------------------------------------


def browser_digest(request: HttpRequest) -> str:
    """SHA-256 (hex) of the cookie that only this browser holds; empty if it has none."""
    value = request.COOKIES.get(settings.BROWSER_COOKIE_NAME, "")
    return digest_of(value) if value else ""


def mark_browser(request: HttpRequest) -> str:
    """The digest of this browser's cookie, making the cookie if there is none; `remember_browser` then sends it."""
    if not request.COOKIES.get(settings.BROWSER_COOKIE_NAME):
        request.COOKIES[settings.BROWSER_COOKIE_NAME] = secrets.token_urlsafe(32)
    return browser_digest(request)


def remember_browser(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    response.set_cookie(
        settings.BROWSER_COOKIE_NAME,
        request.COOKIES[settings.BROWSER_COOKIE_NAME],
        max_age=30 * 24 * 3600,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )
    return response


def is_this_browsers(request: HttpRequest, transaction: LoginTransaction) -> bool:
    return constant_time_compare(browser_digest(request), transaction.browser_digest)


def find_transaction(request: HttpRequest, raw_id: str | None) -> LoginTransaction | None:
    """The transaction named, if it is this browser's; open or not."""
    try:
        key = uuid.UUID(raw_id or "")
    except ValueError:
        return None
    transaction = LoginTransaction.objects.select_related("client_row", "user").filter(pk=key).first()
    return transaction if transaction and is_this_browsers(request, transaction) else None


# -- the session -------------------------------------------------------------------------------------------------------


def open_session(request: HttpRequest, user: User, way: str, upstream_sid: object = None) -> None:
    """Sign `user` in, in this browser, and remember how: `own`, or the provider's name.

    `upstream_sid` is the provider's own name of its session, by which it may end this one (OpenID Connect Back-Channel
    Logout 1.0 §2.1). What waited for a sign-in of this person goes on.
    """
    auth.login(request, user, backend=OWN_BACKEND if way == OWN else PROVIDER_BACKEND)
    request.session.pop(_SIGNED_OUT, None)
    request.session["way"] = way
    is_sid = isinstance(upstream_sid, str) and len(upstream_sid) <= _LONGEST_SID and upstream_sid.isprintable()
    request.session["upstream_sid"] = upstream_sid if is_sid else ""
    suspensions.resume(user)
    audit.record_within(audit.Event("user.signed_in", pseudonym=user.pseudonym, detail={"way": way}))


def note_sign_out(request: HttpRequest) -> None:
    """Whoever signs in next in this browser is asked who they are: the provider may still know the last one (T30)."""
    request.session[_SIGNED_OUT] = True
    # Whoever proved that an account is theirs has gone: what they began with that must not go on.
    begun = LoginTransaction.objects.filter(browser_digest=browser_digest(request), answered_at=None)
    begun.exclude(link_provider="").update(answered_at=timezone.now(), outcome=LoginTransaction.Outcome.FAILED)


def has_signed_out(request: HttpRequest) -> bool:
    """Whether somebody signed out in this browser and nobody has signed in since."""
    return request.session.get(_SIGNED_OUT) is True


def way_of(request: HttpRequest) -> str:
    """How this browser's session was opened: `own`, or the provider's name."""
    return str(request.session.get("way", ""))


def signed_in_person(request: HttpRequest) -> User | None:
    """The person of this session, if the way it was opened is enabled for users now (T5)."""
    user = request.user
    if not isinstance(user, User) or not user.is_active:
        return None
    way = request.session.get("way")
    if way == OWN:
        return user if settings.OWN_ACCOUNTS and (not user.is_demo or settings.DEMO_USER) else None
    return user if way in settings.UPSTREAM_PROVIDERS else None


def person_context(user: User | None) -> dict[str, Any] | None:
    """What a page says of a person: name, e-mail, and where they are known from."""
    if user is None:
        return None
    identity = user.newest_identity()
    claims = identity.claims if identity else {}
    provider = settings.UPSTREAM_PROVIDERS.get(identity.provider, {}).get("label") if identity else "CAIR"
    return {
        "name": user.get_full_name() or claims.get("name") or user.get_username(),
        "email": user.email or claims.get("email"),
        "provider": provider or identity.provider if identity else "CAIR",
    }


# -- the form ----------------------------------------------------------------------------------------------------------


def form_token(transaction: LoginTransaction, stage: str, user: User | None, scopes: list[str]) -> str:
    """A token bound to the transaction, the browser, the account and the scopes shown (T27)."""
    return _form_token(settings.SECRET_KEY, transaction, stage, user, scopes)


def is_form_token(
    raw_token: str, transaction: LoginTransaction, stage: str, user: User | None, scopes: list[str]
) -> bool:
    """Whether a form came from that very page; also from one that was shown before the secret was rotated."""
    return any(
        constant_time_compare(raw_token, _form_token(secret, transaction, stage, user, scopes))
        for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    )


def _form_token(secret: str, transaction: LoginTransaction, stage: str, user: User | None, scopes: list[str]) -> str:
    shown = "\0".join([str(transaction.pk), transaction.browser_digest, stage, str(user.pk if user else ""), *scopes])
    return salted_hmac("oauth_relay.form", shown, secret=secret, algorithm="sha256").hexdigest()


def settle(transaction: LoginTransaction, user: User) -> None:
    """The transaction is about this person from now on."""
    transaction.user, transaction.signed_in_at = user, timezone.now()
    transaction.save(update_fields=["user", "signed_in_at"])
