"""Questions to other machines: each has a deadline, a size, no redirects, and a sentence for every way to fail."""

import json
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

from oauth_relay.loopback import is_loopback

SECONDS = 5.0
LARGEST = 512 * 1024
_CHUNK = 16 * 1024


class NoAnswer(Exception):
    """Nobody answered. The message goes on a sentence that names who was asked."""


class BadCertificate(NoAnswer):
    """Somebody answered, whose certificate proves nothing to us."""


@dataclass(frozen=True)
class Answer:
    """One response. Times are this machine's, in epoch seconds."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    asked_at: float
    answered_at: float

    def json_object(self) -> dict[str, Any]:
        """The body as a JSON object; empty if it is something else."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class _NoCredentials(AuthBase):
    """Keeps `requests` from looking into ~/.netrc and sending what it finds there."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class Network:
    """Asks, and remembers what a plain GET of an address brought: several checks look at one document."""

    def __init__(self) -> None:
        self._kept: dict[str, Answer | NoAnswer] = {}

    def get(self, url: str) -> Answer:
        """The answer to a plain GET, asked once. Raises NoAnswer."""
        if url not in self._kept:
            try:
                self._kept[url] = self.send("GET", url)
            except NoAnswer as error:
                self._kept[url] = error
        kept = self._kept[url]
        if isinstance(kept, NoAnswer):
            raise kept
        return kept

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        message: Any = None,
        as_tool: bool = False,
    ) -> Answer:
        """One request, `message` as its JSON. Raises NoAnswer.

        `as_tool`: as a tool's call would go, past every proxy of the environment, with the system's authorities.
        """
        asked_at, deadline = time.time(), time.monotonic() + SECONDS
        with requests.Session() as session:
            session.trust_env = not as_tool and not is_loopback(urlsplit(url).hostname)
            session.verify = _authorities(as_tool)
            try:
                with session.request(
                    method,
                    url,
                    headers={"User-Agent": "CAIR doctor", **(headers or {})},
                    json=message,
                    auth=_NoCredentials(),
                    timeout=SECONDS,
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    answered_at = time.time()
                    body = _read(response, deadline)
                    return Answer(response.status_code, response.headers, body, asked_at, answered_at)
            except requests.RequestException as error:
                raise _no_answer(error) from error


def _authorities(as_tool: bool) -> str | bool:
    """Who may vouch for a certificate. The gateway's client asks the system, `requests` its own list or a variable."""
    if as_tool:
        paths = ssl.get_default_verify_paths()
        return paths.cafile or paths.capath or True
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def _read(response: requests.Response, deadline: float) -> bytes:
    """The body. The library's timeout bounds each read, not their sum."""
    body = bytearray()
    for chunk in response.iter_content(_CHUNK):
        body += chunk
        if len(body) > LARGEST:
            raise NoAnswer("the answer is far too large")
        if time.monotonic() > deadline:
            raise NoAnswer(f"the answer is not complete within {SECONDS:.0f} s")
    return bytes(body)


def _no_answer(error: requests.RequestException) -> NoAnswer:
    """Which of the usual reasons it was. The library's own text names objects and addresses in memory."""
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return BadCertificate(f"the certificate is not accepted ({cause.verify_message})")
            case ssl.SSLError():
                return BadCertificate("no TLS connection can be made there")
            case socket.gaierror():
                return NoAnswer("the name cannot be resolved")
            case ConnectionRefusedError():
                return NoAnswer("nothing listens there")
            case TimeoutError() | requests.Timeout():
                return NoAnswer(f"no answer within {SECONDS:.0f} s")
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return NoAnswer("it is no address")
    return NoAnswer(f"the connection broke off ({error.__class__.__name__})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it was raised from, through the wrappings of requests and urllib3."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, found.__context__, getattr(found, "reason", None), *found.args]
