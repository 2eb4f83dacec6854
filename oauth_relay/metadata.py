"""Discovery: what this server is and can do (RFC 8414), and what protects each MCP endpoint (RFC 9728)."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from oauth2_provider.scopes import get_scopes_backend
from oauth2_provider.settings import oauth2_settings

from oauth_relay import introspection
from oauth_relay.client_assertions import ALGORITHMS
from oauth_relay.pages import read_only
from oauth_relay.registration_policy import CLOSED

MAX_AGE = "public, max-age=300"


def supported_scopes() -> list[str]:
    """Every scope there is, least first; `offline_access` belongs to the authorization server alone."""
    return [scope for scope in get_scopes_backend().get_all_scopes() if scope != settings.OFFLINE_ACCESS]


@read_only
def authorization_server(request: HttpRequest) -> HttpResponse:
    """RFC 8414 §2. The same document at every spelling clients try, openid-configuration included: the issuer is one.

    The library's own view says too little here (no registration policy, no introspection rule, no JWKS for API tokens).
    """
    by_document = settings.CLIENT_METADATA_DOCUMENTS != "off"
    methods = [*oauth2_settings.OAUTH2_TOKEN_ENDPOINT_AUTH_METHODS_SUPPORTED, "private_key_jwt"]
    signatures = list(ALGORITHMS)
    document = {
        "issuer": settings.PUBLIC_URL,
        "authorization_endpoint": f"{settings.PUBLIC_URL}/authorize",
        "token_endpoint": f"{settings.PUBLIC_URL}/token",
        **({} if settings.REGISTRATION == CLOSED else {"registration_endpoint": f"{settings.PUBLIC_URL}/register"}),
        "revocation_endpoint": f"{settings.PUBLIC_URL}/revoke",
        "jwks_uri": f"{settings.PUBLIC_URL}/.well-known/jwks.json",
        "scopes_supported": [*supported_scopes(), settings.OFFLINE_ACCESS],
        "response_types_supported": oauth2_settings.OAUTH2_RESPONSE_TYPES_SUPPORTED,
        "response_modes_supported": ["query"],
        "grant_types_supported": oauth2_settings.OAUTH2_GRANT_TYPES_SUPPORTED,
        "token_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_methods_supported": methods,
        "token_endpoint_auth_signing_alg_values_supported": signatures,
        "revocation_endpoint_auth_signing_alg_values_supported": signatures,
        # Whoever asks there has a secret: it answers resource servers, and no public client.
        "introspection_endpoint": f"{settings.PUBLIC_URL}/introspect",
        "introspection_endpoint_auth_methods_supported": introspection.AUTH_METHODS,
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": True,
        "client_id_metadata_document_supported": by_document,
        "prompt_values_supported": ["none", "login", "consent", "select_account"],
        "protected_resources": list(settings.RESOURCES),
    }
    return JsonResponse(document, headers={"Cache-Control": MAX_AGE})


@read_only
def protected_resource(request: HttpRequest, endpoint: str = "mcp") -> HttpResponse:
    """RFC 9728 §2: one document per resource. The root one names /mcp, because clients adopt what it names.

    > MCP servers SHOULD NOT include `offline_access` in … scopes_supported. (MCP 2026-07-28, Refresh Tokens)
    """
    document = {
        "resource": f"{settings.PUBLIC_URL}/{endpoint}",
        "authorization_servers": [settings.PUBLIC_URL],
        "scopes_supported": supported_scopes(),
        "bearer_methods_supported": ["header"],
        "resource_name": "CAIR",
        "resource_documentation": f"{settings.PUBLIC_URL}/",
    }
    return JsonResponse(document, headers={"Cache-Control": MAX_AGE})
