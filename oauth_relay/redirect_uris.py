"""Which redirect URIs a client may have, and how far each may be trusted (RFC 6749 §3.1.2, RFC 8252 §7).

https anywhere; http on this machine only (RFC 8252 §7.3, and `localhost`, which real clients use); a custom scheme
only from the operator's list (T41).
"""

import re
from urllib.parse import SplitResult, urlsplit

from django.conf import settings

from oauth_relay.loopback import is_loopback

LONGEST = 2000


def _split(uri: str) -> SplitResult | None:
    """The parts of an absolute URI that may be redirected to at all, or None.

    > The endpoint URI MUST NOT include a fragment component. (RFC 6749 §3.1.2)
    """
    if len(uri) > LONGEST or not re.fullmatch(r"[\x21-\x7e]+", uri) or "#" in uri or "\\" in uri:
        return None
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        return None
    return None if parts.username is not None or parts.password is not None else parts


def allowed_schemes() -> list[str]:
    return ["https", "http", *settings.CUSTOM_REDIRECT_SCHEMES]


def is_loopback_redirect(uri: str) -> bool:
    """Whether the answer goes to a listener on the person's own machine."""
    parts = _split(uri)
    return parts is not None and parts.scheme in ("http", "https") and is_loopback(parts.hostname)


def is_custom_scheme(uri: str) -> bool:
    return urlsplit(uri).scheme not in ("http", "https")


def is_allowed(uri: str) -> bool:
    """Whether a client may register `uri`, or ask to be answered there."""
    parts = _split(uri)
    if parts is None or parts.scheme not in allowed_schemes():
        return False
    if parts.scheme == "http":
        return is_loopback(parts.hostname)
    if parts.scheme == "https":
        return bool(parts.hostname)
    return bool(parts.netloc or parts.path)


def origin_of(uri: str) -> str:
    """What a Content-Security-Policy calls the place: `https://host:port`, or `cursor:`."""
    parts = urlsplit(uri)
    return f"{parts.scheme}:" if is_custom_scheme(uri) else f"{parts.scheme}://{parts.netloc}"


def host_of(uri: str) -> str:
    """What a person is told about where the answer goes: `claude.ai`, `localhost:33418`, `cursor:`."""
    return origin_of(uri) if is_custom_scheme(uri) else urlsplit(uri).netloc
