"""Reading a JSON document at an address that a stranger chose: a client's description of itself, and its keys.

The fear is server-side request forgery (T24). So the name is resolved once, here, every address it has must be public,
and the connection goes to an address that was checked, under the name's own certificate. There is no redirect, no proxy,
one deadline for everything together, and a size.
"""

import ipaddress
import json
import logging
import queue
import re
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.conf import settings
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.response import HTTPResponse

from oauth_relay.database import give_back_connection
from oauth_relay.loopback import is_loopback

logger = logging.getLogger(__name__)

TIMEOUT = 5.0
"""Seconds for a whole fetch: name, connection, certificate, headers and body."""
LARGEST = 16 * 1024
MOST_ADDRESSES = 4
MOST_LOOKUPS = 16
SHORTEST_LIFE, USUAL_LIFE, LONGEST_LIFE = 300.0, 3600.0, 24 * 3600.0
RETRY_AFTER = 30.0
"""Seconds for which a failure is remembered, so that a storm costs one fetch."""

_HOST = re.compile(r"(?=.{4,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_MAX_AGE = re.compile(r'(?:^|[,\s])max-age\s*=\s*"?(\d{1,10})')


class DocumentUnavailable(Exception):
    """There is no document now. The message is for the operator: where a fetch failed maps the network behind us."""


class InvalidDocument(Exception):
    """The document, or its address, will not do. The message may be shown: it speaks of what its author published."""


# -- where we go -------------------------------------------------------------------------------------------------------


def check_address(url: str) -> SplitResult:
    """The parts of an address that may be fetched at all. Raises InvalidDocument.

    A name with a dot, in lower case, and not a number in any spelling: what is compared as text must have one spelling.
    On loopback, for development, http will do.
    """
    if not re.fullmatch(r"[\x21-\x7e]+", url) or "\\" in url or "#" in url:
        raise InvalidDocument("The address holds characters that it must not, or a fragment.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise InvalidDocument("The address cannot be read.") from None
    if parts.netloc not in (host, f"{host}:{port}"):
        raise InvalidDocument("The address must have a plain host in lower case, without user name or password.")
    if is_own_machine(parts):
        return parts
    if parts.scheme != "https" or not _HOST.fullmatch(host):
        raise InvalidDocument("The address must be https, with a host name and not an IP address.")
    if port not in (None, 443) and not settings.CLIENT_METADATA_LOOPBACK:
        raise InvalidDocument("The address must use the port 443.")
    return parts


def is_own_machine(parts: SplitResult) -> bool:
    """Whether this is a developer's own listener, where such are allowed."""
    return settings.CLIENT_METADATA_LOOPBACK and parts.scheme == "http" and is_loopback(parts.hostname)


_TRANSLATED = [ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2001::/23", "2002::/16")]
_RESERVED = [ipaddress.ip_network(text) for text in ("192.88.99.0/24", "3fff::/20")]
_UNICAST = ipaddress.ip_network("2000::/3")


def is_public(address: str) -> bool:
    """Whether an address is on the public internet, by itself: none that wraps or is translated to another one."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not ip.is_global or ip.is_multicast or any(ip in network for network in _RESERVED):
        return False
    if ip.version == 4:
        return True
    return ip in _UNICAST and not any(ip in network for network in _TRANSLATED)


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a name, as the system's resolver gives them. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


_lookups = threading.BoundedSemaphore(MOST_LOOKUPS)


def _resolve_until(deadline: float, host: str, port: int) -> list[str]:
    """The system's resolver knows no deadline: whoever's name server is slow keeps a thread, and not the person."""
    if not _lookups.acquire(blocking=False):
        raise DocumentUnavailable("too many names are being looked up")
    answers: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(resolve(host, port))
        except OSError as error:
            answers.put(error)
        finally:
            _lookups.release()

    threading.Thread(target=look_up, name="resolver", daemon=True).start()
    try:
        answer = answers.get(timeout=_left(deadline))
    except queue.Empty:
        raise TimeoutError("the name server takes too long") from None
    if isinstance(answer, OSError):
        raise answer
    return answer


def _checked_addresses(parts: SplitResult, port: int, deadline: float) -> list[str]:
    """The addresses to connect to. One that is not public refuses all: a mixed answer is somebody's trick."""
    host = parts.hostname or ""
    addresses = _resolve_until(deadline, host, port)
    may = is_loopback if is_own_machine(parts) else is_public
    if not addresses or not all(may(address) for address in addresses):
        raise DocumentUnavailable(f"{host} has an address that is not public: {addresses[:MOST_ADDRESSES]}")
    return addresses[:MOST_ADDRESSES]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the answer takes too long")
    return left


# -- one connection ----------------------------------------------------------------------------------------------------


class _TimedReads:
    """Every read ends at one deadline: a timeout bounds each read, and a slow drip is many of them."""

    deadline = float("inf")

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        if self.deadline != float("inf"):
            self.settimeout(_left(self.deadline))  # type: ignore[attr-defined]
        return int(super().recv_into(*args, **kwargs))  # type: ignore[misc]


class _TimedSocket(_TimedReads, socket.socket):
    pass


class _TimedTls(_TimedReads, ssl.SSLSocket):
    pass


connect = socket.create_connection


class _CheckedConnection:
    """The library's connection, bent where it would resolve the name a second time (DNS rebinding)."""

    addresses: list[str]
    deadline: float
    port: int
    sock: socket.socket | None

    def _new_conn(self) -> socket.socket:
        failure: OSError = OSError("no address")
        for position, address in enumerate(self.addresses):
            share = _left(self.deadline) / (len(self.addresses) - position)
            try:
                found = connect((address, self.port), share)
            except OSError as error:
                failure = error
                continue
            timed = _TimedSocket(fileno=found.detach())
            timed.settimeout(_left(self.deadline))  # for the certificate's handshake, which is one operation
            return timed
        raise failure

    def begin(self, addresses: list[str], deadline: float) -> None:
        self.addresses, self.deadline = addresses, deadline
        self.connect()  # type: ignore[attr-defined]
        assert isinstance(self.sock, _TimedReads)
        self.sock.deadline = deadline


class _PlainConnection(_CheckedConnection, HTTPConnection):
    pass


class _TlsConnection(_CheckedConnection, HTTPSConnection):
    pass


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _TimedTls
    return context


def _connection(parts: SplitResult, port: int) -> _PlainConnection | _TlsConnection:
    host = parts.hostname or ""
    if parts.scheme == "http":
        return _PlainConnection(host, port, timeout=TIMEOUT)
    return _TlsConnection(host, port, timeout=TIMEOUT, ssl_context=_tls())


# -- one document ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What came: the content (None: unchanged), the tag to ask with next time, and how long it is good, in seconds."""

    content: dict[str, Any] | None
    etag: str
    lifetime: float


def fetch(url: str, etag: str = "") -> Answer:
    """Read the document once. Raises InvalidDocument, DocumentUnavailable."""
    deadline = time.monotonic() + TIMEOUT
    parts = check_address(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = _checked_addresses(parts, port, deadline)
        with closing(_connection(parts, port)) as connection:
            connection.begin(addresses, deadline)
            connection.request(
                "GET",
                (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
                headers=_request_headers(etag),
                preload_content=False,
                decode_content=False,
            )
            return _read(connection.getresponse(), etag, floor=0 if is_own_machine(parts) else SHORTEST_LIFE)
    except (OSError, HTTPError, HTTPException) as error:
        raise DocumentUnavailable(f"{parts.hostname}: {error.__class__.__name__}: {error}"[:300]) from error


def _request_headers(etag: str) -> dict[str, str]:
    """Nothing compressed: a small answer that unpacks to a large one is refused before it is unpacked."""
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "CAIR", "Connection": "close"}
    return {**headers, "If-None-Match": etag} if etag else headers


def _read(response: HTTPResponse, etag: str, floor: float) -> Answer:
    headers = response.headers
    lifetime = lifetime_of(headers.get("Cache-Control", ""), floor)
    if etag and response.status == 304:
        return Answer(None, etag, lifetime)
    if response.status != 200:
        raise DocumentUnavailable(f"it came with status {response.status}")
    if not _is_json(headers.get("Content-Type", "")):
        raise InvalidDocument("The document must have the type application/json.")
    if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise InvalidDocument("The document must not be compressed.")
    body = response.read(LARGEST + 1)
    if len(body) > LARGEST:
        raise InvalidDocument(f"The document is larger than {LARGEST // 1024} KiB.")
    if response.length_remaining:  # the library says so only of a read to the end
        raise DocumentUnavailable("it was cut off")
    tag = headers.get("ETag", "")
    return Answer(json_object(body), tag if len(tag) <= 200 and tag.isascii() and tag.isprintable() else "", lifetime)


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or bool(re.fullmatch(r"application/[a-z0-9.-]+\+json", kind))


def lifetime_of(cache_control: str, floor: float = SHORTEST_LIFE) -> float:
    """For how many seconds an answer is good (RFC 9111 §5.2.2), within what we can bear: a floor, and a day."""
    directives = cache_control.lower()
    if re.search(r"(?:^|[,\s])no-(?:store|cache)\b", directives):
        return floor
    named = _MAX_AGE.search(directives)
    return min(max(floor, float(named.group(1)) if named else USUAL_LIFE), LONGEST_LIFE)


def json_object(body: bytes) -> dict[str, Any]:
    """The one object in a body, by the letter of RFC 8259: two readers must not see two documents in it (T32)."""
    try:
        found = json.loads(body.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidDocument("The document is not JSON, or has a name twice.") from None
    if not isinstance(found, dict):
        raise InvalidDocument("The document must be one JSON object.")
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)


# -- how often ---------------------------------------------------------------------------------------------------------

MOST_AT_ONCE = 8
MOST_WAITING = 32
MOST_NEW_A_DAY = 30
MOST_DOMAINS = 1000
_DAY = 24 * 3600.0


def domain_of(url: str) -> str:
    """Whose fetches these are, as far as a name tells: `example.com`, `example.co.uk`, never one of its many hosts.

    A list of public suffixes would be exact, and stale. Too wide costs only those who are new on a shared domain, and
    only when it is busy; an operator may list such a host.
    """
    labels = (urlsplit(url).hostname or "").split(".")
    wide = len(labels) > 2 and len(labels[-1]) == 2 and len(labels[-2]) <= 3
    return ".".join(labels[-3:] if wide else labels[-2:])


class _Gate:
    """One fetch at a time for each domain, few at once in all, few new addresses a day (T24).

    Only what nobody here has consented to is held to the last two: no ceiling ever refuses a client that is known. What
    turned out to be no document is counted for who asked for it: a stranger's inventions use up nobody else's share.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.busy: set[str] = set()
        self.waiting = 0
        self.seen: OrderedDict[str, tuple[float, set[str]]] = OrderedDict()

    def forget(self) -> None:
        with self.changed:
            self.seen.clear()

    @contextmanager
    def entered(self, url: str, known: bool, asker: str) -> Iterator[None]:
        """Hold the domain of `url` while it is fetched. Raises DocumentUnavailable."""
        domain = domain_of(url)
        with self.changed:
            self._wait_for(domain, known)
            if not known:
                self._check_share(domain, url)
                self._check_share(f"{domain} {asker}", url)
            self.busy.add(domain)
        try:
            yield
        finally:
            with self.changed:
                self.busy.discard(domain)
                self.changed.notify_all()

    def _wait_for(self, domain: str, known: bool) -> None:
        if not known and self.waiting >= MOST_WAITING:
            raise DocumentUnavailable("too many documents are being read")
        self.waiting += 1
        try:
            free = self.changed.wait_for(
                lambda: domain not in self.busy and (known or len(self.busy) < MOST_AT_ONCE), timeout=TIMEOUT
            )
        finally:
            self.waiting -= 1
        if not free:
            raise DocumentUnavailable(f"other documents of {domain} are being read")

    def count(self, url: str, asker: str, *, is_document: bool) -> None:
        """Note what `asker` asked for: on its domain's account where there is a document, else on their own."""
        domain = domain_of(url)
        with self.changed:
            self._counted(domain if is_document else f"{domain} {asker}").add(url)

    def _check_share(self, whose: str, url: str) -> None:
        counted = self._counted(whose)
        if url not in counted and len(counted) >= MOST_NEW_A_DAY:
            raise DocumentUnavailable(f"{whose} has had {MOST_NEW_A_DAY} new addresses within a day")

    def _counted(self, whose: str) -> set[str]:
        """The addresses of today."""
        now = time.monotonic()
        since, urls = self.seen.pop(whose, (now, set()))
        if now - since > _DAY:
            since, urls = now, set()
        self.seen[whose] = since, urls
        if len(self.seen) > MOST_DOMAINS:
            self.seen.popitem(last=False)
        return urls


_gate = _Gate()


# -- what was read -----------------------------------------------------------------------------------------------------

MOST_REMEMBERED = 500


@dataclass(frozen=True)
class Document:
    """A document as it was read and checked. Times are epoch seconds: rows keep `good_until`."""

    content: dict[str, Any]
    etag: str
    read_at: float
    good_until: float


class Documents:
    """The documents of one kind that this process has read, and the failures of the last half minute."""

    def __init__(self, check: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Document] = OrderedDict()
        self._failures: OrderedDict[str, tuple[float, Exception]] = OrderedDict()
        _memories.append(self)

    def find(self, url: str) -> Document | None:
        """What was last read there, however old; never a fetch."""
        with self._lock:
            return self._kept.get(url)

    def read(self, url: str, *, known: bool, since: float = 0.0, asker: str = "") -> Document:
        """The document, as good as its headers say and not read before `since`. `asker` is the network of who asks.

        Raises InvalidDocument, DocumentUnavailable. `known` is for what an operator or a person vouches for already.
        """
        if (found := self._remembered(url, since)) is not None:
            return found
        give_back_connection()
        with _gate.entered(url, known, asker):
            # Whoever was first has asked for all who waited.
            if (found := self._remembered(url, since)) is not None:
                return found
            return self._fetch(url, asker)

    def _remembered(self, url: str, since: float) -> Document | None:
        """What is good enough; a failure of just now is raised again where nothing is."""
        with self._lock:
            found = self._kept.get(url)
            until, failure = self._failures.get(url, (0.0, None))
        if found and found.read_at >= since and found.good_until > time.time():
            return found
        if failure is not None and time.monotonic() < until:
            raise type(failure)(*failure.args)
        return None

    def _fetch(self, url: str, asker: str) -> Document:
        kept, asked_at = self.find(url), time.time()
        try:
            answer = fetch(url, kept.etag if kept else "")
            content = kept.content if kept and answer.content is None else self._check(url, answer.content or {})
        except (DocumentUnavailable, InvalidDocument) as failure:
            logger.info("document %s: %s", url, failure)
            self._put(self._failures, url, (time.monotonic() + RETRY_AFTER, failure))
            _gate.count(url, asker, is_document=False)
            raise
        _gate.count(url, asker, is_document=True)
        read = Document(content, answer.etag, asked_at, asked_at + answer.lifetime)
        self._put(self._kept, url, read)
        return read

    def _put(self, memory: OrderedDict[str, Any], url: str, entry: Any) -> None:
        with self._lock:
            memory[url] = entry
            memory.move_to_end(url)
            if len(memory) > MOST_REMEMBERED:
                memory.popitem(last=False)

    def forget(self) -> None:
        with self._lock:
            self._kept.clear()
            self._failures.clear()


_memories: list[Documents] = []


def forget_documents() -> None:
    """What this process has read and counted is gone, as after a restart."""
    _gate.forget()
    for memory in _memories:
        memory.forget()
