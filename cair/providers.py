"""The identity providers that the environment names, in the order in which the sign-in page lists them.

Auth0 by its own variables, then the OpenID issuers of `PROVIDERS`, then GitHub. Like the rest of the settings this
raises nothing: what is wrong or missing is remembered in the environment and named by `cair.checks`.
"""

import re
from collections.abc import Mapping
from urllib.parse import urlencode, urlsplit

from cair.env import Environment, is_base_url
from oauth_relay.loopback import is_loopback
from oauth_relay.providers.presets import PRESETS, Preset

CAIR = "cair"
GITHUB = "github"
_RESERVED = frozenset({CAIR, GITHUB, "auth0", "own"})
_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_CLIENT_ID = re.compile(r"PROVIDER_([A-Z][A-Z0-9_]*)_CLIENT_ID(?:_FILE)?")
_DISCOVERY = "/.well-known/openid-configuration"

Configuration = dict[str, str]


def configured_providers(environment: Environment, *, development: bool) -> dict[str, Configuration]:
    """Every provider by its name; the first has /callback, each other /callback/<name> (T29)."""
    found: dict[str, Configuration] = {}
    if domain := environment.text("AUTH0_DOMAIN").rstrip("/"):
        found["auth0"] = _auth0(environment, domain)
    for name in _names(environment):
        found[name] = _openid(environment, name, development=development)
    if environment.text("GITHUB_CLIENT_ID") or environment.text("GITHUB_CLIENT_SECRET"):
        found[GITHUB] = _github(environment, development=development)
    return found


def api_token_provider(environment: Environment, providers: Mapping[str, Configuration]) -> str:
    """Where the API's tokens come from: a provider's name, or `cair`. One source, never a fallback (T22)."""
    can = [name for name, entry in providers.items() if entry["audience"] and entry["kind"] == "openid"]
    named = environment.text("API_TOKEN_PROVIDER")
    if not named:
        return can[0] if can else CAIR
    if named != CAIR and named not in can:
        hint = f"Name one that has an audience ({', '.join(can) or 'there is none'}), or {CAIR}."
        environment.wrong("API_TOKEN_PROVIDER", f"is {named!r}, which gives no tokens for the API", hint)
        return CAIR
    return named


# -- one kind each -----------------------------------------------------------------------------------------------------


def _auth0(environment: Environment, domain: str) -> Configuration:
    """A host name, https implied; in development an http origin on loopback may stand in for Auth0."""
    origin = domain if "://" in domain else f"https://{domain}"
    return {
        "kind": "openid",
        "variables": "AUTH0_",
        "label": environment.text("AUTH0_LABEL", "Auth0"),
        "discovery": origin + _DISCOVERY,
        "client_id": environment.text("AUTH0_CLIENT_ID"),
        "client_secret": environment.text("AUTH0_CLIENT_SECRET"),
        "audience": environment.text("AUTH0_AUDIENCE", "urn:todos-api"),
        "audience_parameter": "audience",
        "scope": environment.text(
            "AUTH0_SCOPE", "openid email profile offline_access read:todos write:todos read:billing"
        ),
    }


def _names(environment: Environment) -> list[str]:
    """The names in `PROVIDERS` that can stand in a URL and in a variable, each once."""
    words = environment.words("PROVIDERS")
    wrong = [word for word in words if not _NAME.fullmatch(word) or word in _RESERVED]
    if wrong:
        hint = f"Use small letters, digits and _, a letter first, and none of {', '.join(sorted(_RESERVED))}."
        environment.wrong("PROVIDERS", f"names {', '.join(wrong)}", hint)
    found = [word for word in dict.fromkeys(words) if word not in wrong]
    if forgotten := _configured_names(environment) - {*found, *wrong}:
        hint = "Add it there, or take its variables out."
        environment.wrong("PROVIDERS", f"does not name {', '.join(sorted(forgotten))}, which has a client id", hint)
    return found


def _configured_names(environment: Environment) -> set[str]:
    """Whoever has a client id was meant to be signed in at, whether `PROVIDERS` names them or not."""
    given = (*environment.process, *environment.dotenv, *environment.dev_vars)
    return {match[1].lower() for name in given if (match := _CLIENT_ID.fullmatch(name))}


def _openid(environment: Environment, name: str, *, development: bool) -> Configuration:
    """One OpenID issuer, by its preset."""
    prefix = f"PROVIDER_{name.upper()}_"
    preset = _preset(environment, prefix)
    issuer = _issuer(environment, prefix, preset, development=development)
    return {
        "kind": "openid",
        "variables": prefix,
        "label": environment.text(f"{prefix}LABEL", preset.label),
        "discovery": issuer.rstrip("/") + _DISCOVERY,
        "client_id": _needed(environment, f"{prefix}CLIENT_ID", "PROVIDERS names it"),
        "client_secret": _needed(environment, f"{prefix}CLIENT_SECRET", "PROVIDERS names it"),
        "audience": environment.text(f"{prefix}AUDIENCE"),
        "audience_parameter": preset.audience_parameter,
        "scope": environment.text(f"{prefix}SCOPE", preset.scope),
        "parameters": urlencode(preset.parameters),
    }


def _preset(environment: Environment, prefix: str) -> Preset:
    named = environment.text(f"{prefix}PRESET", "openid").lower()
    if named not in PRESETS:
        environment.wrong(f"{prefix}PRESET", f"is {named!r}", f"Set it to one of {', '.join(PRESETS)}.")
    return PRESETS.get(named, PRESETS["openid"])


def _issuer(environment: Environment, prefix: str, preset: Preset, *, development: bool) -> str:
    """The issuer, of its product's shape. In development one on this machine may stand in for any product."""
    issuer = environment.text(f"{prefix}ISSUER", preset.default_issuer)
    hint = f"Set it to an address such as {preset.example}"
    if not issuer:
        environment.wrong(f"{prefix}ISSUER", "is missing, while PROVIDERS names it", hint)
    elif not _stands_in(issuer, development) and not (_is_https(issuer) and preset.fits(issuer)):
        environment.wrong(f"{prefix}ISSUER", f"is no issuer of {preset.label}", hint)
    return issuer


def _stands_in(address: str, development: bool) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return development and is_base_url(parts) and is_loopback(parts.hostname)


def _is_https(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return is_base_url(parts) and parts.scheme == "https"


def _github(environment: Environment, *, development: bool) -> Configuration:
    """OAuth without OpenID Connect. Another address than github.com is for tests, on this machine only."""
    base = environment.text("GITHUB_BASE_URL").rstrip("/")
    if base and not _stands_in(base, development):
        environment.wrong("GITHUB_BASE_URL", "is set", "Take it out: it is for tests in development, on loopback.")
        base = ""
    return {
        "kind": GITHUB,
        "variables": "GITHUB_",
        "label": "GitHub",
        "origin": base or "https://github.com",
        "api": base or "https://api.github.com",
        "client_id": _needed(environment, "GITHUB_CLIENT_ID", "GITHUB_CLIENT_SECRET is set"),
        "client_secret": _needed(environment, "GITHUB_CLIENT_SECRET", "GITHUB_CLIENT_ID is set"),
        "audience": "https://api.github.com",
        "audience_parameter": "",
        # One scope more only where it is needed: it shows in what people are asked.
        "scope": "read:user user:email" + (" read:org" if environment.words("ALLOWED_ORGANISATIONS") else ""),
    }


def _needed(environment: Environment, variable: str, why: str) -> str:
    value = environment.text(variable)
    if not value:
        environment.wrong(variable, f"is missing, while {why}", "Copy it from the application's page at the provider.")
    return value
