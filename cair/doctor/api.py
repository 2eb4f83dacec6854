"""The APIs behind the tools: what they answer without a token, and to one that CAIR can make by itself."""

import re
import time
import uuid
from collections.abc import Iterator

from django.conf import settings

from cair.doctor import provider
from cair.doctor.findings import Finding, NotLookedAt, absent, failure, good, quoted, warning
from cair.doctor.network import Answer, NoAnswer
from cair.doctor.visit import Visit
from oauth_relay import keys, upstream_credentials, vault
from oauth_relay.models import SigningKey, UpstreamCredential

THROW_AWAY_LIFETIME = 30
_PARAMETER = re.compile(r'([a-z_]+)="([^"]*)"')


def without_token(visit: Visit, name: str) -> Iterator[Finding]:
    """Whoever brings no token is sent away with 401 and told how to come back (RFC 6750 §3)."""
    line = f"{name} API without a token"
    try:
        answer = _ask(visit, name)
    except NoAnswer as error:
        yield _unreachable(line, name, error)
        return
    where = f"{settings.UPSTREAM_APIS[name]['base_url']}{visit.api_path}"
    challenge = answer.headers.get("WWW-Authenticate", "")
    if answer.status == 401 and challenge:
        yield good(line, f"{where} answers 401 with “{quoted(challenge)}”")
    elif answer.status == 401:
        repair = "RFC 6750 §3 wants one; CAIR does without, other callers of the API may not."
        yield warning(line, f"{where} answers 401 without WWW-Authenticate", repair)
    else:
        yield _no_refusal(line, where, answer)


def _ask(visit: Visit, name: str, authorization: str = "") -> Answer:
    """GET the path, as a tool's call would go: to the same address and Host, past every proxy of the environment."""
    api = settings.UPSTREAM_APIS[name]
    headers = {"Accept": "application/json"}
    if authorization:
        headers["Authorization"] = authorization
    if host := api.get("host"):
        headers["Host"] = host
    return visit.network.send("GET", f"{api['base_url']}{visit.api_path}", headers=headers, as_tool=True)


def _unreachable(line: str, name: str, error: NoAnswer) -> Finding:
    base = settings.UPSTREAM_APIS[name]["base_url"]
    if base == settings.OWN_ADDRESS:
        return absent(line, f"{base} is this server itself, and {error}", "Start it: make run.")
    return failure(
        line, f"{base}: {error}", "Check API_BASE_URL, and that the API is running and this machine may call it."
    )


def _no_refusal(line: str, where: str, answer: Answer) -> Finding:
    match answer.status:
        case 404:
            repair = "Name a path that wants a token and changes nothing: manage.py doctor --api-path /…"
            return warning(line, f"{where} does not exist there", repair)
        case status if 200 <= status < 300:
            repair = "Let the API check the bearer token; or name a path that wants one: manage.py doctor --api-path /…"
            return failure(line, f"{where} answers anybody (HTTP {status})", repair)
        case status if 300 <= status < 400:
            repair = "Set API_BASE_URL to the address that answers by itself: a token is never sent on by a redirect."
            return failure(line, f"{where} redirects (HTTP {status})", repair)
    return failure(line, f"{where} answers HTTP {answer.status}, not 401", "See the API's own log.")


# -- with a token ------------------------------------------------------------------------------------------------------


def with_token(visit: Visit, name: str) -> Iterator[Finding]:
    """A token of nobody in particular, where CAIR issues them; what the API said to people's, where a provider does."""
    visit.need_tables()
    line, source = f"{name} API with a token", settings.UPSTREAM_APIS[name]["token_source"]
    if source != upstream_credentials.CAIR:
        yield _rejected_lately(line, name, source)
        return
    if not SigningKey.objects.filter(purpose=keys.API_TOKEN, state=SigningKey.State.CURRENT).exists():
        raise NotLookedAt("there is no signing key yet", "Run: python manage.py prepare")
    try:
        token = _throw_away_token(name)
        answer = _ask(visit, name, f"Bearer {token}")
    except vault.VaultError:
        raise NotLookedAt("the signing key cannot be opened", "See the line “master keys”.") from None
    except NoAnswer:
        raise NotLookedAt("the API does not answer", "Mend the line above first.") from None
    yield _reception(line, name, answer, token)


def _throw_away_token(name: str) -> str:
    """What door 2 would issue (RFC 9068 §2.2), for a person who does not exist, with no scope, and for half a minute."""
    now = int(time.time())
    claims = {
        "iss": settings.PUBLIC_URL,
        "aud": settings.UPSTREAM_APIS[name]["audience"],
        "sub": str(uuid.uuid4()),
        "client_id": "cair-doctor",
        "scope": "",
        "iat": now,
        "exp": now + THROW_AWAY_LIFETIME,
        "jti": str(uuid.uuid4()),
    }
    return keys.sign_api_token(claims)


def _reception(line: str, name: str, answer: Answer, token: str) -> Finding:
    """What the API thinks of CAIR's own token."""
    audience = settings.UPSTREAM_APIS[name]["audience"]
    if 200 <= answer.status < 300 or answer.status == 403:
        return good(line, f"it accepts a token of CAIR's for {audience}")
    if answer.status == 401:
        found = f"it refuses a token of CAIR's for {audience}{_reason(answer, token)}"
        repair = (
            f"The API must expect the audience {audience} ({_audience_variable(name)}), trust the issuer "
            f"{settings.PUBLIC_URL}, and read {settings.PUBLIC_URL}/.well-known/jwks.json."
        )
        return failure(line, found, repair)
    if answer.status == 404:
        return warning(line, "there is no such path", "Name another: manage.py doctor --api-path /…")
    found = f"it answers HTTP {answer.status}{_reason(answer, token)}"
    return failure(line, found, "See the API's own log; it may not reach the keys of CAIR, or its database.")


def _audience_variable(name: str) -> str:
    """What says for which audience the tokens for this API are: whoever issues them has a variable for it."""
    source = settings.UPSTREAM_APIS[name]["token_source"]
    return "AUTH0_AUDIENCE" if source == upstream_credentials.CAIR else provider.variable(source, "AUDIENCE")


def _reason(answer: Answer, token: str) -> str:
    """The API's own description, unless it repeats the token."""
    told = dict(_PARAMETER.findall(answer.headers.get("WWW-Authenticate", "")))
    said = told.get("error_description") or str(answer.json_object().get("error_description", ""))
    return f": {quoted(said)}" if said and token not in said else ""


def _rejected_lately(line: str, name: str, source: str) -> Finding:
    """Only a person's sign-in brings a provider's token. Door 2 notes where an API refused even a fresh one (T10)."""
    audience = settings.UPSTREAM_APIS[name]["audience"]
    refused = UpstreamCredential.objects.filter(
        provider=source, audience=audience, failure=f"rejected:{name}"[:64]
    ).count()
    if refused:
        found = f"it has refused tokens of {source} for the audience {audience} ({refused} people)"
        repair = (
            f"The API must expect the audience {audience} ({_audience_variable(name)}) and trust the issuer {source}: "
            "compare both settings."
        )
        return warning(line, found, repair)
    return good(line, f"not tried: only a person's sign-in at {source} brings one; no refusal is on record")


CHECKS = (("without a token", without_token), ("with a token", with_token))
