"""/introspect: a resource server asks whether a token is good now, and for what (RFC 7662).

Only clients that an operator marked as resource servers are told anything. Bends no class of the library: its own view
asks for a bearer token with a scope of its own, and knows neither grants nor audiences.
"""

import logging
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_post_parameters
from oauth2_provider.views.mixins import OAuthLibMixin
from oauthlib.common import Request

from oauth_relay import token_grants
from oauth_relay.access_tokens import InvalidToken, live_token
from oauth_relay.models import AccessToken, Client

logger = logging.getLogger(__name__)

AUTH_METHODS = ["client_secret_post", "client_secret_basic"]
_NOTHING = {"active": False}


@method_decorator([csrf_exempt, sensitive_post_parameters()], name="dispatch")
class IntrospectionView(token_grants.ClientEndpoint, View):  # type: ignore[misc]
    """POST /introspect. Who asks is found out first: to everybody else it says nothing, not even what is missing."""

    def post(self, request: HttpRequest) -> HttpResponse:
        if refused := token_grants.malformed(request):
            return refused
        client = _authenticated_client(request)
        if client is None:
            return self._finish('{"error": "invalid_client"}', 401)
        raw_token = request.POST.get("token", "")
        if not raw_token:
            return token_grants.oauth_error("invalid_request", "Missing token parameter.")
        response = JsonResponse(_answer(client, raw_token))
        response["Cache-Control"], response["Pragma"] = "no-store", "no-cache"
        return response


def _authenticated_client(request: HttpRequest) -> Client | None:
    """The client that proved, as at /token, to be who it says.

    One without a secret has proved nothing: the library compares an empty secret with an empty one.
    """
    core = OAuthLibMixin.get_oauthlib_core()
    asked = Request(*core._extract_params(request))
    if not core.server.request_validator.authenticate_client(asked):
        return None
    client: Client = asked.client
    return client if client.client_type == Client.CLIENT_CONFIDENTIAL and client.client_secret else None


def _answer(client: Client, raw_token: str) -> dict[str, Any]:
    """What this client may know of this token.

    > If … the protected resource is not allowed to introspect this particular token, … the authorization server MUST
    > return an introspection response with the "active" field set to "false". … SHOULD NOT include any additional
    > information about an inactive token, including why the token is inactive. (RFC 7662 §2.2)
    """
    if not client.is_resource_server:
        logger.info("client %s is no resource server: it is told nothing at /introspect", client.client_id)
        return _NOTHING
    try:
        return _description(live_token(raw_token))
    except InvalidToken as reason:
        logger.info("token unknown to resource server %s: %s", client.client_id, reason)
        return _NOTHING


def _description(token: AccessToken) -> dict[str, Any]:
    """RFC 7662 §2.2, without `username`: a resource server knows people by `sub`, as the APIs do."""
    assert token.application is not None and token.user is not None
    audience = [resource for resource in token.resource if resource in settings.RESOURCES]
    if not audience:
        return _NOTHING
    return {
        "active": True,
        "scope": token.scope,
        "client_id": token.application.client_id,
        "sub": token.user.subject,
        "aud": audience,
        "iss": settings.PUBLIC_URL,
        "iat": int(token.created.timestamp()),
        "exp": int(token.expires.timestamp()),
        "token_type": "Bearer",
    }
