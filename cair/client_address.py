"""Who is calling, where proxies of the operator's own stand in between.

`X-Forwarded-For` is a client's header: anybody may send one. It is read only where the connection itself comes from a
proxy in TRUSTED_PROXIES, and only from its end, entry by entry, as far as trusted proxies wrote it. It says who called and
nothing else: host, scheme and path are ours by configuration.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any

from django.conf import settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def client_of(scope: dict[str, Any], forwarded_for: Sequence[str]) -> tuple[str, int] | None:
    """The address that a request came from, in the shape of ASGI's `client`. `forwarded_for`: the headers, as they came."""
    client = scope.get("client")
    if not settings.TRUSTED_PROXIES or not client:
        return (client[0], client[1]) if client else None
    nearest = _parsed(client[0])
    if nearest is None or not _is_trusted(nearest):
        return client[0], client[1]
    for address in _from_the_end(forwarded_for):
        if address is None:  # whoever wrote that, nobody can say who stands behind it
            break
        nearest = address
        if not _is_trusted(address):
            break
    return str(nearest), 0


def _from_the_end(headers: Sequence[str]) -> Iterable[Address | None]:
    entries = [entry.strip() for header in headers for entry in header.split(",")]
    return (_parsed(entry) for entry in reversed(entries))


def _parsed(text: str) -> Address | None:
    """An address, with or without the port that some proxies add; IPv4 also where it came as mapped IPv6."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_trusted(address: Address) -> bool:
    return any(address in network for network in settings.TRUSTED_PROXIES)
