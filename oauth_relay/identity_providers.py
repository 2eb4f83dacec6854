"""What the configured identity providers say of themselves, and the calls to their token endpoints.

OpenID Connect Discovery 1.0, RFC 7517 and RFC 6749 §4.1.3, §6. Documents and keys are read once and kept; every call
has a deadline, a size, and no redirects. Whatever goes wrong is one of two things: the provider cannot be asked now
(ProviderUnavailable), or it answered no (ProviderRefused).
"""

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import parse_qsl, quote_plus, urlsplit

import jwt
import requests
from django.conf import settings
from django.utils.module_loading import import_string
from requests.auth import AuthBase

from oauth_relay.loopback import is_loopback

logger = logging.getLogger(__name__)

DOCUMENT_LIFETIME = 3600.0
RETRY_AFTER = 5.0
"""Seconds between two attempts to read a document that could not be read, or that lacked a key."""

CONNECT_TIMEOUT = 3.0
_LARGEST_ANSWER = 512 * 1024
_CHUNK = 16 * 1024
_LONGEST_LIFETIME = 366 * 86400.0

KINDS = {"openid": "oauth_relay.identity_providers.Provider", "github": "oauth_relay.providers.github.GitHub"}
"""What a provider's configuration may name as its `kind`: an adapter is one class of the shape of `Provider`."""

_OFFER_ACCOUNTS = ("https://accounts.google.com", "https://login.microsoftonline.com/", "https://github.com")
"""Issuers that understand `prompt=select_account` and do not list it."""

# RFC 8725 §3.1: the algorithms are ours to name, never the token's. Each with the kind of key it may be used with.
SIGNING_ALGORITHMS = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC"}


class ProviderUnavailable(Exception):
    """The provider gave no answer that can be used. The message is for the operator and holds no secret."""


class ProviderRefused(Exception):
    """The provider answered with an OAuth error (RFC 6749 §5.2). `error` is its code."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


class UnknownKey(Exception):
    """No published key of the provider fits the token."""


@dataclass(frozen=True)
class TokenAnswer:
    """A token response, RFC 6749 §5.1. `expires_at` is in epoch seconds; None where the provider does not say."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    id_token: str | None = field(repr=False)
    scope: str | None
    expires_at: float | None


# -- one HTTP client for all of it -------------------------------------------------------------------------------------


class _NoCredentials(AuthBase):
    """Keeps `requests` from looking into ~/.netrc and sending what it finds there."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class BearerCredentials(AuthBase):
    """RFC 6750 §2.1: a person's token, for the provider's own API."""

    def __init__(self, access_token: str) -> None:
        self.access_token = access_token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.access_token}"
        return request


class _ClientCredentials(AuthBase):
    """RFC 6749 §2.3.1: id and secret are form-encoded before they become Basic credentials."""

    def __init__(self, client_id: str, client_secret: str) -> None:
        self.pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Basic {base64.b64encode(self.pair.encode()).decode()}"
        return request


def _make_session() -> requests.Session:
    session = requests.Session()
    session.headers["Accept"] = "application/json"
    session.headers["User-Agent"] = "CAIR"
    # One session serves every person: a cookie of one must not travel with the next.
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return session


_session = _make_session()


@dataclass(frozen=True)
class Answer:
    """What came back from `host`. `next_page` is where a list goes on (RFC 8288): an address nobody has looked at yet."""

    host: str | None
    status: int
    body: bytes = field(repr=False)
    next_page: str | None

    def json(self, shape: type[dict] | type[list] = dict) -> Any:
        """The body: an object, or a list where that is what the `shape` says. Raises ProviderUnavailable.

        Only a success has to have the shape; an error is an object everywhere.
        """
        try:
            return _json_of(shape if self.status == 200 else dict, self.body, self.status)
        except _Unreadable as error:
            raise ProviderUnavailable(f"{self.host}: {error}") from error


def call(method: str, url: str, *, auth: AuthBase | None = None, form: Mapping[str, str] | None = None) -> Any:
    """Status and JSON object of one call. Raises ProviderUnavailable."""
    answer = fetch(method, url, auth=auth, form=form)
    return answer.status, answer.json()


def fetch(
    method: str,
    url: str,
    *,
    auth: AuthBase | None = None,
    form: Mapping[str, str] | None = None,
    document: Mapping[str, str] | None = None,
) -> Answer:
    """One call, with a form or a JSON document. Raises ProviderUnavailable."""
    host = urlsplit(url).hostname
    timeout = settings.UPSTREAM_TIMEOUT
    deadline = time.monotonic() + timeout + CONNECT_TIMEOUT
    try:
        with _session.request(
            method,
            url,
            data=form,
            json=document,
            auth=auth or _NoCredentials(),
            timeout=(min(CONNECT_TIMEOUT, timeout), timeout),
            # A redirected token request would hand code and client secret to whoever the answer names.
            allow_redirects=False,
            stream=True,
            proxies={"no_proxy": host} if host and is_loopback(host) else None,
        ) as response:
            next_page = response.links.get("next", {}).get("url")
            return Answer(host, response.status_code, _read(response, deadline), next_page)
    except requests.RequestException as error:
        raise ProviderUnavailable(f"{host}: {error.__class__.__name__}") from error
    except _Unreadable as error:
        raise ProviderUnavailable(f"{host}: {error}") from error


class _Unreadable(Exception):
    """The body is not what was asked for."""


def _read(response: requests.Response, deadline: float) -> bytes:
    """The body, bounded in size and time: a timeout of the library bounds each read, not their sum."""
    body = bytearray()
    for chunk in response.iter_content(_CHUNK):
        body += chunk
        if len(body) > _LARGEST_ANSWER:
            raise _Unreadable("the answer is too large")
        if time.monotonic() > deadline:
            raise _Unreadable("the answer takes too long")
    return bytes(body)


def _json_of(shape: type[dict] | type[list], body: bytes, status: int) -> Any:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise _Unreadable(f"status {status}, and not JSON") from None
    if not isinstance(found, shape):
        raise _Unreadable(f"status {status}, and no JSON {'object' if shape is dict else 'list'}")
    return found


# -- documents that are read once and kept -----------------------------------------------------------------------------


class _Document:
    """A JSON document at an address: kept for an hour, asked for at most every few seconds when something is wrong.

    An old copy outlives a provider that is away: its keys and endpoints are still the ones it will come back with.
    """

    def __init__(self, check: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._content: dict[str, Any] | None = None
        self._read_at = 0.0
        self._tried_at = float("-inf")
        self._failure = ""

    def read(self, address: Callable[[], str], *, not_older_than: float = DOCUMENT_LIFETIME) -> dict[str, Any]:
        """The document, read again if it is older than asked and was not asked for just now."""
        with self._lock:
            if self._is_due(not_older_than):
                self._fetch(address)
            if self._content is None:
                raise ProviderUnavailable(self._failure)
            return self._content

    def _is_due(self, not_older_than: float) -> bool:
        now = time.monotonic()
        stale = self._content is None or now - self._read_at > not_older_than
        return stale and now - self._tried_at > RETRY_AFTER

    def _fetch(self, address: Callable[[], str]) -> None:
        try:
            status, found = call("GET", address())
            if status != 200:
                raise ProviderUnavailable(f"a document came with status {status}")
            self._content, self._read_at, self._failure = self._check(found), time.monotonic(), ""
        except ProviderUnavailable as error:
            self._failure = str(error)
            logger.warning("identity provider: %s", error)
        self._tried_at = time.monotonic()


# -- a provider --------------------------------------------------------------------------------------------------------


class Provider:
    """One entry of settings.UPSTREAM_PROVIDERS, with what it publishes. This one speaks OpenID Connect.

    Another kind bends what differs: where it is asked, how it answers, and who the person is.
    """

    has_id_tokens = True
    vouches_for_access_tokens = False

    def __init__(self, name: str, configuration: Mapping[str, str]) -> None:
        self.name = name
        self.label = configuration["label"]
        self.client_id = configuration["client_id"]
        self.audience = configuration["audience"]
        self.scope = configuration["scope"]
        self.audience_parameter = configuration.get("audience_parameter", "audience")
        self.parameters = dict(parse_qsl(configuration.get("parameters", "")))
        self._discovery = configuration.get("discovery", "")
        self._client_secret = configuration["client_secret"]
        self._method = ""
        self._metadata = _Document(self._checked_metadata)
        self._jwks = _Document(_checked_jwks)

    def metadata(self) -> dict[str, Any]:
        """The discovery document. Raises ProviderUnavailable."""
        return self._metadata.read(lambda: self._discovery)

    @property
    def issuer(self) -> str:
        """As the document spells it: Auth0's ends with a slash, others' do not."""
        return str(self.metadata()["issuer"])

    def _checked_metadata(self, found: dict[str, Any]) -> dict[str, Any]:
        for name in ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not isinstance(found.get(name), str) or not self._is_acceptable(found[name]):
                raise ProviderUnavailable(f"{self.name}: the discovery document has no usable {name}")
        # OpenID Connect Discovery 1.0 §4.3: the issuer MUST be the address the document was asked for. Otherwise one
        # provider could speak in another's name, and (issuer, subject) is who a person is.
        asked = self._discovery.removesuffix("/.well-known/openid-configuration")
        if asked.lower() != found["issuer"].rstrip("/").lower():
            logger.error("%s: the discovery document names the issuer %r", self.name, found["issuer"])
            raise ProviderUnavailable(f"{self.name}: the discovery document is another issuer's")
        return found

    def endpoint(self, name: str) -> str | None:
        """An address that a provider may offer or not. Raises ProviderUnavailable."""
        found = self.metadata().get(name)
        return found if isinstance(found, str) and self._is_acceptable(found) else None

    def prompt_for_another_person(self) -> str:
        """The word that keeps a provider from silently signing in whoever it saw last (T30).

        `select_account` where it is known to be understood: some refuse the whole request for a word they do not know.
        """
        listed = self.metadata().get("prompt_values_supported")
        words = listed if isinstance(listed, list) else []
        knows = "select_account" in words or self.issuer.startswith(_OFFER_ACCOUNTS)
        return "select_account" if knows else "login"

    def _is_acceptable(self, url: str) -> bool:
        """Endpoints are https, as the document was; on loopback, for development, http will do."""
        parts = urlsplit(url)
        return parts.scheme == "https" or (
            parts.scheme == "http" and is_loopback(parts.hostname) and self._discovery.startswith("http://")
        )

    # -- the request for a person ----------------------------------------------------------------------------------------

    def authentication_request(
        self,
        *,
        redirect_uri: str,
        state: str,
        nonce: str,
        code_challenge: str,
        prompt: Sequence[str] = (),
        login_hint: str = "",
        scope: str = "",
    ) -> dict[str, str]:
        """The parameters that ask this provider for a person (OpenID Connect Core 1.0 §3.1.2.1, RFC 7636 §4.3)."""
        optional = {
            **self.parameters,
            **self.audience_request(),
            "prompt": self._prompt(prompt),
            "login_hint": login_hint,
            # Silent single sign-on is not fresh (T30): the provider has to ask, and to say when it did.
            "max_age": "0" if "login" in prompt else "",
        }
        return {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": redirect_uri,
            "scope": scope or self.scope,
            "state": state,
            "nonce": nonce,
            "code_challenge": code_challenge,
            "code_challenge_method": "S256",
            **{name: value for name, value in optional.items() if value},
        }

    def _prompt(self, words: Sequence[str]) -> str:
        """What the client wants asked, and what this product wants asked; `none` stands alone, or it is an error."""
        own = self.parameters.get("prompt", "").split()
        return "none" if "none" in words else " ".join(dict.fromkeys([*words, *own]))

    def audience_request(self) -> dict[str, str]:
        """How this product is told which API the token is for: `audience`, RFC 8707's `resource`, or not at all."""
        return {self.audience_parameter: self.audience} if self.audience_parameter and self.audience else {}

    # -- keys ----------------------------------------------------------------------------------------------------------

    def key_for(self, unverified_header: Mapping[str, Any]) -> jwt.PyJWK:
        """The published key that must have signed a token with this header. Raises UnknownKey, ProviderUnavailable.

        A key nobody has seen yet is looked for once, and then not again for some seconds: an invented `kid` must not
        become a request to the provider.
        """
        found = self._find_key(unverified_header, DOCUMENT_LIFETIME) or self._find_key(unverified_header, RETRY_AFTER)
        if found is None:
            asked = {name: str(unverified_header.get(name))[:80] for name in ("alg", "kid")}
            raise UnknownKey(f"{self.name} publishes no key for this token: {asked}")
        return found

    def _find_key(self, unverified_header: Mapping[str, Any], not_older_than: float) -> jwt.PyJWK | None:
        document = self._jwks.read(lambda: str(self.metadata()["jwks_uri"]), not_older_than=not_older_than)
        algorithm = unverified_header.get("alg")
        fitting = [key for key in document["keys"] if _fits(key, unverified_header)]
        if len(fitting) != 1 or not isinstance(algorithm, str):
            return None
        try:
            return jwt.PyJWK(fitting[0], algorithm=algorithm)
        except (jwt.PyJWKError, jwt.InvalidKeyError):
            return None

    # -- tokens --------------------------------------------------------------------------------------------------------

    def exchange_code(self, code: str, *, redirect_uri: str, code_verifier: str) -> TokenAnswer:
        """RFC 6749 §4.1.3 with RFC 7636 §4.5. Raises ProviderRefused, ProviderUnavailable."""
        return self._ask_for_tokens(
            {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": redirect_uri,
                "code_verifier": code_verifier,
                **self._resource_again(),
            }
        )

    def refresh(self, refresh_token: str) -> TokenAnswer:
        """RFC 6749 §6. An answer without a refresh token keeps the one that was sent. Same errors."""
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token, **self._resource_again()}
        answer = self._ask_for_tokens(form)
        if answer.refresh_token:
            return answer
        return TokenAnswer(answer.access_token, refresh_token, answer.id_token, answer.scope, answer.expires_at)

    def _resource_again(self) -> dict[str, str]:
        """RFC 8707 §2.2: without it the token would be for the provider's own userinfo, and not for the API."""
        return self.audience_request() if self.audience_parameter == "resource" else {}

    def check_access_token(self, access_token: str) -> None:
        """Ask whether the provider still stands by a token that cannot be refreshed. Same errors.

        Only where it `vouches_for_access_tokens`. OpenID Connect has no such question: userinfo refuses an API's token.
        """
        raise NotImplementedError

    def revoke(self, access_token: str, refresh_token: str | None) -> bool:
        """RFC 7009 §2.1. False where this provider offers none. Raises ProviderUnavailable.

        > If the particular token is a refresh token and the authorization server supports the revocation of access
        > tokens, then the authorization server SHOULD also invalidate all access tokens based on the same grant.
        """
        endpoint = self.endpoint("revocation_endpoint")
        if endpoint is None:
            return False
        kind = "refresh_token" if refresh_token else "access_token"
        form = {"token": refresh_token or access_token, "token_type_hint": kind}
        status = 0
        for method in self._ways_to_authenticate():
            auth, authenticated = self._authenticated(method, form)
            answer = fetch("POST", endpoint, auth=auth, form=authenticated)
            status = answer.status
            if _says_unsupported(answer):
                return False
            if status == 200:  # > The content of the response body is ignored by the client (RFC 7009 §2.2)
                return True
            if not 400 <= status < 500:
                break
        raise ProviderUnavailable(f"{self.name}: the revocation endpoint answered with status {status}")

    def _authenticated(self, method: str, form: dict[str, str]) -> tuple[AuthBase | None, dict[str, str]]:
        """How a request says that it is ours: in a header, or in two more fields."""
        if method == "client_secret_post":
            return None, {**form, "client_id": self.client_id, "client_secret": self._client_secret}
        return _ClientCredentials(self.client_id, self._client_secret), form

    def _ask_for_tokens(self, form: dict[str, str]) -> TokenAnswer:
        """One token request, in the way of authenticating that this provider takes from this client.

        Its list says what it takes from anybody. Which one it wants from us shows only in a refusal, which comes
        before it looks at code or token, so that trying the other costs neither.
        """
        methods = self._ways_to_authenticate()
        for method in methods[:-1]:
            try:
                return self._ask_as(method, form)
            except ProviderRefused as refusal:
                if refusal.error != "invalid_client":
                    raise
        return self._ask_as(methods[-1], form)

    def _ask_as(self, method: str, form: dict[str, str]) -> TokenAnswer:
        endpoint = str(self.metadata()["token_endpoint"])
        auth, form = self._authenticated(method, form)
        asked_at = time.time()
        status, found = call("POST", endpoint, auth=auth, form=form)
        if 400 <= status < 500 and status != 429 and isinstance(found.get("error"), str):
            raise ProviderRefused(plain_code(found["error"]))
        self._method = method
        if status == 200:
            return token_answer(found, asked_at)
        raise ProviderUnavailable(f"{self.name}: the token endpoint answered with status {status}")

    def _ways_to_authenticate(self) -> list[str]:
        """The one that worked before, or what the provider lists; first what Auth0 gives a new application."""
        if self._method:
            return [self._method]
        # OpenID Connect Discovery 1.0 §3: "If omitted, the default is client_secret_basic".
        listed: Sequence[str] = self.metadata().get("token_endpoint_auth_methods_supported") or ()
        return [way for way in ("client_secret_post", "client_secret_basic") if way in listed] or [
            "client_secret_basic"
        ]


def _says_unsupported(answer: Answer) -> bool:
    """RFC 7009 §2.2.1: some revoke refresh tokens only."""
    try:
        return answer.status == 400 and answer.json().get("error") == "unsupported_token_type"
    except ProviderUnavailable:
        return False


def _checked_jwks(found: dict[str, Any]) -> dict[str, Any]:
    keys = found.get("keys")
    if not isinstance(keys, list):
        raise ProviderUnavailable("the key document has no list of keys")
    return {"keys": [key for key in keys if isinstance(key, dict)]}


def _fits(key: Mapping[str, Any], unverified_header: Mapping[str, Any]) -> bool:
    """Whether a published key may check a token with this header: algorithm, kind of key, use, and its name if given."""
    algorithm = unverified_header.get("alg")
    kind = SIGNING_ALGORITHMS.get(algorithm) if isinstance(algorithm, str) else None
    return (
        kind is not None
        and key.get("kty") == kind
        and (kind != "EC" or key.get("crv") == "P-256")
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
        and unverified_header.get("kid") in (None, key.get("kid"))
    )


def token_answer(found: Mapping[str, Any], asked_at: float) -> TokenAnswer:
    """A token response, read. Raises ProviderUnavailable."""
    access_token = found.get("access_token")
    if not isinstance(access_token, str) or not access_token or str(found.get("token_type")).lower() != "bearer":
        raise ProviderUnavailable("the token endpoint answered without a bearer token")
    lifetime = found.get("expires_in")
    try:
        expires_at = None if lifetime is None else asked_at + min(max(0.0, float(lifetime)), _LONGEST_LIFETIME)
    except (TypeError, ValueError):
        expires_at = None
    return TokenAnswer(
        access_token, _text(found, "refresh_token"), _text(found, "id_token"), _text(found, "scope"), expires_at
    )


def _text(found: Mapping[str, Any], name: str) -> str | None:
    value = found.get(name)
    return value if isinstance(value, str) and value else None


def plain_code(error: str) -> str:
    """RFC 6749 §5.2 gives error codes a small alphabet; anything else must not reach a log or a column."""
    return error[:64] if error.isascii() and error.isprintable() else "unreadable_error"


def provider(name: str) -> Provider:
    """The configured provider of that name. Raises KeyError: whoever asks has the name from the configuration."""
    return _provider(name, tuple(sorted(settings.UPSTREAM_PROVIDERS[name].items())))


@lru_cache(maxsize=16)
def _provider(name: str, configuration: tuple[tuple[str, str], ...]) -> Provider:
    found = dict(configuration)
    kind: type[Provider] = import_string(KINDS[found.get("kind", "openid")])
    return kind(name, found)
