"""ID tokens in every kind of wrong (OpenID Connect Core 1.0 §3.1.3.7): one answer for the client, one line for the operator.

What is right of them is in test_upstream_login.py. Each token here is right but for one thing.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from oauth_relay.models import AuditEvent, Client, LoginTransaction, Session, UpstreamCredential, User
from tests import identity_provider
from tests.identity_provider import (
    CLIENT_ID,
    CLIENT_SECRET,
    EC_KEY,
    OTHER_RSA_KEY,
    RSA_KEY,
    FakedProvider,
    rsa_jwk,
    signed_with,
)
from tests.oauth_relay.at_provider import BrowserAtProvider
from tests.oauth_relay.conftest import answered

pytestmark = pytest.mark.django_db

Claims = dict[str, Any]
Wrong = Callable[[Claims], str]
HOUR = 3600


@pytest.fixture
def peer(settings: Any) -> Iterator[FakedProvider]:
    with identity_provider.faked_provider() as running:
        identity_provider.configure(settings, running.origin)
        for_encryption = {**rsa_jwk(RSA_KEY, "for-encryption"), "use": "enc"}
        any_algorithm = rsa_jwk(RSA_KEY, "any-algorithm")
        del any_algorithm["alg"]
        running.keys += [for_encryption, any_algorithm]
        yield running


@pytest.fixture
def browser(peer: FakedProvider) -> BrowserAtProvider:
    return BrowserAtProvider(peer)


# -- how to get one thing wrong ----------------------------------------------------------------------------------------


def with_claims(**changes: Any) -> Wrong:
    """Signed as it should be. A change to None leaves the claim out; one to a function is told what it was."""

    def sign(claims: Claims) -> str:
        changed = {name: value(claims.get(name)) if callable(value) else value for name, value in changes.items()}
        return rs256({name: value for name, value in {**claims, **changed}.items() if value is not None})

    return sign


def rs256(payload: object) -> str:
    """A good signature over anything: the library's own `encode` would not write some of it."""
    return jwt.PyJWS().encode(json.dumps(payload).encode(), RSA_KEY, algorithm="RS256", headers={"kid": "key-1"})


def with_header(**header: Any) -> Wrong:
    return lambda claims: jwt.encode(claims, RSA_KEY, algorithm="RS256", headers={"kid": "key-1", **header})


def in_hours(hours: float) -> Callable[[Any], int]:
    return lambda was: int(time.time() + hours * HOUR)


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def by_hand(header: Claims, payload: bytes, secret: bytes = b"") -> str:
    """What the library would not write: HS256 where there is a secret, else an empty signature."""
    signing_input = f"{encoded(json.dumps(header).encode())}.{encoded(payload)}"
    signature = hmac.digest(secret, signing_input.encode(), hashlib.sha256) if secret else b""
    return f"{signing_input}.{encoded(signature)}"


def hs256_with_the_public_key(claims: Claims) -> str:
    public = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return by_hand({"alg": "HS256", "kid": "key-1"}, json.dumps(claims).encode(), public)


def hs256_with_the_client_secret(claims: Claims) -> str:
    return by_hand({"alg": "HS256"}, json.dumps(claims).encode(), CLIENT_SECRET.encode())


def with_other_claims_under_the_signature(claims: Claims) -> str:
    header, _, signature = rs256(claims).split(".")
    return f"{header}.{encoded(json.dumps({**claims, 'sub': 'auth0|mallory'}).encode())}.{signature}"


def encrypted(claims: Claims) -> str:
    header = {"alg": "RSA-OAEP-256", "enc": "A256GCM", "kid": "key-1"}
    return ".".join([encoded(json.dumps(header).encode()), *(encoded(bytes(size)) for size in (256, 12, 64, 16))])


WRONG: dict[str, tuple[Wrong, str]] = {
    # whose it is
    "another issuer": (with_claims(iss="https://somebody-else.example/"), "Invalid issuer"),
    "an issuer with a slash too many": (with_claims(iss=lambda was: f"{was}/"), "Invalid issuer"),
    "no issuer": (with_claims(iss=None), 'missing the "iss"'),
    "a list of issuers": (with_claims(iss=lambda was: [was]), "Issuer (iss) must be a string"),
    "another audience": (with_claims(aud="somebody-else"), "Audience doesn't match"),
    "no audience": (with_claims(aud=None), 'missing the "aud"'),
    "an empty list of audiences": (with_claims(aud=[]), 'missing the "aud"'),
    "an audience that is a number": (with_claims(aud=7), "Invalid claim format"),
    "two audiences and no authorized party": (with_claims(aud=[CLIENT_ID, "somebody-else"]), "no authorized party"),
    "another authorized party": (with_claims(azp="somebody-else"), "made for another client"),
    "an authorized party that is a list": (with_claims(azp=[CLIENT_ID]), "made for another client"),
    # when
    "an end in the past": (with_claims(exp=in_hours(-1), iat=in_hours(-2)), "has expired"),
    "no end": (with_claims(exp=None), 'missing the "exp"'),
    "an end that is no time": (with_claims(exp="soon"), "Expiration Time claim"),
    "an end beyond numbers": (with_claims(exp=float("inf")), "Expiration Time claim"),
    "made in the future": (with_claims(iat=in_hours(1)), "not yet valid (iat)"),
    "no time of issue": (with_claims(iat=None), 'missing the "iat"'),
    "not yet": (with_claims(nbf=in_hours(1)), "not yet valid (nbf)"),
    # for which sign-in
    "no nonce": (with_claims(nonce=None), "it has no nonce"),
    "another nonce": (with_claims(nonce="another"), "the nonce is not the one sent"),
    "an empty nonce": (with_claims(nonce=""), "it has no nonce"),
    "a nonce that is no text": (with_claims(nonce=lambda was: [was]), "it has no nonce"),
    # about whom
    "no subject": (with_claims(sub=None), 'missing the "sub"'),
    "an empty subject": (with_claims(sub=""), "its subject is empty"),
    "a subject too long": (with_claims(sub="a" * 256), "or too long"),
    "a subject that is a number": (with_claims(sub=7), "Subject must be a string"),
    "a subject with a NUL": (with_claims(sub="auth0|ada\0"), "holds what no database keeps"),
    "a subject with half a character": (with_claims(sub="auth0|\ud800"), "holds what no database keeps"),
    # by whom
    "no signature": (lambda claims: jwt.encode(claims, None, algorithm="none"), "publishes no key"),
    "no signature under a known name": (
        lambda claims: by_hand({"alg": "none", "kid": "key-1"}, json.dumps(claims).encode()),
        "publishes no key",
    ),
    "no algorithm": (lambda claims: by_hand({"kid": "key-1"}, json.dumps(claims).encode()), "publishes no key"),
    "an empty signature": (lambda claims: rs256(claims).rpartition(".")[0] + ".", "Signature verification failed"),
    "HS256 with the public key": (hs256_with_the_public_key, "publishes no key"),
    "HS256 with the client secret": (hs256_with_the_client_secret, "publishes no key"),
    "an algorithm that is not on the list": (signed_with(RSA_KEY, "RS512", "any-algorithm"), "publishes no key"),
    "an unknown key": (signed_with(OTHER_RSA_KEY, "RS256", "key-9"), "publishes no key"),
    "another key under a known name": (signed_with(OTHER_RSA_KEY, "RS256", "key-1"), "Signature verification failed"),
    "a key of another kind under a known name": (signed_with(EC_KEY, "ES256", "key-1"), "publishes no key"),
    "a key for encryption": (signed_with(RSA_KEY, "RS256", "for-encryption"), "publishes no key"),
    "no name where several keys fit": (signed_with(RSA_KEY, "RS256", None), "publishes no key"),
    "a key's name that is a number": (
        lambda claims: by_hand({"alg": "RS256", "kid": 1}, json.dumps(claims).encode()),
        "Key ID header parameter",
    ),
    "other claims under a good signature": (with_other_claims_under_the_signature, "Signature verification failed"),
    # what it is
    "a critical header that nobody here knows": (with_header(crit=["exp"], exp=1), "Unsupported critical extension"),
    "its own key in the header": (
        lambda claims: jwt.encode(
            claims, OTHER_RSA_KEY, algorithm="RS256", headers={"kid": "mine", "jwk": rsa_jwk(OTHER_RSA_KEY, "mine")}
        ),
        "publishes no key",
    ),
    "encrypted": (encrypted, "Invalid payload padding"),
    "cut short": (lambda claims: rs256(claims)[:-42], "Signature verification failed"),
    "half of it": (lambda claims: rs256(claims).rpartition(".")[0], "Not enough segments"),
    "a payload that is a list": (lambda claims: rs256([claims]), "must be a json object"),
    "a header that is no JSON": (
        lambda claims: encoded(b"{") + "." + rs256(claims).partition(".")[2],
        "Invalid header string",
    ),
    "something that is no token": (lambda claims: "nonsense", "Not enough segments"),
}


def refusal_of(browser: BrowserAtProvider, client: Client, wrong: Wrong) -> dict[str, str]:
    """What the client hears after a sign-in that brings such a token."""
    browser.peer.sign = wrong
    browser.authorize(client)
    return answered(browser.sign_in_there())


def line_of(caplog: pytest.LogCaptureFixture) -> str:
    """The one line for the operator."""
    [line] = [record.getMessage() for record in caplog.records if record.name == "oauth_relay.upstream_login"]
    return line


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_it_refuses_an_id_token_with(
    browser: BrowserAtProvider, inspector: Client, kind: str, caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    wrong, told = WRONG[kind]
    sent: list[str] = []
    heard = refusal_of(browser, inspector, lambda claims: sent.append(wrong(claims)) or sent[0])
    assert heard == {
        "error": "temporarily_unavailable",
        "error_description": "The sign-in at the identity provider failed. Try again in a moment.",
        "state": "its state",
        "iss": settings.PUBLIC_URL,
    }
    assert not User.objects.exists() and not UpstreamCredential.objects.exists()
    assert not Session.objects.filter(user__isnull=False).exists()
    assert not LoginTransaction.objects.exclude(staged_tokens=None).exists()
    line = line_of(caplog)
    assert line.startswith("sign-in at auth0: temporarily_unavailable (ID token: ") and told in line, line
    kept = line + repr(list(AuditEvent.objects.values_list()))
    for secret in (sent[0], browser.sent["nonce"], browser.sent["state"], CLIENT_SECRET):
        assert secret not in kept


def test_the_operator_can_tell_twenty_kinds_apart() -> None:
    lines = {told for _, told in WRONG.values()}
    assert len(lines) >= 20
    assert not [(one, other) for one in lines for other in lines if one != other and one in other]


def test_the_same_token_with_nothing_wrong_is_believed(browser: BrowserAtProvider, inspector: Client) -> None:
    """Or else the refusals above prove nothing."""
    browser.peer.sign = with_claims()
    assert browser.tokens_of(inspector)["access_token"]
