"""What is known of the usual OpenID providers: the shape of their issuer, and what each must be sent beside the standard.

A table and nothing else: `cair.providers` reads it, docs/providers.md shows it, and a test compares the two.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_USUAL_SCOPE = "openid email profile offline_access"


@dataclass(frozen=True)
class Preset:
    """One product. `issuer` is a pattern for the whole address; `audience_parameter` says how an API's token is asked for."""

    label: str
    issuer: str
    example: str
    scope: str = _USUAL_SCOPE
    audience_parameter: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    default_issuer: str = ""

    def fits(self, issuer: str) -> bool:
        return re.fullmatch(self.issuer, issuer) is not None


_HOST = r"https://[A-Za-z0-9.-]+(:\d+)?"

PRESETS: Mapping[str, Preset] = {
    "openid": Preset("OpenID", r"https?://.+", "https://id.example.com", audience_parameter="audience"),
    "auth0": Preset("Auth0", _HOST + "/?", "https://example.eu.auth0.com/", audience_parameter="audience"),
    # A refresh token comes with `access_type=offline`, and only while the person is asked; `offline_access` is unknown.
    "google": Preset(
        "Google",
        r"https://accounts\.google\.com",
        "https://accounts.google.com",
        scope="openid email profile",
        parameters={"access_type": "offline", "prompt": "consent"},
        default_issuer="https://accounts.google.com",
    ),
    # `common` and `organizations` publish an issuer with the word {tenantid} in it, which is nobody's: any tenant of
    # the world could sign in, and its administrator write any e-mail address. The API's token is asked for by scope.
    "entra": Preset(
        "Microsoft",
        r"https://login\.microsoftonline\.(com|us)/[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}/v2\.0",
        "https://login.microsoftonline.com/00000000-0000-0000-0000-000000000000/v2.0",
    ),
    # The audience belongs to the authorization server there: /oauth2/default, or one made for the API.
    "okta": Preset("Okta", _HOST + r"(/oauth2/[A-Za-z0-9]+)?", "https://example.okta.com/oauth2/default"),
    "authkit": Preset("AuthKit", _HOST, "https://example.authkit.app", audience_parameter="resource"),
    "stytch": Preset("Stytch", _HOST, "https://example.customers.stytch.com"),
    "keycloak": Preset("Keycloak", _HOST + r"(/auth)?/realms/[^/?#]+", "https://id.example.com/realms/staff"),
    # Without `prompt=consent` its `offline_access` brings no refresh token (OpenID Connect Core 1.0 §11).
    "logto": Preset(
        "Logto",
        _HOST + "/oidc",
        "https://example.logto.app/oidc",
        audience_parameter="resource",
        parameters={"prompt": "consent"},
    ),
    "descope": Preset("Descope", _HOST + r"(/v1/apps)?/[A-Za-z0-9]+", "https://api.descope.com/P2example"),
}
