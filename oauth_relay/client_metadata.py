"""What a client may say of itself, whichever door it comes by, and the row of one that an operator or it registered.

One set of rules for `/register` (RFC 7591 §2), for documents at a client_id, and for `manage.py create_client`: what a
person is shown must not depend on how the client came here.
"""

import re
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.db.transaction import atomic
from django.utils import timezone
from oauth2_provider.generators import generate_client_secret

from oauth_relay import audit, redirect_uris
from oauth_relay.models import Client
from oauth_relay.outbound_documents import InvalidDocument, check_address

LONGEST_NAME = 200
LONGEST_TEXT = 2000
MOST_REDIRECT_URIS = 30
MOST_KEYS = 10
GRANT_TYPES = ("authorization_code", "refresh_token")
LINKS = ("client_uri", "logo_uri", "tos_uri", "policy_uri")
PUBLIC_PARTS = ("kty", "crv", "x", "y", "n", "e", "kid", "alg", "use")
SECRET_PARTS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})


class InvalidMetadata(Exception):
    """The metadata will not do; carries the error of RFC 7591 §3.2.2 and what to mend. It may be shown."""

    def __init__(self, description: str, error: str = "invalid_client_metadata") -> None:
        super().__init__(description)
        self.error, self.description = error, description


# -- the rules; each raises InvalidMetadata ----------------------------------------------------------------------------


def checked_text(field: str, value: Any) -> str:
    """A text without what cannot be printed: it must not turn a page around (T31)."""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or "\0" in value:
        raise InvalidMetadata(f"{field} must be a text of at most {LONGEST_TEXT} characters.")
    return "".join(c for c in value if c.isprintable())


def checked_name(field: str, value: Any) -> str:
    """A name as people will read it; it may come out empty."""
    name = checked_text(field, value).strip()
    if len(name) > LONGEST_NAME:
        raise InvalidMetadata(f"{field} must be a text of at most {LONGEST_NAME} characters.")
    return name


def is_link(value: Any) -> bool:
    """Whether a person might follow it. One that nobody could follow safely is not worth refusing a client for."""
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and bool(re.fullmatch(r"https://[\x21-\x7e]+", value))


def checked_redirect_uris(values: Any) -> list[str]:
    """The redirect URIs that may be used; one bad among good ones is dropped, none left is refused."""
    wrong = "invalid_redirect_uri"
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise InvalidMetadata("redirect_uris must be a list with at least one URI.", wrong)
    allowed = [uri for uri in dict.fromkeys(values) if redirect_uris.is_allowed(uri)]
    if not allowed:
        schemes = ", ".join(f"{scheme}:" for scheme in settings.CUSTOM_REDIRECT_SCHEMES)
        raise InvalidMetadata(
            f"A redirect URI must be https, http on a loopback address, or one of {schemes}; without a fragment.", wrong
        )
    if len(allowed) > MOST_REDIRECT_URIS:
        raise InvalidMetadata(f"At most {MOST_REDIRECT_URIS} redirect URIs can be registered.", wrong)
    return allowed


def check_holds(unverified: Mapping[str, Any], field: str, needed: str) -> None:
    """Absent is well. What else is asked for is dropped, not refused: VS Code asks for device codes too."""
    values = unverified.get(field, [needed])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values) or needed not in values:
        raise InvalidMetadata(f"{field} must be a list of texts that contains {needed}.")


def checked_keys(unverified: Mapping[str, Any]) -> dict[str, Any]:
    """The client's public keys, by value or by address; empty if it names none.

    > The "jwks_uri" and "jwks" parameters MUST NOT both be present in the same request or response. (RFC 7591 §2)
    """
    jwks, jwks_uri = unverified.get("jwks"), unverified.get("jwks_uri")
    if jwks is not None and jwks_uri is not None:
        raise InvalidMetadata("There can be jwks, or jwks_uri; not both.")
    if jwks is not None:
        return {"jwks": checked_jwks(jwks)}
    return {} if jwks_uri is None else {"jwks_uri": _checked_jwks_uri(jwks_uri)}


def _checked_jwks_uri(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise InvalidMetadata("jwks_uri must be an address.")
    try:
        check_address(value)
    except InvalidDocument as wrong:
        raise InvalidMetadata(f"jwks_uri: {wrong}") from wrong
    return value


def checked_jwks(unverified: Any) -> dict[str, Any]:
    """The public keys of a set, with what describes them; refused above all where one of them is no secret now."""
    keys = unverified.get("keys") if isinstance(unverified, dict) else None
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise InvalidMetadata("The keys must be a JSON Web Key Set.")
    if any(SECRET_PARTS & key.keys() or key.get("kty") == "oct" for key in keys):
        raise InvalidMetadata("The keys hold a secret one, which is none any more.")
    if not 0 < len(keys) <= MOST_KEYS:
        raise InvalidMetadata(f"There must be 1 to {MOST_KEYS} keys.")
    return {"keys": [{name: key[name] for name in PUBLIC_PARTS if _is_plain(key.get(name))} for key in keys]}


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


# -- the row -----------------------------------------------------------------------------------------------------------


def register_by_operator(metadata: dict[str, Any], **policies: bool) -> tuple[Client, str]:
    """A client that an operator vouches for, with its raw secret (or none). `skip_authorization`: see T9 on silence."""
    with atomic():
        client, raw_secret = create(
            metadata,
            registration_source=Client.RegistrationSource.MANUAL,
            approved_at=timezone.now(),
            **policies,
        )
        audit.record_within(registered("client.made_by_operator", client))
    return client, raw_secret


def create(metadata: dict[str, Any], **fields: Any) -> tuple[Client, str]:
    """Write a client, always a row of its own (T6). One that signs has a secret too, which nobody is told."""
    method = metadata["token_endpoint_auth_method"]
    secret = "" if method == "none" else generate_client_secret()
    client = Client.objects.create(
        client_type=Client.CLIENT_CONFIDENTIAL if secret else Client.CLIENT_PUBLIC,
        authorization_grant_type=Client.GRANT_AUTHORIZATION_CODE,
        client_secret=secret,
        hash_client_secret=bool(secret),
        **columns(metadata),
        **fields,
    )
    return client, "" if method == "private_key_jwt" else secret


def columns(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata decides of a row."""
    return {
        "name": metadata.get("client_name", ""),
        "redirect_uris": " ".join(metadata["redirect_uris"]),
        "metadata": metadata,
    }


def registered(event: str, client: Client, **detail: Any) -> audit.Event:
    hosts = [redirect_uris.host_of(uri) for uri in client.redirect_uris.split()]
    return audit.Event(event, client_id=client.client_id, detail={"name": client.name, "hosts": hosts, **detail})
