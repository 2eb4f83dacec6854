"""Everything that must be right before the first request, each with an id, and a hint that names the variable."""

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from cair.env import GENERATED, is_base_url
from oauth_relay.loopback import is_loopback

SHORTEST_TOKEN = 32
LONGEST_GROUP = 150
"""What Django's table of groups holds."""

_GITHUB_LOGIN = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*-?")


def _error(variable: str, message: str, hint: str, number: int) -> Error:
    return Error(
        f"{variable} {message}.", hint=f"{hint} See docs/configuration.md, {variable}.", id=f"cair.E{number:03}"
    )


@register(Tags.security)
def check_environment(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """Variables that could not be read (cair.E001)."""
    return [_error(p.variable, p.message, p.hint, 1) for p in settings.ENVIRONMENT.problems]


@register(Tags.security)
def check_provider(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """An identity provider is configured wholly, or not at all (cair.E002, cair.E003)."""
    env = settings.ENVIRONMENT
    names = ("AUTH0_DOMAIN", "AUTH0_CLIENT_ID", "AUTH0_CLIENT_SECRET")
    given = [name for name in names if env.text(name)]
    found: list[CheckMessage] = []
    if given:
        found += [
            _error(name, f"is missing, while {given[0]} is set", "Copy it from the application's settings at Auth0.", 2)
            for name in names
            if name not in given
        ]
    domain = settings.AUTH0_DOMAIN
    if domain and not _is_provider_address(domain if "://" in domain else f"https://{domain}"):
        hint = "Set it to the tenant's host name, such as example.eu.auth0.com."
        found.append(_error("AUTH0_DOMAIN", "is not a host name", hint, 3))
    return found


@register(Tags.security)
def check_admission(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """An allow-list or a table of groups that cannot do what it says (cair.E004 … W008)."""
    lists, providers = settings.ADMISSION, settings.UPSTREAM_PROVIDERS
    found: list[CheckMessage] = []
    if lists["usernames"] and "github" not in providers:
        hint = "Set GITHUB_CLIENT_ID and GITHUB_CLIENT_SECRET, or list people by ALLOWED_EMAILS."
        found.append(_error("ALLOWED_USERNAMES", "names logins of GitHub, where nobody signs in", hint, 4))
    if any(lists.values()) and settings.OWN_ACCOUNTS and providers:
        hint = "Own accounts are an operator's own list. Set OWN_ACCOUNTS=false to let in only whom the lists name."
        found.append(Warning("OWN_ACCOUNTS is on: the ALLOWED_ lists do not concern it.", hint=hint, id="cair.W005"))
    if at_github := _could_be_anybodys(lists["organisations"]) if {"github"} < set(providers) else []:
        found.append(
            Warning(
                f"ALLOWED_ORGANISATIONS: {', '.join(at_github)} may be an organisation at GitHub too.",
                hint="Anybody may found one of that name there, if none exists. Name GitHub's by their numbers.",
                id="cair.W008",
            )
        )
    if any(len(group) > LONGEST_GROUP for _, group in settings.GROUPS_MAP):
        hint = "Give it a shorter name."
        found.append(_error("GROUPS_MAP", f"names a group with more than {LONGEST_GROUP} letters", hint, 7))
    for lacking, given in (("GROUPS_CLAIM", "GROUPS_MAP"), ("GROUPS_MAP", "GROUPS_CLAIM")):
        if getattr(settings, given) and not getattr(settings, lacking):
            found.append(_error(lacking, f"is missing, while {given} is set", "Set both, or neither.", 6))
    return found


def _could_be_anybodys(organisations: Iterable[str]) -> list[str]:
    """The entries that GitHub would take for a login: letters, digits and single hyphens, and not digits alone."""
    return sorted(word for word in organisations if not word.isdigit() and _GITHUB_LOGIN.fullmatch(word))


def _is_provider_address(address: str) -> bool:
    """https and a host, nothing else; in development an http origin on this machine may stand in."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    may_be_http = settings.DEVELOPMENT and is_loopback(parts.hostname)
    return is_base_url(parts) and not parts.path and (parts.scheme == "https" or may_be_http)


@register(Tags.security)
def check_development(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """Development stays on this machine (T2; cair.E010)."""
    if not settings.DEVELOPMENT:
        return []
    if not settings.ON_LOOPBACK:
        hint = "Set CAIR_ENV=production for an address that others can reach, or take PUBLIC_URL out."
        return [_error("PUBLIC_URL", f"is {settings.PUBLIC_URL} while CAIR_ENV is development", hint, 10)]
    if settings.HTTPS:
        hint = "A development server speaks http only: take PUBLIC_URL out, or set the http:// address."
        return [_error("PUBLIC_URL", f"is {settings.PUBLIC_URL}, where nobody would answer", hint, 11)]
    return []


@register(Tags.security)
def check_registration(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """Initial access tokens, where registration asks for one (cair.E012, cair.E013)."""
    if settings.REGISTRATION == "TOKEN" and not settings.REGISTRATION_TOKENS:
        hint = "Make one with: openssl rand -base64 32. To let nobody register, set REGISTRATION=closed."
        return [_error("REGISTRATION_TOKENS", "is missing, while REGISTRATION is token", hint, 12)]
    if any(len(token) < SHORTEST_TOKEN for token in settings.REGISTRATION_TOKENS):
        hint = f"Use {SHORTEST_TOKEN} random characters or more: openssl rand -base64 32"
        return [_error("REGISTRATION_TOKENS", "holds one that could be guessed", hint, 13)]
    return []


@register(Tags.security)
def check_names(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """Names in .env and .dev.vars that nobody reads, where they look like a slip (cair.W001)."""
    return [
        Warning(f"{name} is not a name CAIR knows.", hint=f"Did you mean {meant}?", id="cair.W001")
        for name, meant in settings.ENVIRONMENT.likely_slips()
    ]


@register(Tags.security)
def check_production(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """Nothing weak starts in production (T2; cair.E020 …)."""
    env = settings.ENVIRONMENT
    if settings.DEVELOPMENT or any(problem.variable == "CAIR_ENV" for problem in env.problems):
        return []  # a slip in CAIR_ENV is named alone: what follows from it would only hide it
    found: list[CheckMessage] = []
    if not env.text("PUBLIC_URL"):
        hint = (
            "Set it to the address people and clients use, such as https://cair.example.com. "
            "On your own machine, add the line CAIR_ENV=development to .env."
        )
        found.append(_error("PUBLIC_URL", "is missing, and CAIR_ENV is production", hint, 20))
    elif not settings.HTTPS:
        hint = "Serve it through a proxy with a certificate, and set the https:// address."
        found.append(_error("PUBLIC_URL", "is plain http", hint, 21))
    if settings.DEBUG:
        found.append(_error("CAIR_DEBUG", "is on", "Take it out: error pages would show secrets.", 22))
    secret = settings.SECRET_KEY
    if len(secret) < 50 or GENERATED in secret or len(set(secret)) < 10:
        hint = "Set 50 random characters or more: openssl rand -base64 48"
        found.append(_error("COOKIE_ENCRYPTION_KEY", "is missing, short, or one made for development", hint, 23))
    if not settings.MASTER_KEYS:
        found.append(_error("CAIR_MASTER_KEYS", "is missing", "Make one with: openssl rand -base64 32", 24))
    if settings.REGISTRATION == "OPEN":
        for name in ("REGISTRATION_LIMIT", "UNUSED_CLIENTS_PER_NETWORK"):
            if not getattr(settings, name):
                hint = "Set a ceiling, or REGISTRATION=token or closed: anybody may fill the table otherwise."
                found.append(_error(name, "is 0 while everybody may register clients", hint, 26))
    api = urlsplit(settings.API_BASE_URL)
    if api.scheme != "https" and not is_loopback(api.hostname):
        hint = "People's tokens travel there: use https, or a loopback address."
        found.append(_error("API_BASE_URL", "is plain http off this machine", hint, 25))
    return found


@register(Tags.database)
def check_demo_user(app_configs: Any, databases: Any = None, **kwargs: Any) -> Sequence[CheckMessage]:
    """The demo user exists in a development checkout only (T1; cair.E030)."""
    from django.contrib.auth import get_user_model
    from django.db import DatabaseError

    if not databases or settings.DEMO_USER:
        return []
    try:
        there = get_user_model().objects.filter(is_demo=True, is_active=True).exists()
    except DatabaseError:  # before the first migration there is nobody
        return []
    if there and not settings.DEVELOPMENT:
        hint = "Remove it with: python manage.py prepare"
        return [Error("The demo user exists in production.", hint=hint, id="cair.E030")]
    return []
