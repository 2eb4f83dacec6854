"""Whatever is sent to whichever endpoint: the protocol's own error, never a 500, and nothing changes."""

import contextlib
import json
import re
import socket
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import hypothesis
import jwt
import psycopg
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import strategies
from jwt.algorithms import ECAlgorithm

from tests.servers import Server
from tests.walk import MODERN, OAuthClient, Person, parameters_of, plain

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
# Percent-encoded, so that the very bytes arrive.
HOSTILE = {
    "empty": "",
    "NUL": "%00",
    "NUL inside": "a%00b",
    "not UTF-8": "%ff%fe",
    "half a surrogate": "%ed%a0%80",
    "line break": "a%0d%0aSet-Cookie:%20x=1",
    "right to left": "%e2%80%ae",
    "long": "a" * 9000,
    "a list": "%5B%5D",
    "a path": "..%2f..%2fetc%2fpasswd",
    "quotes": "%27%22%3E%3Cscript%3E",
    "a number": "9" * 400,
}
MEGABYTE = "a" * 1_000_000
# What grows by itself with every request, or is what refusals are written down in.
IGNORED_TABLES = ("audit", "session", "sqlite_sequence", "django_migrations")


def counts(server: Server) -> dict[str, int]:
    """How many rows each table has."""
    url = server.environment["DATABASE_URL"]
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {t: connection.execute(f'SELECT count(*) FROM "{t}"').fetchone()[0] for t in tables if _counts(t)}
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        queries = {t: psycopg.sql.SQL("SELECT count(*) FROM {}").format(psycopg.sql.Identifier(t)) for (t,) in found}
        return {t: (connection.execute(q).fetchone() or (0,))[0] for t, q in queries.items() if _counts(t)}


def _counts(table: str) -> bool:
    return not any(word in table for word in IGNORED_TABLES)


@pytest.fixture
def nothing_changes(server: Server, client: OAuthClient) -> Iterator[None]:
    before = counts(server)
    yield
    assert counts(server) == before


@pytest.fixture(scope="module")
def client(server: Server) -> OAuthClient:
    return OAuthClient(server.url).register().connect(Person(server.url), resource=None)


def raw(server: Server, request: bytes) -> tuple[int, str]:
    """Bytes that no client library would send: the status and the rest of the answer; 0 where the server just hung up."""
    with socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port), timeout=5) as peer:
        peer.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := peer.recv(65536):
                answer += piece
    head, _, rest = answer.partition(b"\r\n")
    return int(head.split()[1]) if head else 0, rest.decode("latin-1")


def send(server: Server, method: str, target: str, **options: Any) -> requests.Response:
    return plain().request(method, server.url + target, timeout=10, allow_redirects=False, **options)


def is_oauth_error(response: requests.Response) -> bool:
    """RFC 6749 §5.2: JSON with `error`, and no-store."""
    return (
        400 <= response.status_code < 500
        and response.headers["Content-Type"].startswith("application/json")
        and isinstance(response.json().get("error"), str)
    )


def is_rpc_error(response: requests.Response, *statuses: int) -> bool:
    body = response.json()
    return response.status_code in statuses and body["jsonrpc"] == "2.0" and isinstance(body["error"]["code"], int)


def misuses(form: dict[str, str]) -> dict[str, str]:
    """The bodies in which one parameter of a form is missing, comes twice, is far too long, or holds what is hostile."""
    bodies = {}
    for name, value in form.items():
        others = urlencode([(n, v) for n, v in form.items() if n != name])
        bodies[f"{name} missing"] = others
        bodies[f"{name} twice"] = urlencode([*form.items(), (name, value)])
        bodies[f"{name} of a megabyte"] = f"{others}&{name}={MEGABYTE}"
        bodies[f"{name} of another kind"] = urlencode(
            [*((n, v) for n, v in form.items() if n != name), (f"{name}[]", value)]
        )
        bodies |= {f"{name} {kind}": f"{others}&{name}={hostile}" for kind, hostile in HOSTILE.items()}
    return bodies


def wrong(responses: dict[str, requests.Response], is_right: Any) -> dict[str, tuple[int, str]]:
    """The cases that were not answered as they should be."""
    return {name: (r.status_code, r.text[:200]) for name, r in responses.items() if not is_right(r)}


# -- /authorize: a page, or the client's own redirect URI --------------------------------------------------------------


def query(parameters: dict[str, str], **replaced: str) -> str:
    """A query string in which `replaced` stand as they are, percent-encoding and all."""
    kept = {name: value for name, value in parameters.items() if name not in replaced}
    return "&".join([urlencode(kept), *(f"{name}={value}" for name, value in replaced.items())])


ASKED = ["response_type", "client_id", "redirect_uri", "scope", "code_challenge", "code_challenge_method", "resource"]


def refuses(client: OAuthClient, response: requests.Response) -> bool:
    """Told to the person on a page, or to the client at its own address; nothing else happened."""
    if response.status_code == 302:
        target = response.headers["Location"]
        return target.startswith(f"{client.redirect_uri}?") and "error" in parameters_of(target)
    return response.status_code == 400 and response.headers["Content-Type"].startswith("text/html")


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("name", ASKED)
def test_a_hostile_authorization_parameter_is_refused(server: Server, client: OAuthClient, name: str) -> None:
    asked = parameters_of(client.authorization_url())
    hostile = {kind: value for kind, value in HOSTILE.items() if (name, kind) not in PERMITTED}
    responses = {
        kind: send(server, "GET", f"/authorize?{query(asked, **{name: value})}") for kind, value in hostile.items()
    }
    assert wrong(responses, lambda r: refuses(client, r)) == {}
    for response in responses.values():
        assert "Set-Cookie" not in response.headers or "x=1" not in response.headers["Set-Cookie"]


# RFC 6749 §3.1: "Parameters sent without a value MUST be treated as if they were omitted", and these two may be.
PERMITTED = {("scope", "empty"), ("redirect_uri", "empty")}


@pytest.mark.usefixtures("nothing_changes")
def test_a_repeated_authorization_parameter_is_refused(server: Server, client: OAuthClient) -> None:
    """RFC 6749 §3.1: first-copy and last-copy readers would disagree."""
    asked = parameters_of(client.authorization_url())
    responses = {n: send(server, "GET", f"/authorize?{urlencode([*asked.items(), (n, v)])}") for n, v in asked.items()}
    assert wrong(responses, lambda r: refuses(client, r)) == {}


# Addresses of descriptions that are none. Nothing leaves this machine: what is not refused as it stands leads to loopback,
# to this server itself, or to a name that nobody has (RFC 6761 §6.4).
BAD_ADDRESSES = [
    "https://", "https:///", "https://a", "https://client.invalid", "https://client.invalid/", "https://client.invalid/a?b",
    "https://client.invalid/a?", "https://client.invalid/a#b", "https://client.invalid/a#", "https://client.invalid/../a",
    "https://client.invalid/%2e%2e/a", "https://client.invalid/./a", "https://user@client.invalid/a",
    "https://user:word@client.invalid/a", "https://@client.invalid/a", "https://CLIENT.invalid/a", "HTTPS://client.invalid/a",
    "https://client.invalid:/a", "https://client.invalid:0/a", "https://client.invalid:65536/a", "https://client.invalid:x/a",
    "https://client.invalid:22/a", "https://client.invalid:-1/a", "https://client.invalid./a", "https://.invalid/a",
    "https://client..invalid/a", "https://-client.invalid/a", "https://client_.invalid/a", "https://xn--a.invalid/a",
    "https://ü.invalid/a", "https://a\u2024invalid/a", "https://client。invalid/a", "https://127.0.0.1/a", "https://127.1/a",
    "https://2130706433/a", "https://0x7f.0.0.1/a", "https://0177.0.0.1/a", "https://0.0.0.0/a", "https://169.254.169.254/a",
    "https://[::1]/a", "https://[::ffff:127.0.0.1]/a", "https://[fe80::1%25lo]/a", "https://[::1/a", "https://]/a",
    "https://10.0.0.1/a", "https://client.invalid\\@127.0.0.1/a", "https://client.invalid\\a", "https:client.invalid/a",
    "https:/client.invalid/a", "https:\\\\client.invalid/a", " https://client.invalid/a", "https://client.invalid/a ",
    "https://client.invalid/a b", "https://client.invalid/a\tb", "https://client.invalid/a\r\nHost: x", "https://client.invalid/\0",
    "https://client.invalid/\ud800", "https://client.invalid/%00", "https://client.invalid/%ff", "https://client.invalid/%",
    "https://client.invalid/" + "a" * 231, "https://client.invalid/" + "a" * 9000, "https://" + "a." * 100 + "invalid/a",
    "https://" + "a" * 64 + ".invalid/a", "http://client.invalid/a", "http://", "http:///a", "http://localhost/", "http://localhost:1",
    "http://localhost:1/a", "https://localhost:1/a", "http://127.0.0.1:1/a", "https://[::1]:1/a", "http://[::1]:1/a",
    "http://localhost:99999/a", "http://localhost:x/a", "https://client.invalid/a", "ftp://client.invalid/a", "file:///etc/passwd",
    "data:application/json,{}", "javascript:alert(1)", "//client.invalid/a",
]  # fmt: skip


def own_addresses(server: Server) -> list[str]:
    """What this server answers itself is nobody's description: it must not be talked into calling itself for long."""
    paths = ("/health", "/mcp", "/authorize", "/register", "/.well-known/oauth-authorization-server", "/nowhere")
    port = urlsplit(server.url).port
    return [f"{server.url}{path}" for path in paths] + [f"https://localhost:{port}/health"]


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.threat("T24")
def test_a_client_id_that_is_no_description_ends_on_a_page(server: Server, client: OAuthClient) -> None:
    asked = parameters_of(client.authorization_url())
    responses = {
        address[:60]: send(
            server,
            "GET",
            f"/authorize?{query(asked, client_id=quote(address.encode('utf-8', 'surrogatepass'), safe=''))}",
        )
        for address in [*BAD_ADDRESSES, *own_addresses(server)]
    } | {
        f"… {kind}": send(server, "GET", f"/authorize?{query(asked, client_id=f'https://client.invalid/{value}')}")
        for kind, value in HOSTILE.items()
    }
    assert wrong(responses, lambda r: r.status_code in (400, 503) and is_page(r)) == {}
    secret_words = ("Traceback", "Errno", "refused:", "127.0.0.1:1")
    assert [name for name, r in responses.items() if any(word in r.text for word in secret_words)] == []


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.threat("T24")
@pytest.mark.parametrize("path", ["/token", "/revoke", "/introspect"])
def test_a_client_id_that_is_an_address_fetches_nothing_where_programs_ask(
    server: Server, client: OAuthClient, path: str
) -> None:
    form = {**token_form(client, "refresh_token"), "token": "x"}
    responses = {
        address[:60]: send(server, "POST", path, data={**form, "client_id": address.encode("utf-8", "surrogatepass")})
        for address in [*BAD_ADDRESSES, *own_addresses(server)]
    }
    assert wrong(responses, is_oauth_error) == {}


def is_page(response: requests.Response) -> bool:
    return response.headers["Content-Type"].startswith("text/html")


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("path", ["/authorize", "/login", "/connections", "/link"])
def test_an_address_of_a_megabyte_is_refused_and_the_server_lives(server: Server, path: str) -> None:
    head = f"GET {path}?transaction={MEGABYTE} HTTP/1.1\r\nHost: {urlsplit(server.url).netloc}\r\nConnection: close\r\n\r\n"
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        status, _ = raw(server, head.encode())
        assert status in (0, 400, 414, 431)
    assert send(server, "GET", "/health").status_code == 200


@pytest.mark.usefixtures("nothing_changes")
def test_parameters_named_like_our_own_attributes_do_nothing(server: Server, client: OAuthClient) -> None:
    """The library's request answers for any attribute with the parameter of that name."""
    asked = parameters_of(client.authorization_url(scope="nonsense"))
    for name in ("code_row", "relay_grant", "user", "client", "scopes", "refresh_token_instance", "validator_log"):
        for value in ("1", ""):
            assert refuses(client, send(server, "GET", f"/authorize?{urlencode({**asked, name: value})}")), name
            form = {"grant_type": "authorization_code", "code": "x", "client_id": client.client_id, name: value}
            assert is_oauth_error(send(server, "POST", "/token", data={**form, "code_verifier": "v" * 43})), name


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("path", ["/authorize", "/login", "/connections", "/link", "/logout"])
def test_a_form_that_is_not_ours_changes_nothing(server: Server, path: str) -> None:
    responses = {
        f"{field} {kind}": send(server, "POST", path, data=f"{field}={value}", headers=FORM)
        for field in ("transaction", "form_token", "action", "grant", "username")
        for kind, value in HOSTILE.items()
    }
    responses["nothing"] = send(server, "POST", path)
    responses["JSON"] = send(server, "POST", path, json={"transaction": []})
    responses["broken multipart"] = send(
        server, "POST", path, data=b"--x\r\n\xff", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    responses["odd charset"] = send(
        server,
        "POST",
        path,
        data=b"a=1",
        headers={"Content-Type": "application/x-www-form-urlencoded; charset=klingon"},
    )
    responses["1001 fields"] = send(server, "POST", path, data="&".join(f"a{n}=1" for n in range(1001)), headers=FORM)
    responses["large"] = send(server, "POST", path, data="a=" + "b" * 600_000, headers=FORM)
    assert wrong(responses, lambda r: r.status_code in (303, 400, 403, 409, 413)) == {}


@pytest.mark.parametrize("field", ["username", "password"])
def test_a_hostile_name_or_password_is_a_wrong_one(server: Server, field: str) -> None:
    person = Person(server.url)
    page = person.open("/login")
    sent = dict(page.form_with("sign_in").filled_in({"username": "nobody", "password": "x"}, ()))
    cookies = person.browser.session.cookies
    for kind, value in HOSTILE.items():
        body = query({**sent, "action": "sign_in"}, **{field: value})
        response = send(server, "POST", "/login", data=body, headers=FORM, cookies=cookies)
        assert response.status_code in (400, 403, 429), (kind, response.status_code, response.text[:300])
        assert response.headers["Content-Type"].startswith("text/html")


@dataclass(frozen=True)
class Visitor:
    """Somebody signed in, with the proof that Django wants of each form of theirs."""

    server: Server
    cookies: Any
    form_proof: str

    def send(self, method: str, target: str, **options: Any) -> requests.Response:
        headers = {"Origin": self.server.url, **options.pop("headers", {})}
        return send(self.server, method, target, cookies=self.cookies, headers=headers, **options)

    def post(self, path: str, body: str) -> requests.Response:
        return self.send("POST", path, data=f"csrfmiddlewaretoken={self.form_proof}&{body}", headers=FORM)

    def scopes_shown(self) -> list[str]:
        return re.findall(r'name="shown" value="([^"]+)"', self.send("GET", "/connections").text)


@pytest.fixture(scope="module")
def visitor(server: Server, client: OAuthClient) -> Visitor:
    """The person who connected `client`, on a browser of their own."""
    person = Person(server.url)
    person.sign_in_first()
    form = dict(person.open("/connections").form_with("narrow").filled_in({}, ()))
    return Visitor(server, person.browser.session.cookies, form["csrfmiddlewaretoken"])


def connection_form(visitor: Visitor, client: OAuthClient) -> dict[str, str]:
    """The form that takes nothing away: its permission is shown ticked, and came back ticked."""
    code = "from oauth_relay.models import Grant; print(Grant.objects.get(client__client_id={!r}).pk)"
    key = visitor.server.shell(code.format(client.client_id))
    return {"action": "narrow", "grant": key, "shown": "read:todos", "scope": "read:todos"}


@pytest.mark.usefixtures("nothing_changes")
def test_a_hostile_form_at_connections_ends_and_narrows_nothing(
    server: Server, client: OAuthClient, visitor: Visitor
) -> None:
    form = connection_form(visitor, client)
    # Without a word for what to do it is the button that ends a connection, so there it names one that is not there.
    unsaid = ("action missing", "action of another kind")
    before = visitor.scopes_shown()
    bodies = {name: body for name, body in misuses(form).items() if name not in unsaid}
    bodies["no action"] = urlencode({"grant": "00000000-0000-4000-8000-000000000000"})
    responses = {name: visitor.post("/connections", body) for name, body in bodies.items()}
    for kind, options in other_bodies(visitor, form).items():
        responses[kind] = visitor.send("POST", "/connections", **options)
    assert wrong(responses, lambda r: r.status_code in (303, 400, 403, 413)) == {}
    told = {value: visitor.send("GET", f"/connections?{name}={value}") for name in form for value in HOSTILE.values()}
    assert wrong(told, lambda r: r.status_code == 200 and is_page(r)) == {}
    assert visitor.scopes_shown() == before != []
    assert client.ask("tools/list").status_code == 200


def other_bodies(visitor: Visitor, form: dict[str, str]) -> dict[str, dict[str, Any]]:
    """A proved form in another wrapping: whatever is understood of it, it is no button that somebody pressed."""
    proved = {"csrfmiddlewaretoken": visitor.form_proof}
    return {
        "as JSON": {"json": {**proved, **form}},
        "as JSON, in lists": {"json": {name: [value] for name, value in {**proved, **form}.items()}},
        "as files": {"data": proved, "files": dict.fromkeys(form, ("a", b"\xff\0"))},
        "as broken multipart": {
            "data": b"--x\r\n\xff", "headers": {"Content-Type": "multipart/form-data; boundary=x"},
        },
        "as nothing": {},
    }  # fmt: skip


@pytest.mark.usefixtures("nothing_changes")
def test_a_hostile_form_at_link_begins_keeps_and_removes_nothing(server: Server, visitor: Visitor) -> None:
    nobody = "00000000-0000-4000-8000-000000000000"
    forms = {
        "begin": {"action": "add", "provider": "nowhere"},
        "remove": {"action": "remove", "identity": nobody},
        "keep": {"action": "keep", "transaction": nobody, "form_token": "x"},
        "forward": {"action": "forward", "transaction": nobody, "form_token": "x"},
    }
    responses = {}
    for step, form in forms.items():
        responses |= {f"{step}, {name}": visitor.post("/link", body) for name, body in misuses(form).items()}
        for kind, options in other_bodies(visitor, form).items():
            responses[f"{step} {kind}"] = visitor.send("POST", "/link", **options)
    assert wrong(responses, lambda r: r.status_code in (303, 400, 403, 409, 413)) == {}
    told = {value: visitor.send("GET", f"/link?transaction={value}") for value in HOSTILE.values()}
    told |= {"none": visitor.send("GET", "/link"), "two": visitor.send("GET", "/link?transaction=a&transaction=b")}
    assert wrong(told, lambda r: r.status_code == 409 and is_page(r)) == {}


@pytest.mark.usefixtures("nothing_changes")
def test_a_way_back_that_nobody_began_signs_nobody_in(server: Server) -> None:
    responses = {
        f"{name} {kind}": send(server, "GET", f"/callback?{query({'code': 'c', 'state': 's'}, **{name: value})}")
        for name in ("code", "state", "error", "iss")
        for kind, value in HOSTILE.items()
    } | {"nothing": send(server, "GET", "/callback"), "POST": send(server, "POST", "/callback", data={"state": "s"})}
    assert wrong(responses, lambda r: 400 <= r.status_code < 500 and "cair_session" not in r.cookies) == {}


@pytest.mark.threat("T28")
def test_next_is_one_of_our_pages_and_never_an_address(server: Server) -> None:
    for target in (
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "javascript:alert(1)",
        "%00",
        "/admin/",
    ):
        person = Person(server.url)
        page = person.open(f"/login?next={target}")
        landed = person.sign_in(page)
        assert landed.left == "" and landed.url == f"{server.url}/", target


# -- /token, /revoke ---------------------------------------------------------------------------------------------------

TOKEN_FORMS = {
    "authorization_code": ["grant_type", "code", "redirect_uri", "client_id", "code_verifier", "resource"],
    "refresh_token": ["grant_type", "refresh_token", "client_id", "scope", "resource"],
}


def token_form(client: OAuthClient, grant_type: str) -> dict[str, str]:
    known = {
        "grant_type": grant_type,
        "code": "not-a-code",
        "redirect_uri": client.redirect_uri,
        "client_id": client.client_id,
        "code_verifier": "v" * 43,
        "resource": client.mcp,
        "refresh_token": "not-a-token",
        "scope": "read:todos",
    }
    return {name: known[name] for name in TOKEN_FORMS[grant_type]}


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("grant_type", TOKEN_FORMS)
def test_a_hostile_token_request_gets_an_oauth_error(server: Server, client: OAuthClient, grant_type: str) -> None:
    form = token_form(client, grant_type)
    responses = {
        f"{name} {kind}": send(server, "POST", "/token", data=query(form, **{name: value}), headers=FORM)
        for name in form
        for kind, value in HOSTILE.items()
    }
    for name, value in form.items():
        responses[f"{name} twice"] = send(server, "POST", "/token", data=[*form.items(), (name, value)])
    assert wrong(responses, is_oauth_error) == {}
    assert all("no-store" in response.headers["Cache-Control"] for response in responses.values())


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("path", ["/token", "/revoke", "/introspect"])
def test_another_body_than_a_form_gets_an_oauth_error(server: Server, client: OAuthClient, path: str) -> None:
    form = token_form(client, "refresh_token")
    basic = {"Authorization": "Basic"}
    responses = {
        "JSON": send(server, "POST", path, json=form),
        "nothing": send(server, "POST", path),
        "no content type": send(server, "POST", path, data=b"a=1"),
        "multipart": send(server, "POST", path, files={"token": ("a", b"b")}),
        "in the address": send(server, "POST", f"{path}?{urlencode(form)}"),
        "address and body": send(server, "POST", f"{path}?scope=x", data=form),
        "large": send(server, "POST", path, data="a=" + "b" * 600_000, headers=FORM),
        "1001 fields": send(server, "POST", path, data="&".join(f"a{n}=1" for n in range(1001)), headers=FORM),
        "not UTF-8": send(server, "POST", path, data=b"token=\xff\xfe&client_id=\xff", headers=FORM),
        "odd charset": send(
            server, "POST", path, data=b"a=1", headers={"Content-Type": FORM["Content-Type"] + "; charset=klingon"}
        ),
        "Basic nothing": send(server, "POST", path, data=form, headers=basic),
        "Basic not base64": send(server, "POST", path, data=form, headers={"Authorization": "Basic %%%"}),
        "Basic no colon": send(server, "POST", path, data=form, headers={"Authorization": "Basic YWJj"}),
        "Basic not UTF-8": send(server, "POST", path, data=form, headers={"Authorization": "Basic //79OnB/"}),
        "Basic NUL": send(server, "POST", path, data=form, auth=("a\0b", "c\0d")),
        "Basic %00": send(server, "POST", path, data=form, auth=("a%00b", "c")),
        "Basic long": send(server, "POST", path, data=form, auth=("a" * 3000, "b" * 3000)),
        "GET": send(server, "GET", path),
        "PUT": send(server, "PUT", path, data=form),
        "DELETE": send(server, "DELETE", path),
    }
    assert wrong(responses, is_oauth_error) == {}
    assert responses["GET"].headers["Allow"] == "POST"


@pytest.mark.usefixtures("nothing_changes")
def test_a_hostile_token_to_revoke_is_an_unknown_one(server: Server, client: OAuthClient) -> None:
    for kind, value in HOSTILE.items():
        body = query({"client_id": client.client_id}, token=value)
        response = send(server, "POST", "/revoke", data=body, headers=FORM)
        assert response.status_code in (200, 400), (kind, response.status_code, response.text)
        assert response.headers["Content-Type"].startswith("application/json")
    assert client.ask("tools/list").status_code == 200


@pytest.fixture(scope="module")
def resource_server(server: Server) -> OAuthClient:
    """A client that may ask at /introspect."""
    asking = OAuthClient(server.url, "Warehouse").register(token_endpoint_auth_method="client_secret_post")
    server.shell(
        "from oauth_relay.models import Client; "
        f"print(Client.objects.filter(client_id={asking.client_id!r}).update(is_resource_server=True))"
    )
    return asking


@pytest.mark.usefixtures("nothing_changes")
def test_a_hostile_question_at_introspect_is_answered_with_nothing(
    server: Server, client: OAuthClient, resource_server: OAuthClient
) -> None:
    form = {
        "token": client.tokens["access_token"],
        "token_type_hint": "access_token",
        "client_id": resource_server.client_id,
        "client_secret": resource_server.registration["client_secret"],
    }
    assert send(server, "POST", "/introspect", data=form).json()["active"] is True
    bodies = {name: body for name, body in misuses(form).items() if not name.startswith("token_type_hint")}
    responses = {name: send(server, "POST", "/introspect", data=body, headers=FORM) for name, body in bodies.items()}
    assert wrong(responses, lambda r: is_oauth_error(r) or (r.status_code, r.text) == (200, '{"active": false}')) == {}
    assert {r.status_code for name, r in responses.items() if name.startswith("client_")} <= {400, 401, 413}
    # > … an unrecognized hint … the server MAY ignore this parameter (RFC 7662 §2.1)
    hints = {n: b for n, b in misuses(form).items() if n.startswith("token_type_hint")}
    told = {name: send(server, "POST", "/introspect", data=body, headers=FORM) for name, body in hints.items()}
    assert wrong(told, lambda r: is_oauth_error(r) or (r.status_code == 200 and r.json()["active"] is True)) == {}
    assert all("no-store" in response.headers["Cache-Control"] for response in (responses | told).values())


ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass(frozen=True)
class Signer:
    """A client that proves itself by signatures, and would sign anything at all."""

    client_id: str
    audience: str
    key: ec.EllipticCurvePrivateKey

    def claims(self, **changes: Any) -> bytes:
        """Good ones, but for the changes."""
        good = {"iss": self.client_id, "sub": self.client_id, "aud": self.audience, "exp": int(time.time()) + 500}
        return json.dumps({**good, "jti": "only once", **changes}).encode()

    def form(self, payload: bytes, **header: Any) -> dict[str, str]:
        signed = jwt.PyJWS().encode(payload, self.key, algorithm="ES256", headers=header)
        return {"grant_type": "refresh_token", "refresh_token": "x", **_assertion(signed)}


def _assertion(token: str) -> dict[str, str]:
    return {"client_assertion_type": ASSERTION_TYPE, "client_assertion": token}


@pytest.fixture(scope="module")
def signer(server: Server) -> Signer:
    """One whose good assertion is taken, so that what is refused below is refused for what is wrong with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    described = {
        "token_endpoint_auth_method": "private_key_jwt",
        "jwks": {"keys": [{**json.loads(ECAlgorithm.to_jwk(key.public_key())), "kid": "one"}]},
    }
    registered = OAuthClient(server.url, "Signer").register(token_endpoint_auth_method="client_secret_post")
    server.shell(
        "from oauth_relay.models import Client; "
        f"print(Client.objects.filter(client_id={registered.client_id!r}).update(metadata={described!r}))"
    )
    found = Signer(registered.client_id, server.url, key)
    for said in ("invalid_grant", "invalid_client"):
        response = send(server, "POST", "/token", data=found.form(found.claims()))
        assert response.json()["error"] == said, response.text
    return found


def is_unproved(response: requests.Response) -> bool:
    return is_oauth_error(response) and response.json()["error"] in ("invalid_client", "invalid_request")


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("path", ["/token", "/revoke"])
def test_a_hostile_assertion_proves_no_client(server: Server, signer: Signer, path: str) -> None:
    form = {"client_id": signer.client_id, "token": "x", **signer.form(signer.claims(jti="never shown"))}
    bodies = {name: body for name, body in misuses(form).items() if name.startswith("client_assertion")}
    assert len(bodies) > 2 * len(HOSTILE)
    responses = {name: send(server, "POST", path, data=body, headers=FORM) for name, body in bodies.items()}
    responses["a secret beside it"] = send(server, "POST", path, data={**form, "client_secret": "x"})
    responses["an empty secret beside it"] = send(server, "POST", path, data={**form, "client_secret": ""})
    responses["Basic beside it"] = send(server, "POST", path, data=form, auth=(signer.client_id, "x"))
    assert wrong(responses, is_unproved) == {}


STRANGE: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "\0",
    "\ud800",
    "x" * 3000,
    [],
    [None],
    {},
    {"a": []},
    [[[]]],
    10**300,
]


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("claim", ["iss", "sub", "aud", "exp", "jti", "nbf", "iat"])
def test_a_claim_of_another_kind_proves_no_client(server: Server, signer: Signer, claim: str) -> None:
    harmless = {
        ("iat", -1),
        ("iat", 0),
        ("iat", 1.5),
        ("nbf", -1),
        ("nbf", 0),
        ("nbf", 1.5),
        ("nbf", True),
        ("iat", True),
    }
    values = [value for value in STRANGE if not isinstance(value, float | int) or (claim, value) not in harmless]
    payloads = {f"{value!r:.40}": signer.claims(**{claim: value}) for value in values}
    for text in ("NaN", "Infinity", "1e999", "9" * 5000, "[" * 500 + "]" * 500):
        payloads[text[:20]] = (
            signer.claims().replace(b"{", f'{{"{claim}": '.encode() + text.encode() + b', "a": {', 1) + b"}"
        )
    payloads["absent"] = json.dumps({n: v for n, v in json.loads(signer.claims()).items() if n != claim}).encode()
    if claim in ("nbf", "iat"):
        del payloads["absent"]
    responses = {name: send(server, "POST", "/token", data=signer.form(body)) for name, body in payloads.items()}
    assert wrong(responses, is_unproved) == {}


@pytest.mark.usefixtures("nothing_changes")
def test_an_assertion_that_is_no_object_or_has_a_strange_head_proves_no_client(server: Server, signer: Signer) -> None:
    claims = signer.claims(jti="never shown")
    bodies = [b"", b"null", b"[]", b'"x"', b"1", b"\xff\xfe", b"\0", b"{", DEEP.encode()[:2000], claims + b"x"]
    forms = {f"claims {body!r:.30}": signer.form(body) for body in bodies}
    heads: dict[str, list[Any]] = {
        "alg": [None, "", "none", "HS256", [], {}, 1, "ES384", "\0"],
        "kid": [None, "", "two", [], {}, 1, "\0", "x" * 3000],
        "typ": ["", "at+jwt", [], {}, 1, "\0"],
        "crit": [[], ["exp"], "exp", None, {}],
    }
    for name, values in heads.items():
        for value in values:
            head = {"alg": "ES256", "typ": "JWT", "kid": "one", name: value}
            forms[f"{name} {value!r:.30}"] = {**forms["claims b''"], **_assertion(_signed_as(signer, head, claims))}
    responses = {name: send(server, "POST", "/token", data=form) for name, form in forms.items()}
    assert wrong(responses, is_unproved) == {}


def _signed_as(signer: Signer, head: dict[str, Any], payload: bytes) -> str:
    """A true signature over any head whatever: the library would not sign some of them."""
    parts = [jwt.utils.base64url_encode(part) for part in (json.dumps(head).encode(), payload)]
    algorithm = jwt.PyJWS().get_algorithm_by_name("ES256")
    parts.append(jwt.utils.base64url_encode(algorithm.sign(b".".join(parts), signer.key)))
    return b".".join(parts).decode()


# -- /register ---------------------------------------------------------------------------------------------------------

DEEP = "[" * 60_000 + "]" * 60_000
GOOD = {"redirect_uris": ["https://client.example/cb"], "token_endpoint_auth_method": "none"}


@pytest.mark.usefixtures("nothing_changes")
def test_wrong_metadata_is_refused_by_name(server: Server) -> None:
    bodies: dict[str, Any] = {
        "list": "[]", "text": '"x"', "number": "1", "null": "null", "nothing": "", "broken": "{", "deep": DEEP,
        "deep inside": f'{{"redirect_uris": {DEEP}}}', "not UTF-8": b'{"client_name": "\xff"}', "NUL": b"\0", "NaN": "NaN",
        "large": json.dumps({**GOOD, "client_name": "a" * 600_000}), "long number": '{"a": ' + "9" * 6000 + "}",
    }  # fmt: skip
    fields: dict[str, Any] = {
        "redirect_uris": [
            None, "https://client.example/cb", [], [1], [None], [[]], {}, [""], ["javascript:alert(1)"], ["data:,x"],
            ["http://evil.example/cb"], ["https://a/#fragment"], ["https://user@host/"], ["https://a\0b/"], ["https://[::1"],
            ["https://a:99999/"], ["//host/cb"], ["https://"], ["x" * 5000], ["https://ü.example/"], ["https://a b/"],
            ["https://a/\r\nX: y"], ["https://client.example/cb"] * 5000,
        ],
        "token_endpoint_auth_method": ["private_key_jwt", "", 1, [], {}, True],
        "client_name": [1, [], {}, "a\0b", "a" * 3000, True],
        "grant_types": ["authorization_code", ["password"], [1], {}, [[]]],
        "scope": [1, [], "a\0b"],
        "contacts": ["x", [1], {}, ["a\0b"]],
    }  # fmt: skip
    responses = {name: send(server, "POST", "/register", data=body, headers=JSON) for name, body in bodies.items()}
    for name, values in fields.items():
        for number, value in enumerate(values):
            metadata = {**GOOD, name: value}
            responses[f"{name} {number} {value!r:.40}"] = send(server, "POST", "/register", json=metadata)
    assert wrong(responses, is_oauth_error) == {}
    assert {r.json()["error"] for r in responses.values()} <= {
        "invalid_client_metadata", "invalid_redirect_uri", "invalid_request",
    }  # fmt: skip


def test_unusual_text_in_metadata_is_kept_as_text_or_refused_and_never_fails(server: Server) -> None:
    for name in ("\ud800", "‮evil", "\x7f\x1b[31m", "💥" * 100, "\u2028"):
        response = send(server, "POST", "/register", data=json.dumps({**GOOD, "client_name": name}), headers=JSON)
        assert response.status_code in (201, 400), (name, response.text)
        if response.status_code == 201:
            told = send(server, "GET", f"/register/{response.json()['client_id']}", headers=_bearer(response))
            assert told.status_code == 200
            assert "\x1b" not in told.json().get("client_name", "")


def _bearer(response: requests.Response) -> dict[str, str]:
    return {"Authorization": f"Bearer {response.json()['registration_access_token']}"}


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.threat("T6")
def test_a_registration_opens_only_with_its_own_token(server: Server, client: OAuthClient) -> None:
    path = f"/register/{client.client_id}"
    headers: dict[str, dict[str, str]] = {
        "none": {}, "empty": {"Authorization": ""}, "scheme only": {"Authorization": "Bearer"},
        "wrong": {"Authorization": "Bearer wrong"}, "basic": {"Authorization": "Basic YTpi"},
        "access token": {"Authorization": f"Bearer {client.tokens['access_token']}"},
        "latin": {"Authorization": "Bearer \xff"}, "long": {"Authorization": "Bearer " + "a" * 6000},
    }  # fmt: skip
    responses = {
        f"{method} {name}": send(server, method, path, headers=header, json=GOOD)
        for method in ("GET", "PUT", "DELETE")
        for name, header in headers.items()
    }
    for kind, value in HOSTILE.items():
        if value:
            responses[f"id {kind}"] = send(server, "GET", f"/register/{value}", headers={"Authorization": "Bearer x"})
    assert wrong(responses, lambda r: is_oauth_error(r) and r.status_code in (401, 404)) == {}
    assert responses["GET none"].headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.usefixtures("nothing_changes")
def test_a_client_cannot_change_itself_into_something_wrong(server: Server, client: OAuthClient) -> None:
    owner = {"Authorization": f"Bearer {client.registration['registration_access_token']}"}
    path = f"/register/{client.client_id}"
    told = send(server, "GET", path, headers=owner).json()
    responses = {
        "another id": send(server, "PUT", path, headers=owner, json={**told, "client_id": "x"}),
        "no id": send(server, "PUT", path, headers=owner, json=GOOD),
        "a secret": send(server, "PUT", path, headers=owner, json={**told, "token_endpoint_auth_method": "client_secret_post"}),
        "evil redirect": send(server, "PUT", path, headers=owner, json={**told, "redirect_uris": ["http://evil.example/"]}),
        "broken": send(server, "PUT", path, headers={**owner, **JSON}, data="{"),
        "POST": send(server, "POST", path, headers=owner, json=told),
    }  # fmt: skip
    assert wrong(responses, is_oauth_error) == {}
    assert send(server, "GET", path, headers=owner).json() == told


# -- /mcp, /sse, /messages/ --------------------------------------------------------------------------------------------


def mcp_headers(client: OAuthClient, **more: str) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {client.tokens['access_token']}",
        "Accept": "application/json, text/event-stream",
        **JSON,
        **more,
    }


@pytest.mark.usefixtures("nothing_changes")
def test_a_malformed_message_gets_a_json_rpc_error(server: Server, client: OAuthClient) -> None:
    call = '{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}'
    bodies: dict[str, str | bytes] = {
        "nothing": "", "broken": "{", "text": '"x"', "number": "1", "null": "null", "NaN": '{"jsonrpc": NaN}',
        "empty list": "[]", "batch": f"[{call}]", "deep": DEEP, "deep inside": call.replace("{}", f'{{"a": {DEEP}}}'),
        "not UTF-8": b'{"jsonrpc": "2.0", "id": 1, "method": "\xff"}', "UTF-16": call.encode("utf-16"), "NUL": b"\0",
        "duplicate key": call.replace('"id": 1', '"id": 1, "id": 2'),
        "duplicate deep": '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "a", "name": "b"}}',
        "version": call.replace("2.0", "1.0"), "no version": call.replace('"jsonrpc": "2.0", ', ""),
        "id object": call.replace('"id": 1', '"id": {}'), "id true": call.replace('"id": 1', '"id": true'),
        "method number": call.replace('"tools/list"', "7"), "params list": call.replace("{}", "[]"),
        "params text": call.replace("{}", '"x"'), "no method": '{"jsonrpc": "2.0", "id": 1}',
    }  # fmt: skip
    for era in ({}, {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/list"}):
        responses = {
            n: send(server, "POST", "/mcp", data=b, headers=mcp_headers(client, **era)) for n, b in bodies.items()
        }
        assert wrong(responses, lambda r: is_rpc_error(r, 400)) == {}, era


@pytest.mark.usefixtures("nothing_changes")
def test_what_is_too_large_or_of_another_kind_is_refused_in_form(server: Server, client: OAuthClient) -> None:
    large = send(server, "POST", "/mcp", data=b" " * (1024 * 1024 + 1), headers=mcp_headers(client))
    assert is_rpc_error(large, 413)
    # Daphne itself refuses a broken multipart body, in its own form (DESIGN §10).
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp", "text/json"):
        response = send(server, "POST", "/mcp", data=b"{}", headers=mcp_headers(client, **{"Content-Type": kind}))
        assert is_rpc_error(response, 415), (kind, response.status_code, response.text)
    for method in ("PUT", "PATCH", "TRACE", "OPTIONS", "NONSENSE"):
        response = send(server, method, "/mcp", headers=mcp_headers(client))
        assert response.status_code == 405 and "html" not in response.headers.get("Content-Type", ""), method


@pytest.mark.usefixtures("nothing_changes")
def test_wrong_protocol_headers_are_refused_in_form(server: Server, client: OAuthClient) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    headers: dict[str, dict[str, str]] = {
        "unknown revision": {"MCP-Protocol-Version": "1999-01-01"},
        "revision of another kind": {"MCP-Protocol-Version": "x" * 3000},
        "method differs": {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call"},
        "method missing": {"MCP-Protocol-Version": MODERN},
        "no meta": {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/list"},
        "accepts nothing we have": {"Accept": "text/html"},
    }
    responses = {
        n: send(server, "POST", "/mcp", json=message, headers=mcp_headers(client, **h)) for n, h in headers.items()
    }
    assert wrong(responses, lambda r: is_rpc_error(r, 400, 404, 406)) == {}


@pytest.mark.usefixtures("nothing_changes")
def test_hostile_arguments_come_back_as_words_for_the_model(server: Server, client: OAuthClient) -> None:
    calls: list[tuple[str, Any]] = [
        ("get_todo", {"id": value}) for value in ("../billing", "..", "a/b", "%2e%2e", "\0", "?x=1", "#", "x" * 5000, 1, None, [])
    ] + [
        ("create_todo", {}), ("create_todo", {"title": ""}), ("create_todo", {"title": "a" * 10_000}),
        ("create_todo", {"title": 1}), ("create_todo", {"title": "x", "due": "tomorrow"}), ("create_todo", {"title": "\0"}),
        ("create_todo", {"title": "x", "owner": "somebody"}), ("list_todos", {"done": "maybe"}), ("list_todos", {"x": 1}),
    ]  # fmt: skip
    for tool, arguments in calls:
        response = client.ask("tools/call", {"name": tool, "arguments": arguments})
        assert response.status_code == 200, (tool, arguments, response.text)
        result = response.json()["result"]
        assert result["isError"] is True, (tool, arguments, result)
        assert "Traceback" not in response.text and "asyncio" not in response.text
    for arguments in ([], "x", 1):
        response = client.ask("tools/call", {"name": "list_todos", "arguments": arguments})
        assert response.status_code < 500 and "error" in response.json(), (arguments, response.text)
    for name in ("", "no_such_tool", "list_todos\0", "x" * 5000, 1, None, []):
        response = client.http.post(
            client.mcp, headers=mcp_headers(client),
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name}}, timeout=5,
        )  # fmt: skip
        assert is_rpc_error(response, 200, 400, 404), (name, response.status_code, response.text)


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("path", ["/mcp", "/sse", "/messages/"])
def test_a_hostile_credential_is_no_credential(server: Server, client: OAuthClient, path: str) -> None:
    good = client.tokens["access_token"]
    method = "GET" if path == "/sse" else "POST"
    values = [
        "Bearer",
        "Bearer ",
        "bearer  x y",
        f"Basic {good}",
        f"Bearer {good}x",
        f"Bearer \t{good}\x7f",
        "Bearer \xff",
        "x" * 6000,
    ]
    for value in values:
        response = send(server, method, path, headers={"Authorization": value})
        assert response.status_code == 401, (value[:40], response.status_code)
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")
        assert response.headers["Content-Type"] == "application/json"
    twice = (
        f"{method} {path} HTTP/1.1\r\nHost: {urlsplit(server.url).netloc}\r\nConnection: close\r\n"
        f"Authorization: Bearer {good}\r\nAuthorization: Bearer {good}\r\nContent-Length: 0\r\n\r\n"
    )
    status, rest = raw(server, twice.encode())
    assert status == 400 and "invalid_request" in rest


@pytest.mark.usefixtures("nothing_changes")
def test_messages_for_a_stream_that_is_not_there_go_nowhere(server: Server, client: OAuthClient) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    for value in [*HOSTILE.values(), "00000000-0000-4000-8000-000000000000", "session_id=x&session_id=y"]:
        response = send(server, "POST", f"/messages/?session_id={value}", json=message, headers=mcp_headers(client))
        assert response.status_code in (400, 404), (value[:40], response.status_code, response.text)
        assert "html" not in response.headers.get("Content-Type", "")
    assert send(server, "POST", "/sse", json=message, headers=mcp_headers(client)).status_code == 405
    assert send(server, "GET", "/messages/", headers=mcp_headers(client)).status_code == 405


# -- the rest: documents, the sample API, unknown paths, other methods -------------------------------------------------

DOCUMENTS = [
    "/.well-known/oauth-authorization-server", "/.well-known/oauth-protected-resource",
    "/.well-known/oauth-protected-resource/mcp",
    "/.well-known/openid-configuration", "/.well-known/jwks.json", "/health",
]  # fmt: skip


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("path", DOCUMENTS)
def test_a_document_can_only_be_read(server: Server, path: str) -> None:
    assert send(server, "HEAD", path).status_code == 200
    for value in HOSTILE.values():
        assert send(server, "GET", f"{path}?x={value}").json() == send(server, "GET", path).json()
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        response = send(server, method, path, data=b"\xff")
        assert response.status_code == 405 and "html" not in response.headers.get("Content-Type", ""), method


@pytest.mark.usefixtures("nothing_changes")
def test_the_sample_api_answers_in_json_whatever_comes(server: Server, client: OAuthClient) -> None:
    tokens = {
        "none": "",
        "nonsense": "x",
        "MCP token": client.tokens["access_token"],
        "unsigned": "eyJhbGciOiJub25lIn0.e30.",
    }
    for name, token in tokens.items():
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        for method, path in (
            ("GET", "/api/me"), ("GET", "/api/todos"), ("POST", "/api/todos"), ("GET", "/api/todos/%00"), ("GET", "/api/billing"),
            ("DELETE", "/api/todos/1"), ("PUT", "/api/todos/x"), ("GET", "/api/nowhere"), ("PATCH", "/api/me"),
        ):  # fmt: skip
            response = send(server, method, path, headers=headers, data=b"{")
            assert 400 <= response.status_code < 500, (name, method, path, response.status_code)
            assert response.headers["Content-Type"].startswith("application/json"), (method, path, response.text[:100])
            assert "error" in response.json(), (method, path, response.text)


UNKNOWN = [
    "/nowhere", "/mcp/", "//mcp", "/mcp/x", "/sse/", "/messages", "/token/", "/authorize/", "/%00", "/%ff", "/a%0d%0ab",
    "/..%2f", "/static/../settings.py", "/" + "a" * 4000, "/.well-known/nothing", "/.env", "/.git/config",
]  # fmt: skip


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("path", UNKNOWN, ids=lambda path: path[:24])
def test_an_unknown_path_is_not_found(server: Server, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        response = send(server, method, path)
        assert response.status_code in (404, 403, 405), (method, path, response.status_code)
        if path.startswith(("/.well-known/", "/token")):
            assert is_oauth_error(response), (method, response.text[:100])


@pytest.mark.usefixtures("nothing_changes")
def test_other_methods_on_peoples_pages_are_refused(server: Server) -> None:
    for path in ("/", "/authorize", "/auth", "/login", "/connections", "/callback", "/logout"):
        for method in ("PUT", "PATCH", "DELETE", "TRACE", "NONSENSE"):
            response = send(server, method, path, data=b"\xff\0")
            assert response.status_code in (405, 403), (method, path, response.status_code)


@pytest.mark.usefixtures("nothing_changes")
def test_bytes_that_are_hardly_http_end_with_an_error_and_the_server_lives(server: Server) -> None:
    host = urlsplit(server.url).netloc
    end = f"Host: {host}\r\nConnection: close\r\n\r\n"
    requests_ = {
        "NUL in a header": f"GET / HTTP/1.1\r\nX: a\0b\r\n{end}".encode(),
        "no host": b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        "two hosts": f"GET / HTTP/1.1\r\nHost: evil.example\r\n{end}".encode(),
        "another host": b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        "absolute target": f"GET http://evil.example/ HTTP/1.1\r\n{end}".encode(),
        "moved root": f"GET /nowhere HTTP/1.1\r\nDaphne-Root-Path: /nowhere\r\n{end}".encode(),
        "raw bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\n" + end.encode(),
        "huge header": f"GET / HTTP/1.1\r\nX: {'a' * 200_000}\r\n{end}".encode(),
        "many headers": f"GET / HTTP/1.1\r\n{''.join(f'X-{n}: 1{chr(13)}{chr(10)}' for n in range(3000))}{end}".encode(),
        "huge cookie": f"GET /connections HTTP/1.1\r\nCookie: cair_session={'a' * 12_000}\r\n{end}".encode(),
        "odd cookie": b"GET /connections HTTP/1.1\r\nCookie: cair_session=\xff\x01; cair_browser=\xff\r\n"
        + end.encode(),
        "negative length": f"POST /token HTTP/1.1\r\nContent-Length: -1\r\n{end}".encode(),
        "long path": f"GET /{'a' * 100_000} HTTP/1.1\r\n{end}".encode(),
        "open bracket host": b"GET / HTTP/1.1\r\nHost: [::1\r\nConnection: close\r\n\r\n",
    }
    found = {name: raw(server, request)[0] for name, request in requests_.items()}
    assert {name: status for name, status in found.items() if status >= 500 or status in (200, 201)} == {}
    assert send(server, "GET", "/health").json() == {"status": "ok"}


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.threat("T1")
@pytest.mark.parametrize(
    "header", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via", "CF-Connecting-IP"]
)
def test_a_development_server_answers_nothing_that_came_through_a_tunnel(server: Server, header: str) -> None:
    for path in ("/", "/authorize", "/mcp", "/health", "/token"):
        response = send(server, "GET", path, headers={header: "for=203.0.113.9"})
        assert response.status_code == 421 and "CAIR_ENV=production" in response.json()["error_description"]


# -- whatever else there may be ----------------------------------------------------------------------------------------

NAMES = {
    "/authorize": [*ASKED, "state", "prompt", "login_hint", "response_mode", "request", "request_uri", "transaction", "action",
                   "form_token"],
    "/token": ["grant_type", "code", "refresh_token", "redirect_uri", "client_id", "client_secret", "code_verifier", "resource",
               "scope", "client_assertion", "client_assertion_type"],
    "/register": ["redirect_uris", "client_name", "client_name#de", "token_endpoint_auth_method", "grant_types", "scope",
                  "response_types", "contacts", "jwks", "jwks_uri", "client_uri", "logo_uri", "application_type", "software_id"],
    "/revoke": ["token", "token_type_hint", "client_id", "client_secret", "client_assertion", "client_assertion_type"],
    "/introspect": ["token", "token_type_hint", "client_id", "client_secret"],
    "/login": ["transaction", "form_token", "action", "username", "password", "provider", "next"],
    "/link": ["action", "provider", "identity", "transaction", "form_token"],
    "/connections": ["action", "grant", "shown", "scope"],
}  # fmt: skip
# Without those that would sign the visitor out, or end what the other tests stand on.
ACTIONS = {
    "/authorize": ["allow", "deny"], "/login": ["sign_in", "forward", "cancel"],
    "/link": ["remove", "keep", "forward", "discard"], "/connections": ["narrow"],
}  # fmt: skip
SCOPES = ["read:todos", "write:todos", "read:billing", "offline_access"]
WORDS = [
    "S256", "code", "none", "login none", "client_secret_post", "private_key_jwt", "read:todos write:todos", "access_token",
    "http://127.0.0.1:53682/callback", "https://client.example/cb", "cursor://a/b", "https://localhost:1/client", "https://[::1",
    "00000000-0000-4000-8000-000000000000", "a" * 43, "e30.e30.e30", ASSERTION_TYPE,
]  # fmt: skip
ANY_TEXT = strategies.sampled_from(WORDS) | strategies.text(max_size=40)
ANY_BYTES = strategies.binary(max_size=20).map(lambda found: quote(found, safe=""))
ANY_JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | ANY_TEXT,
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)


def forms_of(path: str, known: dict[str, list[str]]) -> strategies.SearchStrategy[str]:
    """Forms with this path's own names, every other time a right value, and no order that anybody would send on purpose."""
    names = strategies.sampled_from(NAMES[path] * 9) | strategies.text(max_size=10)

    def pair(name: str) -> strategies.SearchStrategy[str]:
        made_up = ANY_TEXT.map(_encoded) | ANY_BYTES
        right = strategies.sampled_from(known[name]).map(_encoded) if name in known else made_up
        return (right | made_up).map(lambda value: f"{_encoded(name)}={value}")

    return strategies.lists(names, max_size=9).flatmap(lambda found: strategies.tuples(*map(pair, found))).map("&".join)


def _encoded(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


@pytest.mark.parametrize("path", NAMES)
def test_nothing_that_can_be_made_up_makes_the_server_fail(
    server: Server, client: OAuthClient, visitor: Visitor, path: str
) -> None:
    """The same cases each time; what they change is nobody's but the rows they make."""
    known = {name: [value] for name, value in parameters_of(client.authorization_url()).items()}
    page = visitor.send("GET", f"/authorize?{urlencode({name: values[0] for name, values in known.items()})}").text
    known |= {name: re.findall(f'name="{name}" value="([^"]+)"', page)[:1] for name in ("transaction", "form_token")}
    known |= {
        "action": ACTIONS.get(path, ["x"]),
        "grant_type": list(TOKEN_FORMS),
        "scope": SCOPES,
        "shown": SCOPES,
    }
    objects = strategies.dictionaries(strategies.sampled_from(NAMES[path]) | ANY_TEXT, ANY_JSON, max_size=6)

    @hypothesis.settings(max_examples=25, deadline=None, database=None, derandomize=True)
    @hypothesis.given(form=forms_of(path, known), content=objects, is_visitor=strategies.booleans())
    def make_up(form: str, content: dict[str, Any], is_visitor: bool) -> None:
        asked = visitor.send if is_visitor else lambda *of, **options: send(server, *of, **options)
        proof = f"csrfmiddlewaretoken={visitor.form_proof}&" if is_visitor else ""
        for response in (
            asked("GET", f"{path}?{form}"),
            asked("POST", path, data=proof + form, headers=FORM),
            asked("POST", path, data=json.dumps(content), headers=JSON),
        ):
            assert response.status_code < 500, (response.status_code, form, content, response.text[:300])
            assert "Traceback" not in response.text

    make_up()
    assert client.ask("tools/list").status_code == 200


def test_quoting_here_is_what_arrives() -> None:
    """The hostile values are sent as they are written, else the tests above prove little."""
    assert quote("\0") in query({}, a=HOSTILE["NUL"]) and "%25" not in query({"b": "c"}, a=HOSTILE["not UTF-8"])
