"""private_key_jwt: a client that proves itself by a signature instead of a secret (RFC 7523 §2.2, §3).

All of it happens before the grant's transaction: the keys may have to be fetched, and no lock waits for a stranger's
server. Only a client with a row is asked about; a first-seen id fetches nothing here (T24).
"""

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from django.conf import settings
from django.http import HttpRequest

from oauth_relay.client_metadata import InvalidMetadata, checked_jwks
from oauth_relay.client_metadata_documents import brought_up_to_date, is_admitted
from oauth_relay.digests import digest_of
from oauth_relay.models import Client, SpentLogoutToken
from oauth_relay.outbound_documents import Documents, InvalidDocument

logger = logging.getLogger(__name__)

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
TYPES = frozenset({"jwt", "client-authentication+jwt"})
# RFC 8725 §3.1: the algorithms are ours to name, never the token's. Each with the kind of key it may be used with.
ALGORITHMS = {"ES256": ("EC", "P-256"), "RS256": ("RSA", None), "PS256": ("RSA", None), "EdDSA": ("OKP", "Ed25519")}
PROVED_CLIENT = "cair.proved_client"
"""Where the view leaves the proof for the validator: what comes from outside has `HTTP_` before its name there."""
LONGEST_ASSERTION = 8192
LONGEST_ID = 255
LONGEST_LIFE = 600
LEEWAY = 30
LEAST_RSA_BITS = 2048
LOOK_AGAIN_AFTER = 5.0
"""Seconds between two looks for a key that nobody has seen yet: an invented `kid` must not become a request."""


class InvalidAssertion(Exception):
    """The assertion proves nothing. The message is for the operator; the client hears `invalid_client`."""


def proved_client_id(request: HttpRequest) -> str:
    """The id of the client that signed this request; empty where none claims to. To be called outside any transaction.

    Raises InvalidAssertion; DocumentUnavailable where the keys cannot be read now, so that nothing is decided.
    """
    form = request.POST
    if "client_assertion" not in form and "client_assertion_type" not in form:
        return ""
    if form.get("client_assertion_type") != ASSERTION_TYPE:
        raise InvalidAssertion("another client_assertion_type")
    # > The client MUST NOT use more than one authentication method in each request. (RFC 6749 §2.3)
    if "client_secret" in form or "Authorization" in request.headers:
        raise InvalidAssertion("a second way of authenticating beside it")
    unverified_token = form.get("client_assertion", "")
    client = _client_claimed_by(unverified_token, form.get("client_id"))
    _spend(client, verify_assertion(client, unverified_token))
    return client.client_id


def signs(client: Client) -> bool:
    """Whether this client proves itself by signatures, and so in no other way."""
    return client.metadata.get("token_endpoint_auth_method") == "private_key_jwt"


def _client_claimed_by(unverified_token: str, client_id: str | None) -> Client:
    """> The "client_id" parameter is unnecessary …, but if present, … MUST identify the same client as is identified by
    > the client assertion. (RFC 7521 §4.2)"""
    if not 0 < len(unverified_token) <= LONGEST_ASSERTION:
        raise InvalidAssertion("it is empty or too long")
    try:
        unverified_claims = jwt.decode(unverified_token, options={"verify_signature": False})
    except (jwt.PyJWTError, TypeError, ValueError, RecursionError) as error:
        raise InvalidAssertion(f"{error.__class__.__name__}") from error
    claimed = unverified_claims.get("sub")
    if not _is_text(claimed) or client_id not in (None, claimed):
        raise InvalidAssertion("it is another client's, or nobody's")
    client = Client.objects.filter(client_id=claimed).first()
    if client is None or not client.is_usable(None) or not is_admitted(client):
        raise InvalidAssertion("its client is unknown, blocked, or not admitted")
    return client


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_ID and value.isprintable()


# -- the assertion, checked whole --------------------------------------------------------------------------------------


def verify_assertion(client: Client, unverified_token: str) -> dict[str, Any]:
    """The claims of an assertion that holds in every point of RFC 7523 §3. Raises as `proved_client_id` does."""
    try:
        client = brought_up_to_date(client)
        if not signs(client):
            raise InvalidAssertion("this client does not sign")
        unverified_header = jwt.get_unverified_header(unverified_token)
        claims = _verify_signature_and_parties(client, unverified_token, unverified_header)
    except (jwt.PyJWTError, InvalidDocument, TypeError, ValueError, OverflowError) as error:
        raise InvalidAssertion(f"{error.__class__.__name__}: {error}") from error
    audience, expiry = claims["aud"], claims["exp"]
    # One that names others too could have been made for them, and be passed on.
    if isinstance(audience, list) and len(audience) != 1:
        raise InvalidAssertion("it is for others too")
    if isinstance(expiry, bool) or not isinstance(expiry, int | float) or expiry > time.time() + LONGEST_LIFE + LEEWAY:
        raise InvalidAssertion("it lives too long")
    if not _is_text(claims["jti"]):
        raise InvalidAssertion("its jti is no text")
    return claims


def _verify_signature_and_parties(
    client: Client, unverified_token: str, unverified_header: Mapping[str, Any]
) -> dict[str, Any]:
    if str(unverified_header.get("typ", "JWT")).lower() not in TYPES:
        raise InvalidAssertion("its type is another")
    if "crit" in unverified_header:
        raise InvalidAssertion("it has an extension that must be understood")
    key = _key_for(client, unverified_header)
    claims: dict[str, Any] = jwt.decode(
        unverified_token,
        key,
        algorithms=[str(unverified_header["alg"])],
        audience=[settings.PUBLIC_URL, f"{settings.PUBLIC_URL}/token"],
        issuer=client.client_id,
        subject=client.client_id,
        leeway=LEEWAY,
        options={"require": ["iss", "sub", "aud", "exp", "jti"]},
    )
    return claims


def _spend(client: Client, claims: Mapping[str, Any]) -> None:
    """A `jti` counts once, for as long as the assertion could be shown again: it stays spent whatever comes of the request."""
    until = datetime.fromtimestamp(float(claims["exp"]) + 2 * LEEWAY, UTC)
    digest = digest_of(f"client assertion\0{client.client_id}\0{claims['jti']}")
    if not SpentLogoutToken.objects.spend(digest, until):
        raise InvalidAssertion("it was used before")


# -- keys --------------------------------------------------------------------------------------------------------------


def _checked_key_set(url: str, unverified: dict[str, Any]) -> dict[str, Any]:
    try:
        return checked_jwks(unverified)
    except InvalidMetadata as wrong:
        raise InvalidDocument(wrong.description) from wrong


_key_sets = Documents(_checked_key_set)


def _key_for(client: Client, unverified_header: Mapping[str, Any]) -> jwt.PyJWK:
    """The client's key that must have signed a token with this header. Raises InvalidAssertion, DocumentUnavailable.

    A key that is not there is looked for once more: clients rotate theirs without telling anybody.
    """
    if unverified_header.get("alg") not in ALGORITHMS:
        raise InvalidAssertion("its algorithm is none of ours")
    found = _find_key(_keys_of(client), unverified_header) or _find_key(
        _keys_of(client, since=time.time() - LOOK_AGAIN_AFTER), unverified_header
    )
    if found is None:
        raise InvalidAssertion("the client publishes no key for it")
    return found


def _keys_of(client: Client, since: float = 0.0) -> list[dict[str, Any]]:
    """The keys in the client's document, or at the address that it names."""
    if "jwks_uri" in client.metadata:
        return list(_key_sets.read(client.metadata["jwks_uri"], known=True, since=since).content["keys"])
    if since:
        client = brought_up_to_date(client, since)
    return list(client.metadata.get("jwks", {}).get("keys", []))


def _find_key(keys: list[dict[str, Any]], unverified_header: Mapping[str, Any]) -> jwt.PyJWK | None:
    fitting = [key for key in keys if _fits(key, unverified_header)]
    if len(fitting) != 1:
        return None
    try:
        key = jwt.PyJWK(fitting[0], algorithm=str(unverified_header["alg"]))
    except (jwt.PyJWKError, jwt.InvalidKeyError):
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < LEAST_RSA_BITS:
        return None
    return key


def _fits(key: Mapping[str, Any], unverified_header: Mapping[str, Any]) -> bool:
    """Whether a key may check a token with this header: kind and curve, algorithm, use, and its name if given."""
    algorithm = unverified_header["alg"]
    kind, curve = ALGORITHMS[algorithm]
    return (
        key.get("kty") == kind
        and curve in (None, key.get("crv"))
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
        and unverified_header.get("kid") in (None, key.get("kid"))
    )
