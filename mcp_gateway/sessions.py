"""HTTP+SSE (2024-11-05): what a stream's session id holds, and how a message reaches the worker that has the stream.

Deletable together with `transports/sse.py`: MCP 2026-07-28 lists HTTP+SSE as deprecated (SEP-2596), with removal not
before three months after that proposal is final.

Both texts are sealed, AES-256-GCM under a key of their own purpose: a client can neither read nor make them, and what
travels through the channel layer means nothing to whoever else reads there (T34).
"""

import base64
import binascii
import json
import secrets
import time
import uuid
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from mcp_gateway import jsonrpc
from oauth_relay import audit
from oauth_relay.access_tokens import Principal

LIFETIME = 30 * 24 * 3600
"""Seconds an id is good for; a stream that is older is closed."""
ACKNOWLEDGED_WITHIN = 5.0
STALE_AFTER = 4.0
"""Below the time the sender waits: who has been told that nothing ran must be right."""
_NONCE_BYTES = 12


class UnknownSession(Exception):
    """No stream of this principal has that id. Somebody else's reads the same."""


@dataclass(frozen=True)
class StreamSession:
    """One open stream: the grant and resource it belongs to, and the channel on which its worker listens."""

    grant_id: uuid.UUID
    resource: str
    channel: str
    expires_at: float

    @classmethod
    def opened_by(cls, principal: Principal, channel: str) -> "StreamSession":
        return cls(principal.grant_id, principal.resource, channel, time.time() + LIFETIME)

    def sealed(self) -> str:
        return _seal("session", {**asdict(self), "grant_id": str(self.grant_id)})


def session_for(principal: Principal, unverified_id: str) -> StreamSession:
    """The principal's own session of that id. Raises UnknownSession."""
    content = _unseal("session", unverified_id)
    session = StreamSession(**{**content, "grant_id": uuid.UUID(content["grant_id"])})
    if (session.grant_id, session.resource) != (principal.grant_id, principal.resource):
        raise UnknownSession("of another grant or resource")
    if session.expires_at <= time.time():
        raise UnknownSession("expired")
    return session


@dataclass(frozen=True)
class Delivery:
    """One message on its way to the stream's worker, with who sent it and where to acknowledge it."""

    message: jsonrpc.Message
    principal: Principal
    acknowledge_to: str
    trace_id: str
    sent_at: float

    @classmethod
    def of(cls, message: jsonrpc.Message, principal: Principal, acknowledge_to: str) -> "Delivery":
        return cls(message, principal, acknowledge_to, audit.trace_id.get(), time.time())

    def sealed(self) -> str:
        principal = {
            **asdict(self.principal),
            "grant_id": str(self.principal.grant_id),
            "pseudonym": _text(self.principal.pseudonym),
            "family": _text(self.principal.family),
            "scopes": sorted(self.principal.scopes),
        }
        return _seal("delivery", {**vars(self), "principal": principal})

    @classmethod
    def unsealed(cls, unverified: str) -> "Delivery":
        """Raises UnknownSession for what this installation did not seal."""
        content = _unseal("delivery", unverified)
        who = content["principal"]
        principal = Principal(
            **{
                **who,
                "grant_id": uuid.UUID(who["grant_id"]),
                "pseudonym": _uuid(who["pseudonym"]),
                "family": _uuid(who["family"]),
                "scopes": frozenset(who["scopes"]),
            }
        )
        return cls(**{**content, "principal": principal})

    @property
    def is_stale(self) -> bool:
        return time.time() - self.sent_at > STALE_AFTER


def _text(value: uuid.UUID | None) -> str | None:
    return str(value) if value is not None else None


def _uuid(value: str | None) -> uuid.UUID | None:
    return uuid.UUID(value) if value is not None else None


@cache
def _cipher(secret: str, purpose: str) -> AESGCM:
    key = HKDF(SHA256(), 32, salt=None, info=f"cair mcp_gateway.sessions {purpose}".encode())
    return AESGCM(key.derive(secret.encode()))


def _seal(purpose: str, content: dict[str, Any]) -> str:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = _cipher(settings.SECRET_KEY, purpose).encrypt(nonce, jsonrpc.encode(content), purpose.encode())
    return base64.urlsafe_b64encode(nonce + sealed).decode().rstrip("=")


def _unseal(purpose: str, unverified: str) -> dict[str, Any]:
    """What was sealed for `purpose` under this secret, or one that is being rotated out. Raises UnknownSession."""
    try:
        raw = base64.b64decode(unverified + "=" * (-len(unverified) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise UnknownSession("not ours") from None
    for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
        try:
            content = _cipher(secret, purpose).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], purpose.encode())
        except (InvalidTag, ValueError):
            continue
        unsealed: dict[str, Any] = json.loads(content)
        return unsealed
    raise UnknownSession("not ours")
