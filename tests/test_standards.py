"""What we say of ourselves is so: the page of standards names tests that exist, the metadata what works and nothing else."""

import ast
import re
import secrets
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.document_host import DocumentHost
from tests.oauth_relay.test_client_assertions import EC, assertion, description_with, public
from tests.servers import ROOT, Server
from tests.walk import REDIRECT_URI, SECONDS, OAuthClient, Person, challenge_of, parameters_of, plain

# -- the page ----------------------------------------------------------------------------------------------------------

SPECIFICATIONS = (
    "RFC 6749", "OAuth 2.1", "RFC 6750", "RFC 7009", "RFC 7523", "RFC 7591", "RFC 7592", "RFC 7636", "RFC 7662",
    "RFC 8252", "RFC 8414", "RFC 8707", "RFC 9068", "RFC 9207", "RFC 9700", "RFC 9728",
    "OAuth Client ID Metadata Document", "OpenID Connect Core", "OpenID Connect Discovery",
    "OpenID Connect RP-Initiated Logout", "OpenID Connect Back-Channel Logout", "MCP 2024-11-05", "MCP 2025-03-26",
    "MCP 2025-06-18", "MCP 2025-11-25", "MCP 2026-07-28",
)  # fmt: skip
STATUSES = ("implemented", "not", "[differs](#where-we-differ)")
_NAMED = re.compile(r"`(?:([\w/]+\.py)::)?(test_\w+)`")
_LEVEL = re.compile(r"^### (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Line:
    """One section of one specification, and what the page says of us."""

    specification: str
    section: str
    status: str
    tests: tuple[tuple[str, str], ...]


def lines_of_the_page() -> list[Line]:
    _, *parts = _LEVEL.split((ROOT / "docs/standards.md").read_text().partition("\n## Where we differ")[0])
    rows = [(parts[n], row) for n in range(0, len(parts), 2) for row in parts[n + 1].splitlines() if row[:1] == "|"]
    cells = [(title, [cell.strip() for cell in row.strip("|").split(" | ")]) for title, row in rows]
    return [
        Line(title, found[0], found[2], tuple(_NAMED.findall(found[-1])))
        for title, found in cells
        if found[0] not in ("§", "---") and not set(found[0]) <= set("-| ")
    ]


def functions_by_file() -> dict[str, set[str]]:
    """The names of all test functions, by their file below tests/."""
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "node_modules" not in path.parts]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        path.relative_to(ROOT / "tests").as_posix(): {
            node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)
        }
        for path in files
    }


def test_every_specification_has_its_heading_once() -> None:
    headings = _LEVEL.findall((ROOT / "docs/standards.md").read_text())
    assert [heading.partition(": ")[0] for heading in headings] == list(SPECIFICATIONS)


@pytest.mark.parametrize("specification", SPECIFICATIONS)
def test_every_line_of_the_page_has_a_status_and_what_is_there_has_its_test(specification: str) -> None:
    lines = [line for line in lines_of_the_page() if line.specification.partition(": ")[0] == specification]
    assert lines, "nothing is said of it"
    assert [line for line in lines if line.status not in STATUSES] == []
    assert [line for line in lines if line.status != "not" and not line.tests] == []
    assert len({line.section for line in lines}) == len(lines), "a section is there twice"


def test_every_test_that_the_page_names_exists_and_is_one() -> None:
    """A name that several files have is written with its file: `test_pages.py::test_…`."""
    files = defaultdict(list)
    for file, names in functions_by_file().items():
        for name in names:
            files[name].append(file)
    named = {test for line in lines_of_the_page() for test in line.tests}
    assert len(named) > 100
    found = {
        (file, name): [path for path in files[name] if not file or f"/{path}".endswith(f"/{file}")]
        for file, name in named
    }
    assert {name: paths for name, paths in found.items() if len(paths) != 1} == {}


def test_what_differs_is_told_in_its_part() -> None:
    page = (ROOT / "docs/standards.md").read_text()
    differing = {line.specification.partition(": ")[0] for line in lines_of_the_page() if "differs" in line.status}
    told = page.partition("\n## Where we differ")[2]
    assert [name for name in sorted(differing) if name not in told] == []


# -- the metadata ------------------------------------------------------------------------------------------------------

ENDPOINTS = {"authorization", "token", "registration", "revocation", "introspection"}
OTHER_METHODS = (
    "client_secret_jwt", "private_key_jwt", "tls_client_auth", "self_signed_tls_client_auth", "attest_jwt_client_auth",
)  # fmt: skip
OTHER_GRANTS = (
    "password",
    "client_credentials",
    "implicit",
    "urn:ietf:params:oauth:grant-type:device_code",
    "urn:ietf:params:oauth:grant-type:jwt-bearer",
    "urn:ietf:params:oauth:grant-type:saml2-bearer",
    "urn:ietf:params:oauth:grant-type:token-exchange",
    "urn:openid:params:grant-type:ciba",
)
PROVED = ["none", "client_secret_post", "client_secret_basic", "private_key_jwt"]
TYPE = {"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}


@pytest.fixture(scope="module")
def server(sqlite_server: Server) -> Server:
    """Which database it is is not the point here: the walks are made on both elsewhere."""
    return sqlite_server


@pytest.fixture(scope="module")
def said(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = plain().get(f"{server.url}/.well-known/oauth-authorization-server", timeout=SECONDS).json()
    return found


@pytest.fixture
def host() -> Iterator[DocumentHost]:
    host = DocumentHost(None)
    yield host
    host.end()


@dataclass
class Proving:
    """A client that the person has connected, and how it proves itself: as parameters of `requests`."""

    client: OAuthClient
    method: str

    def send(self, url: str, **form: str) -> Any:
        secret = self.client.registration.get("client_secret", "")
        data = dict(form)
        if self.method == "client_secret_basic":
            return self.client.http.post(url, data=data, auth=(self.client.client_id, secret), timeout=SECONDS)
        if self.method == "client_secret_post":
            data |= {"client_id": self.client.client_id, "client_secret": secret}
        elif self.method == "none":
            data |= {"client_id": self.client.client_id}
        else:
            data |= {**TYPE, "client_assertion": self.signed()}
        return self.client.http.post(url, data=data, timeout=SECONDS)

    def signed(self) -> str:
        name = self.client.client_id
        return assertion(EC, iss=name, sub=name, aud=self.client.url)

    def redeem(self, issued_code: str) -> Any:
        form = {"grant_type": "authorization_code", "code": issued_code, "code_verifier": self.client.verifier}
        return self.send(f"{self.client.url}/token", redirect_uri=REDIRECT_URI, **form)


def proving(server: Server, host: DocumentHost, method: str) -> Proving:
    if method != "private_key_jwt":
        return Proving(OAuthClient(server.url).register(token_endpoint_auth_method=method), method)
    client = OAuthClient(server.url, client_id=f"http://localhost:{host.port}/client.json")
    host.publish("/client.json", description_with(public(EC), client_id=client.client_id, redirect_uris=[REDIRECT_URI]))
    return Proving(client, method)


@pytest.mark.pain("P23")
def test_every_endpoint_that_the_metadata_names_answers_in_its_own_form(server: Server, said: dict[str, Any]) -> None:
    """At the paths, too, that a client guesses which finds no metadata: /authorize, /token, /register."""
    assert {name.removesuffix("_endpoint") for name in said if name.endswith("_endpoint")} == ENDPOINTS
    for guessed, name in (("authorize", "authorization"), ("token", "token"), ("register", "registration")):
        assert said[f"{name}_endpoint"] == f"{server.url}/{guessed}"
    page = plain().get(said["authorization_endpoint"], timeout=SECONDS)
    assert (page.status_code, page.headers["Content-Type"].partition(";")[0]) == (400, "text/html")
    errors = {"token": "invalid_request", "revocation": "invalid_client", "introspection": "invalid_client"}
    for name, error in errors.items():
        answer = plain().post(said[f"{name}_endpoint"], data={"token": "x", "client_id": "x"}, timeout=SECONDS)
        assert answer.json()["error"] == error, name
    refused = plain().post(said["registration_endpoint"], json={}, timeout=SECONDS)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_redirect_uri")
    assert plain().get(said["jwks_uri"], timeout=SECONDS).json()["keys"]


def test_every_protected_resource_that_it_names_leads_back_to_it(said: dict[str, Any]) -> None:
    """RFC 9728 §4, and §3.3 from the other end."""
    assert len(said["protected_resources"]) == 2
    for resource in said["protected_resources"]:
        described = plain().get(challenge_of(plain().get(resource, timeout=SECONDS))["resource_metadata"], timeout=5)
        assert described.json()["resource"] == resource
        assert described.json()["authorization_servers"] == [said["issuer"]]


@pytest.mark.parametrize("method", PROVED)
def test_every_way_of_proving_a_client_that_it_names_works(
    server: Server, host: DocumentHost, said: dict[str, Any], method: str
) -> None:
    for endpoint in ("token", "revocation"):
        assert sorted(said[f"{endpoint}_endpoint_auth_methods_supported"]) == sorted(PROVED)
    client = proving(server, host, method)
    redeemed = client.redeem(Person(server.url).allow(client.client.authorization_url())["code"])
    assert redeemed.status_code == 200, redeemed.text
    refresh_token = redeemed.json()["refresh_token"]
    refreshed = client.send(said["token_endpoint"], grant_type="refresh_token", refresh_token=refresh_token)
    assert refreshed.status_code == 200, refreshed.text
    form = {"token": refreshed.json()["refresh_token"], "token_type_hint": "pat"}  # RFC 7009 §2.1: hints may be wrong
    assert client.send(said["revocation_endpoint"], **form).status_code == 200
    ended = client.send(said["token_endpoint"], grant_type="refresh_token", refresh_token=form["token"])
    assert ended.json()["error"] == "invalid_grant"
    asked = client.send(said["introspection_endpoint"], token=refreshed.json()["access_token"])
    is_named = method in said["introspection_endpoint_auth_methods_supported"]
    assert asked.status_code == (200 if is_named else 401)


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_no_other_way_of_proving_a_client_can_be_registered(said: dict[str, Any], method: str) -> None:
    """`private_key_jwt` is for clients that publish their keys in a document of their own."""
    metadata = {"redirect_uris": [REDIRECT_URI], "token_endpoint_auth_method": method}
    refused = plain().post(said["registration_endpoint"], json=metadata, timeout=SECONDS)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_client_metadata")


def test_a_secret_is_not_taken_for_a_key(server: Server, said: dict[str, Any]) -> None:
    """`client_secret_jwt`, which the metadata does not name: an assertion under the client's own secret proves nothing."""
    client = OAuthClient(server.url).register(token_endpoint_auth_method="client_secret_post")
    name, secret = client.client_id, client.registration["client_secret"]
    signed = assertion(secret, "HS256", iss=name, sub=name, aud=server.url)
    assert "HS256" not in said["token_endpoint_auth_signing_alg_values_supported"]
    form = {**TYPE, "grant_type": "refresh_token", "refresh_token": "x", "client_assertion": signed}
    refused = plain().post(said["token_endpoint"], data=form, timeout=SECONDS)
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")


def test_every_grant_type_that_it_names_gives_tokens(server: Server, said: dict[str, Any]) -> None:
    client = OAuthClient(server.url).connect(Person(server.url))
    assert client.refresh(client.tokens["refresh_token"]).status_code == 200
    assert said["grant_types_supported"] == ["authorization_code", "refresh_token"]


@pytest.mark.pain("P34")
@pytest.mark.parametrize("grant_type", OTHER_GRANTS)
def test_no_other_grant_type_is_named_or_gives_anything(server: Server, said: dict[str, Any], grant_type: str) -> None:
    """Programs without a person have no way in yet, and are told so: by the metadata, and by the error (T7, T37)."""
    client = OAuthClient(server.url).register(token_endpoint_auth_method="client_secret_post")
    assert grant_type not in said["grant_types_supported"]
    assert not [name for name in said if "device" in name or "backchannel" in name or "pushed" in name]
    more = {"assertion": secrets.token_urlsafe(), "device_code": "x", "username": "demo", "password": "demo"}
    refused = client.token_request(
        grant_type=grant_type, client_secret=client.registration["client_secret"], scope="read:todos", **more
    )
    assert (refused.status_code, refused.json()["error"]) == (400, "unsupported_grant_type")
    for path in ("/device_authorization", "/device-authorization", "/par", "/bc-authorize"):
        assert plain().post(server.url + path, data={"client_id": client.client_id}, timeout=SECONDS).status_code == 404


def test_no_other_response_than_it_names_is_given(server: Server, said: dict[str, Any]) -> None:
    client, person = OAuthClient(server.url).register(), Person(server.url)
    assert (said["response_types_supported"], said["response_modes_supported"]) == (["code"], ["query"])
    for wrong in ("token", "id_token", "code token", "code id_token", "none"):
        answer = parameters_of(person.open(client.authorization_url(response_type=wrong)).left)
        assert answer["error"] in ("unsupported_response_type", "unauthorized_client"), wrong
    for mode in ("fragment", "form_post", "jwt", "query.jwt"):
        answer = parameters_of(person.open(client.authorization_url(response_mode=mode)).left)
        assert answer["error"] == "invalid_request", mode
    assert "code" in person.allow(client.authorization_url(response_mode="query"))


def test_every_scope_that_it_names_can_be_had(server: Server, said: dict[str, Any]) -> None:
    client = OAuthClient(server.url).connect(Person(server.url), scope=" ".join(said["scopes_supported"]))
    assert set(client.tokens["scope"].split()) == set(said["scopes_supported"])
