"""Which tokens the Todos API believes, and what it makes of an issuer that rotates, sleeps or lies."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.todos.conftest import Clock
from tests.todos.issuer import AUDIENCE, EC_KEY, OTHER_RSA_KEY, RSA_KEY, SampleIssuer, public_jwk
from todos import bearer

Ask = Callable[..., Any]
PEM = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
NOW = int(time.time())


def b64(data: Any) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def hmac_token(issuer: SampleIssuer, secret: bytes, algorithm: str = "HS256") -> str:
    """What a library that trusts the header's `alg` would accept: the public key used as a shared secret."""
    signed = f"{b64({'alg': algorithm, 'kid': 'first', 'typ': 'at+jwt'})}.{b64(issuer.claims())}"
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def unsigned(issuer: SampleIssuer, algorithm: str) -> str:
    return f"{b64({'alg': algorithm, 'kid': 'first', 'typ': 'at+jwt'})}.{b64(issuer.claims())}."


def with_other_claims(issuer: SampleIssuer, **changes: Any) -> str:
    """A good signature, over other claims."""
    header, _, signature = issuer.token().split(".")
    return f"{header}.{b64(issuer.claims(**changes))}.{signature}"


WRONG_TOKENS: dict[str, Callable[[SampleIssuer], str]] = {
    "expired": lambda i: i.token(exp=NOW - 20),
    "without exp": lambda i: i.token(exp=None),
    "exp is a string": lambda i: i.token(exp=str(NOW + 600)),
    "exp is true": lambda i: i.token(exp=True),
    "exp is infinite": lambda i: i.token(exp=float("inf")),
    "not yet valid": lambda i: i.token(nbf=int(time.time()) + 20),
    "issued in the future": lambda i: i.token(iat=int(time.time()) + 20),
    "iat is true": lambda i: i.token(iat=True),
    "of another issuer": lambda i: i.token(iss="https://elsewhere.example"),
    "issuer with a slash": lambda i: i.token(iss=f"{i.url}/"),
    "without issuer": lambda i: i.token(iss=None),
    "issuer is a list": lambda i: _resigned(i, iss=[i.url]),
    "for another audience": lambda i: i.token(aud="urn:another-api"),
    "for a longer audience": lambda i: i.token(aud=f"{AUDIENCE}:admin"),
    "for other audiences": lambda i: i.token(aud=["urn:another-api", "urn:third-api"]),
    "without audience": lambda i: i.token(aud=None),
    "audience is an object": lambda i: i.token(aud={AUDIENCE: True}),
    "without subject": lambda i: i.token(sub=None),
    "subject is empty": lambda i: i.token(sub=""),
    "subject is a number": lambda i: _resigned(i, sub=7),
    "subject holds NUL": lambda i: i.token(sub="ada\0"),
    "subject is half a character": lambda i: i.token(sub="\ud800"),
    "subject is endless": lambda i: i.token(sub="a" * 256),
    "signed with another key": lambda i: i.token(key=OTHER_RSA_KEY),
    "signed with an unknown key": lambda i: i.token(headers={"kid": "never-published"}),
    "without key id": lambda i: jwt.encode(i.claims(), RSA_KEY, "RS256"),
    "key id is a number": lambda i: f"{b64({'alg': 'RS256', 'kid': 1})}.{b64(i.claims())}.{b64(b'x' * 256)}",
    "changed claims": lambda i: with_other_claims(i, sub="mallory"),
    "changed signature": lambda i: i.token()[:-8] + "AAAAAAAA",
    "without signature": lambda i: i.token().rsplit(".", 1)[0] + ".",
    "two parts": lambda i: i.token().rsplit(".", 1)[0],
    "alg none": lambda i: unsigned(i, "none"),
    "alg None": lambda i: unsigned(i, "None"),
    "alg is empty": lambda i: unsigned(i, ""),
    "alg is a list": lambda i: f"{b64({'alg': ['RS256'], 'kid': 'first'})}.{b64(i.claims())}.{b64(b'x' * 256)}",
    "HS256 with the public key": lambda i: hmac_token(i, PEM),
    "HS256 that says RS256": lambda i: hmac_token(i, PEM, "RS256"),
    "RS512": lambda i: i.token(algorithm="RS512"),
    "PS256": lambda i: i.token(algorithm="PS256"),
    "ES256 under an RSA key's id": lambda i: i.token(key=EC_KEY, algorithm="ES256"),
    "an unknown critical header": lambda i: i.token(headers={"crit": ["x"], "x": 1}),
    "a logout token": lambda i: i.token(headers={"typ": "logout+jwt"}),
    "an assertion": lambda i: i.token(headers={"typ": "oauth-id-jag+jwt"}),
    "no JWT": lambda i: "not-a-token",
    "an encrypted token": lambda i: "a.b.c.d.e",
    "a deep header": lambda i: f"{b64(b'[' * 9000)}.e30.{b64(b'x')}",
    "a header that is a list": lambda i: f"{b64([])}.e30.{b64(b'x')}",
    "too long": lambda i: i.token(padding="x" * bearer.LONGEST_TOKEN),
}


def _resigned(issuer: SampleIssuer, **changes: Any) -> str:
    """Claims that the library refuses to sign, signed."""
    return jwt.PyJWS().encode(
        json.dumps(issuer.claims(**changes)).encode(), RSA_KEY, "RS256", headers={"kid": "first", "typ": "at+jwt"}
    )


@pytest.mark.parametrize("kind", WRONG_TOKENS)
def test_it_refuses_a_token_that_is(kind: str, issuer: SampleIssuer, ask: Ask) -> None:
    assert ask(issuer.token()).status_code == 200

    response = ask(WRONG_TOKENS[kind](issuer))

    assert response.status_code == 401, response.content
    assert response["Content-Type"] == "application/json"
    assert response["WWW-Authenticate"].startswith('Bearer realm="todos", error="invalid_token", error_description="')
    assert response.json()["error"] == "invalid_token"
    assert response.json()["error_description"].endswith(".")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("expired", "The token has expired."),
        ("for another audience", "The token is for another API."),
        ("of another issuer", "The token comes from another issuer."),
    ],
)
def test_it_says_why_where_the_client_can_do_something(
    kind: str, sentence: str, issuer: SampleIssuer, ask: Ask
) -> None:
    assert ask(WRONG_TOKENS[kind](issuer)).json()["error_description"] == sentence


def test_it_never_logs_a_token(issuer: SampleIssuer, ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    for wrong in WRONG_TOKENS.values():
        raw_token = wrong(issuer)
        ask(raw_token)
        assert not any(part in caplog.text for part in raw_token.split(".") if len(part) > 8)
    assert "a token was refused: ExpiredSignatureError" in caplog.text


@pytest.mark.parametrize("headers", [{}, {"Authorization": ""}, {"Authorization": "Basic YWRhOmFkYQ=="}])
def test_it_names_no_error_where_no_token_was_sent(headers: dict[str, str], issuer: SampleIssuer, ask: Ask) -> None:
    response = ask(**headers)

    assert response.status_code == 401
    assert response["WWW-Authenticate"] == 'Bearer realm="todos"'
    assert set(response.json()) == {"error", "error_description"}


def test_it_takes_no_token_from_query_body_or_cookie(issuer: SampleIssuer, client: Any) -> None:
    client.cookies["access_token"] = client.cookies["Authorization"] = issuer.token()
    assert client.get(f"/api/me?access_token={issuer.token()}").status_code == 401
    assert client.post("/api/todos", {"access_token": issuer.token()}).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_the_scheme_is_case_insensitive(scheme: str, issuer: SampleIssuer, ask: Ask) -> None:
    assert ask(Authorization=f"{scheme}{issuer.token()}").status_code == 200


def test_it_refuses_two_authorization_headers(issuer: SampleIssuer, ask: Ask) -> None:
    """ASGI servers hand over two headers; Django joins them with a comma."""
    response = ask(Authorization=f"Bearer {issuer.token()},Bearer {issuer.token(sub='mallory')}")

    assert response.status_code == 400
    assert response.json()["error"] == "invalid_request"


@pytest.mark.parametrize("kind", ["at+jwt", "AT+JWT", "application/at+jwt", "JWT", None])
def test_it_accepts_the_types_that_issuers_give_access_tokens(kind: Any, issuer: SampleIssuer, ask: Ask) -> None:
    assert ask(issuer.token(headers={"typ": kind})).status_code == 200


def test_it_accepts_es256(issuer: SampleIssuer, ask: Ask) -> None:
    issuer.publish(public_jwk(EC_KEY, "first"))
    assert ask(issuer.token(key=EC_KEY, algorithm="ES256")).status_code == 200


def test_it_accepts_a_list_of_audiences_that_holds_ours(issuer: SampleIssuer, ask: Ask) -> None:
    assert ask(issuer.token(aud=["urn:another-api", AUDIENCE])).status_code == 200


def test_a_clock_that_is_a_little_wrong_does_no_harm(issuer: SampleIssuer, ask: Ask) -> None:
    assert ask(issuer.token(exp=int(time.time()) - 3, iat=int(time.time()) + 3)).status_code == 200


def test_me_gives_the_claims(issuer: SampleIssuer, ask: Ask) -> None:
    claims = issuer.claims(name="Ada")
    assert ask(issuer.token(claims=claims)).json() == claims


@pytest.mark.parametrize(
    "granted",
    [
        {"scope": "openid read:todos"},
        {"scope": ["openid", "read:todos"]},
        {"scope": None, "permissions": ["read:todos"]},
        {"scope": "openid", "permissions": ["read:todos"]},
    ],
)
@pytest.mark.django_db
def test_scopes_come_from_scope_or_permissions(granted: dict[str, Any], issuer: SampleIssuer, client: Any) -> None:
    headers = {"Authorization": f"Bearer {issuer.token(**granted)}"}
    assert client.get("/api/todos", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "granted",
    [
        {"scope": None},
        {"scope": "read:todos2 xread:todos"},
        {"scope": {"read:todos": True}},
        {"scope": 7, "permissions": "read:todos"},
        {"scope": None, "permissions": [["read:todos"], 7, None]},
    ],
)
def test_nothing_else_is_a_scope(granted: dict[str, Any], issuer: SampleIssuer, client: Any) -> None:
    response = client.get("/api/todos", headers={"Authorization": f"Bearer {issuer.token(**granted)}"})

    assert response.status_code == 403
    assert 'error="insufficient_scope"' in response["WWW-Authenticate"]
    assert 'scope="read:todos"' in response["WWW-Authenticate"]


# -- the issuer's keys -------------------------------------------------------------------------------------------------


def test_it_reads_the_keys_once(issuer: SampleIssuer, ask: Ask) -> None:
    assert [ask(issuer.token()).status_code for _ in range(5)] == [200] * 5
    assert issuer.keys_read == 1


def test_it_reads_the_keys_again_after_their_lifetime(issuer: SampleIssuer, ask: Ask, clock: Clock) -> None:
    ask(issuer.token())
    issuer.publish(public_jwk(OTHER_RSA_KEY, "second"))
    clock.now += bearer.KEYS_LIFETIME + 1

    assert ask(issuer.token()).status_code == 401  # a key taken back is refused, once the lifetime is over
    assert ask(issuer.token(key=OTHER_RSA_KEY, headers={"kid": "second"})).status_code == 200


def test_it_follows_a_rotation_at_once(issuer: SampleIssuer, ask: Ask, clock: Clock) -> None:
    ask(issuer.token())
    issuer.publish(public_jwk(RSA_KEY, "first"), public_jwk(OTHER_RSA_KEY, "second"))

    assert ask(issuer.token(key=OTHER_RSA_KEY, headers={"kid": "second"})).status_code == 200
    assert ask(issuer.token()).status_code == 200


def test_invented_key_ids_cost_the_issuer_one_request_in_five_seconds(
    issuer: SampleIssuer, ask: Ask, clock: Clock
) -> None:
    ask(issuer.token())
    for number in range(10):
        assert ask(issuer.token(headers={"kid": f"invented-{number}"})).status_code == 401
    assert issuer.keys_read == 2

    clock.now += bearer.REREAD_EVERY
    ask(issuer.token(headers={"kid": "invented-later"}))
    assert issuer.keys_read == 3


def test_many_threads_make_one_request(issuer: SampleIssuer) -> None:
    together = threading.Barrier(8)
    proved: list[str] = []

    def verify() -> None:
        together.wait(5)
        proved.append(bearer.verify_token(issuer.token()).subject)

    threads = [threading.Thread(target=verify) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)

    assert proved == ["ada"] * 8
    assert issuer.keys_read == 1


def test_the_keys_outlive_a_short_outage_of_the_issuer(issuer: SampleIssuer, ask: Ask, clock: Clock) -> None:
    ask(issuer.token())
    issuer.is_down = True
    clock.now += bearer.KEYS_LIFETIME + 1

    assert [ask(issuer.token()).status_code for _ in range(3)] == [200] * 3
    assert issuer.keys_read == 2  # and a dead issuer is not asked at every request


def test_who_has_kept_keys_does_not_wait_for_a_silent_issuer(issuer: SampleIssuer, ask: Ask, clock: Clock) -> None:
    ask(issuer.token())
    issuer.was_asked.clear()
    issuer.may_answer.clear()
    clock.now += bearer.KEYS_LIFETIME + 1
    first = threading.Thread(target=ask, args=(issuer.token(),))
    first.start()
    assert issuer.was_asked.wait(5)

    assert ask(issuer.token()).status_code == 200
    assert first.is_alive()  # it still waits for the issuer
    issuer.may_answer.set()
    first.join(5)
    assert not first.is_alive()


def test_a_silent_issuer_is_given_up(issuer: SampleIssuer, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bearer, "TIMEOUT", 0.05)
    issuer.may_answer.clear()
    assert ask(issuer.token()).status_code == 503


def test_a_new_key_during_an_outage_is_undecided_not_refused(issuer: SampleIssuer, ask: Ask, clock: Clock) -> None:
    ask(issuer.token())
    issuer.is_down = True
    new = issuer.token(key=OTHER_RSA_KEY, headers={"kid": "second"})

    response = ask(new)
    assert (response.status_code, response.json()["error"]) == (503, "temporarily_unavailable")
    assert int(response["Retry-After"]) >= 1

    issuer.is_down = False
    issuer.publish(public_jwk(OTHER_RSA_KEY, "second"))
    clock.now += bearer.REREAD_EVERY
    assert ask(new).status_code == 200


def test_no_key_is_kept_for_ever(issuer: SampleIssuer, ask: Ask, clock: Clock) -> None:
    ask(issuer.token())
    issuer.is_down = True
    clock.now += bearer.KEYS_KEPT + 1
    assert ask(issuer.token()).status_code == 503


def test_an_issuer_that_was_never_there_is_asked_again_soon(issuer: SampleIssuer, ask: Ask, clock: Clock) -> None:
    issuer.is_down = True
    assert [ask(issuer.token()).status_code for _ in range(3)] == [503] * 3
    assert issuer.keys_read == 1

    issuer.is_down = False
    clock.now += bearer.REREAD_EVERY
    assert ask(issuer.token()).status_code == 200


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"{}"),
        (302, b"https://elsewhere.example/keys"),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"keys": {}}'),
        (200, b"[" * 100_000),
        (200, b'{"keys": [' + b" " * bearer.LARGEST_DOCUMENT + b"]}"),
    ],
    ids=lambda answer: f"{answer[0]} {answer[1][:12]!r}",
)
def test_what_is_no_key_set_changes_nothing(
    answer: tuple[int, bytes], issuer: SampleIssuer, ask: Ask, clock: Clock
) -> None:
    ask(issuer.token())
    issuer.documents["/keys"] = answer
    clock.now += bearer.KEYS_LIFETIME + 1
    assert ask(issuer.token()).status_code == 200


def test_it_follows_no_redirect_to_other_keys(issuer: SampleIssuer, ask: Ask) -> None:
    issuer.say("/others", {"keys": [public_jwk(OTHER_RSA_KEY, "second")]})
    issuer.documents["/keys"] = (302, f"{issuer.url}/others".encode())
    assert ask(issuer.token(key=OTHER_RSA_KEY, headers={"kid": "second"})).status_code == 503
    assert issuer.requests["/others"] == 0


WEAK_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)
P384_KEY = ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize(
    ("key", "algorithm", "members"),
    [
        (WEAK_KEY, "RS256", {}),
        (RSA_KEY, "RS256", {"use": "enc"}),
        (RSA_KEY, "RS256", {"alg": "RS512"}),
        (RSA_KEY, "RS256", {"alg": "RSA-OAEP"}),
        (P384_KEY, "ES256", {"alg": "ES256"}),
        (RSA_KEY, "RS256", {"n": 7}),
        (RSA_KEY, "RS256", {"n": "AQAB"}),
        (RSA_KEY, "RS256", {"kty": "oct"}),
        (RSA_KEY, "RS256", {"kty": ["RSA"]}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
def test_it_uses_no_key_that_is_weak_or_for_something_else(
    key: Any, algorithm: str, members: dict[str, Any], issuer: SampleIssuer, ask: Ask
) -> None:
    issuer.publish(public_jwk(key, "odd", **members), public_jwk(RSA_KEY, "first"), "not a key")
    try:
        raw_token = issuer.token(key=key, algorithm=algorithm, headers={"kid": "odd"})
    except jwt.InvalidKeyError:
        raw_token = f"{b64({'alg': algorithm, 'kid': 'odd'})}.{b64(issuer.claims())}.{b64(b'x' * 64)}"

    assert ask(raw_token).status_code == 401
    assert ask(issuer.token()).status_code == 200


def test_a_private_key_published_by_mistake_still_only_verifies(issuer: SampleIssuer, ask: Ask) -> None:
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True)
    issuer.publish({**jwk, "kid": "first"})
    assert ask(issuer.token()).status_code == 200


def test_the_host_header_is_the_issuers_name_where_its_address_is_not(
    issuer: SampleIssuer, ask: Ask, settings: Any
) -> None:
    settings.TODOS = {**settings.TODOS, "JWKS_HOST": "cair.example:8788"}
    assert ask(issuer.token()).status_code == 200
    assert issuer.hosts == ["cair.example:8788"]


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    issuer: SampleIssuer, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert ask(issuer.token()).status_code == 200


# -- an issuer known by its discovery document -------------------------------------------------------------------------


def test_issuer_and_keys_come_from_the_discovery_document(discovered: SampleIssuer, ask: Ask) -> None:
    assert [ask(discovered.token()).status_code for _ in range(3)] == [200] * 3
    assert discovered.requests == {"/.well-known/openid-configuration": 1, "/keys": 1}
    assert ask(discovered.token(iss="https://elsewhere.example")).status_code == 401


def test_the_document_spells_the_issuer(discovered: SampleIssuer, ask: Ask) -> None:
    """Auth0's issuer ends in a slash, its domain does not."""
    document = {"issuer": f"{discovered.url}/", "jwks_uri": discovered.jwks_url}
    discovered.say("/.well-known/openid-configuration", document)
    assert ask(discovered.token(iss=f"{discovered.url}/")).status_code == 200
    assert ask(discovered.token()).status_code == 401


def test_it_follows_the_keys_to_a_new_address(discovered: SampleIssuer, ask: Ask, clock: Clock) -> None:
    ask(discovered.token())
    discovered.say("/moved", {"keys": [public_jwk(OTHER_RSA_KEY, "second")]})
    document = {"issuer": discovered.url, "jwks_uri": f"{discovered.url}/moved"}
    discovered.say("/.well-known/openid-configuration", document)
    assert ask(discovered.token(key=OTHER_RSA_KEY, headers={"kid": "second"})).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "https://elsewhere.example"},
        {"issuer": None},
        {"jwks_uri": None},
        {"jwks_uri": "http://keys.example/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "http://[broken"},
    ],
    ids=str,
)
def test_it_believes_no_document_of_another_issuer_and_no_unsafe_address(
    changes: dict[str, Any], discovered: SampleIssuer, ask: Ask
) -> None:
    document = {"issuer": discovered.url, "jwks_uri": discovered.jwks_url, **changes}
    discovered.say("/.well-known/openid-configuration", document)
    assert ask(discovered.token(iss=changes.get("issuer") or discovered.url)).status_code == 503


def test_it_asks_for_keys_over_plain_http_on_this_machine_only(
    issuer: SampleIssuer, ask: Ask, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sits between could answer with keys of their own: here that is the proxy, which has good ones."""
    elsewhere = "http://keys.example/keys"
    issuer.documents[elsewhere] = issuer.documents["/keys"]
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, issuer.url)
    settings.TODOS = {**settings.TODOS, "JWKS_URL": elsewhere}
    assert ask(issuer.token()).status_code == 503
    assert issuer.requests[elsewhere] == 0


def test_a_name_that_is_told_must_be_the_documents_too(discovered: SampleIssuer, ask: Ask, settings: Any) -> None:
    settings.TODOS = {**settings.TODOS, "ISSUER": "https://cair.example"}
    assert ask(discovered.token()).status_code == 503
    document = {"issuer": "https://cair.example", "jwks_uri": discovered.jwks_url}
    discovered.say("/.well-known/openid-configuration", document)
    bearer._issuer.cache_clear()
    assert ask(discovered.token(iss="https://cair.example")).status_code == 200
