"""/authorize: from a client's request to the person's answer (RFC 6749 §4.1.1, DESIGN §4.2-4.5).

The request is checked whole before anybody is asked anything, then frozen as a transaction. The person signs in, reads
the consent page, answers. The pages are in `transaction_pages`, every end is in `authorization_response`.
"""

import logging
import re
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.contrib import auth
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from oauth2_provider.exceptions import FatalClientError, OAuthToolkitError
from oauth2_provider.scopes import get_scopes_backend
from oauth2_provider.views.mixins import OAuthLibMixin

from oauth_relay import audit, client_metadata_documents, consents, pages, registration_policy, staged_tokens
from oauth_relay.authorization_response import (
    AuthorizationRefused,
    allow,
    gone,
    refuse,
    refuse_in_silence,
    refuse_request,
)
from oauth_relay.browsers import find_transaction, is_form_token, mark_browser, signed_in_person
from oauth_relay.client_metadata_documents import ClientNotApproved
from oauth_relay.models import Client, Consent, LoginTransaction, User
from oauth_relay.outbound_documents import DocumentUnavailable, InvalidDocument
from oauth_relay.transaction_pages import scope_rows, show, sign_in_page

logger = logging.getLogger(__name__)

PROMPTS = frozenset({"none", "login", "consent", "select_account"})
LONGEST_PARAMETER = 4096
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")


class UnknownClient(Exception):
    """There is no such client: nobody to redirect to."""


class BlockedClient(UnknownClient):
    """An operator has blocked the client."""


class UnreadableDescription(UnknownClient):
    """The client_id is an address, and what stands there will not do; `public` says why, and `repair` what helps."""

    def __init__(self, why: str, public: str, repair: str) -> None:
        super().__init__(why)
        self.public, self.repair = public, repair


class UnregisteredRedirect(UnknownClient):
    """The client is known, the redirect URI is not its own."""


@dataclass(frozen=True)
class AuthorizationRequest:
    """What a client asked, as far as it was checked."""

    client: Client
    redirect_uri: str
    state: str
    scopes: tuple[str, ...]
    resource: tuple[str, ...]
    code_challenge: str
    prompt: frozenset[str]
    login_hint: str


# -- the endpoint ------------------------------------------------------------------------------------------------------


@method_decorator([csrf_exempt, never_cache], name="dispatch")
class AuthorizationView(OAuthLibMixin, View):
    """GET: a client's request, or the way back to one under way. POST: the person's answer to the consent page."""

    http_method_names = ["get", "post"]

    def get(self, request: HttpRequest) -> HttpResponse:
        if "transaction" in request.GET and "client_id" not in request.GET:
            return self._go_on(request)
        try:
            client, redirect_uri = self._check_client(request)
        except UnknownClient as refused:
            return _unknown_client(request, refused)
        state = request.GET.get("state", "")[:LONGEST_PARAMETER]
        try:
            asked = self._check_request(request, client, redirect_uri, state)
        except AuthorizationRefused as refused:
            return refuse_request(request, client, redirect_uri, state, refused)
        return self._begin(request, asked)

    def _go_on(self, request: HttpRequest) -> HttpResponse:
        transaction = find_transaction(request, request.GET.get("transaction"))
        if transaction is None or not transaction.is_open or transaction.client is None:
            return gone(request, transaction)
        _keep_old(transaction, signed_in_person(request) if transaction.user else None)
        return show(request, transaction)

    # -- checking ------------------------------------------------------------------------------------------------------

    def _check_client(self, request: HttpRequest) -> tuple[Client, str]:
        """The client and the exact redirect URI, without which there is nobody to tell anything.

        > If the request fails due to a missing, invalid, or mismatching redirection URI, or if the client identifier is
        > missing or invalid, the authorization server SHOULD inform the resource owner of the error and MUST NOT
        > automatically redirect the user-agent to the invalid redirection URI. (RFC 6749 §4.1.2.1)
        """
        for name in ("client_id", "redirect_uri"):
            if len(request.GET.getlist(name)) > 1:
                raise UnknownClient(f"{name} was sent more than once")
        client_id, redirect_uri = request.GET.get("client_id", ""), request.GET.get("redirect_uri", "")
        client = _find_client(client_id, registration_policy.network_of(request.META.get("REMOTE_ADDR", "")))
        if client is None:
            raise UnknownClient("unknown client_id")
        if not client.is_usable(None):
            raise BlockedClient("blocked client")
        registered = client.redirect_uris.split()
        if not redirect_uri and len(registered) == 1:
            redirect_uri = registered[0]
        if not client.redirect_uri_allowed(redirect_uri):
            logger.info("client %s: redirect_uri %.300r is none of %s", client.client_id, redirect_uri, registered)
            raise UnregisteredRedirect("redirect_uri is not registered")
        return client, redirect_uri

    def _check_request(
        self, request: HttpRequest, client: Client, redirect_uri: str, state: str
    ) -> AuthorizationRequest:
        """Everything else, in the library's order and then in ours. Raises AuthorizationRefused."""
        _check_form(request)
        try:
            scopes, _ = self.validate_authorization_request(request)
        except FatalClientError as error:
            raise AuthorizationRefused("invalid_request", error.oauthlib_error.description or "") from error
        except OAuthToolkitError as error:
            raise AuthorizationRefused(error.oauthlib_error.error, _description(error, request)) from error
        return AuthorizationRequest(
            client=client,
            redirect_uri=redirect_uri,
            state=state,
            scopes=tuple(dict.fromkeys(scopes)),
            resource=_check_resource(request),
            code_challenge=_check_challenge(request),
            prompt=_check_prompt(request),
            login_hint=request.GET.get("login_hint", "")[:255],
        )

    # -- going on ------------------------------------------------------------------------------------------------------

    def _begin(self, request: HttpRequest, asked: AuthorizationRequest) -> HttpResponse:
        """Freeze the request, and show the page it needs; silence is for clients that an operator trusts (T9)."""
        registration_policy.note_use(asked.client)
        person = signed_in_person(request)
        fresh = asked.prompt & {"login", "select_account"}
        transaction = _freeze(request, asked, None if fresh else person)
        _keep_old(transaction, transaction.user)
        silent = person and not asked.prompt - {"none"} and self._may_be_silent(transaction, person)
        if person and silent:
            return allow(request, transaction, person, transaction.scopes, was_asked=False)
        if "none" in asked.prompt:
            return refuse_in_silence(request, transaction, "consent_required" if person else "login_required")
        return show(request, transaction)

    def _may_be_silent(self, transaction: LoginTransaction, person: User) -> bool:
        client = transaction.client
        trusted = client is not None and client.is_operator_made and client.skip_authorization
        exact = transaction.redirect_uri.startswith("https:")
        covered = consents.covers(transaction, person) and not staged_tokens.needs_sign_in(person)
        return trusted and exact and covered

    def post(self, request: HttpRequest) -> HttpResponse:
        transaction = find_transaction(request, request.POST.get("transaction"))
        if transaction is None or not transaction.is_open or transaction.client is None:
            return gone(request, transaction)
        person = signed_in_person(request)
        if person is None or person != transaction.user:
            transaction.user = None
            _keep_old(transaction, person)
            return show(request, transaction, notice="The account in this browser has changed.")
        if not is_form_token(request.POST.get("form_token", ""), transaction, "consent", person, transaction.scopes):
            return show(request, transaction, notice="This page was out of date. Please read it once more.")
        return _act_on_answer(request, transaction, person)


def _act_on_answer(request: HttpRequest, transaction: LoginTransaction, person: User) -> HttpResponse:
    action = request.POST.get("action")
    if action == "deny":
        return refuse(request, transaction, "access_denied", "The person denied the request.")
    if action == "switch_account":
        return _switch_account(request, transaction)
    if action != "allow":
        return show(request, transaction, notice="Please choose Allow or Deny.")
    ticked = set(request.POST.getlist("scope"))
    scopes = [scope for scope in transaction.scopes if scope in ticked or scope == settings.OFFLINE_ACCESS]
    shown = {row["name"] for row in scope_rows(transaction.scopes)}
    if shown and not ticked & shown:
        return show(request, transaction, notice="Tick at least one permission, or choose Deny.")
    return allow(request, transaction, person, scopes)


def _switch_account(request: HttpRequest, transaction: LoginTransaction) -> HttpResponse:
    """ "Not you?": this browser's session ends, what the provider sent is erased, and the person chooses anew."""
    staged_tokens.erase_staged(transaction)
    auth.logout(request)
    transaction.user, transaction.signed_in_at, transaction.prompt = None, None, "select_account"
    transaction.save(update_fields=["user", "signed_in_at", "prompt"])
    _keep_old(transaction, None)
    return sign_in_page(request, transaction)


def _description(error: OAuthToolkitError, request: HttpRequest) -> str:
    """The library's words, where it has any; it says of a wrong scope only that it is one."""
    if error.oauthlib_error.error == "invalid_scope":
        known = get_scopes_backend().get_all_scopes()
        unknown = [scope for scope in request.GET.get("scope", "").split() if scope not in known]
        return f"There is no such scope here: {' '.join(unknown)[:200]}."
    return error.oauthlib_error.description or ""


def _find_client(client_id: str, network: str) -> Client | None:
    """The client of that id, written here or described at the address that its id is. Raises UnreadableDescription.

    `network` is where the person's browser is: who makes us look for documents that are not there looks in vain alone.
    """
    if not client_id.isprintable() or len(client_id) > client_metadata_documents.LONGEST_ID:
        return None
    if not client_metadata_documents.is_document_address(client_id):
        return Client.objects.filter(client_id=client_id).first()
    try:
        return client_metadata_documents.find_client(client_id, network)
    except ClientNotApproved as refused:
        repair = "If you want to use this application here, ask the operator of this service to approve it."
        raise UnreadableDescription(f"{client_id}: {refused}", str(refused), repair) from refused
    except InvalidDocument as refused:
        repair = "Tell whoever made the application: its description must be mended there."
        raise UnreadableDescription(f"{client_id}: {refused}", str(refused), repair) from refused
    except DocumentUnavailable as refused:
        repair = "Try again in a minute. If it stays so, tell whoever made the application."
        raise UnreadableDescription(f"{client_id}: {refused}", "It could not be read just now.", repair) from refused


# -- single checks -----------------------------------------------------------------------------------------------------


def _check_form(request: HttpRequest) -> None:
    """> Request and response parameters MUST NOT be included more than once. (RFC 6749 §3.1)"""
    for name, values in request.GET.lists():
        if len(values) > 1 and name != "resource":
            raise AuthorizationRefused("invalid_request", "A parameter was sent more than once.")
        if any("\0" in value or len(value) > LONGEST_PARAMETER for value in values):
            raise AuthorizationRefused("invalid_request", "A parameter is too long or holds a NUL.")
    if "request" in request.GET:
        raise AuthorizationRefused("request_not_supported", "Request objects are not supported.")
    if "request_uri" in request.GET:
        raise AuthorizationRefused("request_uri_not_supported", "Request objects are not supported.")
    if request.GET.get("response_mode", "query") != "query":
        raise AuthorizationRefused("invalid_request", "Only response_mode=query is supported.")


def _check_resource(request: HttpRequest) -> tuple[str, ...]:
    """RFC 8707 §2: one of ours, exactly; none named means both of ours, for clients older than the parameter."""
    named = request.GET.getlist("resource")
    if not named:
        return tuple(settings.RESOURCES)
    if len(named) > 1 or named[0] not in settings.RESOURCES:
        raise AuthorizationRefused("invalid_target", "The resource must be one of this server's MCP endpoints.")
    return (named[0],)


def _check_challenge(request: HttpRequest) -> str:
    """RFC 7636 §4.3, S256 only: an absent method would mean `plain`."""
    challenge = request.GET.get("code_challenge", "")
    if request.GET.get("code_challenge_method") != "S256" or not _CHALLENGE.fullmatch(challenge):
        raise AuthorizationRefused("invalid_request", "PKCE with code_challenge_method=S256 is required.")
    return challenge


def _check_prompt(request: HttpRequest) -> frozenset[str]:
    prompt = frozenset(request.GET.get("prompt", "").split()) & PROMPTS
    if "none" in prompt and len(prompt) > 1:
        raise AuthorizationRefused("invalid_request", "prompt=none goes with nothing else.")
    return prompt


def _freeze(request: HttpRequest, asked: AuthorizationRequest, person: User | None) -> LoginTransaction:
    LoginTransaction.objects.erase_expired_secrets()
    transaction = LoginTransaction(
        expires_at=timezone.now() + timedelta(seconds=settings.TRANSACTION_LIFETIME),
        browser_digest=mark_browser(request),
        client_digest=asked.client.digest(),
        redirect_uri=asked.redirect_uri,
        state=asked.state,
        scope=" ".join(asked.scopes),
        resource=list(asked.resource),
        code_challenge=asked.code_challenge,
        prompt=" ".join(sorted(asked.prompt)),
        login_hint=asked.login_hint,
        user=person,
    )
    transaction.client = asked.client
    transaction.save(force_insert=True)
    return transaction


def _keep_old(transaction: LoginTransaction, person: User | None) -> None:
    """Who is asked for something new keeps what they gave before, ticked (DESIGN §4.9).

    Clients take the challenge at its word and ask for its scopes alone. What is kept is the person's: another account in
    this browser keeps something else.
    """
    asked = transaction.scope.split()
    before = _last_allowed(transaction, person) if person else []
    new = set(asked) - {settings.OFFLINE_ACCESS, *before}
    kept = " ".join(scope for scope in before if new and scope not in asked)
    if kept != transaction.kept_scope:
        transaction.kept_scope = kept
        transaction.save(update_fields=["kept_scope"])


def _last_allowed(transaction: LoginTransaction, person: User) -> list[str]:
    """What this person last let this client do there: what they unticked since is not brought back."""
    client = transaction.client
    assert client is not None
    records = Consent.objects.alive().filter(
        grant__user=person, grant__client__client_id=client.client_id, client_digest=transaction.client_digest
    )
    known = get_scopes_backend().get_all_scopes()
    for record in records.order_by("-created"):
        if set(transaction.resource) <= set(record.resource):
            return [scope for scope in record.scope.split() if scope in known]
    return []


def _unknown_client(request: HttpRequest, refused: UnknownClient) -> HttpResponse:
    """The client's own memory is stale, most often: say how to reset it."""
    logger.info("authorization request refused: %s", refused)
    audit.record_within(audit.Event("authorization.refused", "unknown_client", detail={"why": str(refused)}))
    if isinstance(refused, UnreadableDescription):
        what = f"The application describes itself at an address of its own, which this server did not accept. {refused.public}"
        return pages.refusal(request, 400, "This application is not known here", what, refused.repair)
    if isinstance(refused, BlockedClient):
        what = "The operator of this service has blocked the application that sent you here."
        return pages.refusal(request, 400, "This application is blocked", what, "If you need it, ask the operator.")
    if isinstance(refused, UnregisteredRedirect):
        what = "The application asked to be answered at an address that it has not registered here."
    else:
        what = "The application that sent you here is not known to this server (any more)."
    if settings.REGISTRATION != registration_policy.OPEN:
        repair = (
            "Applications do not register themselves here. Ask the operator of this service for a client id for it."
        )
        return pages.refusal(request, 400, "This application is not known here", what, repair)
    repair = (
        "In the application, remove this server and add it again, so that it registers afresh. In Claude Code: "
        "/mcp, choose the server, “Clear authentication”. With mcp-remote: delete the folder ~/.mcp-auth."
    )
    return pages.refusal(request, 400, "This application must connect anew", what, repair)
