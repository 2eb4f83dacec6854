"""Whole walks of clients whose id is an address: seen before written, written at consent, changed, signing."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from django.core.management import CommandError, call_command
from django.http import HttpResponse
from django.utils import timezone

from oauth_relay.models import AccessToken, AuditEvent, Client, Consent, Grant, LoginTransaction, RefreshToken, User
from oauth_relay.outbound_documents import forget_documents
from tests import identity_provider
from tests.document_host import CLIENT_ID, LOOPBACK, DocumentHost, Internet, answer, description, internet
from tests.identity_provider import FakedProvider
from tests.oauth_relay.at_provider import BrowserAtProvider
from tests.oauth_relay.conftest import VERIFIER, Browser, answered, make_client
from tests.oauth_relay.test_client_assertions import ANOTHER_EC, assertion, description_with, public
from tests.oauth_relay.test_client_assertions import EC as KEY
from tests.servers import Server, database, serve
from tests.walk import OAuthClient, Person, plain

HTTPS = "https://app.example.com/callback"


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Any, db: None) -> Iterator[Internet]:
    settings.CLIENT_METADATA_LOOPBACK = False
    with internet(monkeypatch, tmp_path) as net:
        net.host.publish("/client.json", description())
        yield net


@pytest.fixture
def app() -> Client:
    """The client as it names itself; nothing of it is written."""
    return Client(client_id=CLIENT_ID)


def due() -> None:
    """The time that the headers gave every document has passed, for this process and for the rows."""
    forget_documents()
    Client.objects.update(cimd_expires_at=timezone.now() - timedelta(seconds=1))


def text_of(response: HttpResponse) -> str:
    return response.content.decode()


# -- seen before written -----------------------------------------------------------------------------------------------


@pytest.mark.threat("T24")
def test_it_is_written_when_somebody_allows_it_and_not_before(
    net: Internet, app: Client, browser: Browser, ada: User
) -> None:
    assert "Example App" in text_of(browser.authorize(app))
    assert "Allow access?" in text_of(browser.sign_in(ada))
    assert not Client.objects.exists()
    code = answered(browser.answer())["code"]
    written = Client.objects.get()
    assert (written.client_id, written.registration_source, written.name) == (CLIENT_ID, "cimd", "Example App")
    assert browser.redeem(app, code).status_code == 200
    assert AccessToken.objects.get().application == Grant.objects.get().client == written
    assert AuditEvent.objects.filter(event="client.registered").count() == 1
    assert len(net.host.asked) == 1


@pytest.mark.threat("T24")
@pytest.mark.parametrize("way", ["deny", "switch_account", "nothing ticked", "left"])
def test_without_a_yes_nothing_of_it_is_written(
    net: Internet, app: Client, browser: Browser, ada: User, way: str
) -> None:
    browser.authorize(app)
    browser.sign_in(ada)
    if way == "nothing ticked":
        browser.answer(scope=[])
    elif way != "left":
        browser.answer(way)
    assert LoginTransaction.objects.get().client_row is None
    assert not Client.objects.exists()


@pytest.mark.threat("T24")
def test_a_token_request_never_fetches_a_first_seen_client(net: Internet, app: Client, browser: Browser) -> None:
    browser.authorize(app)  # remembered in this process now, and still no client to /token
    asked = len(net.host.asked)
    for client_id in (CLIENT_ID, "https://two.example.com/client.json", "https://app.example.com/other"):
        for form in (
            {"grant_type": "authorization_code", "code": "x"},
            {"grant_type": "refresh_token", "refresh_token": "x"},
        ):
            response = browser.token(client_id=client_id, code_verifier=VERIFIER, **form)
            assert (response.status_code, response.json()["error"]) == (401, "invalid_client")
        assert browser.post("/revoke", urlencode({"client_id": client_id, "token": "x"}), FORM).status_code == 401
    assert len(net.host.asked) == asked


FORM = "application/x-www-form-urlencoded"


def test_the_next_time_it_is_known_and_one_click(net: Internet, app: Client, browser: Browser, ada: User) -> None:
    browser.tokens(app, ada, redirect_uri=LOOPBACK)
    browser.connect(app, ada)
    assert (Client.objects.count(), Grant.objects.count(), Consent.objects.count()) == (1, 1, 2)
    assert len(net.host.asked) == 1


@pytest.mark.threat("T31")
def test_what_was_shown_is_what_is_written_whatever_the_document_says_meanwhile(
    net: Internet, app: Client, browser: Browser, ada: User
) -> None:
    browser.authorize(app)
    browser.sign_in(ada)
    net.host.publish("/client.json", description(client_name="Mallory", redirect_uris=["https://two.example.com/x"]))
    forget_documents()
    answered(browser.answer())
    assert Client.objects.get().name == "Example App"


@pytest.mark.threat("T31")
def test_two_people_who_were_shown_two_things_do_not_consent_to_each_others(
    net: Internet, app: Client, ada: User, mallory: User
) -> None:
    first, second = Browser(), Browser()
    first.authorize(app)
    first.sign_in(ada)
    net.host.publish("/client.json", description(client_name="Another"))
    forget_documents()
    second.authorize(app)
    second.sign_in(mallory)
    assert "code" in answered(second.answer())
    assert answered(first.answer())["error"] == "access_denied"
    assert Client.objects.get().name == "Another"
    assert not Grant.objects.filter(user=ada).exists()


def test_a_blocked_one_does_not_come_back_by_its_document(
    net: Internet, app: Client, browser: Browser, ada: User
) -> None:
    browser.authorize(app)
    browser.sign_in(ada)
    other = Browser()
    other.connect(app, ada)
    Client.objects.update(blocked_at=timezone.now())
    assert answered(browser.answer())["error"] == "access_denied"
    assert browser.authorize(app).status_code == 400


def test_it_works_through_a_provider_too(net: Internet, app: Client, settings: Any) -> None:
    with identity_provider.faked_provider() as peer:
        assert isinstance(peer, FakedProvider)
        identity_provider.configure(settings, peer.origin)
        browser = BrowserAtProvider(peer)
        browser.authorize(app)
        browser.sign_in_there()
        assert not Client.objects.exists()
        assert browser.redeem(app, answered(browser.answer())["code"]).status_code == 200
        assert Client.objects.get().client_id == CLIENT_ID


# -- what the person reads ---------------------------------------------------------------------------------------------


@pytest.mark.threat("T9")
def test_the_host_vouches_for_an_answer_that_goes_to_it_and_for_no_program_on_this_device(
    net: Internet, app: Client, browser: Browser
) -> None:
    page = text_of(browser.authorize(app, redirect_uri=HTTPS))
    assert 'Verified as <bdi class="host" dir="ltr">app.example.com</bdi>' in page
    page = text_of(browser.authorize(app, redirect_uri=LOOPBACK))
    assert "Verified as" not in page
    assert "app.example.com" in page


@pytest.mark.pain("P6")
def test_its_listener_on_this_device_may_have_another_port_each_time(
    net: Internet, app: Client, browser: Browser, ada: User
) -> None:
    """RFC 8252 §7.3: at its first visit, when there is no row yet, as at every later one."""
    for port in ("50000", "50001"):
        moved = LOOPBACK.replace("33418", port)
        code = browser.connect(app, ada, redirect_uri=moved)["code"]
        assert browser.redeem(app, code, redirect_uri=moved).status_code == 200
    assert "not registered" in text_of(browser.authorize(app, redirect_uri=f"{LOOPBACK}/other"))


def test_an_answer_elsewhere_than_the_document_says_is_a_page(net: Internet, app: Client, browser: Browser) -> None:
    response = browser.authorize(app, redirect_uri="https://two.example.com/callback")
    assert response.status_code == 400
    assert "not registered" in text_of(response)


@pytest.mark.threat("T24")
@pytest.mark.parametrize("inside", ["10.0.0.8", "169.254.169.254"])
def test_the_page_says_what_its_author_can_mend_and_nothing_of_our_network(
    net: Internet, app: Client, browser: Browser, inside: str
) -> None:
    net.host.publish("/client.json", description(client_id="https://two.example.com/client.json"))
    response = browser.authorize(app)
    assert response.status_code == 400
    assert "not exactly the address" in text_of(response)
    net.names["two.example.com"] = [inside]
    refused = text_of(browser.authorize(Client(client_id="https://two.example.com/client.json")))
    missing = text_of(browser.authorize(Client(client_id="https://app.example.org/nothing")))
    assert "could not be read" in refused
    assert inside not in refused
    assert without_trace(refused) == without_trace(missing)
    assert not LoginTransaction.objects.exists()


def without_trace(page: str) -> list[str]:
    return [line for line in page.splitlines() if "trace" not in line.lower() and "<code" not in line]


@pytest.mark.parametrize("mode", ["approved", "off"])
def test_the_page_says_that_an_operator_must_approve(
    net: Internet, app: Client, browser: Browser, settings: Any, mode: str
) -> None:
    settings.CLIENT_METADATA_DOCUMENTS = mode
    response = browser.authorize(app)
    assert response.status_code == 400
    assert ("must approve" if mode == "approved" else "does not take") in text_of(response)
    assert net.looked_up == []


def test_a_wrong_request_of_an_unwritten_client_goes_where_t28_lets_it(
    net: Internet, app: Client, browser: Browser
) -> None:
    assert answered(browser.authorize(app, scope="nonsense"))["error"] == "invalid_scope"
    page = text_of(browser.authorize(app, redirect_uri=HTTPS, scope="nonsense"))
    assert "Return to Example App" in page
    assert answered(browser.authorize(app, prompt="none"))["error"] == "login_required"


# -- the document changes ----------------------------------------------------------------------------------------------


@pytest.mark.threat("T31")
def test_a_change_suspends_refresh_until_the_person_has_consented_to_it(
    net: Internet, app: Client, browser: Browser, ada: User
) -> None:
    tokens = browser.tokens(app, ada)
    net.host.publish("/client.json", description(client_name="Renamed"))
    due()
    assert "Renamed" in text_of(browser.authorize(app))
    refused = browser.refresh(app, tokens["refresh_token"])
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
    assert RefreshToken.objects.get().revoked is None
    answered(browser.answer())
    assert browser.refresh(app, tokens["refresh_token"]).status_code == 200


def test_an_unchanged_document_changes_nothing(net: Internet, app: Client, browser: Browser, ada: User) -> None:
    tokens = browser.tokens(app, ada)
    due()
    browser.authorize(app)
    assert browser.refresh(app, tokens["refresh_token"]).status_code == 200


def test_a_host_that_is_away_costs_nobody_a_session(net: Internet, app: Client, browser: Browser, ada: User) -> None:
    tokens = browser.tokens(app, ada)
    net.host.pages["/client.json"] = answer(b"", status="503 Away")
    due()
    assert browser.authorize(app).status_code == 200
    assert browser.refresh(app, tokens["refresh_token"]).status_code == 200


@pytest.mark.threat("T31")
@pytest.mark.parametrize("claimed", ["in the form", "as a user name", "both, as two"])
def test_a_change_suspends_refresh_without_anybody_visiting(
    net: Internet, app: Client, browser: Browser, ada: User, claimed: str
) -> None:
    tokens = browser.tokens(app, ada)
    net.host.publish("/client.json", description(client_name="Renamed"))
    due()
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], "client_id": CLIENT_ID}
    headers = {}
    if claimed != "in the form":
        headers["Authorization"] = basic(CLIENT_ID if claimed == "as a user name" else "nobody", "")
    if claimed == "as a user name":
        del form["client_id"]
    refused = browser.post("/token", urlencode(form), FORM, headers=headers)
    assert (refused.status_code, refused.json()["error"]) in ((400, "invalid_grant"), (401, "invalid_client"))
    assert Client.objects.get().name == "Renamed"
    assert RefreshToken.objects.get().revoked is None
    browser.authorize(app)
    answered(browser.answer())
    assert browser.refresh(app, tokens["refresh_token"]).status_code == 200


def test_a_host_that_is_away_changes_nothing_at_the_token_endpoint(
    net: Internet, app: Client, browser: Browser, ada: User
) -> None:
    tokens = browser.tokens(app, ada)
    net.host.pages["/client.json"] = answer(b"", status="503 Away")
    due()
    refreshed = browser.refresh(app, tokens["refresh_token"])
    assert refreshed.status_code == 200
    assert browser.refresh(app, refreshed.json()["refresh_token"]).status_code == 200
    assert len(net.host.asked) == 2  # at the sign-in, and one for both


def test_one_that_has_been_away_for_long_leaves_it_undecided(
    net: Internet, app: Client, browser: Browser, ada: User
) -> None:
    tokens, page = browser.tokens(app, ada), net.host.pages["/client.json"]
    net.host.pages["/client.json"] = answer(b"", status="503 Away")
    due()
    Client.objects.update(cimd_expires_at=timezone.now() - timedelta(days=8))
    refused = browser.refresh(app, tokens["refresh_token"])
    assert (refused.status_code, refused.json()["error"]) == (503, "temporarily_unavailable")
    assert refused["Retry-After"]
    forget_documents()
    net.host.pages["/client.json"] = page
    assert browser.refresh(app, tokens["refresh_token"]).status_code == 200


def test_a_document_that_describes_nobody_ends_refresh_and_never_revocation(
    net: Internet, app: Client, browser: Browser, ada: User
) -> None:
    tokens = browser.tokens(app, ada)
    net.host.publish("/client.json", description("https://two.example.com/client.json"))
    due()
    refused = browser.refresh(app, tokens["refresh_token"])
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
    form = {"token": tokens["refresh_token"], "client_id": CLIENT_ID}
    assert browser.post("/revoke", urlencode(form), FORM).status_code == 200
    assert RefreshToken.objects.get().revoked is not None


@pytest.mark.threat("T24")
@pytest.mark.parametrize("state", ["nobody knows it", "it is blocked", "it is not admitted"])
def test_the_token_endpoint_reads_no_document_of_a_client_that_may_not_come(
    net: Internet, app: Client, browser: Browser, ada: User, settings: Any, state: str
) -> None:
    if state != "nobody knows it":
        browser.tokens(app, ada)
    due()
    if state == "it is blocked":
        Client.objects.update(blocked_at=timezone.now())
    if state == "it is not admitted":
        settings.CLIENT_METADATA_DOCUMENTS = "approved"
    before = len(net.host.asked)
    assert browser.refresh(app, "any").status_code == 401
    assert len(net.host.asked) == before


def test_a_host_that_the_operator_denies_is_out_at_the_next_refresh(
    net: Internet, app: Client, browser: Browser, ada: User, settings: Any
) -> None:
    tokens = browser.tokens(app, ada)
    settings.CLIENT_HOSTS_DENIED = frozenset({".example.com"})
    refused = browser.refresh(app, tokens["refresh_token"])
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
    assert browser.authorize(app).status_code == 400
    settings.CLIENT_HOSTS_DENIED = frozenset()
    assert browser.refresh(app, tokens["refresh_token"]).status_code == 200


# -- a client that signs -----------------------------------------------------------------------------------------------


@pytest.fixture
def signing(net: Internet, app: Client) -> Client:
    net.host.publish("/client.json", description_with(public(KEY)))
    return app


def signed(**claims: Any) -> dict[str, str]:
    return {
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": assertion(**claims),
    }


def test_a_client_that_signs_walks_the_whole_way(signing: Client, browser: Browser, ada: User) -> None:
    code = browser.connect(signing, ada)["code"]
    response = browser.redeem(signing, code, **signed())
    assert response.status_code == 200, response.content
    tokens = json.loads(response.content)
    refreshed = browser.refresh(signing, tokens["refresh_token"], **signed())
    assert refreshed.status_code == 200
    form = {"token": refreshed.json()["refresh_token"], **signed()}  # no client_id: the signature names it
    assert browser.post("/revoke", urlencode(form), FORM).status_code == 200
    again = browser.refresh(signing, refreshed.json()["refresh_token"], **signed())
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")


@pytest.mark.parametrize(
    "attempt",
    [
        {}, {"client_secret": ""}, {"client_secret": "x"}, {"basic": ""}, {"basic": "x"}, {"client_assertion": "x"},
        {"by": ANOTHER_EC}, {"jti_twice": True}, {"header": True}, {"aud": "https://another.example"},
    ],
    ids=lambda change: ",".join(change),
)  # fmt: skip
def test_and_proves_itself_in_no_other_way(
    signing: Client, browser: Browser, ada: User, attempt: dict[str, Any]
) -> None:
    code = browser.connect(signing, ada)["code"]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": LOOPBACK, "code_verifier": VERIFIER}
    headers: dict[str, str] = {}
    if "by" in attempt:
        form |= signed(key=attempt["by"])
    elif "aud" in attempt:
        form |= signed(aud=attempt["aud"])
    elif "jti_twice" in attempt:
        form |= signed()
        assert browser.token(**{**form, "code": "x", "client_id": CLIENT_ID}).json()["error"] == "invalid_grant"
    elif "basic" in attempt:
        headers["Authorization"] = basic(CLIENT_ID, attempt["basic"])
    elif "header" in attempt:
        headers |= {"cair.proved_client": CLIENT_ID, "Cair.Proved-Client": CLIENT_ID}
    else:
        form |= attempt
    response = browser.post("/token", urlencode({**form, "client_id": CLIENT_ID}), FORM, headers=headers)
    assert (response.status_code, response.json()["error"]) == (401, "invalid_client"), response.content
    assert not AccessToken.objects.exists()
    assert browser.redeem(signing, code, **signed()).status_code == 200


def basic(name: str, password: str) -> str:
    from base64 import b64encode
    from urllib.parse import quote_plus

    return "Basic " + b64encode(f"{quote_plus(name)}:{quote_plus(password)}".encode()).decode()


def test_a_client_that_begins_to_sign_cannot_go_on_without(
    net: Internet, app: Client, browser: Browser, ada: User
) -> None:
    """Its row was written without a secret: an empty one must not do for the signature."""
    tokens = browser.tokens(app, ada)
    net.host.publish("/client.json", description_with(public(KEY)))
    due()
    browser.authorize(app)
    answered(browser.answer())
    for headers in ({}, {"Authorization": basic(CLIENT_ID, "")}):
        form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], "client_id": CLIENT_ID}
        response = browser.post("/token", urlencode(form), FORM, headers=headers)
        assert (response.status_code, response.json()["error"]) == (401, "invalid_client")
    assert browser.refresh(app, tokens["refresh_token"], **signed()).status_code == 200


def test_keys_that_cannot_be_read_now_are_no_answer_and_cost_nothing(
    net: Internet, app: Client, browser: Browser, ada: User
) -> None:
    net.host.publish("/client.json", description_with(jwks=None, jwks_uri="https://keys.example.net/jwks.json"))
    code = browser.connect(app, ada)["code"]
    form = signed()
    response = browser.redeem(app, code, **form)
    assert (response.status_code, response.json()["error"]) == (503, "temporarily_unavailable")
    assert response["Retry-After"]
    forget_documents()
    net.host.publish("/jwks.json", {"keys": [public(KEY)]})
    assert browser.redeem(app, code, **form).status_code == 200


@pytest.mark.threat("T31")
def test_keys_that_move_to_another_host_are_another_client(
    net: Internet, app: Client, browser: Browser, ada: User
) -> None:
    said = description_with(jwks=None, jwks_uri="https://keys.example.net/jwks.json")
    net.host.publish("/client.json", said)
    net.host.publish("/jwks.json", {"keys": [public(KEY)]})
    code = browser.connect(app, ada)["code"]
    tokens = browser.redeem(app, code, **signed()).json()
    net.host.publish("/client.json", {**said, "jwks_uri": "https://two.example.com/jwks.json"})
    due()
    refused = browser.refresh(app, tokens["refresh_token"], **signed())
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


# -- by an operator ----------------------------------------------------------------------------------------------------


def create_client(*arguments: str) -> dict[str, Any]:
    out = StringIO()
    call_command("create_client", *arguments, "--json", stdout=out, stderr=StringIO())
    return json.loads(out.getvalue())


def test_an_operator_approves_a_client_that_nobody_has_used_yet(
    net: Internet, app: Client, browser: Browser, ada: User, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.CLIENT_METADATA_DOCUMENTS = "approved"
    with caplog.at_level(logging.INFO):
        refused = browser.authorize(app)
    assert refused.status_code == 400
    assert f"manage.py create_client --document {CLIENT_ID}" in caplog.text
    assert "create_client" not in text_of(refused)
    assert net.looked_up == []
    for _ in range(2):
        assert create_client("--document", CLIENT_ID)["client_id"] == CLIENT_ID
    written = Client.objects.get()
    assert (written.registration_source, written.name, written.approved_at is None) == ("cimd", "Example App", False)
    told = AuditEvent.objects.filter(client_id=CLIENT_ID).order_by("at")
    assert [event.event for event in told] == ["client.registered", "client.approved_by_operator"]
    tokens = browser.tokens(app, ada)
    assert browser.refresh(app, tokens["refresh_token"]).status_code == 200
    assert Grant.objects.get().client == written


def test_what_is_named_to_the_operator_is_no_command_of_somebody_elses(
    net: Internet, browser: Browser, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.CLIENT_METADATA_DOCUMENTS = "approved"
    with caplog.at_level(logging.INFO):
        browser.authorize(Client(client_id="https://app.example.com/$(id);`id`"))
    assert "--document 'https://app.example.com/$(id);`id`'" in caplog.text


def test_a_client_that_came_before_is_approved_as_it_is(
    net: Internet, app: Client, browser: Browser, ada: User, settings: Any
) -> None:
    tokens = browser.tokens(app, ada)
    settings.CLIENT_METADATA_DOCUMENTS = "approved"
    assert browser.refresh(app, tokens["refresh_token"]).status_code == 401
    before = Client.objects.get()
    create_client("--document", CLIENT_ID)
    assert Client.objects.get().digest() == before.digest()
    assert browser.refresh(app, tokens["refresh_token"]).status_code == 200


@pytest.mark.parametrize("why", ["off", "denied", "another", "wrong", "away"])
def test_an_approval_that_could_not_hold_is_refused(net: Internet, settings: Any, why: str) -> None:
    if why == "off":
        settings.CLIENT_METADATA_DOCUMENTS = "off"
    elif why == "denied":
        settings.CLIENT_HOSTS_DENIED = frozenset({"app.example.com"})
    elif why == "another":
        make_client(client_id=CLIENT_ID, registration_source="manual")
    else:
        net.host.pages["/client.json"] = answer(b"{}", status="200 OK" if why == "wrong" else "503 Away")
    with pytest.raises(CommandError):
        create_client("--document", CLIENT_ID)
    assert not Client.objects.filter(registration_source="cimd").exists()


def test_an_operators_client_proves_itself_by_its_keys(net: Internet, browser: Browser, ada: User) -> None:
    net.host.publish("/jwks.json", {"keys": [public(KEY)]})
    made = create_client("Nightly", LOOPBACK, "--jwks-uri", "https://keys.example.net/jwks.json")
    assert "client_secret" not in made
    client = Client.objects.get()
    assert (client.registration_source, client.client_type) == ("manual", "confidential")
    code = browser.connect(client, ada)["code"]
    own = {"iss": client.client_id, "sub": client.client_id}
    for wrong in ({}, {"client_secret": ""}, signed(**own, key=ANOTHER_EC)):
        assert browser.redeem(client, code, **wrong).status_code == 401
    assert browser.redeem(client, code, **signed(**own)).status_code == 200


# -- what is advertised ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["open", "approved", "off"])
def test_the_metadata_says_what_is_so(browser: Browser, settings: Any, mode: str, db: None) -> None:
    settings.CLIENT_METADATA_DOCUMENTS = mode
    said = browser.get("/.well-known/oauth-authorization-server").json()
    is_on = mode != "off"
    assert said["client_id_metadata_document_supported"] is is_on
    assert "none" in said["token_endpoint_auth_methods_supported"]
    for endpoint in ("token", "revocation"):
        assert "private_key_jwt" in said[f"{endpoint}_endpoint_auth_methods_supported"]  # an operator's client may
        algorithms = said[f"{endpoint}_endpoint_auth_signing_alg_values_supported"]
        assert algorithms == ["ES256", "RS256", "PS256", "EdDSA"]


# -- a real server -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_host() -> Iterator[DocumentHost]:
    """A developer's own listener, by http on this machine."""
    host = DocumentHost(None)
    yield host
    host.end()


def test_a_developers_own_client_connects_by_its_document(server: Server, own_host: DocumentHost) -> None:
    client = OAuthClient(server.url, client_id=f"http://localhost:{own_host.port}/client.json")
    own_host.publish("/client.json", description(client.client_id, redirect_uris=[client.redirect_uri]))
    client.connect(Person(server.url))
    assert client.ask("tools/list").status_code == 200
    assert client.refresh(client.tokens["refresh_token"]).status_code == 200


@pytest.mark.threat("T24")
def test_many_first_consents_at_once_are_one_client(server: Server, own_host: DocumentHost) -> None:
    client_id = f"http://127.0.0.1:{own_host.port}/client.json"
    tabs = [OAuthClient(server.url, client_id=client_id) for _ in range(4)]
    own_host.publish("/client.json", description(client_id, redirect_uris=[tabs[0].redirect_uri]))
    people = [Person(server.url) for _ in tabs]
    pages = [person.consent_page(tab.authorization_url()) for person, tab in zip(people, tabs, strict=True)]
    count = f"from oauth_relay.models import Client; print(Client.objects.filter(client_id={client_id!r}).count())"
    assert server.shell(count) == "0"
    with ThreadPoolExecutor(len(tabs)) as threads:
        answers = list(threads.map(lambda pair: pair[0].answer(pair[1], "allow"), zip(people, pages, strict=True)))
    assert server.shell(count) == "1"
    for tab, said in zip(tabs, answers, strict=True):
        assert tab.redeem(said["code"]).status_code == 200


@pytest.fixture
def small_pool() -> Iterator[Server]:
    """A server with two connections to its database, and no more."""
    with database("postgres") as url, serve(url, {"DATABASE_POOL": "2"}) as running:
        yield running


@pytest.mark.postgres
@pytest.mark.threat("T24")
def test_slow_documents_hold_up_nobody_who_needs_the_database(small_pool: Server, own_host: DocumentHost) -> None:
    names = ("localhost", "127.0.0.1")  # two domains: both are read at once, and others wait behind each
    go = threading.Event()
    for number in range(4):
        own_host.pages[f"/{number}"] = lambda send: go.wait(10)
    slow = [f"http://{name}:{own_host.port}/{number}" for number in range(4) for name in names]
    with ThreadPoolExecutor(len(slow)) as threads:
        tabs = [
            threads.submit(
                plain().get, OAuthClient(small_pool.url, client_id=client_id).authorization_url(), timeout=30
            )
            for client_id in slow
        ]
        until = time.monotonic() + 10
        while len(own_host.asked) < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        try:
            for _ in range(3):
                OAuthClient(small_pool.url).register()  # bounded by less than a document may take
            assert not any(tab.done() for tab in tabs)
        finally:
            go.set()
        assert {tab.result(30).status_code for tab in tabs} == {400}
