"""PUBLIC_URL from outside: does it lead here, does every document say so, and what does a proxy do on the way?"""

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from django.conf import settings

from cair.doctor.findings import Finding, absent, failure, good, quoted, warning
from cair.doctor.network import SECONDS, Answer, BadCertificate, NoAnswer
from cair.doctor.visit import Visit
from oauth_relay import metadata
from oauth_relay.urls import protocol

RENEW_BEFORE_DAYS = 14
_PARAMETER = re.compile(r'([a-z_]+)="([^"]*)"')
_PING = {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {}}
_ACCEPT = {"Accept": "application/json, text/event-stream"}


def reachable(visit: Visit) -> Iterator[Finding]:
    """GET PUBLIC_URL/health, as a client would come."""
    name, url = "PUBLIC_URL", settings.PUBLIC_URL
    try:
        answer = visit.network.get(f"{url}/health")
    except BadCertificate as error:
        yield failure(name, f"{url}: {error}", "Mend the certificate at the proxy; clients refuse it as well.")
    except NoAnswer as error:
        yield _unreachable(visit, name, error)
    else:
        if visit.is_cair_at(url):
            yield good(name, f"a CAIR server answers at {url}")
        else:
            yield failure(name, *_something_else(url, answer))


def _unreachable(visit: Visit, name: str, error: NoAnswer) -> Finding:
    url = settings.PUBLIC_URL
    if visit.is_cair_at(settings.OWN_ADDRESS):
        repair = (
            f"Set PUBLIC_URL to the address that leads to port {settings.PORT} here, or mend name, proxy or firewall."
        )
        return failure(name, f"CAIR runs on port {settings.PORT}, and {url} does not lead to it: {error}", repair)
    return absent(
        name,
        f"no server answers at {url}: {error}",
        "Start it: make run. If it runs, check PORT and PUBLIC_URL: this command must have the server's.",
    )


def _something_else(url: str, answer: Answer) -> tuple[str, str]:
    """What was found in CAIR's place, and the repair."""
    said = answer.json_object()
    if said.get("error") == "misdirected_request":
        return f"{url} leads to CAIR, which refuses: HTTP {answer.status}", quoted(str(said.get("error_description")))
    if 300 <= answer.status < 400:
        there = _origin_of(answer.headers.get("Location", ""))
        return f"{url} redirects to {there}", "Set PUBLIC_URL to the address that answers by itself."
    repair = "Check PUBLIC_URL, and that the proxy sends every path to CAIR and finds it running."
    return f"something that is not CAIR answers at {url}: HTTP {answer.status}", repair


def _origin_of(location: str) -> str:
    parts = urlsplit(location)
    return quoted(f"{parts.scheme}://{parts.netloc}" if parts.netloc else location) or "nowhere"


# -- https -------------------------------------------------------------------------------------------------------------


def https(visit: Visit) -> Iterator[Finding]:
    """Plain http is for this machine alone; a certificate ends one day."""
    if not settings.HTTPS:
        repair = (
            "Enough for clients on this machine. For others: a proxy with a certificate, and PUBLIC_URL with https://."
        )
        yield absent("https", f"{settings.PUBLIC_URL} is plain http", repair)
        return
    visit.need_server()
    if (days := _days_left()) is None:
        yield good("https", "the certificate is accepted")
    elif days < RENEW_BEFORE_DAYS:
        yield warning("https", f"the certificate ends in {days} days", "See why it is not renewed.")
    else:
        yield good("https", f"the certificate is accepted, and good for {days} days")


def _days_left() -> int | None:
    """Of the certificate shown; None where this machine sees it only through a proxy."""
    parts = urlsplit(settings.PUBLIC_URL)
    try:
        # Not for trust: `reachable` has seen that it is accepted.
        pem = ssl.get_server_certificate((parts.hostname or "", parts.port or 443), timeout=SECONDS)
        ends = x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc
    except (OSError, ValueError):
        return None
    return (ends - datetime.now(UTC)).days


# -- what every document says ------------------------------------------------------------------------------------------


def documents(visit: Visit) -> Iterator[Finding]:
    """RFC 8414 and RFC 9728 in every spelling, and the challenge at each endpoint: all name PUBLIC_URL and nothing else."""
    visit.need_server()
    wrong = [*_wrong_documents(visit), *_wrong_challenges(visit)]
    if wrong:
        repair = (
            f"The server at {settings.PUBLIC_URL} was started with another PUBLIC_URL, or another server answers there: "
            "start it with the environment that this command reads."
        )
        yield failure("metadata", f"{wrong[0]}{f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''}", repair)
    else:
        count = len(list(_spellings()))
        yield good("metadata", f"all {count} documents and the challenges name {settings.PUBLIC_URL}")


def _spellings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Path of each discovery document, and the members that must be so: read off the table of URLs."""
    url = settings.PUBLIC_URL
    for pattern in protocol:
        if pattern.callback is metadata.authorization_server:
            yield f"/{pattern.pattern}", {"issuer": url, "protected_resources": list(settings.RESOURCES)}
        elif pattern.callback is metadata.protected_resource:
            endpoint = (pattern.default_args or {}).get("endpoint", "mcp")
            yield f"/{pattern.pattern}", {"resource": f"{url}/{endpoint}", "authorization_servers": [url]}


def _wrong_documents(visit: Visit) -> Iterator[str]:
    for path, expected in _spellings():
        try:
            answer = visit.network.get(f"{settings.PUBLIC_URL}{path}")
        except NoAnswer as error:
            yield f"{path}: {error}"
            continue
        document = answer.json_object()
        if answer.status != 200:
            yield f"{path} answers HTTP {answer.status}"
        yield from (
            f"{path} says {member} {quoted(str(document.get(member)))}"
            for member, value in expected.items()
            if answer.status == 200 and document.get(member) != value
        )
        yield from (
            f"{path} says {member} {quoted(str(value))}"
            for member, value in document.items()
            if member.endswith("_endpoint") and not str(value).startswith(f"{settings.PUBLIC_URL}/")
        )


def _wrong_challenges(visit: Visit) -> Iterator[str]:
    for resource in settings.RESOURCES:
        method = "GET" if resource.endswith("/sse") else "POST"
        path = urlsplit(resource).path
        try:
            challenge = _challenge(visit, method, resource, {})
        except NoAnswer as error:
            yield f"{method} {path}: {error}"
            continue
        if not challenge.get("resource_metadata", "").startswith(f"{settings.PUBLIC_URL}/"):
            yield f"{method} {path} challenges with {quoted(challenge.get('resource_metadata', 'nothing'))}"


def _challenge(visit: Visit, method: str, resource: str, headers: dict[str, str]) -> dict[str, str]:
    """The parameters of `WWW-Authenticate` (RFC 6750 §3); none where there is no challenge."""
    message = _PING if method == "POST" else None
    answer = visit.network.send(method, resource, headers={**_ACCEPT, **headers}, message=message)
    return dict(_PARAMETER.findall(answer.headers.get("WWW-Authenticate", "")))


# -- what is between ---------------------------------------------------------------------------------------------------


def proxy(visit: Visit) -> Iterator[Finding]:
    """A proxy has to hand on `Host` (the guard compares it exactly) and `Authorization` (some drop it)."""
    if urlsplit(settings.PUBLIC_URL).port == settings.PORT and settings.ON_LOOPBACK and not settings.HTTPS:
        yield good("proxy", "none: PUBLIC_URL is this server's own listener")
        return
    visit.need_server()
    answer = visit.network.get(f"{settings.PUBLIC_URL}/.well-known/oauth-authorization-server")
    if answer.json_object().get("error") == "misdirected_request":
        found = "requests through PUBLIC_URL arrive with another Host"
        repair = (
            f"Make the proxy hand on the Host it got, {settings.PUBLIC_HOST}. nginx: proxy_set_header Host $http_host; "
            "Apache: ProxyPreserveHost On; Caddy does it by itself."
        )
        yield failure("proxy", found, repair)
        return
    # > error … if the request lacks any authentication information … SHOULD NOT include (RFC 6750 §3.1): so an error
    # tells that the header came through.
    sent = {"Authorization": "Bearer cair-doctor-sends-no-token"}
    if "error" not in _challenge(visit, "POST", settings.RESOURCES[0], sent):
        repair = "Make the proxy hand on Authorization. Apache: CGIPassAuth On, or SetEnvIf Authorization …"
        yield failure("proxy", "the Authorization header is lost between PUBLIC_URL and CAIR", repair)
        return
    yield good("proxy", "Host and Authorization arrive as they were sent")
