"""/link: the pages on which a person adds a way to sign in to their account, or takes one away."""

import uuid

from django.contrib import messages
from django.db.transaction import atomic
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache

from oauth_relay import authorization_response, linking, pages, upstream_login, vault
from oauth_relay.browsers import find_transaction, form_token, is_form_token, person_context, signed_in_person
from oauth_relay.linking import NotLinked, ProposedIdentity
from oauth_relay.models import LoginTransaction, User
from oauth_relay.transaction_pages import allow_form_to_leave, remember_browser, sign_in_page


@method_decorator(never_cache, name="dispatch")
class LinkView(View):
    """GET: the page that an addition under way needs now. POST: begin one, go on with it, decide, or remove a way."""

    http_method_names = ["get", "post"]

    def get(self, request: HttpRequest) -> HttpResponse:
        transaction, person = self._under_way(request, request.GET.get("transaction"))
        if transaction is None or person is None:
            return authorization_response.gone(request, transaction)
        return self._page(request, transaction, person)

    def post(self, request: HttpRequest) -> HttpResponse:
        action, person = request.POST.get("action"), signed_in_person(request)
        if person is None:
            return pages.see_other("/login?next=/connections")
        if action == "remove":
            return self._remove(request, person)
        if "transaction" not in request.POST:
            return self._begin(request, person)
        transaction, person = self._under_way(request, request.POST["transaction"])
        if transaction is None or person is None:
            return authorization_response.gone(request, transaction)
        proposed = _read_proposed(transaction)
        if not is_form_token(request.POST.get("form_token", ""), transaction, "link", person, _shown(proposed)):
            return self._page(request, transaction, person, "This page was out of date. Please read it once more.")
        if action == "forward" and proposed is None:
            return upstream_login.forward(request, transaction, transaction.link_provider)
        if action == "keep" and proposed is not None:
            return self._keep(request, transaction, person, proposed)
        if action == "discard":
            return authorization_response.refuse(request, transaction, "access_denied", "You decided against it.")
        return self._page(request, transaction, person)

    def _under_way(self, request: HttpRequest, raw_id: str | None) -> tuple[LoginTransaction | None, User | None]:
        """The addition named, and its person, who must be in front of it and have signed in for it."""
        transaction = find_transaction(request, raw_id)
        person = signed_in_person(request)
        if transaction is None or not transaction.link_provider or not transaction.is_open:
            return transaction, None
        is_confirmed = linking.is_confirmed(transaction) and person is not None and person == transaction.user
        return transaction, person if is_confirmed else None

    def _begin(self, request: HttpRequest, person: User) -> HttpResponse:
        try:
            transaction = linking.begin(request, person, request.POST.get("provider", ""))
        except NotLinked as refused:
            return _told(request, str(refused))
        return sign_in_page(request, transaction)

    def _page(
        self, request: HttpRequest, transaction: LoginTransaction, person: User, notice: str = ""
    ) -> HttpResponse:
        proposed = _read_proposed(transaction)
        context = {
            "page_title": "Add a way to sign in",
            "transaction_id": str(transaction.pk),
            "form_token": form_token(transaction, "link", person, _shown(proposed)),
            "label": linking.label_of(transaction.link_provider),
            "proposed": proposed,
            "account": person_context(person),
            "person": person_context(person),
            "notice": notice,
        }
        response = render(request, "oauth_relay/link.html", context)
        allow_form_to_leave(response, transaction)
        return remember_browser(request, response)

    def _keep(
        self, request: HttpRequest, transaction: LoginTransaction, person: User, proposed: ProposedIdentity
    ) -> HttpResponse:
        label = linking.label_of(transaction.link_provider)
        try:
            with atomic():
                if not authorization_response.close(transaction, LoginTransaction.Outcome.ALLOWED):
                    return authorization_response.gone(request, transaction)
                linking.keep(transaction, person, proposed)
        except NotLinked as refused:
            return authorization_response.refuse(request, transaction, "access_denied", str(refused))
        return _told(request, f"You can sign in with {label} from now on.")

    def _remove(self, request: HttpRequest, person: User) -> HttpResponse:
        try:
            key = uuid.UUID(request.POST.get("identity", ""))
            return _told(request, f"{linking.label_of(linking.remove(person, key))} is no longer a way to sign in.")
        except ValueError:
            return _told(request, "That way to sign in was already removed.")
        except NotLinked as refused:
            return _told(request, str(refused))


def _read_proposed(transaction: LoginTransaction) -> ProposedIdentity | None:
    try:
        return linking.proposed_identity(transaction)
    except vault.VaultError:  # its key is gone: the person goes to the provider once more
        return None


def _shown(proposed: ProposedIdentity | None) -> list[str]:
    """What the form token is bound to, beside transaction and person."""
    return [] if proposed is None else [proposed.issuer, proposed.subject]


def _told(request: HttpRequest, sentence: str) -> HttpResponse:
    messages.info(request, sentence)
    return pages.see_other("/connections")
