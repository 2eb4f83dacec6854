"""What identity providers say when something is set up wrongly, and what that means: the usual mistakes by name.

Auth0's words come first, because its error codes alone say little: an unknown audience is `access_denied` there.
"""

import re
from dataclasses import dataclass

CALLBACK = "callback URL not registered"
CLIENT = "unknown client"
AUDIENCE = "wrong audience"
NOT_ALLOWED = "application not allowed to use the API"
NOT_REGULAR_WEB = "application is not a “Regular Web Application”"
SCOPE = "scope not known"


@dataclass(frozen=True)
class Mistake:
    """A mistake, its signs in what a provider answers to an authorization request, and the repair."""

    name: str
    signs: re.Pattern[str]
    repair: str


def _mistake(name: str, signs: str, repair: str) -> Mistake:
    return Mistake(name, re.compile(signs, re.IGNORECASE), repair)


# The first that fits counts. Each repair is filled in with what was sent.
AT_AUTHORIZATION = (
    _mistake(
        CLIENT,
        r"unknown client|client not found|client is invalid|invalid[_ ]client|AADSTS700016",
        "{id_variable} is no application of this provider (Auth0: Applications → your application → Client ID), or "
        "{domain_variable} is another tenant's.",
    ),
    _mistake(
        CALLBACK,
        r"callback url mismatch|redirect[_ ]uri|redirect url|AADSTS50011",
        "Register exactly {redirect_uri} there (Auth0: Applications → your application → Allowed Callback URLs).",
    ),
    _mistake(
        AUDIENCE,
        r"service not found|service not enabled|invalid_target|resource indicator|AADSTS50001\b|AADSTS500011",
        "The provider knows no API {audience}. Set {audience_variable} to its identifier there, character by character "
        "(Auth0: Applications → APIs → your API → Identifier), or make the API.",
    ),
    _mistake(
        NOT_ALLOWED,
        r"not authorized to access (the )?resource server",
        "Allow the application to use the API {audience} (Auth0: Applications → APIs → your API → Application Access).",
    ),
    _mistake(
        NOT_REGULAR_WEB,
        r"unauthorized_client|unsupported_response_type|grant type .{0,60}not allowed",
        "Let the application use the authorization code grant (Auth0: make it a “Regular Web Application”; Advanced "
        "Settings → Grant Types → Authorization Code and Refresh Token).",
    ),
    _mistake(
        SCOPE,
        r"invalid_scope",
        "Take out of {scope_variable} what the provider does not know, or add it there as a permission of the API.",
    ),
)


def mistake_in(text: str) -> Mistake | None:
    """The mistake that `text` is a sign of."""
    return next((mistake for mistake in AT_AUTHORIZATION if mistake.signs.search(text)), None)
