"""Signing in at the identity provider: the way there and the way back. Whom the answer proves, `upstream_identities` says.

OpenID Connect Core 1.0 §3.1.2 (T3, T4, T8): the journey is one row in the database, bound to one browser; the provider's
tokens wait on the transaction until the person has consented.
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

from django.conf import settings
from django.db.transaction import atomic
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.generic import View

from oauth_relay import (
    admission,
    audit,
    authorization_response,
    browsers,
    linking,
    pages,
    redirect_uris,
    staged_tokens,
    vault,
)
from oauth_relay.admission import NotAdmitted
from oauth_relay.digests import digest_of
from oauth_relay.identity_providers import (
    Provider,
    ProviderRefused,
    ProviderUnavailable,
    provider,
)
from oauth_relay.models import LoginTransaction, User
from oauth_relay.upstream_identities import CLOCK_LEEWAY, LoginFailed, Proof, UpstreamLoginBackend

logger = logging.getLogger(__name__)

_LONGEST_PARAMETER = 4096
_PROMPTS = ("login", "select_account", "consent")


# -- the way there -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Journey:
    """The secrets of one way to the provider and back. Only digests and sealed copies of them are stored."""

    scope: str
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
    journey = _Journey(staged_tokens.scope_to_ask(browsers.signed_in_person(request), upstream))
    if not _begin(transaction, upstream, journey):
        return _nothing_changed(request)
    separator = "&" if urlsplit(endpoint).query else "?"
    parameters = upstream.authentication_request(
        redirect_uri=redirect_uri(upstream.name),
        state=journey.state,
        nonce=journey.nonce,
        code_challenge=journey.code_challenge(),
        prompt=_prompt(request, transaction, upstream),
        login_hint=transaction.login_hint,
        scope=journey.scope,
    )
    return pages.see_other(f"{endpoint}{separator}{urlencode(parameters)}")


def _prompt(request: HttpRequest, transaction: LoginTransaction, upstream: Provider) -> list[str]:
    """What the client wants the person asked; and who they are, after a sign-out in this browser (T30) or for a link."""
    words = [word for word in _PROMPTS if word in transaction.prompt.split()]
    if (browsers.has_signed_out(request) or transaction.link_provider) and not {"login", "select_account"} & set(words):
        words.insert(0, upstream.prompt_for_another_person())
    return words


def redirect_uri(provider_name: str) -> str:
    """Our own address for a provider's answer. The first provider keeps /callback, each other has its own (T29)."""
    first = next(iter(settings.UPSTREAM_PROVIDERS))
    return f"{settings.PUBLIC_URL}/callback" + ("" if provider_name == first else f"/{provider_name}")


def _begin(transaction: LoginTransaction, upstream: Provider, journey: _Journey) -> bool:
    """Write decision and journey; False if the transaction has been answered or has expired meanwhile."""
    now = timezone.now()
    lifetime = timedelta(seconds=settings.UPSTREAM_STATE_LIFETIME)
    with atomic():
        begun = LoginTransaction.objects.filter(pk=transaction.pk, answered_at=None, expires_at__gt=now).update(
            provider=upstream.name,
            forward_decided_at=now,
            upstream_state_digest=digest_of(journey.state),
            upstream_state_expires_at=min(now + lifetime, transaction.expires_at),
            upstream_state_spent_at=None,
            upstream_secrets=_seal_journey(transaction, upstream, journey),
        )
        if begun:
            audit.record_within(_event("upstream_login.forwarded", transaction, upstream))
    return bool(begun)


def _seal_journey(transaction: LoginTransaction, upstream: Provider, journey: _Journey) -> bytes:
    plaintext = json.dumps([journey.nonce, journey.code_verifier, journey.scope]).encode()
    return vault.seal(plaintext, **journey_binding(transaction, upstream.name))


def journey_binding(transaction: LoginTransaction, provider_name: str) -> dict[str, Any]:
    """What nonce and verifier are sealed to: this row, provider and browser."""
    return {
        "purpose": "upstream-login",
        "row": transaction.pk,
        "field": "login_transaction.upstream_secrets",
        "provider": provider_name,
        "browser": transaction.browser_digest,
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
        first = next(iter(settings.UPSTREAM_PROVIDERS), "")
        name = provider_name or first
        # Each provider has one address of ours (T29): the first is not answered at a second one.
        transaction = None if provider_name == first else _find_journey(request, name)
        if transaction is None or not _spend_state(transaction):
            return _nothing_changed(request)
        upstream = provider(name)
        try:
            return _arrive(request, transaction, upstream)
        except ProviderUnavailable as error:
            return _end(request, transaction, upstream, "temporarily_unavailable", str(error))
        except NotAdmitted as refused:
            return _turn_away(request, transaction, upstream, refused)
        except ProviderRefused as error:
            return _end(request, transaction, upstream, "temporarily_unavailable", f"token endpoint: {error.error}")
        except (LoginFailed, vault.VaultError) as error:
            return _end(request, transaction, upstream, "temporarily_unavailable", str(error))
        except linking.NotLinked as refused:
            return authorization_response.refuse(request, transaction, "access_denied", str(refused))


def _find_journey(request: HttpRequest, provider_name: str) -> LoginTransaction | None:
    """The transaction whose state this is, if it is this browser's, at this provider, and still under way."""
    state = _single(request, "state")
    if not state:
        return None
    found = (
        LoginTransaction.objects.select_related("client_row", "user")
        .filter(upstream_state_digest=digest_of(state))
        .first()
    )
    if found is None or found.provider != provider_name or provider_name not in settings.UPSTREAM_PROVIDERS:
        return None
    presented = browsers.browser_digest(request)
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
    nonce, code_verifier, *asked_scope = json.loads(
        vault.open_sealed(transaction.upstream_secrets or b"", **journey_binding(transaction, upstream.name))
    )
    backend = UpstreamLoginBackend(upstream)
    proof = backend.verify_code(
        code,
        redirect_uri=redirect_uri(upstream.name),
        nonce=nonce,
        code_verifier=code_verifier,
        fresh_since=_fresh_since(transaction),
    )
    if transaction.link_provider:
        return _arrive_to_link(request, transaction, upstream, backend, proof)
    user = backend.person_of(proof)
    if not user.is_active:
        return _end(request, transaction, upstream, "access_denied", "the person's account here is switched off")
    return _sign_in(request, transaction, upstream, user, proof, *asked_scope)


def _arrive_to_link(
    request: HttpRequest, transaction: LoginTransaction, upstream: Provider, backend: UpstreamLoginBackend, proof: Proof
) -> HttpResponse:
    """The first arrival proves that the account is this person's; the second names whom they want to add. Nobody is made."""
    if transaction.signed_in_at is None:
        with atomic():
            admission.check_admitted(upstream, proof.claims)
            user = linking.confirm(transaction, backend.find_person(proof))
            browsers.open_session(request, user, upstream.name, proof.claims.get("sid"))
    elif upstream.name != transaction.link_provider or browsers.signed_in_person(request) != transaction.user:
        raise LoginFailed("an addition came back from another provider, or to another person")
    else:
        linking.propose(transaction, proof.claims, proof.answer)
    return authorization_response.resume(transaction)


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
    request: HttpRequest,
    transaction: LoginTransaction,
    upstream: Provider,
    user: User,
    proof: Proof,
    asked_scope: str = "",
) -> HttpResponse:
    """Everything the answer proved, written at once: who it is, what the provider gave, and this browser's session."""
    with atomic():
        settled = LoginTransaction.objects.filter(pk=transaction.pk, answered_at=None).update(
            user=user, signed_in_at=timezone.now(), upstream_secrets=None
        )
        known = user.identities.filter(issuer=proof.claims["iss"], subject=proof.claims["sub"])
        if not settled or not known.exists():  # answered meanwhile, or this way in was just removed
            return _nothing_changed(request)
        transaction.refresh_from_db(fields=["user", "signed_in_at", "upstream_secrets"])
        # What waited for this sign-in first: grants are locked before credentials, everywhere.
        browsers.open_session(request, user, upstream.name, proof.claims.get("sid"))
        staged_tokens.stage(
            transaction,
            proof.answer,
            issuer=proof.claims["iss"],
            subject=proof.claims["sub"],
            asked_scope=asked_scope,
        )
        if transaction.client is None:
            staged_tokens.keep_after_visit(transaction)
        audit.record_within(_event("upstream_login.completed", transaction, upstream, user))
    return authorization_response.resume(transaction)


def _turn_away(
    request: HttpRequest, transaction: LoginTransaction, upstream: Provider, refused: NotAdmitted
) -> HttpResponse:
    """A person whom no allow-list names: a page for them, and `access_denied` for the client behind its link.

    Sent on at once they would read nothing; and whom they came as is theirs to know, not the client's.
    """
    ended = _end(request, transaction, upstream, "access_denied", str(refused))
    if ended.status_code == 409:  # answered meanwhile, in another tab
        return ended
    # "Another account" must not end at the same one: the provider is asked to let them choose.
    browsers.note_sign_out(request)
    link = None
    if transaction.client is not None:
        text = f"Return to {transaction.client.display_name}"
        link = pages.Link(ended["Location"], text, redirect_uris.host_of(transaction.redirect_uri))
    what = f"You signed in at {upstream.label} as {refused.who}. This service lets in only people who are on its list."
    repair = "Sign in with another account, or ask the operator of this service to let you in."
    return pages.refusal(request, 403, "You are not on the list", what, repair, link)


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
    return authorization_response.refuse(request, transaction, error, _SENTENCES[error])


def _event(name: str, transaction: LoginTransaction, upstream: Provider, user: User | None = None) -> audit.Event:
    return audit.Event(
        name,
        pseudonym=user.pseudonym if user else None,
        client_id=transaction.client.client_id if transaction.client else "",
        detail={"provider": upstream.name, "transaction": str(transaction.pk)},
    )
