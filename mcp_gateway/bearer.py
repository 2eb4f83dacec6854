"""From an ASGI scope to the principal, or to the challenge that tells a client how to become one (RFC 6750, RFC 9728)."""

import logging
import re
from collections.abc import Iterable

from django.conf import settings

from mcp_gateway.errors import InsufficientScope
from mcp_gateway.replies import Header, Refusal, Scope, unavailable
from mcp_gateway.tools import registry
from oauth_relay import access_tokens
from oauth_relay.access_tokens import InvalidToken, PresentedToken, Principal, TokensUnavailable

logger = logging.getLogger(__name__)

# RFC 6750 §2.1: b64token = 1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="
_CREDENTIALS = re.compile(r"(?P<scheme>[A-Za-z]+) +(?P<raw_token>[A-Za-z0-9\-._~+/]+=*)")
_LONGEST_TOKEN = 4096


async def principal_for(scope: Scope, resource: str) -> Principal:
    """Who speaks in this request to `resource`. Raises Refusal: 401, 400 or 503.

    Only the Authorization header counts; a token in the query or the body is as good as none.
    """
    presented = _presented(scope, resource)
    if presented is None:
        raise challenge(resource)
    try:
        return await access_tokens.verify_access_token(presented)
    except InvalidToken as reason:
        logger.info("token refused at %s: %s", resource, reason)
        raise challenge(resource, "invalid_token", "The access token is unknown, expired, or not for here.") from None
    except TokensUnavailable as reason:
        logger.warning("tokens cannot be checked: %s", reason)
        raise unavailable("Access tokens cannot be checked at the moment.") from None


def _presented(scope: Scope, resource: str) -> PresentedToken | None:
    """What the request presents, or None. Raises Refusal for what is not one well-formed credential."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if not values:
        return None
    if len(values) > 1:
        # RFC 6750 §3.1: more than one … is `invalid_request`, 400. First-copy and last-copy readers would disagree.
        raise challenge(resource, "invalid_request", "There is more than one Authorization header.", status=400)
    value = values[0].decode("latin-1").strip()
    found = _CREDENTIALS.fullmatch(value) if len(value) <= _LONGEST_TOKEN else None
    if found is None:
        raise challenge(resource, "invalid_token", "The Authorization header is not `Bearer` and a token.")
    url = f"{settings.PUBLIC_URL}{scope['path']}"
    address = (scope.get("client") or ("",))[0]
    return PresentedToken(found["scheme"], found["raw_token"], scope["method"], url, resource, address)


def challenge(resource: str, error: str = "", description: str = "", status: int = 401) -> Refusal:
    """The answer that sends a client to sign-in: where the metadata is, and which scopes to begin with.

    > If the request lacks any authentication information … the resource server SHOULD NOT include an error code.
    RFC 6750 §3.1
    """
    known = registry.scopes()
    scopes = [scope for scope in settings.DEFAULT_SCOPES if scope in known]
    body = {"error": error or "unauthorized", "error_description": description or "Sign in: an access token is needed."}
    return Refusal(status, body, [_www_authenticate(resource, scopes, error, description)])


def step_up(resource: str, refused: InsufficientScope) -> Refusal:
    """403 with all scopes of the operation, so that one round is enough."""
    description = "This tool needs a permission that was not given to this client."
    body = {"error": "insufficient_scope", "error_description": description, "scope": " ".join(refused.scopes)}
    header = _www_authenticate(resource, refused.scopes, "insufficient_scope", description)
    return Refusal(403, body, [header])


def sign_in_again(resource: str) -> Refusal:
    """401 for a good token whose person must sign in at the provider again (DESIGN §4.8)."""
    return challenge(resource, "invalid_token", "The sign-in behind this token has ended. Please sign in again.")


def _www_authenticate(resource: str, scopes: Iterable[str], error: str, description: str) -> Header:
    path = resource.removeprefix(settings.PUBLIC_URL)
    parameters = {
        "error": error,
        "error_description": description,
        "resource_metadata": f"{settings.PUBLIC_URL}/.well-known/oauth-protected-resource{path}",
        "scope": " ".join(scopes),
    }
    told = ", ".join(f'{name}="{value}"' for name, value in parameters.items() if value)
    return b"www-authenticate", f"Bearer {told}".encode()
