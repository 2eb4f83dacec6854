"""Panva's oauth4webapi and openid-client judge every answer of a whole flow; the scripted person sits at their browser.

They refuse what lenient clients pass over: an issuer that differs by a slash, a response without `iss`, a token answer of
the wrong type, an error that is none in the sense of RFC 6749 §5.2.
"""

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.flows.node_program import NodeProgram, node
from tests.servers import Server
from tests.walk import REDIRECT_URI, Person, parameters_of

pytestmark = pytest.mark.node

LIBRARIES = ["oauth4webapi", "openid-client"]
METHODS = ["none", "client_secret_basic", "client_secret_post"]
ENDS_WITHIN = 3.0
AWKWARD = "a:b%c+d e/f&g=h\"i'j~k!l*m(n)o_p-q.r"
"""A secret in which every character means something to somebody on the way (RFC 6749 §2.3.1, RFC 7617 §2)."""


@pytest.fixture(scope="module")
def server(sqlite_server: Server) -> Server:
    """Which database it is is not the point here: the walks are made on both elsewhere."""
    return sqlite_server


@pytest.fixture(scope="module")
def person(server: Server) -> Person:
    return Person(server.url)


class Judged:
    """One strict client and what it said last."""

    def __init__(self, server: Server, person: Person, program: NodeProgram) -> None:
        self.server, self.person, self.program = server, person, program
        self.client: dict[str, Any] = {}

    def tell(self, what: str, **more: Any) -> dict[str, Any]:
        self.program.write({"do": what, **more})
        return self.program.message()

    def order(self, what: str, **more: Any) -> Any:
        """What came of an order that must be carried out."""
        told = self.tell(what, **more)
        assert "done" in told, told
        return told["done"]

    def register(self, method: str = "none", **metadata: Any) -> "Judged":
        self.order("discover")
        asked = {
            "client_name": "Strict",
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": method,
        } | metadata
        self.client = self.order("register", metadata=asked)
        return self

    def sent_back(self, button: str = "allow", **changes: Any) -> str:
        """The address to which the person's answer sends the browser."""
        page = self.person.consent_page(self.order("authorize", **changes))
        return self.person.browser.press(page, button).left

    def connect(self, **changes: Any) -> dict[str, Any]:
        tokens: dict[str, Any] = self.order("redeem", back=self.sent_back(**changes))
        return tokens

    def refused(self, what: str, **more: Any) -> dict[str, Any]:
        """How the library understood a refusal: as an error of OAuth, never as an answer it cannot read."""
        told = self.tell(what, **more)
        assert told.get("code") in ("OAUTH_RESPONSE_BODY_ERROR", "OAUTH_WWW_AUTHENTICATE_CHALLENGE"), told
        return told


@pytest.fixture(params=LIBRARIES, scope="module")
def program(server: Server, request: pytest.FixtureRequest) -> Iterator[NodeProgram]:
    with node("clients/strict.mjs", request.param, server.mcp, REDIRECT_URI) as program:
        yield program


@pytest.fixture
def judged(server: Server, person: Person, program: NodeProgram) -> Judged:
    return Judged(server, person, program)


# -- the whole way -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_it_goes_the_whole_way_from_discovery_to_revocation(judged: Judged, method: str) -> None:
    judged.register(method)
    tokens = judged.connect()
    assert (tokens["token_type"].lower(), set(tokens["scope"].split())) == ("bearer", {"read:todos", "write:todos"})
    assert "list_todos" in judged.order("list", token=tokens["access_token"])
    fresh = judged.order("refresh", token=tokens["refresh_token"], more={"resource": judged.server.mcp})
    assert fresh["refresh_token"] != tokens["refresh_token"]
    assert "list_todos" in judged.order("list", token=fresh["access_token"])
    judged.order("revoke", token=fresh["refresh_token"])
    assert judged.refused("refresh", token=fresh["refresh_token"])["oauth"] == "invalid_grant"
    assert _comes_to_its_end(judged, fresh["access_token"])


def _comes_to_its_end(judged: Judged, access_token: str) -> bool:
    """A second at most on any worker (T12); the answer is then the challenge that the library understands."""
    until = time.monotonic() + ENDS_WITHIN
    while "done" in (told := judged.tell("list", token=access_token)):
        assert time.monotonic() < until, "the token outlived its revocation"
        time.sleep(0.05)
    return bool(told["status"] == 401 and told["challenges"][0]["parameters"]["error"] == "invalid_token")


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_a_secret_of_awkward_characters_arrives_as_it_is(judged: Judged, method: str) -> None:
    judged.register(method)
    _set_secret(judged, AWKWARD)
    judged.order("adopt", client={**judged.client, "client_secret": AWKWARD})
    tokens = judged.connect()
    assert judged.order("refresh", token=tokens["refresh_token"])["access_token"]
    judged.order("adopt", client={**judged.client, "client_secret": AWKWARD.replace("+", " ")})
    assert judged.refused("refresh", token=tokens["refresh_token"])["status"] == 401


def _set_secret(judged: Judged, raw_secret: str) -> None:
    """An operator may have chosen it; ours are made of letters and digits."""
    judged.server.shell(
        "from oauth_relay.models import Client\n"
        f"client = Client.objects.get(client_id={judged.client['client_id']!r})\n"
        f"client.client_secret = {raw_secret!r}\n"
        "client.save()"
    )


@pytest.mark.parametrize("program", ["oauth4webapi"], indirect=True)
def test_the_resource_leads_to_its_authorization_server_and_both_are_what_they_say(judged: Judged) -> None:
    """RFC 9728 §3.3, RFC 8414 §3.3: each document names exactly what it was asked for."""
    found = judged.order("discover")
    challenge = judged.refused("challenge")["challenges"][0]
    assert challenge["parameters"]["resource_metadata"] == (
        f"{judged.server.url}/.well-known/oauth-protected-resource/mcp"
    )
    assert found["described"]["resource"] == judged.server.mcp
    assert found["server"]["issuer"] == judged.server.url
    assert found["server"]["authorization_response_iss_parameter_supported"] is True


def test_the_request_it_builds_is_the_one_that_is_answered(judged: Judged) -> None:
    judged.register()
    back = parameters_of(judged.sent_back())
    asked = judged.order("authorize")
    assert set(back) == {"code", "state", "iss"} and back["iss"] == judged.server.url
    assert parameters_of(asked)["resource"] == judged.server.mcp


# -- and when it is refused --------------------------------------------------------------------------------------------


def test_it_reads_the_persons_refusal_as_an_answer_of_this_server(judged: Judged) -> None:
    """RFC 9207 §2: `iss` in error responses too, else it would not believe that we said so."""
    told = judged.register().tell("redeem", back=judged.sent_back("deny"))
    assert (told["code"], told["oauth"]) == ("OAUTH_AUTHORIZATION_RESPONSE_ERROR", "access_denied")


def test_it_notices_an_answer_of_somebody_else(judged: Judged) -> None:
    """What the `iss` is for: the same code, said to come from elsewhere, never reaches our token endpoint."""
    back = judged.register().sent_back()
    forged = back.replace("iss=http", "iss=https")
    assert forged != back
    told = judged.tell("redeem", back=forged)
    assert told["code"] == "OAUTH_INVALID_RESPONSE" and "wire" not in told, told


def test_a_wrong_verifier_a_spent_code_and_a_dead_token_are_errors_of_rfc_6749(judged: Judged) -> None:
    judged.register()
    told = judged.refused("redeem", back=judged.sent_back(), verifier=secrets.token_urlsafe(48))
    assert (told["oauth"], _on_the_wire(told)) == ("invalid_grant", (400, "application/json", "no-store"))
    back = judged.sent_back()
    judged.order("redeem", back=back)
    told = judged.refused("redeem", back=back)
    assert (told["oauth"], _on_the_wire(told)) == ("invalid_grant", (400, "application/json", "no-store"))
    told = judged.refused("refresh", token="nobody-issued-this")
    assert (told["oauth"], _on_the_wire(told)) == ("invalid_grant", (400, "application/json", "no-store"))


def test_a_foreign_resource_at_the_token_endpoint_is_an_invalid_target(judged: Judged) -> None:
    tokens = judged.register().connect()
    told = judged.refused("refresh", token=tokens["refresh_token"], more={"resource": "https://other.example/mcp"})
    assert (told["oauth"], told["status"]) == ("invalid_target", 400)
    assert judged.order("refresh", token=tokens["refresh_token"])["access_token"]


def test_a_client_that_cannot_prove_itself_by_basic_is_challenged_for_it(judged: Judged) -> None:
    """> … the authorization server MUST respond with an HTTP 401 … and include the "WWW-Authenticate" response header
    > field matching the authentication scheme used by the client. (RFC 6749 §5.2)"""
    judged.register("client_secret_basic")
    judged.order("adopt", client={**judged.client, "client_secret": "wrong"})
    told = judged.refused("refresh", token="whatever")
    assert _on_the_wire(told) == (401, "application/json", "no-store")
    assert told["challenges"][0]["scheme"] == "basic"
    assert json.loads(told["wire"]["body"])["error"] == "invalid_client"


@pytest.mark.pain("P9")
@pytest.mark.pain("P16")
@pytest.mark.parametrize("method", ["none", "client_secret_post"])
def test_a_client_that_is_unknown_or_wrong_in_the_body_learns_that_it_is_invalid(judged: Judged, method: str) -> None:
    """Unknown and wrong read the same; clients throw their registration away on this very word (pains P9, P16)."""
    judged.register(method)
    judged.order("adopt", client={**judged.client, "client_id": "swept-away", "client_secret": "wrong"})
    told = judged.refused("refresh", token="whatever")
    assert _on_the_wire(told) == (401, "application/json", "no-store")
    assert json.loads(told["wire"]["body"])["error"] == "invalid_client"


def test_a_registration_that_cannot_be_is_refused_in_its_own_words(judged: Judged) -> None:
    """RFC 7591 §3.2.2."""
    judged.order("discover")
    metadata = {"token_endpoint_auth_method": "none", "redirect_uris": ["http://elsewhere.example/cb"]}
    told = judged.refused("register", metadata=metadata)
    assert (told["oauth"], told["status"]) == ("invalid_redirect_uri", 400)


def test_revoking_what_is_not_there_is_no_error(judged: Judged) -> None:
    """> Note: invalid tokens do not cause an error response … (RFC 7009 §2.2)"""
    judged.register()
    assert judged.order("revoke", token="nobody-issued-this") is True


def _on_the_wire(told: dict[str, Any]) -> tuple[int, str, str]:
    wire = told["wire"]
    return wire["status"], wire["type"].partition(";")[0], wire["cache"]
