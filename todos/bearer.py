"""Who is calling: the bearer token of a request, proved with the keys that its issuer publishes (RFC 6750, RFC 7519).

All this service knows of the issuer is in `settings.TODOS`: a name and where the keys are, or a discovery document that
says both. `verify_token` returns what it has proved, or raises an exception named for the error on the wire.
"""

import ipaddress
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import jwt
import requests
from django.conf import settings

logger = logging.getLogger(__name__)

LEEWAY = 10.0
KEYS_LIFETIME = 300.0
# An issuer that is down takes nobody's access away; one that is silent for a day vouches for no key any more.
KEYS_KEPT = 24 * 3600.0
REREAD_EVERY = 5.0
TIMEOUT = 5.0
LONGEST_TOKEN = 16 * 1024
LONGEST_NAME = 255
LARGEST_DOCUMENT = 1024 * 1024

# The algorithm follows from the key, never from the token (RFC 8725 §3.1). Beside it, the members of its public half.
_ALGORITHMS = {
    ("RSA", None): ("RS256", ("n", "e")),
    ("EC", "P-256"): ("ES256", ("crv", "x", "y")),
}
ALGORITHMS = frozenset(algorithm for algorithm, _ in _ALGORITHMS.values())
# RFC 9068 §4 wants at+jwt; Auth0 and others say JWT, or nothing. A logout token or an assertion is no access token.
_TYPES = frozenset({"at+jwt", "application/at+jwt", "jwt"})
_DATES = {"exp", "nbf", "iat"}
_BEARER = re.compile(r"Bearer +([A-Za-z0-9\-._~+/]+=*)", re.IGNORECASE)


class NoToken(Exception):
    """The request carries no bearer token."""


class InvalidRequest(Exception):
    """The request names its token in more than one way (RFC 6750 §3.1). The text is for the client."""


class InvalidToken(Exception):
    """The token proves nothing here. The text is what the client may know."""


class InsufficientScope(Exception):
    """The token is good, and does not reach this far."""

    def __init__(self, scopes: frozenset[str]) -> None:
        super().__init__("The token lacks a scope that this needs.")
        self.scopes = scopes


class IssuerUnavailable(Exception):
    """The keys that would decide cannot be read now. The token may be good."""

    retry_after = int(REREAD_EVERY)


class _Unreadable(Exception):
    """A document of the issuer that cannot be used. The text is for the operator."""


@dataclass(frozen=True)
class Principal:
    """Whom a proved token names, and what it allows. `claims` is the token's whole proved content."""

    issuer: str
    subject: str
    scopes: frozenset[str]
    claims: Mapping[str, Any] = field(repr=False)

    def require(self, scopes: frozenset[str]) -> None:
        """Raise `InsufficientScope` unless all of `scopes` are allowed."""
        if not scopes <= self.scopes:
            raise InsufficientScope(scopes)


def raw_token_of(authorization: str | None) -> str:
    """The token in an `Authorization` header (RFC 6750 §2.1), the only place where one is looked for."""
    value = (authorization or "").strip(" ")
    if value[:6].lower() != "bearer":
        raise NoToken
    if "," in value:  # how ASGI servers and Django hand over two headers of one name
        raise InvalidRequest("Send exactly one Authorization header.")
    found = _BEARER.fullmatch(value)
    if found is None or len(value) > LONGEST_TOKEN:
        raise InvalidToken("The Authorization header holds no token of this service.")
    return found[1]


def verify_token(raw_token: str) -> Principal:
    """The principal that `raw_token` names: signature, issuer, audience, times and subject are proved."""
    unverified_header = _unverified_header(raw_token)
    issuer, key = trusted_issuer().key_for(unverified_header["kid"], unverified_header["alg"])
    claims = _proved(raw_token, issuer, key)
    if not _is_name(claims["sub"]) or not all(_is_date(claims[name]) for name in _DATES & claims.keys()):
        raise InvalidToken("The token has a claim of the wrong form.")
    return Principal(issuer, claims["sub"], _scopes(claims), claims)


def _unverified_header(raw_token: str) -> dict[str, Any]:
    """The header of a token, by which a key is looked for. Nothing in it is believed."""
    try:
        unverified_header = jwt.get_unverified_header(raw_token)
    except jwt.PyJWTError as error:
        raise _refusal(error) from error
    kid, algorithm, kind = (unverified_header.get(name) for name in ("kid", "alg", "typ"))
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise InvalidToken("The token is signed in a way that is not accepted here.")
    if not isinstance(kid, str) or not kid:
        raise InvalidToken("The token does not name the key it is signed with.")
    if kind is not None and (not isinstance(kind, str) or kind.lower() not in _TYPES):
        raise InvalidToken("This is not an access token.")
    return unverified_header


def _proved(raw_token: str, issuer: str, key: jwt.PyJWK) -> dict[str, Any]:
    try:
        return jwt.decode(
            raw_token,
            key,
            algorithms=[key.algorithm_name],
            issuer=issuer,
            audience=str(settings.TODOS["AUDIENCE"]),
            leeway=LEEWAY,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
    except jwt.PyJWTError as error:
        raise _refusal(error) from error


def _refusal(error: jwt.PyJWTError) -> InvalidToken:
    """Two texts: the kind of failure for the operator, a sentence for the client. The library's may quote the token."""
    logger.info("a token was refused: %s", error.__class__.__name__)
    match error:
        case jwt.ExpiredSignatureError():
            return InvalidToken("The token has expired.")
        case jwt.InvalidAudienceError():
            return InvalidToken("The token is for another API.")
        case jwt.InvalidIssuerError():
            return InvalidToken("The token comes from another issuer.")
    return InvalidToken("The token is not valid.")


def _is_name(subject: Any) -> bool:
    """Whether this can be somebody's name for ever: some databases cannot hold NUL, none can hold half a character."""
    return isinstance(subject, str) and 0 < len(subject) <= LONGEST_NAME and subject.isprintable()


def _is_date(value: Any) -> bool:
    """> A JSON numeric value (RFC 7519 §2, NumericDate). The library would read "1" and true as one."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """What the issuer allows: `scope` as a string (RFC 9068 §2.2.3) or a list, and `permissions`, Auth0's list."""
    scope = claims.get("scope")
    words = scope.split(" ") if isinstance(scope, str) else scope
    lists = [value for value in (words, claims.get("permissions")) if isinstance(value, list)]
    return frozenset(word for value in lists for word in value if isinstance(word, str) and word)


# -- the issuer's keys -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """What the issuer said of itself at one moment. Keys are found by id and algorithm together."""

    issuer: str
    keys: Mapping[tuple[str, str], jwt.PyJWK]
    at: float

    def is_younger_than(self, seconds: float) -> bool:
        return monotonic() - self.at < seconds


class Issuer:
    """The one issuer whose tokens are accepted, and its keys, kept between requests and shared by all threads."""

    def __init__(self, issuer: str, discovery: str, jwks_url: str, jwks_host: str) -> None:
        self.issuer, self.discovery = issuer, discovery
        self.jwks_url, self.jwks_host = jwks_url, jwks_host
        self._reading: _Reading | None = None
        self._lock = Lock()
        self._failed_at = self._reread_at = float("-inf")

    def key_for(self, kid: str, algorithm: str) -> tuple[str, jwt.PyJWK]:
        """The issuer's name and its key. Raises InvalidToken, or IssuerUnavailable where that cannot be known."""
        reading = self._current()
        if (kid, algorithm) not in reading.keys:
            reading = self._reread(reading)
        if key := reading.keys.get((kid, algorithm)):
            return reading.issuer, key
        if self._has_just_failed():
            raise IssuerUnavailable
        raise InvalidToken("The token is signed with a key that its issuer does not publish.")

    def _current(self) -> _Reading:
        """Keys within their lifetime, or older ones while no newer can be had."""
        reading = self._reading
        if reading and reading.is_younger_than(KEYS_LIFETIME):
            return reading
        kept = reading is not None and reading.is_younger_than(KEYS_KEPT)
        # One thread asks. Who holds kept keys does not wait for it.
        if self._lock.acquire(blocking=not kept):
            try:
                if self._reading is reading and not self._has_just_failed():
                    self._read()
            finally:
                self._lock.release()
        if self._reading is None or not self._reading.is_younger_than(KEYS_KEPT):
            raise IssuerUnavailable
        return self._reading

    def _reread(self, seen: _Reading) -> _Reading:
        """Newer keys than `seen`, for a key id that is not there: the issuer may have rotated, or somebody invents ids.

        So the issuer is asked at most once in five seconds, however many ids are invented.
        """
        with self._lock:
            if self._reading is seen and monotonic() - self._reread_at >= REREAD_EVERY:
                self._reread_at = monotonic()
                self._read()
            return self._reading or seen

    def _has_just_failed(self) -> bool:
        return monotonic() - self._failed_at < REREAD_EVERY

    def _read(self) -> None:
        try:
            issuer, jwks_url = self._whereabouts()
            keys = _public_keys(_document(jwks_url, self.jwks_host if not self.discovery else ""))
        except _Unreadable as error:
            self._failed_at = monotonic()
            logger.warning("the issuer's keys cannot be read: %s", error)
            return
        self._reading = _Reading(issuer, keys, monotonic())
        self._failed_at = float("-inf")

    def _whereabouts(self) -> tuple[str, str]:
        """The issuer's name and where its keys are: from its own document if there is one, never built."""
        if not self.discovery:
            return self.issuer, self.jwks_url
        document = _document(self.discovery)
        issuer, jwks_url = document.get("issuer"), document.get("jwks_uri")
        if not isinstance(issuer, str) or not isinstance(jwks_url, str):
            raise _Unreadable(f"{self.discovery} names no issuer or no jwks_uri")
        if issuer != self.issuer if self.issuer else not _is_found_at(issuer, self.discovery):
            raise _Unreadable(f"{self.discovery} is the document of another issuer, {issuer!r}")
        return issuer, jwks_url


def trusted_issuer() -> Issuer:
    """The issuer that `settings.TODOS` names."""
    return _issuer(*(str(settings.TODOS[name]) for name in ("ISSUER", "DISCOVERY", "JWKS_URL", "JWKS_HOST")))


@lru_cache(maxsize=8)
def _issuer(issuer: str, discovery: str, jwks_url: str, jwks_host: str) -> Issuer:
    return Issuer(issuer, discovery, jwks_url, jwks_host)


def _is_found_at(issuer: str, discovery: str) -> bool:
    """> The issuer value returned MUST be identical to the Issuer URL that was used as the prefix to /.well-known/…
    (OpenID Connect Discovery §4.3; RFC 8414 §3.3, which puts the path last)."""
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    return discovery in (
        f"{origin}{path}/.well-known/openid-configuration",
        f"{origin}/.well-known/openid-configuration{path}",
        f"{origin}/.well-known/oauth-authorization-server{path}",
    )


def is_loopback(host: str | None) -> bool:
    """Whether `host` is this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _document(url: str, host: str = "") -> dict[str, Any]:
    """The JSON object at `url`. `host` is sent as the Host header where the address is not the name."""
    try:
        loopback = is_loopback(urlsplit(url).hostname)
    except ValueError as error:
        raise _Unreadable(f"{url!r} is no address") from error
    if not loopback and not url.startswith("https://"):
        # Whoever could change the answer on its way could sign for anybody.
        raise _Unreadable(f"{url} is plain http off this machine")
    try:
        document = json.loads(_body(url, host, proxies=not loopback))
    except requests.RequestException as error:
        raise _Unreadable(f"{url} does not answer ({error.__class__.__name__})") from error
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"{url} is not JSON") from error
    if not isinstance(document, dict):
        raise _Unreadable(f"{url} is not a JSON object")
    return document


def _body(url: str, host: str, proxies: bool) -> bytes:
    """What `url` answers, whole, within the time and size that such a document may take."""
    deadline = monotonic() + TIMEOUT
    headers = {"Accept": "application/json", **({"Host": host} if host else {})}
    with requests.Session() as session:
        session.trust_env = proxies
        with session.get(url, headers=headers, timeout=TIMEOUT, allow_redirects=False, stream=True) as response:
            if response.status_code != requests.codes.ok:
                raise _Unreadable(f"{url} answers {response.status_code}")
            body = b""
            for chunk in response.iter_content(16 * 1024):
                body += chunk
                if monotonic() > deadline or len(body) > LARGEST_DOCUMENT:
                    raise _Unreadable(f"{url} is too slow or too large")
    return body


def _public_keys(jwks: Mapping[str, Any]) -> dict[tuple[str, str], jwt.PyJWK]:
    """The keys of a JWK Set that can verify here, by id and algorithm.

    > Implementations SHOULD ignore JWKs within a JWK Set that use "kty" values that are not understood, that are
    missing required members, or for which values are out of the supported ranges (RFC 7517 §5).
    """
    found: dict[tuple[str, str], jwt.PyJWK] = {}
    if not isinstance(jwks.get("keys"), list):
        raise _Unreadable("the issuer's keys are no JWK Set")
    for jwk in jwks["keys"]:
        if isinstance(jwk, dict) and (key := _public_key(jwk)):
            found.setdefault((jwk["kid"], key.algorithm_name), key)
    return found


def _public_key(jwk: dict[str, Any]) -> jwt.PyJWK | None:
    """The key in `jwk`, or None if it is of no use. Of the members only the public ones are taken."""
    kind = (jwk.get("kty"), jwk.get("crv"))
    if not all(isinstance(part, str | None) for part in kind) or kind not in _ALGORITHMS:
        return None
    algorithm, members = _ALGORITHMS[kind]
    public = {"kty": jwk["kty"], **{name: jwk.get(name) for name in members}}
    named = isinstance(jwk.get("kid"), str) and all(isinstance(value, str) for value in public.values())
    if not named or jwk.get("alg", algorithm) != algorithm or jwk.get("use", "sig") != "sig":
        return None
    try:
        key = jwt.PyJWK(public, algorithm)
    except jwt.PyJWTError:
        return None
    return None if key.Algorithm.check_key_length(key.key) else key
