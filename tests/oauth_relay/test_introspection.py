"""/introspect: a resource server learns what a token is worth now; everybody else learns nothing (RFC 7662)."""

import base64
import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from django.conf import settings
from django.http import HttpResponse
from django.test import Client as DjangoClient
from django.utils import timezone

from oauth_relay import withdrawals
from oauth_relay.admin import ClientAdmin
from oauth_relay.models import AccessToken, AuditEvent, AuthorizationCode, Client, Grant, RefreshToken, User
from tests.oauth_relay.conftest import Browser, make_client

pytestmark = pytest.mark.django_db
SECRET = "s" * 128
NOTHING = {"active": False}


def with_secret(name: str, **fields: Any) -> Client:
    return make_client(
        name, client_id=f"id-of-{name}", client_type=Client.CLIENT_CONFIDENTIAL, client_secret=SECRET,
        registration_source="manual", **fields,
    )  # fmt: skip


@pytest.fixture
def warehouse(db: None) -> Client:
    """A resource server that an operator registered."""
    return with_secret("warehouse", is_resource_server=True)


@pytest.fixture
def tokens(browser: Browser, ada: User, inspector: Client) -> dict[str, Any]:
    return browser.tokens(inspector, ada)


def basic(client_id: str, secret: str = SECRET) -> dict[str, str]:
    pair = base64.b64encode(f"{client_id}:{secret}".encode()).decode()
    return {"HTTP_AUTHORIZATION": f"Basic {pair}"}


def post(browser: Browser, form: Any, **headers: str) -> HttpResponse:
    return browser.post("/introspect", urlencode(form), content_type="application/x-www-form-urlencoded", **headers)


def told(browser: Browser, raw_token: str, by: str = "id-of-warehouse") -> dict[str, Any]:
    response = post(browser, {"token": raw_token}, **basic(by))
    assert response.status_code == 200, response.content
    assert response["Cache-Control"] == "no-store"
    answer: dict[str, Any] = response.json()
    return answer


# -- what a resource server learns -------------------------------------------------------------------------------------


def test_it_learns_for_whom_by_whom_where_and_how_long(
    browser: Browser, ada: User, inspector: Client, warehouse: Client, tokens: dict[str, Any]
) -> None:
    row = AccessToken.objects.get()
    assert told(browser, tokens["access_token"]) == {
        "active": True,
        "scope": "read:todos write:todos",
        "client_id": inspector.client_id,
        "sub": ada.subject,
        "aud": [settings.RESOURCES[0]],
        "iss": settings.PUBLIC_URL,
        "iat": int(row.created.timestamp()),
        "exp": int(row.expires.timestamp()),
        "token_type": "Bearer",
    }


def test_its_secret_may_come_in_the_body(browser: Browser, warehouse: Client, tokens: dict[str, Any]) -> None:
    form = {"token": tokens["access_token"], "client_id": warehouse.client_id, "client_secret": SECRET}
    assert post(browser, form).json()["active"] is True
    assert post(browser, {**form, "token_type_hint": "refresh_token"}).json()["active"] is True


def test_asking_counts_as_use(browser: Browser, warehouse: Client, tokens: dict[str, Any]) -> None:
    """Who asks was presented the token: its pair has arrived, and no retry of the refresh is honest for long (T13)."""
    told(browser, tokens["access_token"])
    assert RefreshToken.objects.get().first_used_at is not None
    assert Grant.objects.get().last_used_at is not None


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "end",
    [
        lambda grant: withdrawals.withdraw_grant(grant.pk, by="person"),
        lambda grant: User.objects.filter(pk=grant.user_id).update(is_active=False),
        lambda grant: withdrawals.block_client(grant.client),
        lambda grant: Grant.objects.filter(pk=grant.pk).update(suspended_at=timezone.now()),
        lambda grant: withdrawals.withdraw_family(AccessToken.objects.get().family, grant, "test"),
        lambda grant: AccessToken.objects.update(expires=timezone.now() - timedelta(seconds=1)),
        lambda grant: AccessToken.objects.update(resource=["https://elsewhere.example/mcp"]),
        lambda grant: AccessToken.objects.update(resource=[]),
    ],
    ids=["withdrawn", "person", "client", "signed out", "family", "expired", "audience", "no audience"],
)
def test_a_token_that_opens_nothing_any_more_is_not_active_at_once(
    browser: Browser, warehouse: Client, tokens: dict[str, Any], end: Any
) -> None:
    assert told(browser, tokens["access_token"])["active"] is True
    end(Grant.objects.select_related("client").get())
    assert told(browser, tokens["access_token"]) == NOTHING


def test_nothing_but_an_access_token_is_active(browser: Browser, ada: User, warehouse: Client, tokens: Any) -> None:
    code = browser.connect(make_client("Other"), ada)["code"]
    assert AuthorizationCode.objects.count() == 2
    for raw in (
        tokens["refresh_token"],
        code,
        "unknown",
        "ünknown",
        SECRET,
        AccessToken.objects.first().token_checksum,
    ):
        assert told(browser, raw) == NOTHING, raw


# -- what everybody else learns ----------------------------------------------------------------------------------------


def test_another_client_is_told_of_every_token_that_it_is_not_active(
    browser: Browser, ada: User, warehouse: Client
) -> None:
    """Its own too. The answer is that for an unknown token, to the byte."""
    client = with_secret("client")
    code = browser.connect(client, ada)["code"]
    raw = browser.redeem(client, code, client_secret=SECRET).json()["access_token"]
    unknown = post(browser, {"token": "unknown"}, **basic(warehouse.client_id))
    answer = post(browser, {"token": raw}, **basic(client.client_id))
    assert (answer.status_code, answer.content) == (200, unknown.content)
    assert RefreshToken.objects.get().first_used_at is None


@pytest.mark.parametrize("token", ["good", "unknown", ""])
@pytest.mark.parametrize(
    ("form", "headers"),
    [
        ({}, {}),
        ({}, basic("id-of-warehouse", "wrong")),
        ({}, basic("id-of-warehouse", "")),
        ({}, basic("nobody")),
        ({}, basic("nobody\0")),
        ({}, {"HTTP_AUTHORIZATION": "Bearer x"}),
        ({}, {"HTTP_AUTHORIZATION": "Basic !"}),
        ({"client_id": "id-of-warehouse"}, {}),
        ({"client_id": "id-of-warehouse", "client_secret": "wrong"}, {}),
        ({"client_id": "public"}, {}),
        ({"client_id": "public", "client_secret": ""}, {}),
        ({"client_id": "keyed"}, {}),
        ({}, basic("public", "")),
        ({}, basic("blocked")),
    ],
)
def test_who_has_proved_nothing_is_told_nothing(
    browser: Browser, warehouse: Client, tokens: Any, token: str, form: dict[str, str], headers: dict[str, str]
) -> None:
    make_client("Public", client_id="public", is_resource_server=True)
    make_client("Keyed", client_id="keyed", is_resource_server=True, client_type=Client.CLIENT_CONFIDENTIAL)
    Client.objects.filter(client_id="keyed").update(client_secret="")
    Client.objects.filter(pk=with_secret("x", is_resource_server=True).pk).update(
        client_id="blocked", blocked_at=timezone.now()
    )
    raw = tokens["access_token"] if token == "good" else token
    response = post(browser, {"token": raw, **form}, **headers)
    assert (response.status_code, response.json()) == (401, {"error": "invalid_client"})
    assert response["WWW-Authenticate"].startswith("Basic") and response["Cache-Control"] == "no-store"


# -- what is not understood --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [{}, {"token": ""}, [("token", "a"), ("token", "b")], {"token": "a\0b"}, {"token": "a" * 10_000}],
    ids=["missing", "empty", "twice", "NUL", "long"],
)
def test_a_wrong_request_is_said_to_be_one(browser: Browser, warehouse: Client, form: Any) -> None:
    response = post(browser, form, **basic(warehouse.client_id))
    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")


def test_it_is_a_post_with_a_form_and_no_query(browser: Browser, warehouse: Client, tokens: dict[str, Any]) -> None:
    headers = basic(warehouse.client_id)
    got = browser.get("/introspect", {"token": tokens["access_token"]}, **headers)
    assert (got.status_code, got["Allow"]) == (405, "POST")
    query = browser.post("/introspect?token=x", "token=x", content_type="application/x-www-form-urlencoded", **headers)
    assert query.status_code == 400
    sent = browser.post("/introspect", {"token": tokens["access_token"]}, content_type="application/json", **headers)
    assert (sent.status_code, sent.json()["error"]) == (400, "invalid_request")


def test_the_metadata_say_where_and_with_what(browser: Browser) -> None:
    document = browser.get("/.well-known/oauth-authorization-server").json()
    assert document["introspection_endpoint"] == f"{settings.PUBLIC_URL}/introspect"
    assert document["introspection_endpoint_auth_methods_supported"] == ["client_secret_post", "client_secret_basic"]


# -- the operator's policies ---------------------------------------------------------------------------------------


def test_an_operator_switches_a_policy_and_changes_nothing_else(db: None, inspector: Client) -> None:
    operator = User.objects.create_superuser("root", password="open sesame")
    browser = DjangoClient(HTTP_HOST=settings.PUBLIC_HOST)
    browser.force_login(operator, backend="django.contrib.auth.backends.ModelBackend")
    before = Client.objects.values().get()
    address = f"/admin/oauth_relay/client/{inspector.pk}/change/"
    page = browser.get(address)
    named = set(re.findall(r'name="(\w+)"', page.content.decode()))
    assert named & before.keys() == set(ClientAdmin.POLICIES)
    sent = browser.post(address, {"restart_on_step_up": "on", "client_id": "mine", "redirect_uris": "https://evil/"})
    assert sent.status_code == 302, sent.content[:2000]
    after = Client.objects.values().get()
    assert {name for name in after if after[name] != before[name]} <= {"restart_on_step_up", "updated"}
    assert after["restart_on_step_up"] is True
    event = AuditEvent.objects.get(event="client.policy_changed")
    assert (event.detail, event.pseudonym) == ({"restart_on_step_up": True}, operator.pseudonym)
