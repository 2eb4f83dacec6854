"""The authorization code, from an unknown client to the end of its permission: docs/flow.md, walked by hand."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest
import requests

from cair.demo.person import Field, Page
from tests.servers import Server
from tests.walk import REDIRECT_URI, OAuthClient, Person, challenge_of, parameters_of, plain, result_of

ISSUER_SPELLINGS = [
    "/.well-known/oauth-authorization-server",
    "/.well-known/oauth-authorization-server/mcp",
    "/.well-known/oauth-authorization-server/sse",
    "/.well-known/openid-configuration",
    "/.well-known/openid-configuration/mcp",
    "/.well-known/openid-configuration/sse",
    "/mcp/.well-known/openid-configuration",
    "/sse/.well-known/openid-configuration",
]


@pytest.fixture
def client(server: Server) -> OAuthClient:
    return OAuthClient(server.url).register()


@pytest.fixture
def person(server: Server) -> Person:
    return Person(server.url)


def is_dead(client: OAuthClient, token: str | None = None) -> bool:
    response = client.ask("tools/list", token=token)
    assert response.status_code in (200, 401), response.text
    return response.status_code == 401 and challenge_of(response).get("error") == "invalid_token"


def seconds_until(fulfilled: Callable[[], bool], bound: float) -> float:
    """How long it took; fails after `bound` seconds. Each question is answered by the server: nothing is slept through."""
    started = time.monotonic()
    while not fulfilled():
        assert time.monotonic() - started < bound, f"not within {bound} s"
    return time.monotonic() - started


# -- 1  who protects this? ---------------------------------------------------------------------------------------------


@pytest.mark.pain("P23")
@pytest.mark.parametrize("endpoint", ["mcp", "sse"])
def test_a_client_without_a_token_is_told_where_to_sign_in_and_for_what(server: Server, endpoint: str) -> None:
    send = plain().post if endpoint == "mcp" else plain().get
    response = send(f"{server.url}/{endpoint}", timeout=5)
    challenge = challenge_of(response)
    assert response.status_code == 401
    assert challenge["resource_metadata"] == f"{server.url}/.well-known/oauth-protected-resource/{endpoint}"
    assert challenge["scope"] == "read:todos write:todos"
    # RFC 6750 §3.1: no error code where no credential was sent
    assert "error" not in challenge


@pytest.mark.pain("P17")
@pytest.mark.parametrize(("spelling", "resource"), [("", "mcp"), ("/mcp", "mcp"), ("/sse", "sse")])
def test_each_protected_resource_describes_itself(server: Server, spelling: str, resource: str) -> None:
    document = plain().get(f"{server.url}/.well-known/oauth-protected-resource{spelling}", timeout=5).json()
    assert document["resource"] == f"{server.url}/{resource}"
    assert document["authorization_servers"] == [server.url]
    assert "offline_access" not in document["scopes_supported"]


@pytest.mark.pain("P23")
@pytest.mark.parametrize("spelling", ISSUER_SPELLINGS)
def test_every_spelling_of_discovery_leads_to_one_issuer(server: Server, spelling: str) -> None:
    response = plain().get(server.url + spelling, headers={"Origin": "https://client.example"}, timeout=5)
    document = response.json()
    assert document["issuer"] == server.url
    assert document["code_challenge_methods_supported"] == ["S256"]
    assert document["authorization_response_iss_parameter_supported"] is True
    assert "none" in document["token_endpoint_auth_methods_supported"]
    for endpoint in ("authorization", "token", "registration", "revocation"):
        assert document[f"{endpoint}_endpoint"].startswith(server.url + "/")
    assert response.headers["Access-Control-Allow-Origin"] == "*"


# -- 2 to 8  the walk --------------------------------------------------------------------------------------------------


def test_the_whole_walk_from_an_unknown_client_to_the_persons_todos(server: Server, person: Person) -> None:
    client = OAuthClient(server.url)
    asked = client.ask("tools/list", token="")
    described = plain().get(challenge_of(asked)["resource_metadata"], timeout=5).json()
    issuer = described["authorization_servers"][0]
    metadata = plain().get(f"{issuer}/.well-known/oauth-authorization-server", timeout=5).json()
    assert metadata["registration_endpoint"] == f"{server.url}/register"
    client.register()

    sign_in = person.open(client.authorization_url(scope=challenge_of(asked)["scope"]))
    assert "Inspector" in sign_in.text and REDIRECT_URI in sign_in.text and "See your todos" in sign_in.text
    consent = person.sign_in(sign_in)
    assert "Demo User" in consent.text and "demo@example.com" in consent.text
    assert "127.0.0.1:53682" in consent.text and "list_todos" in consent.text
    answer = person.answer(consent, "allow")
    assert answer == {"code": answer["code"], "state": client.state, "iss": server.url}

    response = client.redeem(answer["code"])
    tokens = response.json()
    assert response.headers["Cache-Control"] == "no-store"
    assert (tokens["token_type"], tokens["expires_in"]) == ("Bearer", 600)
    assert set(tokens["scope"].split()) == {"read:todos", "write:todos"}

    client.tokens = tokens
    before = client.todos()
    made = result_of(client.call("create_todo", title="Walked by hand"))["structuredContent"]
    assert [todo["id"] for todo in client.todos()] != [todo["id"] for todo in before]
    assert made["id"] in [todo["id"] for todo in client.todos()]


def test_tokens_and_codes_are_in_no_table_as_they_were_sent(
    server: Server, client: OAuthClient, person: Person
) -> None:
    answer = person.allow(client.authorization_url())
    tokens = client.redeem(answer["code"]).json()
    code = """
from django.apps import apps
from django.db import connection
for model in apps.get_models():
    with connection.cursor() as cursor:
        cursor.execute(f'SELECT * FROM "{model._meta.db_table}"')
        print([bytes(c) if isinstance(c, memoryview) else c for row in cursor.fetchall() for c in row])
"""
    everything = server.shell(code)
    assert "Inspector" in everything
    for secret in (answer["code"], tokens["access_token"], tokens["refresh_token"], client.verifier):
        assert secret not in everything


def test_a_registered_client_is_told_what_was_registered(server: Server) -> None:
    registered = OAuthClient(server.url).register(client_name="Somebody", scope="read:todos").registration
    assert registered["client_name"] == "Somebody"
    assert registered["redirect_uris"] == [REDIRECT_URI]
    assert registered["token_endpoint_auth_method"] == "none"
    assert "client_secret" not in registered
    assert registered["registration_client_uri"] == f"{server.url}/register/{registered['client_id']}"


def test_a_client_with_a_secret_must_show_it(server: Server, person: Person) -> None:
    client = OAuthClient(server.url).register(token_endpoint_auth_method="client_secret_basic")
    code = person.allow(client.authorization_url())["code"]
    form = {
        "grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT_URI, "code_verifier": client.verifier,
    }  # fmt: skip
    without = plain().post(f"{server.url}/token", data={**form, "client_id": client.client_id}, timeout=5)
    assert (without.status_code, without.json()["error"]) == (401, "invalid_client")
    assert without.headers["WWW-Authenticate"].startswith("Basic")
    secret = (client.client_id, client.registration["client_secret"])
    assert plain().post(f"{server.url}/token", data=form, auth=secret, timeout=5).status_code == 200


# -- redirect URIs -----------------------------------------------------------------------------------------------------


@pytest.mark.pain("P6")
def test_a_loopback_client_may_listen_on_another_port_each_time(client: OAuthClient, person: Person) -> None:
    """RFC 8252 §7.3, and the daily complaint of clients that get a new port (pains P6)."""
    moved = REDIRECT_URI.replace("53682", "53999")
    page = person.consent_page(client.authorization_url(redirect_uri=moved))
    assert "127.0.0.1:53999" in page.text
    left = person.browser.press(page, "allow").left
    assert left.startswith(f"{moved}?")
    assert client.redeem(parameters_of(left)["code"], redirect_uri=moved).status_code == 200


@pytest.mark.pain("P5")
@pytest.mark.pain("P39")
@pytest.mark.parametrize(
    "elsewhere",
    [
        "http://127.0.0.1:53682/other",
        "http://127.0.0.1:53682/callback/",
        "http://127.0.0.1:53682/callback?x=1",
        "https://127.0.0.1:53682/callback",
        "http://127.0.0.1.evil.example/callback",
        "http://evil.example:53682/callback",
        "http://user@127.0.0.1:53682/callback",
        "javascript:alert(1)",
        "",
    ],
)
def test_an_unregistered_redirect_uri_gets_a_page_and_no_redirect(
    client: OAuthClient, person: Person, elsewhere: str
) -> None:
    page = person.open(client.authorization_url(redirect_uri=elsewhere or None, state="x"))
    if not elsewhere:
        assert page.has_button("sign_in")  # the only registered one is meant (RFC 6749 §3.1.2.3)
        return
    assert (page.status, page.left) == (400, "")
    assert "address that it has not registered" in page.text and "add it again" in page.text
    assert "evil.example" not in page.html


@pytest.mark.pain("P9")
def test_an_unknown_client_gets_a_page_that_says_how_to_start_afresh(server: Server, person: Person) -> None:
    page = person.open(OAuthClient(server.url, client_id="nobody").authorization_url())
    assert (page.status, page.left) == (400, "")
    assert "not known to this server" in page.text and "mcp-auth" in page.text


@pytest.mark.threat("T41")
@pytest.mark.pain("P7")
def test_an_editors_own_scheme_is_named_as_an_app_on_this_device(server: Server, person: Person) -> None:
    uri = "cursor://anysphere.cursor-mcp/oauth/callback"
    client = OAuthClient(server.url, redirect_uri=uri).register()
    page = person.consent_page(client.authorization_url())
    assert "an app on this device" in page.text and "cursor:" in page.text
    assert "cursor:" in page.headers["Content-Security-Policy"]
    assert person.browser.press(page, "allow").left.startswith(f"{uri}?code=")


# -- wrong requests come back in the protocol's own form ---------------------------------------------------------------


@pytest.mark.pain("P39")
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_type": None}, "invalid_request"),
        ({"scope": "read:everything"}, "invalid_scope"),
        ({"code_challenge": None, "code_challenge_method": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"resource": "https://elsewhere.example/mcp"}, "invalid_target"),
        ({"resource": ""}, "invalid_target"),
        ({"prompt": "none"}, "login_required"),
        ({"prompt": "none login"}, "invalid_request"),
        ({"request": "eyJ"}, "request_not_supported"),
        ({"response_mode": "fragment"}, "invalid_request"),
    ],
)
def test_a_wrong_request_is_answered_to_the_client_with_state_and_issuer(
    server: Server, client: OAuthClient, person: Person, changes: dict[str, str | None], error: str
) -> None:
    """RFC 6749 §4.1.2.1; RFC 9207 §2: `iss` on errors too, or a careful client must throw them away."""
    page = person.open(client.authorization_url(**changes))
    assert page.left.startswith(f"{REDIRECT_URI}?"), (page.status, page.text)
    answer = parameters_of(page.left)
    assert (answer["error"], answer["iss"], answer["state"]) == (error, server.url, client.state)
    assert "code" not in answer


@pytest.mark.pain("P17")
def test_our_own_resource_spelled_otherwise_is_a_foreign_one(
    server: Server, client: OAuthClient, person: Person
) -> None:
    for resource in (
        f"{server.url}/mcp/",
        f"{server.url}/mcp/more",
        server.url,
        [f"{server.url}/mcp", f"{server.url}/sse"],
    ):
        answer = parameters_of(person.open(client.authorization_url(resource=resource)).left)
        assert answer["error"] == "invalid_target", resource


@pytest.mark.threat("T28")
@pytest.mark.pain("P39")
def test_an_error_is_not_redirected_by_itself_to_a_host_that_registered_itself(server: Server, person: Person) -> None:
    """Else anybody could register `https://evil/` and use our address to send people there."""
    client = OAuthClient(server.url, redirect_uri="https://evil.example/cb").register()
    page = person.open(client.authorization_url(scope="read:everything"))
    assert (page.status, page.left) == (400, "")
    link = next(link for link in page.links if link.startswith("https://evil.example/cb?"))
    assert parameters_of(link)["error"] == "invalid_scope"
    assert "evil.example" in page.text


# -- PKCE and the code -------------------------------------------------------------------------------------------------


@pytest.mark.pain("P39")
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_verifier": "v" * 64}, "invalid_grant"),
        ({"code_verifier": None}, "invalid_request"),
        ({"redirect_uri": "http://127.0.0.1:53682/other"}, "invalid_request"),
        ({"resource": "https://elsewhere.example/"}, "invalid_target"),
        ({"code": "guessed"}, "invalid_grant"),
        ({"code": None}, "invalid_request"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": None}, "invalid_request"),
        ({"client_id": "nobody"}, "invalid_client"),
    ],
)
def test_the_code_is_worth_nothing_without_the_rest(
    client: OAuthClient, person: Person, changes: dict[str, str | None], error: str
) -> None:
    code = person.allow(client.authorization_url())["code"]
    response = client.redeem(code, **changes)
    assert response.json()["error"] == error, response.text
    assert response.status_code == (401 if error == "invalid_client" else 400)
    assert "access_token" not in response.text


@pytest.mark.pain("P39")
def test_a_code_belongs_to_the_client_that_asked_for_it(server: Server, client: OAuthClient, person: Person) -> None:
    code = person.allow(client.authorization_url())["code"]
    mallory = OAuthClient(server.url, name="Mallory").register()
    stolen = mallory.redeem(code, code_verifier=client.verifier)
    assert (stolen.status_code, stolen.json()["error"]) == (400, "invalid_grant")
    assert client.redeem(code).status_code == 200


def test_a_code_used_twice_ends_what_it_gave(client: OAuthClient, person: Person) -> None:
    """RFC 6749 §4.1.2: two users of one code are one user too many."""
    code = person.allow(client.authorization_url())["code"]
    client.tokens = client.redeem(code).json()
    assert not is_dead(client)
    again = client.redeem(code)
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    seconds_until(lambda: is_dead(client), 1.5)
    assert client.refresh(client.tokens["refresh_token"]).json()["error"] == "invalid_grant"


# -- resource: what a token is for -------------------------------------------------------------------------------------


@pytest.mark.pain("P17")
def test_a_token_for_one_endpoint_is_no_good_at_the_other(server: Server, client: OAuthClient, person: Person) -> None:
    client.connect(person, resource=f"{server.url}/sse")
    assert is_dead(client)
    stream = plain().get(f"{server.url}/sse", headers=_bearer(client), stream=True, timeout=5)
    assert stream.status_code == 200
    stream.close()


def test_a_client_that_names_no_resource_gets_a_token_for_both(
    server: Server, client: OAuthClient, person: Person
) -> None:
    client.connect(person, resource=None)
    assert not is_dead(client)
    stream = plain().get(f"{server.url}/sse", headers=_bearer(client), stream=True, timeout=5)
    assert stream.status_code == 200
    stream.close()


def test_the_token_request_may_narrow_and_never_widen(server: Server, client: OAuthClient, person: Person) -> None:
    code = person.allow(client.authorization_url(resource=None))["code"]
    client.tokens = client.redeem(code, resource=f"{server.url}/sse").json()
    assert is_dead(client)
    code = person.allow(client.authorization_url(resource=f"{server.url}/mcp"))["code"]
    assert client.redeem(code, resource=f"{server.url}/sse").json()["error"] == "invalid_target"
    assert client.redeem(code).status_code == 200, "a refused request must not spend the code"


def _bearer(client: OAuthClient) -> dict[str, str]:
    return {"Authorization": f"Bearer {client.tokens['access_token']}", "Accept": "text/event-stream"}


def test_a_token_in_the_address_or_the_body_is_no_token(server: Server, client: OAuthClient, person: Person) -> None:
    client.connect(person)
    token = client.tokens["access_token"]
    response = plain().post(
        f"{client.mcp}?{urlencode({'access_token': token})}", data={"access_token": token}, timeout=5
    )
    assert response.status_code == 401


# -- refresh -----------------------------------------------------------------------------------------------------------


def test_a_refresh_token_is_renewed_with_each_use_and_a_retry_gets_the_same_answer(
    client: OAuthClient, person: Person
) -> None:
    client.connect(person)
    first = client.refresh(client.tokens["refresh_token"])
    retried = client.refresh(client.tokens["refresh_token"])
    assert first.status_code == 200
    assert first.json()["refresh_token"] != client.tokens["refresh_token"]
    assert retried.content == first.content, "the answer that was lost on the way, byte for byte"
    client.tokens = first.json()
    assert not is_dead(client)


@pytest.mark.threat("T13")
def test_a_refresh_token_that_comes_back_late_ends_the_family(
    server: Server, client: OAuthClient, person: Person
) -> None:
    """Once its successor is in use, and 30 s have gone by, only a thief still has the old one."""
    client.connect(person)
    old = client.tokens["refresh_token"]
    client.tokens = client.refresh(old).json()
    assert not is_dead(client)
    server.shell(
        "from datetime import timedelta\n"
        "from oauth_relay.models import RefreshToken\n"
        "for token in RefreshToken.objects.filter(first_used_at__isnull=False):\n"
        "    token.first_used_at -= timedelta(seconds=31)\n"
        "    token.save(update_fields=['first_used_at'])\n"
    )
    refused = client.refresh(old)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
    seconds_until(lambda: is_dead(client), 1.5)
    assert client.refresh(client.tokens["refresh_token"]).json()["error"] == "invalid_grant"


def test_refreshing_may_ask_for_less_and_never_for_more(client: OAuthClient, person: Person) -> None:
    client.connect(person, scope="read:todos")
    more = client.refresh(client.tokens["refresh_token"], scope="read:todos write:todos")
    assert (more.status_code, more.json()["error"]) == (400, "invalid_scope")
    assert client.refresh(client.tokens["refresh_token"], scope="read:todos").status_code == 200


def test_a_refresh_token_belongs_to_its_client(server: Server, client: OAuthClient, person: Person) -> None:
    client.connect(person)
    mallory = OAuthClient(server.url, name="Mallory").register()
    assert mallory.refresh(client.tokens["refresh_token"]).json()["error"] == "invalid_grant"
    assert client.refresh(client.tokens["refresh_token"]).status_code == 200


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
def test_a_client_that_signs_out_ends_its_tokens_and_nobody_elses(
    server: Server, client: OAuthClient, person: Person, kind: str
) -> None:
    other = OAuthClient(server.url, name="Other").register().connect(person)
    client.connect(person)
    assert not is_dead(client)
    assert client.revoke(client.tokens[kind]).status_code == 200
    seconds_until(lambda: is_dead(client), 1.5)
    assert client.refresh(client.tokens["refresh_token"]).json()["error"] == "invalid_grant"
    assert client.revoke("unknown").status_code == 200, "RFC 7009 §2.2: what was wanted is already so"
    assert not is_dead(other)


@pytest.mark.threat("T12")
@pytest.mark.pain("P30")
def test_withdrawing_ends_everything_of_that_client_within_a_second(server: Server, person: Person) -> None:
    client = OAuthClient(server.url, name="To be withdrawn").register().connect(person)
    other = OAuthClient(server.url, name="To be kept").register().connect(person)
    unspent = person.allow(client.authorization_url())["code"]
    assert not is_dead(client) and not is_dead(other)
    page = person.withdraw("To be withdrawn")
    assert "To be withdrawn is disconnected" in page.text and "To be kept" in page.text
    took = seconds_until(lambda: is_dead(client), 1.5)
    print(f"withdrawn after {took:.2f} s")
    assert client.redeem(unspent).json()["error"] == "invalid_grant"
    assert client.refresh(client.tokens["refresh_token"]).json()["error"] == "invalid_grant"
    assert not is_dead(other)


def test_after_withdrawing_the_person_is_asked_afresh(server: Server, person: Person) -> None:
    client = OAuthClient(server.url, name="Comes again").register().connect(person)
    person.withdraw("Comes again")
    page = person.open(client.authorization_url())
    assert page.has_button("allow") and "Allowed before" not in page.text
    person.answer(page, "allow")


def test_the_connections_page_asks_who_is_there(server: Server) -> None:
    page = Person(server.url).open("/connections")
    assert page.has_button("sign_in") and "which AI clients act for you" in page.text


# -- the person says no ------------------------------------------------------------------------------------------------


@pytest.mark.pain("P21")
def test_deny_reaches_the_client_with_state_and_issuer(server: Server, client: OAuthClient, person: Person) -> None:
    answer = person.answer(person.consent_page(client.authorization_url()), "deny")
    assert (answer["error"], answer["state"], answer["iss"]) == ("access_denied", client.state, server.url)


@pytest.mark.pain("P20")
@pytest.mark.pain("P21")
def test_cancel_on_the_sign_in_page_reaches_the_client_too(server: Server, client: OAuthClient, person: Person) -> None:
    answer = person.answer(person.open(client.authorization_url()), "cancel")
    assert (answer["error"], answer["state"], answer["iss"]) == ("access_denied", client.state, server.url)


def test_a_wrong_password_stays_on_the_page_and_keeps_the_request(client: OAuthClient, person: Person) -> None:
    page = person.open(client.authorization_url())
    refused = person.browser.press(page, "sign_in", fill={"username": "demo", "password": "wrong"})
    assert refused.status == 403 and "do not match" in refused.text and "Inspector" in refused.text
    assert person.answer(person.sign_in(refused), "allow")["code"]


# -- more than one tab -------------------------------------------------------------------------------------------------


@pytest.mark.pain("P20")
def test_two_tabs_at_once_do_not_mix(server: Server, person: Person) -> None:
    one, two = (OAuthClient(server.url, name=name).register() for name in ("Tab one", "Tab two"))
    first, second = person.open(one.authorization_url()), person.open(two.authorization_url())
    second_consent = person.sign_in(second)
    first_consent = person.sign_in(first)
    assert "Tab one" in first_consent.text and "Tab two" in second_consent.text
    answer_two, answer_one = person.answer(second_consent, "allow"), person.answer(first_consent, "allow")
    assert (answer_one["state"], answer_two["state"]) == (one.state, two.state)
    assert one.redeem(answer_two["code"]).json()["error"] == "invalid_grant"
    assert one.redeem(answer_one["code"]).status_code == two.redeem(answer_two["code"]).status_code == 200


@pytest.mark.threat("T27")
@pytest.mark.pain("P20")
def test_a_form_posted_twice_answers_once(server: Server, client: OAuthClient, person: Person) -> None:
    page = person.consent_page(client.authorization_url())
    assert person.answer(page, "allow")["code"]
    again = person.browser.press(page, "allow")
    assert (again.status, again.left) == (409, "") and "already answered" in again.text
    denied = person.browser.press(page, "deny")
    assert (denied.status, denied.left) == (409, "")


@pytest.mark.threat("T27")
def test_four_clicks_at_once_give_one_code(server: Server, client: OAuthClient, person: Person) -> None:
    page = person.consent_page(client.authorization_url())
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: person.browser.press(page, "allow"), range(4)))
    codes = [parameters_of(answer.left)["code"] for answer in answers if answer.left]
    assert len(codes) == 1, [(answer.status, answer.left) for answer in answers]
    assert sorted(answer.status for answer in answers) == [302, 409, 409, 409]


@pytest.mark.threat("T27")
def test_a_form_without_its_own_token_records_nothing(client: OAuthClient, person: Person) -> None:
    """The cookie alone is no answer: somebody else's page could send the form, too."""
    page = person.open(client.authorization_url())
    forged = person.browser.press(
        page, "sign_in", fill={"username": "demo", "password": "demo", "form_token": "x" * 64}
    )
    assert forged.status == 409 and forged.has_button("sign_in")
    consent = person.sign_in(page)
    for button in ("allow", "deny"):
        redrawn = person.browser.press(consent, button, fill={"form_token": "x" * 64})
        assert redrawn.left == "" and "out of date" in redrawn.text and redrawn.has_button("allow")
    assert person.answer(redrawn, "allow")["code"]


@pytest.mark.threat("T27")
@pytest.mark.pain("P20")
def test_a_page_loaded_twice_keeps_working(client: OAuthClient, person: Person) -> None:
    page = person.consent_page(client.authorization_url())
    reloaded = person.open(page.url)
    assert reloaded.has_button("allow")
    assert person.answer(page, "allow")["code"]


@pytest.mark.threat("T27")
@pytest.mark.pain("P18")
def test_another_browser_cannot_answer_for_this_one(server: Server, client: OAuthClient, person: Person) -> None:
    page = person.consent_page(client.authorization_url())
    stranger = Person(server.url)
    stranger.sign_in_first()
    refused = stranger.browser.press(page, "allow")
    assert (refused.status, refused.left) == (409, "")
    assert person.answer(page, "allow")["code"]


@pytest.mark.threat("T27")
@pytest.mark.pain("P35")
def test_the_account_that_reads_the_page_is_the_one_that_answers(
    server: Server, client: OAuthClient, person: Person
) -> None:
    server.shell(_make_ada())
    page = person.consent_page(client.authorization_url())
    tab_two = Person(server.url, username="ada", password="correct horse battery")
    tab_two.browser = person.browser
    person.browser.session.cookies.pop("cair_session", None)
    tab_two.sign_in_first()
    redrawn = person.browser.press(page, "allow")
    assert redrawn.left == "" and "changed" in redrawn.text and "Ada Lovelace" in redrawn.text


def _make_ada() -> str:
    return (
        "from oauth_relay.models import User\n"
        "if not User.objects.filter(username='ada').exists():\n"
        "    User.objects.create_user('ada', 'ada@example.com', 'correct horse battery', first_name='Ada',"
        " last_name='Lovelace')\n"
    )


# -- scopes ------------------------------------------------------------------------------------------------------------


def test_a_person_narrows_what_was_asked_by_unticking(client: OAuthClient, person: Person) -> None:
    client.connect(person, untick={"write:todos"})
    assert client.tokens["scope"] == "read:todos"
    assert client.todos() is not None
    refused = client.call("create_todo", title="Not allowed")
    assert refused.status_code == 403


def test_unticking_everything_is_not_taken_for_an_answer(client: OAuthClient, person: Person) -> None:
    page = person.consent_page(client.authorization_url())
    still = person.browser.press(page, "allow", untick={"read:todos", "write:todos"})
    assert still.left == "" and "choose Deny" in still.text and still.has_button("allow")


def test_a_ticked_scope_that_was_not_asked_is_not_given(client: OAuthClient, person: Person) -> None:
    page = person.consent_page(client.authorization_url(scope="read:todos"))
    forged = _with_extra_tick(page, "write:todos")
    answer = person.answer(forged, "allow")
    assert client.redeem(answer["code"]).json()["scope"] == "read:todos"


def _with_extra_tick(page: Page, scope: str) -> Page:
    page.form_with("allow").fields.append(Field("hidden", "scope", scope))
    return page


def test_a_client_that_asks_for_no_scope_is_offered_the_usual_ones(client: OAuthClient, person: Person) -> None:
    client.connect(person, scope=None)
    assert set(client.tokens["scope"].split()) == {"read:todos", "write:todos"}


def test_a_tool_beyond_the_token_asks_for_more_and_a_new_authorization_gives_it(
    server: Server, client: OAuthClient, person: Person
) -> None:
    client.connect(person)
    refused = client.call("list_billing")
    challenge = challenge_of(refused)
    assert refused.status_code == 403
    assert challenge["error"] == "insufficient_scope"
    assert "read:billing" in challenge["scope"].split()
    assert challenge["resource_metadata"] == f"{server.url}/.well-known/oauth-protected-resource/mcp"
    wider = f"{client.tokens['scope']} {challenge['scope']}"
    page = person.open(client.authorization_url(scope=" ".join(dict.fromkeys(wider.split()))))
    assert "See your billing details" in page.text
    client.tokens = client.redeem(person.answer(page, "allow")["code"]).json()
    assert "read:billing" in client.tokens["scope"].split()
    billed = client.call("list_billing")
    assert billed.status_code == 200 and not result_of(billed).get("isError"), billed.text


@pytest.mark.pain("P18")
def test_a_signed_in_person_is_still_asked_about_a_new_client(server: Server, person: Person) -> None:
    """A session is no consent: T8, the confused deputy."""
    person.sign_in_first()
    page = person.open(OAuthClient(server.url, name="Newcomer").register().authorization_url())
    assert page.left == "" and page.has_button("allow") and "Newcomer" in page.text


def test_prompt_login_asks_for_the_password_again(client: OAuthClient, person: Person) -> None:
    person.sign_in_first()
    page = person.open(client.authorization_url(prompt="login"))
    assert page.has_button("sign_in") and not page.has_button("allow")
    assert person.answer(person.sign_in(page), "allow")["code"]


# -- the pages themselves ----------------------------------------------------------------------------------------------


def test_no_page_can_be_framed_or_run_a_script(client: OAuthClient, person: Person) -> None:
    sign_in = person.open(client.authorization_url())
    pages = [sign_in, person.sign_in(sign_in), person.open("/connections"), person.open("/"), person.open("/nowhere")]
    for page in pages:
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy, page.url
        assert "script-src" not in policy and "unsafe-inline" not in policy
        assert page.headers["X-Frame-Options"] == "DENY"
        assert "<script" not in page.html and "style=" not in page.html and " onclick" not in page.html


def test_pages_with_a_decision_are_not_kept_by_caches(client: OAuthClient, person: Person) -> None:
    sign_in = person.open(client.authorization_url())
    for page in (sign_in, person.sign_in(sign_in), person.open("/connections")):
        assert "no-store" in page.headers["Cache-Control"]


def test_a_name_made_to_deceive_is_text_and_nothing_else(server: Server, person: Person) -> None:
    client = OAuthClient(server.url, name="<b>Trusted</b> <script>alert(1)</script>").register()
    page = person.consent_page(client.authorization_url())
    assert "<script>alert" not in page.html and "&lt;script&gt;alert(1)" in page.html


def test_the_answer_to_a_preflight_lets_browser_clients_in(server: Server) -> None:
    for path in ("/token", "/register", "/revoke", "/.well-known/oauth-authorization-server"):
        response = requests.options(
            server.url + path,
            headers={
                "Origin": "https://client.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
            timeout=5,
        )
        assert response.status_code == 204, path
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers
