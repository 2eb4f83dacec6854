"""/connections: what is connected to this person's account, and the button that ends it."""

import uuid

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache

from oauth_relay import linking, pages, redirect_uris, withdrawals
from oauth_relay.browsers import OWN, person_context, signed_in_person
from oauth_relay.models import Grant, User
from oauth_relay.transaction_pages import scope_rows


def _row(grant: Grant) -> dict[str, object]:
    records = list(grant.consents.filter(withdrawn_at=None).order_by("-created"))
    scopes = dict.fromkeys(scope for record in records for scope in record.scope.split())
    return {
        "id": str(grant.pk),
        "client_name": grant.client.display_name,
        "host": redirect_uris.host_of(records[0].redirect_uri) if records else "",
        "scopes": scope_rows(scopes),
        "connected": grant.created,
        "last_used": grant.last_used_at,
    }


def connections_of(user: User) -> list[dict[str, object]]:
    """The person's live connections, newest first."""
    grants = Grant.objects.open().filter(user=user).select_related("client")
    return [_row(grant) for grant in grants.order_by("-created")]


def _identity_rows(user: User) -> list[dict[str, object]]:
    """The identities by which this person can sign in, oldest first."""
    ways = linking.ways_of(user)
    return [
        {
            "id": str(identity.pk),
            "label": linking.label_of(identity.provider),
            "claims": identity.claims,
            "last_login": identity.last_login,
            "is_removable": len(ways) > 1,
        }
        for identity in user.identities.order_by("created")
        if identity.provider in ways
    ]


@method_decorator(never_cache, name="dispatch")
class ConnectionsView(View):
    """GET: the list. POST: end one; everything of it is over, everywhere, within a second."""

    http_method_names = ["get", "post"]

    def get(self, request: HttpRequest) -> HttpResponse:
        person = signed_in_person(request)
        if person is None:
            return pages.see_other("/login?next=/connections")
        context = {
            "page_title": "Connections",
            "person": person_context(person),
            "connections": connections_of(person),
            "has_password": OWN in linking.ways_of(person),
            "identities": _identity_rows(person),
            "addable": [{"name": name, "label": linking.label_of(name)} for name in linking.ways_to_add(person)],
            "notice": " ".join(str(message) for message in messages.get_messages(request)),
        }
        return render(request, "oauth_relay/connections.html", context)

    def post(self, request: HttpRequest) -> HttpResponse:
        person = signed_in_person(request)
        if person is None:
            return pages.see_other("/login?next=/connections")
        grant = self._find(request, person)
        if grant is None:
            messages.info(request, "That connection had already ended.")
        else:
            withdrawals.withdraw_grant(grant.pk, by="person")
            messages.info(request, f"{grant.client.display_name} is disconnected.")
        return pages.see_other("/connections")

    def _find(self, request: HttpRequest, person: User) -> Grant | None:
        """Somebody else's grant reads like none."""
        try:
            key = uuid.UUID(request.POST.get("grant", ""))
        except ValueError:
            return None
        return Grant.objects.open().filter(pk=key, user=person).select_related("client").first()
