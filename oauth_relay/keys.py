"""The keys that sign the API tokens CAIR issues itself, and their public halves (RFC 7517, RFC 9068, T22).

A key is *next* (published, not yet used), *current*, *retired* (published, no longer used), *gone* or *compromised*.
The first key is current at once: no verifier can hold an older document than the one that names it.
"""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from django.conf import settings
from django.db import IntegrityError
from django.db.transaction import atomic, on_commit
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views.decorators.cache import cache_control
from django.views.generic import View
from jwt.algorithms import RSAAlgorithm

from oauth_relay import vault
from oauth_relay.models import SigningKey
from oauth_relay.pages import read_only

API_TOKEN = "api-token"
# RFC 9068 §2.1: "The authorization server and resource servers conforming to this specification MUST include RS256
# among their supported signature algorithms." Signing is rare here (a token serves a grant for 90 s), checking is not.
ALGORITHM = "RS256"
_RSA_BITS = 2048

JWKS_MAX_AGE = 300
MEMORY_LIFETIME = 0.5
"""Seconds for which a process signs without looking: a compromised key is out of use everywhere after them. The look is
one row by an index, and the key it names is opened only if it is another one."""

_PUBLISHED = (SigningKey.State.NEXT, SigningKey.State.CURRENT, SigningKey.State.RETIRED)


@dataclass(frozen=True)
class _Signer:
    """The current key, opened."""

    kid: str
    algorithm: str
    private_key: RSAPrivateKey = field(repr=False)
    read_at: float


_signer: _Signer | None = None


def forget_signer() -> None:
    """Drop the private key from memory: for tests that empty the database."""
    global _signer
    _signer = None


def sign_api_token(claims: Mapping[str, Any]) -> str:
    """`claims` as a signed API token, RFC 9068 §2: `typ: at+jwt`, and the key's own algorithm, never the caller's."""
    signer = _current_signer()
    headers = {"typ": "at+jwt", "kid": signer.kid}
    return jwt.encode(dict(claims), signer.private_key, algorithm=signer.algorithm, headers=headers)


def jwks() -> dict[str, Any]:
    """The public keys of API tokens, newest first (RFC 7517 §5)."""
    ensure_current()
    rows = SigningKey.objects.filter(purpose=API_TOKEN, state__in=_PUBLISHED).order_by("-created")
    return {"keys": [row.public_jwk for row in rows]}


@method_decorator(read_only, name="dispatch")
@method_decorator(cache_control(public=True, max_age=JWKS_MAX_AGE), name="get")
class JwksView(View):
    """GET /.well-known/jwks.json: what an API needs to check our tokens. Public; the guard opens it to every origin."""

    def get(self, request: HttpRequest) -> JsonResponse:
        return JsonResponse(jwks())


def ensure_current() -> SigningKey | None:
    """The current key, made if there is none; None where CAIR issues no API tokens and never did."""
    return _current_row() if _issues_api_tokens() else _find_current()


def _issues_api_tokens() -> bool:
    return any(api["token_source"] == "cair" for api in settings.UPSTREAM_APIS.values())


def _current_signer() -> _Signer:
    if _signer is not None and time.monotonic() - _signer.read_at < MEMORY_LIFETIME:
        return _signer
    row = _current_row()
    fresh = _Signer(str(row.pk), row.algorithm, _open_private_key(row), time.monotonic())
    on_commit(lambda: _remember(fresh))
    return fresh


def _remember(signer: _Signer) -> None:
    """Only once committed: a key whose row is rolled back must sign nothing afterwards."""
    global _signer
    _signer = signer


def _open_private_key(row: SigningKey) -> RSAPrivateKey:
    if _signer is not None and _signer.kid == str(row.pk):
        return _signer.private_key
    opened = load_der_private_key(vault.open_sealed(row.private_key, **binding(row.pk, row.algorithm)), None)
    if not isinstance(opened, RSAPrivateKey):
        raise vault.VaultError(f"signing key {row.pk} is no RSA key")
    return opened


def binding(key_id: uuid.UUID, algorithm: str) -> dict[str, Any]:
    """What a private half is sealed to."""
    return {"purpose": "signing-key", "row": key_id, "field": "private_key", "algorithm": algorithm, "use": API_TOKEN}


def _current_row() -> SigningKey:
    """The row of the current key; made if there is none. Of two processes at once the unique constraint picks one."""
    if row := _find_current():
        return row
    try:
        with atomic():
            return make(SigningKey.State.CURRENT)
    except IntegrityError:
        return SigningKey.objects.get(purpose=API_TOKEN, state=SigningKey.State.CURRENT)


def _find_current() -> SigningKey | None:
    return SigningKey.objects.filter(purpose=API_TOKEN, state=SigningKey.State.CURRENT).first()


def make(state: SigningKey.State) -> SigningKey:
    """A new key in `state`, its private half sealed to its own row. Raises IntegrityError for a second current one."""
    private_key = generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
    key_id = uuid.uuid4()
    pkcs8 = private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return SigningKey.objects.create(
        pk=key_id,
        purpose=API_TOKEN,
        algorithm=ALGORITHM,
        public_jwk=_public_jwk(private_key, key_id),
        private_key=vault.seal(pkcs8, **binding(key_id, ALGORITHM)),
        state=state,
        state_since=timezone.now(),
    )


def _public_jwk(private_key: RSAPrivateKey, key_id: uuid.UUID) -> dict[str, Any]:
    public = json.loads(RSAAlgorithm.to_jwk(private_key.public_key()))
    return {
        "kty": public["kty"],
        "n": public["n"],
        "e": public["e"],
        "use": "sig",
        "alg": ALGORITHM,
        "kid": str(key_id),
    }
