"""private_key_jwt: only this client's own key, for this server, for a short time, and once."""

import base64
import json
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from django.conf import settings as configured
from django.db import connection
from django.test import RequestFactory
from django.utils import timezone
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from oauth_relay import client_assertions
from oauth_relay.client_assertions import ASSERTION_TYPE, InvalidAssertion, proved_client_id, signs
from oauth_relay.client_metadata_documents import checked_metadata, client_of
from oauth_relay.models import Client, SpentLogoutToken
from oauth_relay.outbound_documents import DocumentUnavailable
from tests.document_host import CLIENT_ID, Internet, description, internet
from tests.oauth_relay.conftest import make_client

pytestmark = pytest.mark.django_db
KEYS_URL = "https://keys.example.net/jwks.json"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SMALL_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC, ANOTHER_EC, P384 = (ec.generate_private_key(curve()) for curve in (ec.SECP256R1, ec.SECP256R1, ec.SECP384R1))
ED = ed25519.Ed25519PrivateKey.generate()


def public(key: Any, kid: str | None = "one", **more: Any) -> dict[str, Any]:
    kinds = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    algorithm = next((a for kind, a in kinds.items() if isinstance(key, kind)), OKPAlgorithm)
    found = json.loads(algorithm.to_jwk(key.public_key()))  # type: ignore[attr-defined]
    return {
        name: value for name, value in {**found, "kid": kid, **more}.items() if name != "key_ops" and value is not None
    }


def description_with(*keys: dict[str, Any], **changes: Any) -> dict[str, Any]:
    said = {"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": list(keys)}, **changes}
    return description(**said)


def known(said: dict[str, Any], good_for: float = 3600) -> Client:
    frozen = {
        "client_id": CLIENT_ID,
        "metadata": checked_metadata(CLIENT_ID, said),
        "good_until": time.time() + good_for,
    }
    client = client_of(frozen)
    client.save()
    return client


@pytest.fixture(autouse=True)
def policy(settings: Any) -> Any:
    settings.CLIENT_METADATA_DOCUMENTS = "open"
    settings.CLIENT_METADATA_LOOPBACK = False
    settings.CLIENT_HOSTS_ALLOWED = settings.CLIENT_HOSTS_DENIED = frozenset()
    return settings


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Internet]:
    with internet(monkeypatch, tmp_path) as net:
        net.host.publish("/client.json", description_with(public(EC)))
        net.host.publish("/jwks.json", {"keys": [public(EC)]})
        yield net


@pytest.fixture
def client(net: Internet) -> Client:
    return known(description_with(public(EC)))


def assertion(key: Any = EC, algorithm: str = "ES256", *, header: Any = None, **changes: Any) -> str:
    """What the client would send; a claim of None is left out."""
    claims = {
        "iss": CLIENT_ID,
        "sub": CLIENT_ID,
        "aud": configured.PUBLIC_URL,
        "exp": int(time.time()) + 60,
        "iat": int(time.time()),
        "jti": secrets.token_urlsafe(12),
        **changes,
    }
    present = {name: value for name, value in claims.items() if value is not None}
    named = {"kid": "one", **(header or {})}
    return jwt.encode(
        present, key, algorithm, headers={name: value for name, value in named.items() if value is not None}
    )


def prove(token: str, headers: Any = None, **changes: Any) -> str:
    form = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": token, **changes}
    present = {name: value for name, value in form.items() if value is not None}
    return proved_client_id(RequestFactory().post("/token", present, headers=headers))


def refused(token: str, **changes: Any) -> str:
    with pytest.raises(InvalidAssertion) as error:
        prove(token, **changes)
    assert token not in str(error.value)
    return str(error.value)


# -- what holds --------------------------------------------------------------------------------------------------------


def test_a_request_without_an_assertion_claims_nothing() -> None:
    assert proved_client_id(RequestFactory().post("/token", {"client_id": CLIENT_ID})) == ""


@pytest.mark.pain("P24")
@pytest.mark.parametrize(("key", "algorithm"), [(EC, "ES256"), (RSA, "RS256"), (RSA, "PS256"), (ED, "EdDSA")])
def test_each_algorithm_that_is_advertised_holds(net: Internet, key: Any, algorithm: str) -> None:
    known(description_with(public(key)))
    assert prove(assertion(key, algorithm)) == CLIENT_ID
    assert algorithm in client_assertions.ALGORITHMS


@pytest.mark.parametrize("audience", ["", "/token"])
@pytest.mark.parametrize("as_list", [True, False])
def test_it_is_for_the_issuer_or_its_token_endpoint(client: Client, audience: str, as_list: bool) -> None:
    named = configured.PUBLIC_URL + audience
    assert prove(assertion(aud=[named] if as_list else named)) == CLIENT_ID


@pytest.mark.parametrize(
    "changes", [{"client_id": CLIENT_ID}, {"client_id": None}], ids=["with client_id", "without client_id"]
)
def test_the_client_id_beside_it_is_unnecessary(client: Client, changes: dict[str, Any]) -> None:
    assert prove(assertion(), **changes) == CLIENT_ID


@pytest.mark.parametrize("header", [{"typ": "JWT"}, {"typ": "client-authentication+jwt"}, {"kid": None}])
def test_what_may_be_said_in_the_header_may_be_said(client: Client, header: dict[str, Any]) -> None:
    assert prove(assertion(header=header)) == CLIENT_ID


# -- what does not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": None}, {"sub": None}, {"aud": None}, {"exp": None}, {"jti": None},
        {"iss": "https://two.example.com/client.json"}, {"sub": "https://two.example.com/client.json"},
        {"aud": "https://another.example"}, {"aud": configured.PUBLIC_URL + "/"}, {"aud": configured.PUBLIC_URL + "/mcp"},
        {"aud": [configured.PUBLIC_URL, "https://another.example"]}, {"aud": []}, {"aud": ""},
        {"aud": [configured.PUBLIC_URL, configured.PUBLIC_URL + "/token"]},
        {"exp": int(time.time()) - 60}, {"exp": int(time.time()) + 3600}, {"exp": "soon"}, {"exp": 10**30}, {"exp": True},
        {"exp": 1e400}, {"exp": str(int(time.time()) + 60)}, {"nbf": int(time.time()) + 3600},
        {"iat": int(time.time()) + 3600}, {"jti": ""}, {"jti": 7}, {"jti": "x" * 256}, {"jti": "a\0b"}, {"jti": ["x"]},
    ],
)  # fmt: skip
def test_a_claim_that_does_not_hold_is_refused(client: Client, changes: dict[str, Any]) -> None:
    refused(assertion(**changes))
    assert not SpentLogoutToken.objects.exists()


@pytest.mark.parametrize(
    "header",
    [{"typ": "at+jwt"}, {"typ": "logout+jwt"}, {"kid": "two"}, {"crit": ["x"], "x": 1}, {"crit": []}, {"kid": ["one"]}],
)
def test_a_header_that_means_something_else_is_refused(client: Client, header: dict[str, Any]) -> None:
    unsigned, _, _ = assertion().rpartition(".")
    _, claims = unsigned.split(".")
    head = base64.urlsafe_b64encode(json.dumps({"alg": "ES256", "kid": "one", **header}).encode()).rstrip(b"=").decode()
    signature = EC.sign(f"{head}.{claims}".encode(), ec.ECDSA(client_assertions_hash()))
    refused(f"{head}.{claims}.{base64.urlsafe_b64encode(raw(signature)).rstrip(b'=').decode()}")


def client_assertions_hash() -> Any:
    from cryptography.hazmat.primitives.hashes import SHA256

    return SHA256()


def raw(signature: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    r, s = decode_dss_signature(signature)
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def test_another_key_under_the_same_name_is_refused(client: Client) -> None:
    assert "Signature" in refused(assertion(ANOTHER_EC))


@pytest.mark.parametrize("algorithm", ["none", "HS256", "ES384", "RS512"])
def test_an_algorithm_that_is_none_of_ours_is_refused(net: Internet, algorithm: str) -> None:
    known(description_with(public(EC), public(RSA, "two")))
    # HS256 with the published key as its secret: the confusion that the list of algorithms is for.
    key = {"none": None, "HS256": public(EC)["x"], "ES384": P384, "RS512": RSA}[algorithm]
    refused(assertion(key, algorithm))


@pytest.mark.parametrize(
    ("published", "signed_with", "algorithm"),
    [
        (public(P384), P384, "ES256"),
        (public(SMALL_RSA), SMALL_RSA, "RS256"),
        (public(EC, use="enc"), EC, "ES256"),
        (public(EC, alg="ES384"), EC, "ES256"),
        ({**public(EC), "x": "!"}, EC, "ES256"),
        ({"kty": "EC", "kid": "one"}, EC, "ES256"),
    ],
)
def test_a_key_that_is_for_something_else_is_not_used(
    net: Internet, published: dict[str, Any], signed_with: Any, algorithm: str
) -> None:
    known(description_with(published))
    net.host.publish("/client.json", description_with(published))
    token = assertion() if signed_with is P384 else assertion(signed_with, algorithm)
    assert "no key" in refused(token)


def test_two_keys_of_one_name_are_none(net: Internet) -> None:
    said = description_with(public(EC), public(ANOTHER_EC))
    known(said)
    net.host.publish("/client.json", said)
    assert "no key" in refused(assertion())


@pytest.mark.parametrize(
    "token", ["", "x", "a.b.c", "..", "e30.e30.", "\ud800", "x" * 9000, "eyJhbGciOiJub25lIn0.W10.", "."]
)
def test_what_is_no_token_is_refused(client: Client, token: str) -> None:
    with pytest.raises(InvalidAssertion):
        client_assertions._client_claimed_by(token, None)


def test_another_type_of_assertion_or_half_of_one_is_refused(client: Client) -> None:
    refused(assertion(), client_assertion_type="urn:ietf:params:oauth:client-assertion-type:saml2-bearer")
    refused(assertion(), client_assertion_type=None)
    with pytest.raises(InvalidAssertion):
        prove("x", client_assertion=None)


def test_it_stands_alone(client: Client) -> None:
    """RFC 6749 §2.3: one way of authenticating in each request."""
    refused(assertion(), client_secret="")
    refused(assertion(), headers={"Authorization": "Basic eDp5"})
    refused(assertion(), client_id="https://two.example.com/client.json")
    refused(assertion(), client_id="")


# -- whose it is -------------------------------------------------------------------------------------------------------


@pytest.mark.threat("T24")
def test_a_first_seen_client_is_not_fetched(net: Internet) -> None:
    assert "unknown" in refused(assertion())
    assert net.looked_up == []


def test_a_client_that_does_not_sign_cannot_begin_to(net: Internet) -> None:
    public_client = known(description())
    net.host.publish("/client.json", description())
    assert not signs(public_client)
    refused(assertion())


@pytest.mark.parametrize("way", ["blocked", "denied", "off"])
def test_a_client_that_may_not_come_proves_nothing(client: Client, settings: Any, way: str) -> None:
    if way == "blocked":
        Client.objects.update(blocked_at=timezone.now())
    elif way == "denied":
        settings.CLIENT_HOSTS_DENIED = frozenset({".example.com"})
    else:
        settings.CLIENT_METADATA_DOCUMENTS = "off"
    refused(assertion())


def test_a_client_with_a_secret_cannot_use_another_ones_signature(client: Client) -> None:
    made = make_client(registration_source="manual", client_type=Client.CLIENT_CONFIDENTIAL, client_secret="s" * 40)
    refused(assertion(iss=made.client_id, sub=made.client_id))


# -- once --------------------------------------------------------------------------------------------------------------


def test_it_counts_once_and_nothing_of_it_is_stored_in_the_clear(client: Client) -> None:
    token = assertion(jti="the only one")
    assert prove(token) == CLIENT_ID
    assert "before" in refused(token)
    row = SpentLogoutToken.objects.get()
    assert "the only one" not in row.digest
    assert 30 < (row.until - timezone.now()).total_seconds() < 600
    prove(assertion(jti="another one"))


def test_the_same_jti_of_another_client_is_another(client: Client) -> None:
    prove(assertion(jti="one"))
    other = "https://two.example.com/client.json"
    said = description_with(public(EC), client_id=other)
    client_of({"client_id": other, "metadata": checked_metadata(other, said), "good_until": time.time() + 60}).save()
    assert prove(assertion(jti="one", iss=other, sub=other)) == other


def test_what_is_past_is_swept(client: Client) -> None:
    SpentLogoutToken.objects.create(digest="old", until=timezone.now())
    prove(assertion())
    assert not SpentLogoutToken.objects.filter(digest="old").exists()


@pytest.mark.django_db(transaction=True)
def test_of_many_at_once_one_is_first(net: Internet) -> None:
    known(description_with(public(EC)))
    token = assertion()

    def try_it() -> str:
        try:
            return prove(token)
        except InvalidAssertion:
            return ""
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as threads:
        outcomes = [future.result(20) for future in [threads.submit(try_it) for _ in range(6)]]
    assert sorted(outcomes) == ["", "", "", "", "", CLIENT_ID]


# -- keys that change --------------------------------------------------------------------------------------------------


def test_a_new_key_in_the_document_is_found_and_an_invented_one_costs_one_look(client: Client, net: Internet) -> None:
    net.host.publish("/client.json", description_with(public(EC), public(ANOTHER_EC, "new")))
    assert prove(assertion(ANOTHER_EC, header={"kid": "new"})) == CLIENT_ID
    for _ in range(5):
        refused(assertion(header={"kid": secrets.token_hex(4)}))
    assert [path for path, _ in net.host.asked] == ["/client.json"]


def test_a_key_that_was_taken_out_is_good_only_as_long_as_the_document_said(net: Internet) -> None:
    known(description_with(public(EC)), good_for=-1)
    net.host.publish("/client.json", description_with(public(ANOTHER_EC, "new")))
    assert "no key" in refused(assertion())


def test_keys_at_an_address_of_their_own_are_read_once_and_again_for_a_new_one(net: Internet) -> None:
    known(description_with(jwks=None, jwks_uri=KEYS_URL))
    assert prove(assertion()) == prove(assertion()) == CLIENT_ID
    assert [path for path, _ in net.host.asked] == ["/jwks.json"]
    net.host.publish("/jwks.json", {"keys": [public(ANOTHER_EC, "new")]})
    client_assertions.LOOK_AGAIN_AFTER, before = 0.0, client_assertions.LOOK_AGAIN_AFTER
    try:
        assert prove(assertion(ANOTHER_EC, header={"kid": "new"})) == CLIENT_ID
    finally:
        client_assertions.LOOK_AGAIN_AFTER = before
    for _ in range(5):
        refused(assertion(header={"kid": "invented"}))
    assert [path for path, _ in net.host.asked] == ["/jwks.json"] * 2


def test_keys_that_cannot_be_read_now_decide_nothing(net: Internet) -> None:
    known(description_with(jwks=None, jwks_uri=KEYS_URL))
    net.names["keys.example.net"] = ["10.0.0.1"]
    with pytest.raises(DocumentUnavailable):
        prove(assertion())
    assert not SpentLogoutToken.objects.exists()


def test_a_key_address_that_publishes_a_secret_proves_nothing(net: Internet) -> None:
    known(description_with(jwks=None, jwks_uri=KEYS_URL))
    net.host.publish("/jwks.json", {"keys": [{**public(EC), "d": "x"}]})
    assert "secret" in refused(assertion())
