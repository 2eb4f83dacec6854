"""/connections: what is connected to this person's account, what they allowed and when, and the buttons that end or narrow it."""

import uuid
from collections.abc import Callable
from datetime import timedelta

from django.contrib import messages
from django.db.models import Min, OuterRef, Prefetch, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache

from oauth_relay import linking, pages, redirect_uris, withdrawals
from oauth_relay.browsers import OWN, person_context, signed_in_person
from oauth_relay.models import Consent, Grant, RefreshToken, User
from oauth_relay.transaction_pages import scope_rows

ENDED_SHOWN_FOR = timedelta(days=90)
MOST_RECORDS = 50
_ENDED_BY = {"person": "by you", "client": "by the client itself"}


def connections_of(user: User) -> list[dict[str, object]]:
    """The person's live connections, newest first."""
    used = (
        RefreshToken.objects.filter(grant=OuterRef("pk")).order_by().values("grant").annotate(at=Min("first_used_at"))
    )
    grants = _with_records(Grant.objects.open().filter(user=user)).annotate(first_used=Subquery(used.values("at")))
    return [{**_row(grant), "first_used": grant.first_used} for grant in grants.order_by("-created")]


def ended_connections_of(user: User) -> list[dict[str, object]]:
    """What ended lately, the latest first: a person may look for what they do not remember."""
    lately = timezone.now() - ENDED_SHOWN_FOR
    grants = _with_records(Grant.objects.filter(user=user, withdrawn_at__gt=lately))
    return [
        {
            "client_name": grant.client.display_name,
            "connected": grant.created,
            "ended": grant.withdrawn_at,
            "ended_by": _ENDED_BY.get(grant.withdrawn_by, "by this service"),
            "history": _history(grant),
        }
        for grant in grants.order_by("-withdrawn_at")[:MOST_RECORDS]
    ]


def _with_records(grants: QuerySet[Grant]) -> QuerySet[Grant]:
    """With what the page tells of each, in as many queries for a hundred of them as for one."""
    return grants.select_related("client").prefetch_related(Prefetch("consents", Consent.objects.order_by("-created")))


def _row(grant: Grant) -> dict[str, object]:
    now = timezone.now()
    alive = [record for record in grant.consents.all() if record.withdrawn_at is None and record.expires_at > now]
    scopes = dict.fromkeys(scope for record in alive for scope in record.scope.split())
    return {
        "id": str(grant.pk),
        "client_name": grant.client.display_name,
        "is_blocked": grant.client.blocked_at is not None,
        "hosts": list(dict.fromkeys(redirect_uris.host_of(record.redirect_uri) for record in alive)),
        "scopes": scope_rows(scopes),
        "connected": grant.created,
        "last_used": grant.last_used_at,
        "last_tool": grant.last_tool,
        "last_address": grant.last_address,
        "history": _history(grant),
    }


def _history(grant: Grant) -> list[dict[str, object]]:
    """Each yes of this person to this client, and what they took from it later, the latest first."""
    now, records = timezone.now(), list(grant.consents.all())
    narrowed = _narrowed_by(records)
    narrowed_ones = {before.pk for before in narrowed.values()}
    return [
        {
            "at": record.created,
            "host": redirect_uris.host_of(record.redirect_uri),
            "scopes": scope_rows(record.scope.split()),
            "lost": scope_rows(_lost(before, record)) if (before := narrowed.get(record.pk)) else [],
            "until": record.expires_at,
            "has_run_out": record.expires_at <= now,
            "withdrawn": record.withdrawn_at,
            "is_narrowed": record.pk in narrowed_ones,
        }
        for record in records[:MOST_RECORDS]
    ]


def _narrowed_by(records: list[Consent]) -> dict[uuid.UUID, Consent]:
    """By the record that says what is left: the one from which something was taken. Newest first, as they come.

    What is left lasts as long as the yes it is left of, to the microsecond; another yes begins a time of its own.
    """
    found: dict[uuid.UUID, Consent] = {}
    latest: dict[tuple[str, object], Consent] = {}
    for record in reversed(records):
        key = record.redirect_uri, record.expires_at
        before = latest.get(key)
        if before and before.withdrawn_at and before.withdrawn_at <= record.created and _lost(before, record):
            found[record.pk] = before
        latest[key] = record
    return found


def _lost(before: Consent, after: Consent) -> list[str]:
    left = after.scope.split()
    return [scope for scope in before.scope.split() if scope not in left]


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
    """GET: the list. POST: end one, or all, or take something away from one; everywhere, within a second."""

    http_method_names = ["get", "post"]

    def get(self, request: HttpRequest) -> HttpResponse:
        person = signed_in_person(request)
        if person is None:
            return pages.see_other("/login?next=/connections")
        context = {
            "page_title": "Connections",
            "person": person_context(person),
            "connections": connections_of(person),
            "ended": ended_connections_of(person),
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
        act = _ACTIONS.get(request.POST.get("action", ""))
        messages.info(request, act(request, person) if act else "Nothing was changed.")
        return pages.see_other("/connections")


def _withdraw(request: HttpRequest, person: User) -> str:
    grant = _find(request, person)
    if grant is None:
        return _ALREADY
    withdrawals.withdraw_grant(grant.pk, by="person")
    return f"{grant.client.display_name} is disconnected."


def _withdraw_all(request: HttpRequest, person: User) -> str:
    """Each in a transaction of its own: what has ended stays so, should the next one fail."""
    keys = list(Grant.objects.open().filter(user=person).order_by("created").values_list("pk", flat=True))
    ended = sum(withdrawals.withdraw_grant(key, by="person") for key in keys)
    return "Everything is disconnected." if ended else "Nothing was connected any more."


def _narrow(request: HttpRequest, person: User) -> str:
    """Take away what was shown ticked and came back unticked, and nothing that this page did not show."""
    grant = _find(request, person)
    if grant is None:
        return _ALREADY
    shown, ticked = set(request.POST.getlist("shown")), set(request.POST.getlist("scope"))
    if not shown & ticked:
        return "Nothing was changed: leave at least one permission ticked, or disconnect the client."
    lost = withdrawals.narrow_grant(grant.pk, shown - ticked, by="person")
    words = ", ".join(f"“{row['words']}”" for row in scope_rows(sorted(lost)))
    return f"{grant.client.display_name} may no longer: {words}. {_NOT_ASKED}" if words else "Nothing was changed."


_NOT_ASKED = "It cannot ask you again for a day. To allow more sooner, disconnect it, and connect it again."  # T33
_ALREADY = "That connection had already ended."
_ACTIONS: dict[str, Callable[[HttpRequest, User], str]] = {
    "withdraw": _withdraw,
    "withdraw_all": _withdraw_all,
    "narrow": _narrow,
}


def _find(request: HttpRequest, person: User) -> Grant | None:
    """Somebody else's grant reads like none."""
    try:
        key = uuid.UUID(request.POST.get("grant", ""))
    except ValueError:
        return None
    return Grant.objects.open().filter(pk=key, user=person).select_related("client").first()
