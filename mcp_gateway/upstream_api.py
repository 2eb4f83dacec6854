"""An API, called as the signed-in person: a real HTTP request, with the person's own token from door 2.

The token is asked for at each call and seen by nobody but this file. Whatever goes wrong becomes a `ToolError` with a
sentence a model can act on; never the text of an exception.
"""

import asyncio
import json
import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, unquote, urlencode

import aiohttp
from django.conf import settings
from yarl import URL

from mcp_gateway.errors import ToolError
from oauth_relay import upstream_tokens
from oauth_relay.access_tokens import Principal
from oauth_relay.upstream_tokens import UpstreamRefused, UpstreamToken

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
TOTAL_TIMEOUT = 30.0
RESPONSE_LIMIT = 4 * 1024 * 1024
LONGEST_RETRY_AFTER = 24 * 3600
LONGEST_DESCRIPTION = 300
SHORTEST_SECRET = 8

_sessions: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession]" = weakref.WeakKeyDictionary()


def _session() -> aiohttp.ClientSession:
    """The pooled client of the running loop. It has no memory of anyone (cookies), and no proxy of the environment."""
    loop = asyncio.get_running_loop()
    session = _sessions.get(loop)
    if session is None or session.closed:
        session = _sessions[loop] = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=TOTAL_TIMEOUT, connect=CONNECT_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers={"Accept": "application/json", "User-Agent": "CAIR"},
        )
    return session


async def close() -> None:
    """Close the running loop's connections."""
    if session := _sessions.pop(asyncio.get_running_loop(), None):
        await session.close()


@dataclass(frozen=True)
class _Response:
    status: int
    content_type: str
    retry_after: str
    body: bytes


class UpstreamApi:
    """One API for one call of one tool. Methods take a path, further single path segments, and return parsed JSON."""

    def __init__(self, name: str, principal: Principal, upstream_scope: str | None = None) -> None:
        self.name = name
        self._principal = principal
        self._upstream_scope = upstream_scope
        self._settings = settings.UPSTREAM_APIS[name]
        self._secrets: set[str] = set()

    async def get(self, path: str, *segments: str, params: Mapping[str, Any] | None = None) -> Any:
        return await self._request("GET", path, segments, params, None)

    async def post(self, path: str, *segments: str, json: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        return await self._request("POST", path, segments, params, json)

    async def put(self, path: str, *segments: str, json: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        return await self._request("PUT", path, segments, params, json)

    async def patch(self, path: str, *segments: str, json: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        return await self._request("PATCH", path, segments, params, json)

    async def delete(self, path: str, *segments: str, params: Mapping[str, Any] | None = None) -> Any:
        return await self._request("DELETE", path, segments, params, None)

    def is_revealed_by(self, text: str) -> bool:
        """Whether `text` holds a credential that this call has sent (T23)."""
        return any(secret in text for secret in self._secrets)

    async def _request(
        self, method: str, path: str, segments: tuple[str, ...], params: Mapping[str, Any] | None, body: Any
    ) -> Any:
        url = address(self._settings["base_url"], path, segments, params)
        try:
            response = await self._ask(method, url, body)
        except UpstreamRefused as error:
            logger.warning("%s: %s; the person was sent to sign in for it before", self.name, error)
            raise ToolError(self._sentence(_Response(401, "", "", b""))) from None
        if not 200 <= response.status < 300:
            logger.info("%s answered %s %s with %s", self.name, method, url.path, response.status)
            raise ToolError(self._sentence(response))
        return self._value(response)

    async def _ask(self, method: str, url: URL, body: Any) -> _Response:
        """What the API says to the person's token; to another one, if it does not take the first."""
        token = await upstream_tokens.upstream_token_for(self._principal, self.name)
        response = await self._send(method, url, token, body)
        if response.status == 401:
            # The API knows better than our clock: ask door 2 once for another, try once more (T10).
            token = await upstream_tokens.upstream_token_for(self._principal, self.name, rejected_version=token.version)
            response = await self._send(method, url, token, body)
        return response

    async def _send(self, method: str, url: URL, token: UpstreamToken, body: Any) -> _Response:
        """One request. Raises ToolError when there is no answer."""
        if len(secret := token.value.rpartition(" ")[2]) >= SHORTEST_SECRET:
            self._secrets.add(secret)
        headers = {token.header: token.value}
        if host := self._settings.get("host"):
            headers["Host"] = host
        try:
            async with _session().request(method, url, headers=headers, json=body, allow_redirects=False) as response:
                return await self._received(response)
        except TimeoutError:
            raise ToolError(self._silence("did not answer in time", method)) from None
        except aiohttp.ClientConnectorError as error:
            logger.warning("%s cannot be reached: %s", self.name, error.__class__.__name__)
            raise ToolError(f"The {self.name} API cannot be reached. Try again in a minute.") from None
        except aiohttp.ClientError as error:
            logger.warning("%s broke off: %s", self.name, error.__class__.__name__)
            raise ToolError(self._silence("broke off its answer", method)) from None

    async def _received(self, response: aiohttp.ClientResponse) -> _Response:
        body = b""
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > RESPONSE_LIMIT:
                response.close()
                raise ToolError(f"The {self.name} API answered more than can be passed on. Ask for less of it.")
        return _Response(response.status, response.content_type, response.headers.get("Retry-After", ""), body)

    def _silence(self, what: str, method: str) -> str:
        if method == "GET":
            return f"The {self.name} API {what}. Try again in a minute."
        return f"The {self.name} API {what}. It is not known whether the change was made: look before trying again."

    def _value(self, response: _Response) -> Any:
        if response.status == 204 or not response.body:
            return None
        try:
            if not _is_json(response.content_type):
                raise ValueError(response.content_type)
            return json.loads(response.body)
        except (ValueError, RecursionError):
            logger.warning("%s answered something that is not JSON: %s", self.name, response.content_type[:80])
            raise ToolError(
                f"The {self.name} API answered something that is not JSON. Trying again will not help; tell the operator."
            ) from None

    def _sentence(self, response: _Response) -> str:
        """What to do about an answer that is no success."""
        api = f"The {self.name} API"
        again = _when(response.retry_after)
        match response.status:
            case 401:
                return f"{api} does not accept this sign-in. Trying again will not help; tell the operator."
            case 403:
                needs = f" It needs the API permission {self._upstream_scope}." if self._upstream_scope else ""
                return f"{api} does not allow this for the signed-in person.{needs} Do not try again."
            case 404:
                return f"{api} knows no such thing, or it belongs to somebody else. Check the id, or list first."
            case 429:
                return f"{api} has had too many requests. Try again {again or 'in a minute'}."
            case status if status >= 500:
                return f"{api} has a fault (HTTP {status}). Try again {again or 'in a minute'}."
            case status if status >= 400:
                reason = _description(response)
                told = f" and says: {reason}" if reason else f" (HTTP {status})."
                return f"{api} refuses this request{told} Correct the arguments before trying again."
        return f"{api} sent a redirect (HTTP {response.status}), which is not followed. Tell the operator."


def address(base: str, path: str, segments: tuple[str, ...], params: Mapping[str, Any] | None) -> URL:
    """`base` + `path`, then each segment as one path segment, then the query. Nothing in them reaches elsewhere (T35)."""
    if not path.startswith("/") or any(bad in path for bad in "?#\\%\0") or {".", ".."} & set(path.split("/")):
        raise ToolError(f"{path[:80]!r} cannot be a path of this API.")
    whole = base + path + "".join(f"/{_segment(segment)}" for segment in segments)
    told = {name: _parameter(value) for name, value in (params or {}).items() if value is not None}
    url = URL(f"{whole}?{urlencode(told)}" if told else whole, encoded=True)
    if not str(url).startswith(f"{base}/"):
        raise ToolError(f"{path[:80]!r} leads away from this API.")
    return url


def _segment(value: str) -> str:
    """`value` as a path segment. Also what it decodes to is looked at: somebody behind us may decode twice."""
    text = str(value)
    for form in (text, unquote(text)):
        if form in ("", ".", "..") or any(character in "/\\?#" or ord(character) < 32 for character in form):
            raise ToolError(f"{text[:80]!r} is not a valid id. Use one that a listing gave.")
    return quote(text, safe="")


def _parameter(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_json(content_type: str) -> bool:
    return content_type == "application/json" or content_type.endswith("+json")


def _when(retry_after: str) -> str:
    """RFC 9110 §10.2.3: seconds, or a date. Empty if there is nothing sensible."""
    try:
        if retry_after.isdecimal():
            seconds = int(retry_after)
        else:
            seconds = round((parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return ""
    return f"in {min(max(seconds, 1), LONGEST_RETRY_AFTER)} seconds"


def _description(response: _Response) -> str:
    """The API's own `error_description` of a refusal, cut and without control characters."""
    try:
        document = json.loads(response.body) if _is_json(response.content_type) else None
    except (ValueError, RecursionError):
        return ""
    text = document.get("error_description") if isinstance(document, dict) else None
    if not isinstance(text, str):
        return ""
    return "".join(character for character in text if character.isprintable())[:LONGEST_DESCRIPTION]
