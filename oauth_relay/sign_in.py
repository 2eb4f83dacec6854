"""/login: the decision on the sign-in page, and the passwords of own accounts (DESIGN §4.3)."""

from django.conf import settings
from django.contrib import auth
from django.db import transaction as database
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_post_parameters

from oauth_relay import audit, authorization_response, linking, suspensions, transaction_pages, upstream_login
from oauth_relay.browsers import OWN, find_transaction, is_form_token, open_session, settle, signed_in_person
from oauth_relay.models import LoginTransaction, User
from oauth_relay.pages import see_other
from oauth_relay.sign_in_failures import forget_failures, note_failure, seconds_to_wait

LONGEST_NAME, LONGEST_PASSWORD = 150, 4096


@method_decorator([csrf_exempt, never_cache, sensitive_post_parameters("password")], name="dispatch")
class SignInView(View):
    """GET /login: a person comes by themselves. POST /login: their decision on the sign-in page.

    The form token stands in for Django's: it survives a sign-in in another tab, and it says more.
    """

    http_method_names = ["get", "post"]

    def get(self, request: HttpRequest) -> HttpResponse:
        next_page = request.GET.get("next", "/connections")
        person = signed_in_person(request)
        if person and next_page in transaction_pages.PAGES and not suspensions.has_waiting_clients(person):
            return see_other(next_page)
        return transaction_pages.sign_in_page(request, transaction_pages.begin_visit(request, next_page))

    def post(self, request: HttpRequest) -> HttpResponse:
        transaction = find_transaction(request, request.POST.get("transaction"))
        if transaction is None or not transaction.is_open:
            return authorization_response.gone(request, transaction)
        if not is_form_token(request.POST.get("form_token", ""), transaction, "sign-in", None, transaction.scopes):
            said = "This page was out of date. Please try once more."
            return transaction_pages.sign_in_page(request, transaction, error=said, status=409)
        if transaction.link_provider and transaction.signed_in_at:
            return authorization_response.resume(transaction)
        if request.POST.get("action") == "cancel":
            return authorization_response.refuse(request, transaction, "access_denied", "The person cancelled.")
        if provider := request.POST.get("provider"):
            return self._forward(request, transaction, provider)
        return self._sign_in(request, transaction)

    def _forward(self, request: HttpRequest, transaction: LoginTransaction, provider: str) -> HttpResponse:
        if provider not in transaction_pages.providers_for(transaction):
            said = "That way to sign in is not offered here."
            return transaction_pages.sign_in_page(request, transaction, error=said, status=400)
        return upstream_login.forward(request, transaction, provider)

    def _sign_in(self, request: HttpRequest, transaction: LoginTransaction) -> HttpResponse:
        username = request.POST.get("username", "")
        if not settings.OWN_ACCOUNTS:
            said = "Own accounts are not offered here."
            return transaction_pages.sign_in_page(request, transaction, error=said, status=400)
        if wait := seconds_to_wait(username):
            said = f"Too many failed attempts for this account. Try again in {wait} seconds."
            return transaction_pages.sign_in_page(request, transaction, error=said, username=username, status=429)
        user = _verify_password(request, username)
        if user is None:
            note_failure(username)
            audit.record_within(audit.Event("user.sign_in_failed", "wrong_password", detail={"way": OWN}))
            said = "That user name and password do not match."
            return transaction_pages.sign_in_page(request, transaction, error=said, username=username, status=403)
        forget_failures(username)
        try:
            with database.atomic():
                linking.confirm(transaction, user) if transaction.link_provider else settle(transaction, user)
                open_session(request, user, OWN)
        except linking.NotLinked as refused:
            return transaction_pages.sign_in_page(
                request, transaction, error=str(refused), username=username, status=403
            )
        return authorization_response.resume(transaction)


def _verify_password(request: HttpRequest, username: str) -> User | None:
    if "\0" in username or len(username) > LONGEST_NAME:  # PostgreSQL knows no NUL; no account has such a name
        return None
    password = request.POST.get("password", "")
    if len(password) > LONGEST_PASSWORD:
        return None
    user = auth.authenticate(request, username=username, password=password)
    if not isinstance(user, User) or (user.is_demo and not settings.DEMO_USER):
        return None
    return user
