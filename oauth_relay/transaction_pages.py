"""The two pages of a transaction, sign-in and consent: which one it needs now, and what a person is shown (DESIGN §4.3, §4.5)."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from oauth2_provider.scopes import get_scopes_backend

from oauth_relay import browsers, client_metadata_documents, consents, linking, redirect_uris, staged_tokens
from oauth_relay.browsers import OWN, form_token, mark_browser, person_context, remember_browser, signed_in_person
from oauth_relay.models import Client, LoginTransaction, User

PAGES = frozenset({"/", "/connections"})
"""Where a person may be sent after signing in by themselves; never a URL from outside (T28)."""


def begin_visit(request: HttpRequest, next_page: str) -> LoginTransaction:
    """A transaction for a person who came by themselves, to one of our own pages."""
    LoginTransaction.objects.erase_expired_secrets()
    return LoginTransaction.objects.create(
        expires_at=timezone.now() + timedelta(seconds=settings.TRANSACTION_LIFETIME),
        browser_digest=mark_browser(request),
        next_page=next_page if next_page in PAGES else "/",
    )


def show(request: HttpRequest, transaction: LoginTransaction, notice: str = "") -> HttpResponse:
    """The page that this transaction needs now: sign-in, or consent."""
    person = signed_in_person(request)
    wants_fresh = transaction.user is None and bool({"login", "select_account"} & set(transaction.prompt.split()))
    if person is None or wants_fresh:
        return sign_in_page(request, transaction, error=notice)
    if staged_tokens.needs_sign_in(person) and not _brings_what_is_needed(transaction):
        return sign_in_page(request, transaction, error=notice or _where_to_sign_in(transaction))
    if staged_tokens.nobody_could_ask_about(person, browsers.way_of(request)) and not transaction.staged_tokens:
        return sign_in_page(request, transaction, error=notice)
    if transaction.user != person:
        if transaction.user is not None:
            staged_tokens.erase_staged(transaction)
            notice = "The account in this browser has changed. Check that it is the one you want to connect."
        transaction.user = person
        transaction.save(update_fields=["user"])
    return consent_page(request, transaction, person, notice)


def _token_sources() -> list[str]:
    """The providers whose tokens the APIs are called with, in the order of the sign-in page."""
    sources = {api["token_source"] for api in settings.UPSTREAM_APIS.values()}
    return [name for name in settings.UPSTREAM_PROVIDERS if name in sources]


def _brings_what_is_needed(transaction: LoginTransaction) -> bool:
    """Whether the sign-in that has just been brings tokens for an API; another provider's would leave it unreachable."""
    return bool(transaction.staged_tokens) and transaction.provider in _token_sources()


def _where_to_sign_in(transaction: LoginTransaction) -> str:
    """For a person who came by a provider that issues no tokens for the API: nothing is wrong with them but the way."""
    if not transaction.staged_tokens:
        return ""
    labels = " or ".join(settings.UPSTREAM_PROVIDERS[name]["label"] for name in _token_sources())
    return f"You are signed in, but {settings.API_LABEL} can only be reached through {labels}. Continue there."


def sign_in_page(
    request: HttpRequest, transaction: LoginTransaction, *, error: str = "", username: str = "", status: int = 200
) -> HttpResponse:
    """Names the client, where its answer goes and what it asks, and lets the person decide (T8)."""
    context = {
        **request_context(transaction),
        "page_title": "Sign in",
        "form_token": form_token(transaction, "sign-in", None, transaction.scopes),
        "providers": [{"name": name, "label": linking.label_of(name)} for name in providers_for(transaction)],
        "own_accounts": OWN in _ways_for(transaction),
        "adds": linking.label_of(transaction.link_provider) if transaction.link_provider else "",
        "demo_user": settings.DEMO_USER,
        "error": error,
        "username": username or transaction.login_hint,
    }
    return _page(request, transaction, "oauth_relay/sign_in.html", context, status)


def _ways_for(transaction: LoginTransaction) -> list[str]:
    """The ways in that count now: all that are enabled; for an addition, those that prove whose the account is."""
    if transaction.link_provider:
        return linking.ways_to_confirm(transaction.user) if transaction.user else []
    return [OWN] * settings.OWN_ACCOUNTS + list(settings.UPSTREAM_PROVIDERS)


def providers_for(transaction: LoginTransaction) -> list[str]:
    return [way for way in _ways_for(transaction) if way != OWN]


def consent_page(request: HttpRequest, transaction: LoginTransaction, person: User, notice: str) -> HttpResponse:
    """Names client, account, destination and each permission with the tools it opens (DESIGN §4.5)."""
    context = {
        **request_context(transaction),
        "page_title": "Allow access?",
        "form_token": form_token(transaction, "consent", person, transaction.scopes),
        "scopes": scope_rows(transaction.scopes, consents.granted_scopes(person, transaction.client)),
        "is_known": _is_known(transaction, person),
        "account": person_context(person),
        "person": person_context(person),
        "lasts_until": consents.lasts_until(),
        "notice": notice,
    }
    return _page(request, transaction, "oauth_relay/consent.html", context, 200)


def _is_known(transaction: LoginTransaction, person: User) -> bool:
    """Whether one click is enough: this was allowed before, and it is certain who gets the answer (T9)."""
    client = transaction.client
    if client is None or "consent" in transaction.prompt.split():
        return False
    return consents.is_assured(client, transaction.redirect_uri) and consents.covers(transaction, person)


def _page(
    request: HttpRequest, transaction: LoginTransaction, template: str, context: dict[str, object], status: int
) -> HttpResponse:
    response = render(request, template, context, status=status)
    allow_form_to_leave(response, transaction)
    return remember_browser(request, response)


# -- what they say -----------------------------------------------------------------------------------------------------


def request_context(transaction: LoginTransaction) -> dict[str, Any]:
    """What both pages say of a request: who asks, where the answer goes, for what."""
    client = transaction.client
    shown: dict[str, Any] | None = None
    if client is not None:
        warnings = consents.name_warnings(client, transaction.redirect_uri, transaction.user)
        shown = {**client_context(client, transaction.redirect_uri), "warnings": [one.sentence for one in warnings]}
    return {
        "transaction_id": str(transaction.pk),
        "client": shown,
        "redirect": redirect_context(transaction.redirect_uri) if client else None,
        "api_name": settings.API_LABEL,
        "scopes": scope_rows(transaction.scopes),
    }


def client_context(client: Client, redirect_uri: str) -> dict[str, Any]:
    """A client as far as its word can be taken: a name it chose, who publishes it, and who registered it."""
    return {
        "name": client.display_name,
        "described_at": client_metadata_documents.verified_host(client),
        "is_verified": consents.answers_at_its_own_host(client, redirect_uri),
        "is_operator_made": client.is_operator_made,
    }


def redirect_context(uri: str) -> dict[str, Any]:
    return {
        "uri": uri,
        "host": redirect_uris.host_of(uri),
        "is_loopback": redirect_uris.is_loopback_redirect(uri),
        "is_custom_scheme": redirect_uris.is_custom_scheme(uri),
    }


def scope_rows(scopes: Iterable[str], granted: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Each scope in plain words, with the tools it opens. `offline_access` opens none and is not shown."""
    catalogue = get_scopes_backend()
    words = catalogue.get_all_scopes()
    return [
        {
            "name": scope,
            "words": words[scope],
            "tools": catalogue.tools_opened_by(scope),
            "granted": scope in granted,
            "new": bool(granted) and scope not in granted,
        }
        for scope in scopes
        if scope in words and scope != settings.OFFLINE_ACCESS
    ]


def allow_form_to_leave(response: HttpResponse, transaction: LoginTransaction) -> None:
    """Let the answer to this page's form go on to the client, or through the identity provider.

    Browsers hold a form's redirects to `form-action` too, each hop of them: providers pass people on to other hosts of
    theirs, hence https as a whole. An http or custom-scheme target is named exactly.
    """
    targets = ["'self'"]
    if transaction.client or settings.UPSTREAM_PROVIDERS:
        targets.append("https:")
    if transaction.client and not transaction.redirect_uri.startswith("https:"):
        targets.append(redirect_uris.origin_of(transaction.redirect_uri))
    for provider in settings.UPSTREAM_PROVIDERS.values():
        address = provider.get("discovery") or provider["origin"]
        if address.startswith("http://"):
            targets.append(redirect_uris.origin_of(address))
    response._csp_update = {"form-action": targets}  # type: ignore[attr-defined]
