"""Who may register, how many, and what becomes of clients that nobody uses."""

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO
from typing import Any
from urllib.parse import urlencode

import pytest
import requests
from django.core.management import CommandError, call_command
from django.db.models import F
from django.http import HttpResponse
from django.utils import timezone

from oauth_relay import registration_policy
from oauth_relay.models import AuditEvent, Client, Grant, User
from oauth_relay.withdrawals import block_client
from tests import servers
from tests.oauth_relay.conftest import Browser, make_client
from tests.walk import OAuthClient, Person

pytestmark = pytest.mark.django_db
METADATA = {"client_name": "A", "redirect_uris": ["http://127.0.0.1/cb"], "token_endpoint_auth_method": "none"}


def register(browser: Browser, address: str = "203.0.113.5", **headers: str) -> HttpResponse:
    return browser.post(
        "/register", json.dumps(METADATA), content_type="application/json", REMOTE_ADDR=address, headers=headers
    )


def age(clients: Any, hours: float) -> None:
    past = timezone.now() - timedelta(hours=hours)
    clients.update(created=past, last_used_at=None)


# -- who may -----------------------------------------------------------------------------------------------------------


def test_a_closed_server_registers_nobody_and_says_whom_to_ask(browser: Browser, settings: Any) -> None:
    settings.REGISTRATION = "CLOSED"
    response = register(browser)
    assert (response.status_code, response.json()["error"]) == (403, "access_denied")
    assert "Ask an operator" in response.json()["error_description"]
    assert not Client.objects.exists()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("Bearer good-token", 201), ("bearer other-token", 201), ("Bearer bad", 401), ("Basic good-token", 401),
        ("good-token", 401), ("Bearer", 401), ("", 401), ("Bearer good-token x", 401), ("Bearer \u00e9", 401),
    ],
)  # fmt: skip
def test_an_initial_access_token_may_be_asked_for(browser: Browser, settings: Any, sent: str, status: int) -> None:
    settings.REGISTRATION, settings.REGISTRATION_TOKENS = "TOKEN", ("good-token", "other-token")
    response = register(browser, **({"Authorization": sent} if sent else {}))
    assert response.status_code == status
    if status == 401:
        assert response["WWW-Authenticate"].startswith("Bearer") and not Client.objects.exists()


def test_without_any_token_configured_none_is_good(browser: Browser, settings: Any) -> None:
    settings.REGISTRATION, settings.REGISTRATION_TOKENS = "TOKEN", ()
    assert register(browser, Authorization="Bearer ").status_code == 401


@pytest.mark.threat("T24")
@pytest.mark.pain("P11")
def test_a_network_that_registers_too_many_waits_and_others_do_not(browser: Browser, settings: Any) -> None:
    settings.REGISTRATION_LIMIT = 3
    assert [register(browser).status_code for _ in range(4)] == [201, 201, 201, 429]
    refused = register(browser)
    assert (refused["Retry-After"], refused.json()["error"]) == ("60", "too_many_requests")
    assert register(browser, "203.0.113.6").status_code == 201
    age(Client.objects.all(), 1)
    assert register(browser).status_code == 201


@pytest.mark.pain("P10")
def test_a_network_that_is_full_costs_nobody_who_is_connected_anything(
    browser: Browser, settings: Any, ada: User
) -> None:
    """All of claude.ai comes from a few addresses: what is counted is new clients, and nothing else."""
    settings.REGISTRATION_LIMIT = 1
    client = Client.objects.get(client_id=register(browser, "127.0.0.1").json()["client_id"])
    assert register(browser, "127.0.0.1").status_code == 429
    redirect_uri = client.redirect_uris
    for _ in range(5):
        code = browser.connect(client, ada, redirect_uri=redirect_uri)["code"]
        given = browser.redeem(client, code, redirect_uri=redirect_uri).json()
        for _ in range(20):
            given = browser.refresh(client, given["refresh_token"]).json()
    assert Client.objects.get() == client


@pytest.mark.pain("P10")
def test_what_may_come_from_one_network_is_above_what_a_vendors_people_need(settings: Any) -> None:
    assert settings.REGISTRATION_LIMIT > 300 and settings.UNUSED_CLIENTS_PER_NETWORK >= 500


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("203.0.113.5", "203.0.113.6", False), ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False), ("::ffff:203.0.113.5", "203.0.113.5", True),
    ],
)  # fmt: skip
def test_networks(one: str, other: str, same: bool) -> None:
    assert (registration_policy.network_of(one) == registration_policy.network_of(other)) is same


# -- what nobody uses --------------------------------------------------------------------------------------------------


@pytest.mark.threat("T6")
@pytest.mark.pain("P8")
@pytest.mark.pain("P9")
@pytest.mark.pain("P11")
def test_a_client_that_nobody_consented_to_is_gone_a_day_after_its_last_use(browser: Browser, ada: User) -> None:
    unused, just_opened, consented = make_client("unused"), make_client("opened"), make_client("consented")
    operators = make_client("operator's", registration_source="manual")
    approved = make_client("approved", approved_at=timezone.now())
    Grant.objects.create(user=ada, client=consented, withdrawn_at=timezone.now())
    age(Client.objects.all(), 25)
    Client.objects.filter(pk=just_opened.pk).update(last_used_at=timezone.now() - timedelta(hours=23))
    register(browser)
    left = set(Client.objects.values_list("name", flat=True))
    assert left == {"A", just_opened.name, consented.name, operators.name, approved.name}
    assert AuditEvent.objects.get(event="client.removed").client_id == unused.client_id


@pytest.mark.threat("T6")
@pytest.mark.threat("T24")
@pytest.mark.pain("P8")
def test_of_a_network_with_too_many_the_oldest_go(browser: Browser, settings: Any, ada: User) -> None:
    settings.UNUSED_CLIENTS_PER_NETWORK = 3
    first = [register(browser).json()["client_id"] for _ in range(3)]
    for number, client_id in enumerate(first):
        Client.objects.filter(client_id=client_id).update(created=F("created") - timedelta(minutes=10 - number))
    Grant.objects.create(user=ada, client=Client.objects.get(client_id=first[0]))
    elsewhere = register(browser, "198.51.100.7").json()["client_id"]
    newer = [register(browser).json()["client_id"] for _ in range(2)]
    left = set(Client.objects.values_list("client_id", flat=True))
    assert left == {first[0], first[2], elsewhere, *newer}, "the oldest unused one, and no other, makes room"


@pytest.mark.threat("T24")
def test_with_the_limits_as_they_come_a_flood_is_refused_and_removes_nobody_on_the_way(
    browser: Browser, settings: Any
) -> None:
    """Whoever registered a moment ago is about to open /authorize."""
    assert settings.REGISTRATION_LIMIT < settings.UNUSED_CLIENTS_PER_NETWORK
    waiting = register(browser).json()["client_id"]
    Client.objects.bulk_create(
        make_unsaved(registered_from="203.0.113.5") for _ in range(settings.UNUSED_CLIENTS_PER_NETWORK)
    )
    assert register(browser).status_code == 429
    age(Client.objects.exclude(client_id=waiting), 0.05)  # three minutes: the limit is over, nobody is old yet
    assert register(browser).status_code == 201
    assert Client.objects.filter(client_id=waiting).exists()


def make_unsaved(**fields: Any) -> Client:
    return Client(
        client_id=secrets.token_urlsafe(12), authorization_grant_type="authorization-code", client_type="public",
        registration_source="dcr", redirect_uris="http://127.0.0.1/cb", **fields,
    )  # fmt: skip


def test_where_nobody_registers_the_page_says_whom_to_ask(browser: Browser, settings: Any) -> None:
    settings.REGISTRATION = "CLOSED"
    page = browser.get("/authorize", {"client_id": "unknown", "redirect_uri": "http://127.0.0.1/cb"})
    assert page.status_code == 400 and "Ask the operator of this service for a client id" in page.content.decode()


def test_a_blocked_client_is_said_to_be_blocked_on_every_page(browser: Browser, ada: User) -> None:
    client = make_client("Blocked one")
    browser.connect(client, ada)
    block_client(client)
    page = browser.authorize(client)
    assert page.status_code == 400 and "has blocked the application" in page.content.decode()
    assert "has blocked this client" in browser.get("/connections").content.decode()


def test_a_closed_server_names_no_place_to_register(browser: Browser, settings: Any) -> None:
    address = "/.well-known/oauth-authorization-server"
    assert "registration_endpoint" in browser.get(address).json()
    settings.REGISTRATION = "CLOSED"
    assert "registration_endpoint" not in browser.get(address).json()


def test_a_client_whose_person_is_on_the_way_stays(browser: Browser, settings: Any) -> None:
    settings.UNUSED_CLIENTS_PER_NETWORK = 1
    waiting = make_client(registered_from="203.0.113.5")
    Browser().authorize(waiting)
    age(Client.objects.filter(pk=waiting.pk), 48)
    register(browser)
    assert Client.objects.filter(pk=waiting.pk).exists()


@pytest.mark.pain("P9")
def test_opening_its_request_keeps_a_client_alive(browser: Browser) -> None:
    client = make_client()
    age(Client.objects.filter(pk=client.pk), 23)
    browser.authorize(client)
    client.refresh_from_db()
    assert client.last_used_at is not None and timezone.now() - client.last_used_at < timedelta(minutes=1)


@pytest.mark.pain("P9")
def test_a_removed_client_is_told_so_at_the_token_endpoint_and_its_person_on_a_page(browser: Browser) -> None:
    client = make_client()
    age(Client.objects.filter(pk=client.pk), 25)
    register(browser)
    refused = browser.refresh(client, "whatever")
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
    page = browser.authorize(client)
    assert page.status_code == 400 and "remove this server and add it again" in page.content.decode()


# -- real processes ----------------------------------------------------------------------------------------------------


SIX_MINUTES_LATER = """
from datetime import timedelta
from django.db.models import F
from oauth_relay.models import Client
Client.objects.update(created=F("created") - timedelta(minutes=6), last_used_at=None)
"""


@pytest.fixture(scope="module")
def two_processes() -> Iterator[list[servers.Server]]:
    limits = {"UNUSED_CLIENTS_PER_NETWORK": "20"}
    with servers.database("postgres") as url, servers.serve(url, limits) as first:
        public = {**limits, "PUBLIC_URL": first.url}
        with servers.serve(url, public) as second:
            yield [first, second]


@pytest.mark.postgres
@pytest.mark.threat("T6")
@pytest.mark.pain("P8")
@pytest.mark.pain("P10")
def test_a_flood_at_two_processes_leaves_a_bounded_heap_and_every_connected_client(
    two_processes: list[servers.Server],
) -> None:
    first = two_processes[0]
    connected = OAuthClient(first.url).connect(Person(first.url))

    def flood(number: int) -> int:
        server = two_processes[number % 2]
        headers = {"Host": first.url.removeprefix("http://")}
        answer = requests.post(f"{server.address}/register", json=METADATA, headers=headers, timeout=10)
        return answer.status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(flood, range(60))) == {201}
        first.shell(SIX_MINUTES_LATER)
        assert set(pool.map(flood, range(20))) == {201}
    count = "from oauth_relay.models import Client; print(Client.objects.count())"
    assert int(first.shell(count)) <= 20 + 8 + 1, "at most one too many for each that came at the same time"
    assert connected.refresh(connected.tokens["refresh_token"]).status_code == 200


# -- by an operator ----------------------------------------------------------------------------------------------------


def create_client(*arguments: str) -> str:
    out = StringIO()
    call_command("create_client", *arguments, stdout=out, stderr=StringIO())
    return out.getvalue()


def test_an_operator_makes_a_client_that_works(browser: Browser, ada: User) -> None:
    told = create_client("Claude", "http://127.0.0.1/callback", "https://claude.ai/cb", "--confidential", "--json")
    answer = json.loads(told)
    client = Client.objects.get(client_id=answer["client_id"])
    assert client.is_operator_made and not client.skip_authorization
    assert client.client_secret != answer["client_secret"], "stored as it is"
    code = browser.connect(client, ada)["code"]
    redeemed = browser.redeem(client, code, client_secret=answer["client_secret"])
    assert redeemed.status_code == 200, redeemed.content
    assert AuditEvent.objects.filter(event="client.made_by_operator", client_id=client.client_id).exists()


def test_a_public_one_has_no_secret_to_print(db: None) -> None:
    told = create_client("Cursor", "cursor://anysphere.cursor-mcp/oauth/callback")
    assert "client_secret" not in told
    assert Client.objects.get().client_type == Client.CLIENT_PUBLIC


@pytest.mark.parametrize("uri", ["http://evil.example/", "javascript:alert(1)", "myapp://x"])
def test_what_cannot_be_registered_is_named_and_nothing_is_made(db: None, uri: str) -> None:
    with pytest.raises(CommandError):
        create_client("Any", "https://good.example/cb", uri)
    assert not Client.objects.exists()


def test_a_resource_server_is_made_ready_to_ask(browser: Browser, ada: User, inspector: Client) -> None:
    made = json.loads(create_client("Warehouse", "--confidential", "--resource-server", "--json"))
    client = Client.objects.get(client_id=made["client_id"])
    form = {
        "token": browser.tokens(inspector, ada)["access_token"],
        "client_id": made["client_id"],
        "client_secret": made["client_secret"],
    }
    told = browser.post("/introspect", urlencode(form), content_type="application/x-www-form-urlencoded")
    assert told.json()["active"] is True
    # It has no redirect URI, and so no way to anybody's consent.
    for redirect_uri in ("https://a.example/cb", "", None):
        assert browser.authorize(client, redirect_uri=redirect_uri).status_code == 400


@pytest.mark.parametrize(
    "arguments",
    [
        ("Warehouse", "--resource-server"), ("Warehouse", "--resource-server", "--jwks-uri", "https://a.example/keys"),
        ("A",), (), ("A", "https://a.example/cb", "--jwks-uri", "http://a.example/keys"),
        ("A", "https://a.example/cb", "--jwks-uri", "https://10.0.0.1/keys"), ("x" * 201, "https://a.example/cb"),
        ("A", "https://a.example/cb", "--confidential", "--jwks-uri", "https://a.example/keys"),
        ("A", "--document", "https://a.example/client"), ("--document", "https://a.example/client", "--trusted"),
        ("--document", "https://a.example/client", "--confidential"), ("--document", "https://a.example/"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_makes_nothing(db: None, arguments: tuple[str, ...]) -> None:
    with pytest.raises(CommandError):
        create_client(*arguments)
    assert not Client.objects.exists()
