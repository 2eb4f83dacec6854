"""A client by the address of its description: what the description must say, who may come, and what follows a change."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from oauth_relay import client_metadata_documents
from oauth_relay.client_metadata_documents import (
    ClientNotApproved,
    brought_up_to_date,
    check_client_id,
    checked_metadata,
    client_of,
    find_client,
    find_remembered,
    frozen_of,
    is_admitted,
    is_document_address,
    is_listed,
    verified_host,
)
from oauth_relay.models import AuditEvent, Client
from oauth_relay.outbound_documents import DocumentUnavailable, InvalidDocument
from tests.document_host import CLIENT_ID, LOOPBACK, Internet, answer, description, internet
from tests.oauth_relay.conftest import make_client

pytestmark = pytest.mark.django_db
RSA_KEY = {"kty": "RSA", "kid": "1", "n": "sXch", "e": "AQAB"}


@pytest.fixture(autouse=True)
def policy(settings: Any) -> Any:
    settings.CLIENT_METADATA_DOCUMENTS = "open"
    settings.CLIENT_METADATA_LOOPBACK = False
    settings.CLIENT_HOSTS_ALLOWED = settings.CLIENT_HOSTS_DENIED = frozenset()
    return settings


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Internet]:
    with internet(monkeypatch, tmp_path) as net:
        net.host.publish("/client.json", description())
        yield net


def known(**changes: Any) -> Client:
    """The row of a client that somebody consented to; its document was good until just now."""
    client = client_of(
        {"client_id": CLIENT_ID, "metadata": checked_metadata(CLIENT_ID, description()), "good_until": 0}
    )
    client.cimd_expires_at = timezone.now() - timedelta(seconds=1)
    for name, value in changes.items():
        setattr(client, name, value)
    client.save()
    return client


# -- the id ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "client_id",
    [
        "https://app.example.com", "https://app.example.com/", "https://app.example.com/?", "https://app.example.com/x?",
        "https://app.example.com/x?a=1", "https://app.example.com/x#", "https://app.example.com/x#a",
        "https://app.example.com/a/../x", "https://app.example.com/./x", "https://app.example.com/..",
        "https://app.example.com/%2e%2e/x", "https://app.example.com/a/%2E", "https://u@app.example.com/x",
        "http://app.example.com/x", "http://localhost:8000/x", "https://localhost/x", "https://127.0.0.1/x",
        "https://app.example.com:8443/x", "HTTPS://APP.EXAMPLE.COM/x", "https://app.example.com/" + "x" * 255,
    ],
)  # fmt: skip
def test_a_client_id_of_the_wrong_shape_is_refused(client_id: str) -> None:
    assert is_document_address(client_id)
    with pytest.raises(InvalidDocument):
        check_client_id(client_id)


@pytest.mark.parametrize(
    "client_id",
    [CLIENT_ID, "https://app.example.com/a/b/", "https://app.example.com:443/x", "https://a.b.example/.well"],
)
def test_a_client_id_of_the_right_shape_is_not(client_id: str) -> None:
    check_client_id(client_id)


def test_on_loopback_in_development_http_will_do(settings: Any) -> None:
    settings.CLIENT_METADATA_LOOPBACK = True
    check_client_id("http://localhost:8000/client.json")
    with pytest.raises(InvalidDocument):
        check_client_id("http://localhost:8000/")


# -- the document ------------------------------------------------------------------------------------------------------


def test_what_a_person_will_be_shown_is_kept_and_nothing_else() -> None:
    kept = checked_metadata(
        CLIENT_ID, description(scope="read:todos", contacts=["x"], software_id="y", jwks={"keys": []})
    )
    assert kept == {name: value for name, value in description().items() if name != "client_id"}


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": None},
        {"client_id": "https://APP.example.com/client.json"},
        {"client_id": "https://app.example.com/client.json/"},
        {"client_id": "https://app.example.com:443/client.json"},
        {"client_id": "https://app.example.com/Client.json"},
        {"client_id": "https://app.example.com/client%2Ejson"},
        {"client_id": "https://two.example.com/client.json"},
        {"client_id": [CLIENT_ID]},
        {"client_name": None}, {"client_name": ""}, {"client_name": " "}, {"client_name": ["x"]}, {"client_name": "x" * 201},
        {"redirect_uris": None}, {"redirect_uris": []}, {"redirect_uris": "https://app.example.com/"},
        {"redirect_uris": [1]}, {"redirect_uris": ["http://evil.example/"]}, {"redirect_uris": ["javascript:alert(1)"]},
        {"redirect_uris": [f"https://app.example.com/{n}" for n in range(31)]},
        {"token_endpoint_auth_method": "client_secret_basic"}, {"token_endpoint_auth_method": "client_secret_post"},
        {"token_endpoint_auth_method": "client_secret_jwt"}, {"token_endpoint_auth_method": ["none"]},
        {"client_secret": "x"}, {"client_secret": ""}, {"client_secret_expires_at": 0},
        {"grant_types": ["client_credentials"]}, {"grant_types": "authorization_code"}, {"response_types": ["token"]},
        {"token_endpoint_auth_method": "private_key_jwt"},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": [RSA_KEY]}, "jwks_uri": "https://a.example/k"},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": []}},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": [RSA_KEY] * 11}},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": "x"}},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": ["x"]}},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": [{**RSA_KEY, "d": "secret"}]}},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": [{"kty": "oct", "k": "secret"}]}},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "http://a.example/k"},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "https://127.0.0.1/k"},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": 1},
    ],
)  # fmt: skip
def test_a_document_that_will_not_do_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidDocument):
        checked_metadata(CLIENT_ID, description(**changes))


@pytest.mark.pain("P24")
def test_absent_means_a_public_client() -> None:
    said = description(token_endpoint_auth_method=None, grant_types=None, response_types=None)
    assert checked_metadata(CLIENT_ID, said)["token_endpoint_auth_method"] == "none"


def test_one_bad_redirect_uri_does_not_spoil_the_others() -> None:
    uris = ["http://evil.example/", LOOPBACK, "myapp://x", LOOPBACK, "cursor://cb"]
    assert checked_metadata(CLIENT_ID, description(redirect_uris=uris))["redirect_uris"] == [LOOPBACK, "cursor://cb"]


@pytest.mark.threat("T31")
def test_a_name_cannot_turn_the_page_around_and_a_link_leads_only_where_it_says() -> None:
    said = description(
        client_name="\u202eppA\u2066\n\x1b", client_uri="javascript:alert(1)", tos_uri="https://x/\u202e"
    )
    kept = checked_metadata(CLIENT_ID, said)
    assert kept["client_name"] == "ppA"
    assert not {"client_uri", "tos_uri"} & kept.keys()


def test_a_key_is_kept_without_what_no_database_could_write() -> None:
    key = {**RSA_KEY, "kid": "\ud800\0", "x5c": ["x"], "use": "sig"}
    said = description(token_endpoint_auth_method="private_key_jwt", jwks={"keys": [key]})
    assert checked_metadata(CLIENT_ID, said)["jwks"] == {
        "keys": [{"kty": "RSA", "n": "sXch", "e": "AQAB", "use": "sig"}]
    }


# -- who may come ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "listed", "is_in"),
    [
        ("example.com", {"example.com"}, True), ("app.example.com", {"example.com"}, False),
        ("app.example.com", {".example.com"}, True), ("example.com", {".example.com"}, True),
        ("notexample.com", {".example.com", "example.com"}, False), ("example.com.evil.example", {".example.com"}, False),
        ("a.b.example.com", {".example.com"}, True), ("example.com", set(), False),
    ],
)  # fmt: skip
def test_a_leading_dot_means_every_host_below(host: str, listed: set[str], is_in: bool) -> None:
    assert is_listed(host, listed) is is_in


@pytest.mark.parametrize(
    ("mode", "allowed", "denied", "comes_in"),
    [
        ("open", "", "", True), ("open", "", "app.example.com", False), ("open", "app.example.com", ".example.com", False),
        ("approved", "", "", False), ("approved", "app.example.com", "", True), ("approved", ".example.com", "", True),
        ("approved", "example.com", "", False), ("approved", ".example.com", "app.example.com", False),
        ("off", ".example.com", "", False),
    ],
)  # fmt: skip
def test_the_policy_says_who_may_come_before_anything_is_fetched(
    net: Internet, settings: Any, mode: str, allowed: str, denied: str, comes_in: bool
) -> None:
    settings.CLIENT_METADATA_DOCUMENTS = mode
    settings.CLIENT_HOSTS_ALLOWED, settings.CLIENT_HOSTS_DENIED = frozenset(allowed.split()), frozenset(denied.split())
    if comes_in:
        assert find_client(CLIENT_ID).name == "Example App"
    else:
        with pytest.raises(ClientNotApproved):
            find_client(CLIENT_ID)
        assert net.looked_up == []
    assert is_admitted(known()) is comes_in


def test_an_operators_approval_of_one_client_admits_that_one(net: Internet, settings: Any) -> None:
    settings.CLIENT_METADATA_DOCUMENTS = "approved"
    assert find_client(known(approved_at=timezone.now()).client_id).name == "Example App"
    with pytest.raises(ClientNotApproved, match="approve"):
        find_client("https://app.example.com/another")


def test_the_policy_is_not_about_clients_that_are_no_documents(settings: Any) -> None:
    settings.CLIENT_METADATA_DOCUMENTS = "off"
    assert is_admitted(make_client())


def test_a_client_that_an_operator_gave_an_address_as_its_name_is_the_operators(net: Internet) -> None:
    made = make_client(client_id=CLIENT_ID, registration_source="manual", name="Ours")
    assert find_client(CLIENT_ID) == made
    assert net.looked_up == []


# -- the client --------------------------------------------------------------------------------------------------------


@pytest.mark.threat("T24")
def test_a_client_that_nobody_has_consented_to_is_read_and_not_written(net: Internet) -> None:
    found = find_client(CLIENT_ID)
    assert (found.pk, found.client_id, found.client_type) == (None, CLIENT_ID, "public")
    assert found.redirect_uri_allowed("http://127.0.0.1:50000/callback")  # RFC 8252 §7.3
    assert not found.redirect_uri_allowed("https://two.example.com/callback")
    assert verified_host(found) == "app.example.com"
    remembered = find_remembered(CLIENT_ID)
    assert remembered is not None
    assert remembered.digest() == found.digest() == client_of(frozen_of(found)).digest()
    assert not Client.objects.exists()
    assert len(net.host.asked) == 1


def test_what_was_not_just_found_is_not_remembered(net: Internet) -> None:
    assert find_remembered(CLIENT_ID) is None
    assert net.looked_up == []


def test_a_row_that_may_not_be_used_is_not_replaced_by_what_is_remembered(net: Internet) -> None:
    find_client(CLIENT_ID)
    known(blocked_at=timezone.now())
    assert find_remembered(CLIENT_ID) is None


def test_a_client_that_signs_has_no_secret_that_anybody_knows(net: Internet) -> None:
    said = description(token_endpoint_auth_method="private_key_jwt", jwks={"keys": [RSA_KEY]})
    net.host.publish("/client.json", said)
    found = find_client(CLIENT_ID)
    assert (found.client_type, found.hash_client_secret, len(found.client_secret) > 40) == ("confidential", True, True)


def test_every_failure_says_one_of_two_things(net: Internet) -> None:
    with pytest.raises(DocumentUnavailable):
        find_client("https://app.example.com/nothing-here")
    net.host.publish("/other.json", description())
    with pytest.raises(InvalidDocument, match="exactly the address"):
        find_client("https://app.example.com/other.json")


@pytest.mark.threat("T31")
def test_nothing_that_a_document_names_is_loaded(net: Internet) -> None:
    said = description(logo_uri="https://two.example.com/logo.png", jwks_uri="https://keys.example.net/jwks")
    net.host.publish("/client.json", {**said, "token_endpoint_auth_method": "private_key_jwt"})
    find_client(CLIENT_ID)
    assert net.looked_up == ["app.example.com"]


# -- a known client, and its changes -----------------------------------------------------------------------------------


def test_a_row_is_not_read_again_before_its_time(net: Internet) -> None:
    client = known(cimd_expires_at=timezone.now() + timedelta(minutes=5))
    assert find_client(CLIENT_ID) == client
    assert net.looked_up == []


def test_a_row_whose_time_has_come_is_read_again_and_stays_what_it_is(net: Internet) -> None:
    client = known()
    found = find_client(CLIENT_ID)
    assert (found.pk, found.digest()) == (client.pk, client.digest())
    assert found.cimd_expires_at is not None
    assert found.cimd_expires_at > timezone.now() + timedelta(minutes=50)
    assert not AuditEvent.objects.exists()


@pytest.mark.threat("T31")
def test_a_changed_description_changes_the_row_and_its_digest(net: Internet) -> None:
    client = known()
    net.host.publish("/client.json", description(client_name="Another", redirect_uris=[LOOPBACK]))
    found = find_client(CLIENT_ID)
    assert (found.pk, found.name, found.redirect_uris) == (client.pk, "Another", LOOPBACK)
    assert found.digest() != client.digest()
    assert [event.event for event in AuditEvent.objects.all()] == ["client.changed_itself"]


@pytest.mark.parametrize("page", [answer(b"", status="500 Oops"), answer(b"", status="404 Not Found"), b""])
def test_a_host_that_is_away_does_not_cost_a_known_client_its_place(net: Internet, page: bytes) -> None:
    client = known()
    net.host.pages["/client.json"] = page
    assert find_client(CLIENT_ID).digest() == client.digest()


def test_but_not_for_ever(net: Internet) -> None:
    known(cimd_expires_at=timezone.now() - timedelta(days=8))
    net.host.pages["/client.json"] = b""
    with pytest.raises(DocumentUnavailable):
        find_client(CLIENT_ID)


def test_a_description_that_says_it_is_another_client_ends_it_at_once(net: Internet) -> None:
    client = known()
    net.host.publish("/client.json", description("https://two.example.com/client.json"))
    with pytest.raises(InvalidDocument):
        find_client(CLIENT_ID)
    client.refresh_from_db()
    assert client.name == "Example App"


def test_an_older_copy_in_memory_never_takes_the_place_of_what_another_process_has_read(net: Internet) -> None:
    find_client(CLIENT_ID)  # remembered here for an hour
    known(name="Newer", cimd_expires_at=timezone.now())
    net.host.publish("/client.json", description(client_name="Newest"))
    assert find_client(CLIENT_ID).name == "Newest"


def test_of_two_processes_that_read_at_once_one_writes(net: Internet) -> None:
    stale = known()
    winner = find_client(CLIENT_ID)
    Client.objects.filter(pk=winner.pk).update(name="Written by another")
    net.host.publish("/client.json", description(client_name="Too late"))
    assert brought_up_to_date(stale).name == "Written by another"


@pytest.mark.django_db(transaction=True)
def test_many_at_once_cost_one_fetch_and_one_line_in_the_audit(net: Internet) -> None:
    known()
    net.host.publish("/client.json", description(client_name="Another"))

    def find() -> str:
        try:
            return find_client(CLIENT_ID).name
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as threads:
        names = {future.result(20) for future in [threads.submit(find) for _ in range(8)]}
    assert names == {"Another"}
    assert len(net.host.asked) == 1
    assert AuditEvent.objects.count() == 1


def test_it_is_asked_anew_where_a_key_was_missing_and_no_more_often_than_told(net: Internet) -> None:
    client = find_client(known().client_id)
    net.host.publish("/client.json", description(client_name="Another"))
    a_moment_ago = (timezone.now() - timedelta(seconds=5)).timestamp()
    assert brought_up_to_date(client, since=a_moment_ago).name == "Example App"
    assert brought_up_to_date(client, since=timezone.now().timestamp()).name == "Another"


def test_an_operators_client_is_never_brought_up_to_date(net: Internet) -> None:
    client = make_client()
    assert brought_up_to_date(client, since=1.0) is client
    assert client_metadata_documents.verified_host(client) is None
    assert net.looked_up == []
