"""What real clients send, as others have recorded it, all the way from registration to their tools.

The shapes are in `recorded/`, each with where it comes from; what no source shows is named there as assumed.
"""

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from cair.demo.person import Page
from tests.document_host import DocumentHost
from tests.servers import Server
from tests.walk import SECONDS, OAuthClient, Person, challenge_of, parameters_of, plain, result_of

FIXTURES = Path(__file__).resolve().parent / "recorded"


@pytest.fixture(scope="module")
def server(sqlite_server: Server) -> Server:
    """Which database it is is not the point here: the walks are made on both elsewhere."""
    return sqlite_server


@dataclass(frozen=True)
class Recorded:
    """One client as it was seen: what it registers, how often, and each way in which it then asks."""

    client: str
    source: list[str]
    assumed: list[str]
    registration: dict[str, Any] = field(default_factory=dict)
    registers: int = 1
    replaced: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    authorizations: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def read(cls, name: str) -> "Recorded":
        return cls(**json.loads((FIXTURES / f"{name}.json").read_text()))


REGISTERING = {name: Recorded.read(name) for name in ("claude", "cursor", "vs_code", "copilot_cli")}
WALKS = [
    pytest.param(recorded, authorization, used, id=f"{name}-{authorization['redirect_uri']}-{used + 1}")
    for name, recorded in REGISTERING.items()
    for authorization in recorded.authorizations
    for used in range(recorded.registers)
]


def filled_in(shape: Mapping[str, Any], server: Server) -> dict[str, Any]:
    """The shape with this server's own words in it: clients ask for what the challenge names."""
    challenge = challenge_of(OAuthClient(server.url).ask("tools/list"))
    words = {"$scopes": challenge["scope"], "$resource": server.mcp}
    return {name: words.get(value, value) if isinstance(value, str) else value for name, value in shape.items()}


def register(server: Server, recorded: Recorded) -> list[OAuthClient]:
    """As often as it does; each answer holds all that it sent, but for what this server is known to replace."""
    asked = filled_in(recorded.registration, server)
    clients = [OAuthClient(server.url, name=recorded.client).register(**asked) for _ in range(recorded.registers)]
    for client in clients:
        answered = {name: client.registration.get(name) for name in asked}
        assert answered == {**asked, **recorded.replaced}
    return clients


def arrived(page: Page, redirect_uri: str) -> dict[str, str]:
    """What reaches the client's own address: by a redirect, or by the link of a page that hands over."""
    ways = [page.left, *page.links]
    ours = [way for way in ways if way.startswith(f"{redirect_uri}?")]
    assert ours, (page.status, page.left, page.text)
    return parameters_of(ours[0])


def secret_of(client: OAuthClient) -> dict[str, str]:
    """What a client of this method adds to the body of each token request."""
    if client.registration["token_endpoint_auth_method"] == "none":
        assert "client_secret" not in client.registration
        return {}
    assert client.registration["client_secret_expires_at"] == 0
    return {"client_secret": client.registration["client_secret"]}


@pytest.mark.pain("P6")
@pytest.mark.pain("P7")
@pytest.mark.pain("P13")
@pytest.mark.pain("P22")
@pytest.mark.parametrize("recorded, authorization, used", WALKS)
def test_it_comes_from_registration_to_its_tools(
    server: Server, recorded: Recorded, authorization: dict[str, str], used: int
) -> None:
    """P6 (another loopback port), P7 (a custom scheme), P13 (a refresh token unasked), P22 (nothing Claude stops at)."""
    client, person = register(server, recorded)[used], Person(server.url)
    asked = filled_in(authorization, server)
    request = client.authorization_url(**asked)
    page = person.browser.press(person.consent_page(request), "allow")
    answer = arrived(page, asked["redirect_uri"])
    assert (answer["state"], answer["iss"]) == (asked.get("state", client.state), server.url)
    secret = secret_of(client)
    redeemed = client.redeem(answer["code"], redirect_uri=asked["redirect_uri"], **secret)
    assert redeemed.status_code == 200, redeemed.text
    assert set(redeemed.json()["scope"].split()) == set(asked["scope"].split())
    refreshed = client.refresh(redeemed.json()["refresh_token"], resource=server.mcp, **secret)
    assert refreshed.status_code == 200, refreshed.text
    listed = client.ask("tools/list", token=refreshed.json()["access_token"])
    assert "list_todos" in [tool["name"] for tool in result_of(listed)["tools"]]


@pytest.mark.pain("P22")
@pytest.mark.parametrize("recorded", [pytest.param(recorded, id=name) for name, recorded in REGISTERING.items()])
def test_it_can_read_its_registration_where_the_answer_says(server: Server, recorded: Recorded) -> None:
    """P22: Claude gives up in silence where `registration_client_uri` is missing (RFC 7592 §3, §2.1)."""
    [*_, client] = register(server, recorded)
    token = client.registration["registration_access_token"]
    read = plain().get(
        client.registration["registration_client_uri"], headers={"Authorization": f"Bearer {token}"}, timeout=SECONDS
    )
    assert read.status_code == 200
    assert read.json()["redirect_uris"] == recorded.registration["redirect_uris"]


@pytest.mark.pain("P21")
@pytest.mark.parametrize("recorded", [pytest.param(recorded, id=name) for name, recorded in REGISTERING.items()])
def test_it_learns_that_the_person_refused(server: Server, recorded: Recorded) -> None:
    """P21: a refusal arrives like an answer does, with `iss` and `state`."""
    [*_, client] = register(server, recorded)
    asked = filled_in(recorded.authorizations[0], server)
    person = Person(server.url)
    page = person.browser.press(person.consent_page(client.authorization_url(**asked)), "deny")
    answer = arrived(page, asked["redirect_uri"])
    assert (answer["error"], answer["iss"]) == ("access_denied", server.url)
    assert answer["state"] == asked.get("state", client.state)


@pytest.mark.threat("T41")
@pytest.mark.pain("P7")
@pytest.mark.pain("P20")
def test_cursor_is_handed_its_answer_by_a_page_where_a_browser_asks_before_it_opens_an_app(server: Server) -> None:
    """P7, P20: a bare redirect to `cursor:` would leave the person before the form that they have just answered."""
    [client] = register(server, REGISTERING["cursor"])
    asked = filled_in(REGISTERING["cursor"].authorizations[0], server)
    person = Person(server.url)
    person.browser.session.headers["Sec-Fetch-Mode"] = "navigate"
    page = person.browser.press(person.consent_page(client.authorization_url(**asked)), "allow")
    assert (page.status, page.left) == (200, "")
    answer = arrived(page, asked["redirect_uri"])
    assert (answer["state"], answer["iss"]) == (client.state, server.url)
    assert client.redeem(answer["code"], redirect_uri=asked["redirect_uri"]).status_code == 200


@pytest.mark.threat("T6")
@pytest.mark.pain("P8")
def test_claude_has_two_clients_and_neither_has_anything_of_the_other(server: Server) -> None:
    """P8: it registers twice for one connection. The one it leaves behind cannot redeem what the other was given."""
    first, second = register(server, REGISTERING["claude"])
    assert first.client_id != second.client_id
    assert first.registration["client_secret"] != second.registration["client_secret"]
    asked = filled_in(REGISTERING["claude"].authorizations[0], server)
    answer = Person(server.url).allow(first.authorization_url(**asked))
    second.verifier = first.verifier
    redirect_uri = asked["redirect_uri"]
    taken = second.redeem(answer["code"], redirect_uri=redirect_uri, **secret_of(second))
    assert (taken.status_code, taken.json()["error"]) == (400, "invalid_grant")
    with_foreign_secret = first.redeem(answer["code"], redirect_uri=redirect_uri, **secret_of(second))
    assert (with_foreign_secret.status_code, with_foreign_secret.json()["error"]) == (401, "invalid_client")
    assert first.redeem(answer["code"], redirect_uri=redirect_uri, **secret_of(first)).status_code == 200


@pytest.mark.pain("P6")
@pytest.mark.pain("P39")
@pytest.mark.parametrize("port", ["61876", "63450"])
def test_another_port_is_another_way_to_the_same_door_and_nothing_more(server: Server, port: str) -> None:
    """P6, P39: RFC 8252 §7.3 varies the port; not the path, not the name, not the scheme."""
    [client] = register(server, REGISTERING["copilot_cli"])
    for elsewhere in (
        f"http://127.0.0.1:{port}/elsewhere",
        f"http://localhost:{port}/",
        f"https://127.0.0.1:{port}/",
        f"http://127.0.0.1.evil.example:{port}/",
        f"http://evil.example@127.0.0.1:{port}/",
    ):
        page = Person(server.url).open(client.authorization_url(redirect_uri=elsewhere))
        assert (page.status, page.left) == (400, ""), elsewhere
        assert not page.has_button("sign_in")


# -- ChatGPT, by its document ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def chatgpt_host(key: rsa.RSAPrivateKey) -> Iterator[DocumentHost]:
    """This machine in place of chatgpt.com: the document as it is, but for the host in what is fetched."""
    host = DocumentHost(None)
    jwk = {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": "cimd", "use": "sig"}
    host.publish("/oauth/client.json", at_host(Recorded.read("chatgpt").document, host))
    host.publish("/oauth/jwks.json", {"keys": [jwk]})
    yield host
    host.end()


def address_of(host: DocumentHost) -> str:
    return f"http://localhost:{host.port}"


def at_host(document: Mapping[str, Any], host: DocumentHost) -> dict[str, Any]:
    moved = {
        name: document[name].replace("https://chatgpt.com", address_of(host)) for name in ("client_id", "jwks_uri")
    }
    return {**document, **moved}


def proof(client: OAuthClient, audience: str, key: rsa.RSAPrivateKey) -> dict[str, str]:
    """RFC 7523 §2.2; each is good once (`jti`)."""
    now = int(time.time())
    claims = {"iss": client.client_id, "sub": client.client_id, "aud": audience, "iat": now, "exp": now + 60}
    signed = jwt.encode({**claims, "jti": secrets.token_urlsafe(12)}, key, "RS256", headers={"kid": "cimd"})
    return {
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": signed,
    }


@pytest.mark.pain("P24")
@pytest.mark.parametrize("endpoint", ["", "/token"])
def test_chatgpt_comes_by_its_document_and_signs_for_itself(
    server: Server, chatgpt_host: DocumentHost, key: rsa.RSAPrivateKey, endpoint: str
) -> None:
    """P24: its `private_key_jwt`, for the issuer or for the token endpoint; without a registration."""
    asked = filled_in(Recorded.read("chatgpt").authorizations[0], server)
    client = OAuthClient(server.url, name="ChatGPT", client_id=f"{address_of(chatgpt_host)}/oauth/client.json")
    person = Person(server.url)
    page = person.consent_page(client.authorization_url(**asked))
    assert "ChatGPT" in page.text and "persistent.oaistatic.com" not in page.html
    answer = arrived(person.browser.press(page, "allow"), asked["redirect_uri"])
    audience, redirect_uri = server.url + endpoint, asked["redirect_uri"]
    unproved = client.redeem(answer["code"], redirect_uri=redirect_uri)
    assert (unproved.status_code, unproved.json()["error"]) == (401, "invalid_client")
    redeemed = client.redeem(answer["code"], redirect_uri=redirect_uri, **proof(client, audience, key))
    assert redeemed.status_code == 200, redeemed.text
    refreshed = client.refresh(redeemed.json()["refresh_token"], **proof(client, audience, key))
    assert refreshed.status_code == 200, refreshed.text
    listed = client.ask("tools/list", token=refreshed.json()["access_token"])
    assert "list_todos" in [tool["name"] for tool in result_of(listed)["tools"]]


def test_every_shape_says_where_it_comes_from() -> None:
    for file in FIXTURES.iterdir():
        recorded = Recorded.read(file.stem)
        assert recorded.source and recorded.authorizations
        assert bool(recorded.registration) != bool(recorded.document), file.name
