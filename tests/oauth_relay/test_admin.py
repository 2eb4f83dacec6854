"""What an operator does to a client in the admin: approve, block, unblock; each once, and each in the audit."""

from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission
from django.http import HttpResponse
from django.test import Client as DjangoClient
from django.utils import timezone

from oauth_relay.models import AuditEvent, Client, User, Withdrawal
from tests.oauth_relay.conftest import Browser, make_client

pytestmark = pytest.mark.django_db
LISTING = "/admin/oauth_relay/client/"


def staff(*permissions: str) -> DjangoClient:
    person = User.objects.create_user("operator", password="open sesame", is_staff=True)
    person.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    signed_in = DjangoClient(HTTP_HOST=settings.PUBLIC_HOST)
    signed_in.force_login(person, backend="django.contrib.auth.backends.ModelBackend")
    return signed_in


def act(operator: DjangoClient, action: str, *clients: Client) -> HttpResponse:
    return operator.post(LISTING, {"action": action, "_selected_action": [client.pk for client in clients]})


def audited(event: str) -> list[Any]:
    return list(AuditEvent.objects.filter(event=event).order_by("at").values_list("client_id", "pseudonym"))


def test_an_operator_approves_clients_and_each_approval_is_audited_once(db: None) -> None:
    operator, first, second = staff("change_client", "view_client"), make_client(), make_client("Other")
    act(operator, "approve", first)
    since = Client.objects.get(pk=first.pk).approved_at
    assert since is not None
    act(operator, "approve", first, second)
    assert Client.objects.get(pk=first.pk).approved_at == since
    who = User.objects.get().pseudonym
    assert audited("client.approved_by_operator") == [(first.client_id, who), (second.client_id, who)]


@pytest.mark.threat("T12")
def test_a_blocked_client_is_refused_until_it_is_unblocked(browser: Browser, ada: User, inspector: Client) -> None:
    tokens, operator = browser.tokens(inspector, ada), staff("change_client", "view_client")
    for _ in range(2):
        act(operator, "block", inspector)
    assert browser.refresh(inspector, tokens["refresh_token"]).status_code == 401
    assert Withdrawal.objects.filter(kind=Withdrawal.Kind.CLIENT).count() == 1
    for _ in range(2):
        act(operator, "unblock", inspector)
    assert browser.refresh(inspector, tokens["refresh_token"]).status_code == 200
    who = User.objects.get(username="operator").pseudonym
    for event in ("client.blocked_by_operator", "client.unblocked_by_operator"):
        assert audited(event) == [(inspector.client_id, who)]


@pytest.mark.parametrize("action", ["approve", "block", "unblock", "delete_selected"])
def test_who_may_only_look_can_do_none_of_it(inspector: Client, action: str) -> None:
    operator = staff("view_client")
    Client.objects.update(blocked_at=timezone.now() if action == "unblock" else None)
    before = Client.objects.values().get()
    assert operator.get(LISTING).status_code == 200
    act(operator, action, inspector)
    assert Client.objects.values().get() == before
    assert not AuditEvent.objects.filter(client_id=inspector.client_id).exists()
