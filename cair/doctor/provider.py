"""An identity provider as far as it can be seen without a person: its documents, its opinion of our client and address."""

import html
import re
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import jwt
from django.conf import settings
from django.db.models import F

from cair.doctor.findings import Finding, NotLookedAt, failure, good, quoted, warning
from cair.doctor.mistakes import NOT_REGULAR_WEB, mistake_in
from cair.doctor.network import Answer, NoAnswer
from cair.doctor.visit import Visit
from mcp_gateway.tools import registry
from oauth_relay import upstream_credentials, vault
from oauth_relay.identity_providers import (
    SIGNING_ALGORITHMS,
    Provider,
    ProviderRefused,
    ProviderUnavailable,
    provider,
)
from oauth_relay.models import UpstreamCredential
from oauth_relay.upstream_login import redirect_uri

MOST_REDIRECTS = 5
# OpenID Connect Core 1.0 §3.1.2.6: what `prompt=none` is answered with where only the person is missing.
_ONLY_THE_PERSON_IS_MISSING = frozenset(
    {"login_required", "interaction_required", "consent_required", "account_selection_required"}
)


def variable(name: str, what: str) -> str:
    """The environment variable that says `what` of the provider `name`."""
    prefix = settings.UPSTREAM_PROVIDERS[name].get("variables", f"{name.upper()}_")
    return prefix + ("ISSUER" if what == "DOMAIN" and prefix.startswith("PROVIDER_") else what)


def sign_in(visit: Visit) -> Iterator[Finding]:
    """Where people sign in."""
    names = ", ".join(settings.UPSTREAM_PROVIDERS)
    if names:
        yield good("sign-in", f"at {names}{'; own accounts as well' if settings.OWN_ACCOUNTS else ''}")
    else:
        yield good("sign-in", f"with own accounts{'; the demo user is on' if settings.DEMO_USER else ''}")


# -- what it publishes -------------------------------------------------------------------------------------------------


def _document(visit: Visit, name: str) -> dict[str, Any]:
    """The discovery document. Raises NotLookedAt: its own check says what is wrong."""
    try:
        document = visit.network.get(settings.UPSTREAM_PROVIDERS[name]["discovery"]).json_object()
        provider(name).metadata()
    except (NoAnswer, ProviderUnavailable):
        document = {}
    if not document:
        raise NotLookedAt(f"the discovery document of {name} cannot be used", "Mend its discovery first.")
    return document


def discovery(visit: Visit, name: str) -> Iterator[Finding]:
    """OpenID Connect Discovery 1.0 §4: there, whole, in its own name, and with an algorithm that is accepted here."""
    line, address = f"{name} discovery", settings.UPSTREAM_PROVIDERS[name]["discovery"]
    repair = f"Check {variable(name, 'DOMAIN')} (Auth0: Applications → your application → Domain), and the way there."
    try:
        answer = visit.network.get(address)
    except NoAnswer as error:
        yield failure(line, f"{address}: {error}", repair)
        return
    if answer.status != 200 or not answer.json_object():
        yield failure(line, f"{address} is no discovery document (HTTP {answer.status})", repair)
        return
    try:
        issuer = str(provider(name).metadata()["issuer"])
    except ProviderUnavailable as error:
        yield failure(line, f"CAIR does not accept the document: {quoted(str(error))}", repair)
        return
    yield _algorithms(line, issuer, answer.json_object())


def _algorithms(line: str, issuer: str, document: dict[str, Any]) -> Finding:
    offered = document.get("id_token_signing_alg_values_supported")
    listed = [str(algorithm) for algorithm in offered] if isinstance(offered, list) else []
    common = [algorithm for algorithm in listed if algorithm in SIGNING_ALGORITHMS]
    if listed and not common:
        accepted = ", ".join(SIGNING_ALGORITHMS)
        repair = f"Let it sign ID tokens with one of {accepted} (Auth0: Advanced Settings → OAuth → RS256)."
        return failure(line, f"{issuer} signs ID tokens with {quoted(', '.join(listed))} only", repair)
    return good(line, f"issuer {quoted(issuer)}, signs with {', '.join(common) or 'what it does not say'}")


def keys(visit: Visit, name: str) -> Iterator[Finding]:
    """The keys that ID tokens are checked with: readable, and of a kind that is accepted here (RFC 7517)."""
    line, address = f"{name} keys", str(_document(visit, name)["jwks_uri"])
    repair = "Without them nobody can sign in. See what answers there, and the way there."
    try:
        answer = visit.network.get(address)
    except NoAnswer as error:
        yield failure(line, f"{address}: {error}", repair)
        return
    published = answer.json_object().get("keys")
    if answer.status != 200 or not isinstance(published, list):
        yield failure(line, f"{address} is no key document (HTTP {answer.status})", repair)
        return
    usable = [jwk for jwk in published if _is_usable(jwk)]
    if usable:
        yield good(line, f"{len(usable)} of {len(published)} published keys can check an ID token here")
    else:
        repair = f"Let it sign with one of {', '.join(SIGNING_ALGORITHMS)}."
        yield failure(line, f"none of its {len(published)} keys is of a kind accepted here", repair)


def _is_usable(jwk: Any) -> bool:
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
        return False
    fitting = [algorithm for algorithm, kind in SIGNING_ALGORITHMS.items() if jwk.get("kty") == kind]
    if not fitting or jwk.get("alg", fitting[0]) not in fitting:
        return False
    try:
        jwt.PyJWK(jwk, algorithm=jwk.get("alg", fitting[0]))
    except (jwt.PyJWKError, jwt.InvalidKeyError):
        return False
    return True


# -- what it says to our client ----------------------------------------------------------------------------------------


def client(visit: Visit, name: str) -> Iterator[Finding]:
    """A code that nobody issued, at the token endpoint: refused as a code only where id and secret are right."""
    _document(visit, name)
    line = f"{name} client"
    try:
        error = _error_for_a_nonsense_code(provider(name), name)
    except ProviderUnavailable as unavailable:
        repair = "Its token endpoint is what every sign-in needs. Ask the provider, or try again."
        yield failure(line, quoted(str(unavailable)), repair)
        return
    if error == "invalid_grant":
        yield _is_secret_looked_at(name, line)
    else:
        yield failure(line, *_client_mistake(name, error))


def _error_for_a_nonsense_code(upstream: Provider, name: str) -> str:
    """The error code (RFC 6749 §5.2) that the provider answers; empty if it gives tokens."""
    try:
        upstream.exchange_code(
            f"cair-doctor-{secrets.token_hex(8)}",
            redirect_uri=redirect_uri(name),
            code_verifier=secrets.token_urlsafe(48),
        )
    except ProviderRefused as refusal:
        return refusal.error
    return ""


def _is_secret_looked_at(name: str, line: str) -> Finding:
    """A second time with an invented secret: who does not mind takes this client for a public one."""
    invented = {**settings.UPSTREAM_PROVIDERS[name], "client_secret": secrets.token_urlsafe(32)}
    try:
        error = _error_for_a_nonsense_code(Provider(name, invented), name)
    except ProviderUnavailable:
        error = ""
    if error == "invalid_grant":
        found = f"the provider does not look at the secret: {NOT_REGULAR_WEB}"
        return warning(
            line, found, "Make it one, with the authentication method Post or Basic, and copy id and secret."
        )
    return good(line, "client id and secret are accepted")


def _client_mistake(name: str, error: str) -> tuple[str, str]:
    """What an error code of the token endpoint means, and the repair. Its description may repeat what was sent."""
    id_variable, secret_variable = variable(name, "CLIENT_ID"), variable(name, "CLIENT_SECRET")
    again = f"Copy {id_variable} and {secret_variable} again from the application's settings"
    match error:
        case "invalid_client" | "access_denied":
            # Auth0 says access_denied to a wrong secret, and to a native application that has none.
            found = f"{error}: the client id or the secret is wrong, or the {NOT_REGULAR_WEB}"
            return found, f"{again}; at Auth0 the application must be a “Regular Web Application”."
        case "unauthorized_client":
            found = f"{error}: the {NOT_REGULAR_WEB}, or may not use the authorization code grant"
            return found, f"Make it one (Auth0: Advanced Settings → Grant Types → Authorization Code). {again}."
        case "":
            return "the provider gave tokens for a code that nobody issued", "Do not use this provider."
    return f"the token endpoint answers {quoted(error)} to a code that nobody issued", f"{again}; ask the provider."


def authorization(visit: Visit, name: str) -> Iterator[Finding]:
    """An authorization request with `prompt=none`: the provider says what it thinks of it before it needs a person."""
    document, uri = _document(visit, name), redirect_uri(name)
    endpoint = str(document["authorization_endpoint"])
    url = f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(_request(name))}"
    line = f"{name} redirect URI"
    try:
        answer, location = _followed(visit, url, uri)
    except NoAnswer as error:
        yield failure(line, f"{urlsplit(url).netloc}: {error}", "Nobody can sign in. See the way there.")
        return
    if not _leads_to(location, uri):
        yield _not_sent_back(name, line, answer, location)
        return
    yield good(line, f"{uri} is registered there")
    yield _opinion(name, dict(parse_qsl(urlsplit(location).query)))


def _request(name: str) -> dict[str, str]:
    """What `upstream_login` would send, with secrets that nobody keeps, and asking nobody anything."""
    return provider(name).authentication_request(
        redirect_uri=redirect_uri(name),
        state=secrets.token_urlsafe(16),
        nonce=secrets.token_urlsafe(16),
        code_challenge=secrets.token_urlsafe(32),
        prompt=("none",),
    )


def _followed(visit: Visit, url: str, uri: str) -> tuple[Answer, str]:
    """The last answer on the way, and where it leads: to `uri`, or, as a page, to where it was found."""
    host = urlsplit(url).netloc
    answer = visit.network.send("GET", url)
    for _ in range(MOST_REDIRECTS):
        location = urljoin(url, answer.headers.get("Location", ""))
        if not 300 <= answer.status < 400 or _leads_to(location, uri) or urlsplit(location).netloc != host:
            break
        url = location
        answer = visit.network.send("GET", url)
    return answer, urljoin(url, answer.headers.get("Location", "")) if 300 <= answer.status < 400 else url


def _leads_to(location: str, uri: str) -> bool:
    return location.partition("?")[0] == uri


def _not_sent_back(name: str, line: str, answer: Answer, location: str) -> Finding:
    """The provider keeps the person: it trusts client or address too little to send anybody there."""
    said = _words_of(answer, location)
    if mistake := mistake_in(said):
        return failure(line, f"{mistake.name} (HTTP {answer.status})", _filled_in(mistake.repair, name))
    if answer.status >= 400:
        repair = f"Is {redirect_uri(name)} registered there? {quoted(said)}"
        return failure(line, f"the provider refuses the authorization request (HTTP {answer.status})", repair)
    found = "the provider shows a page instead of an answer: this cannot be seen without a person"
    return warning(line, found, f"Sign in once with a browser; {redirect_uri(name)} must be registered there.")


def _words_of(answer: Answer, location: str) -> str:
    """What a person would read: the error in the address, then the page without its markup."""
    query = dict(parse_qsl(urlsplit(location).query))
    told = " ".join(query.get(key, "") for key in ("error", "error_description"))
    page = re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>", " ", answer.text())
    return f"{told} {html.unescape(page)}".strip()


def _opinion(name: str, parameters: dict[str, str]) -> Finding:
    """What the error that came back says of audience, scope and grant."""
    line, audience = f"{name} audience", provider(name).audience
    error, description = parameters.get("error", ""), parameters.get("error_description", "")
    if error in _ONLY_THE_PERSON_IS_MISSING or "code" in parameters:
        return good(line, f"a request for {audience or 'sign-in alone'} is accepted ({quoted(error) or 'code'})")
    if mistake := mistake_in(f"{error} {description}"):
        found = f"{mistake.name}: {quoted(f'{error} {description}')}"
        return failure(line, found, _filled_in(mistake.repair, name))
    repair = "Look for this error in the provider's log and documentation (Auth0: Monitoring → Logs)."
    return failure(line, f"the provider refuses the request: {quoted(f'{error} {description}')}", repair)


def _filled_in(repair: str, name: str) -> str:
    return repair.format(
        redirect_uri=redirect_uri(name),
        audience=provider(name).audience,
        id_variable=variable(name, "CLIENT_ID"),
        domain_variable=variable(name, "DOMAIN"),
        audience_variable=variable(name, "AUDIENCE"),
        scope_variable=variable(name, "SCOPE"),
    )


# -- what is asked, and what came --------------------------------------------------------------------------------------


def scopes(visit: Visit, name: str) -> Iterator[Finding]:
    """Every upstream scope that a tool needs is asked for at sign-in."""
    line, asked = f"{name} scope", set(provider(name).scope.split())
    apis = {api for api, entry in settings.UPSTREAM_APIS.items() if entry["token_source"] == name}
    lacking = {
        tool.upstream_scope: tool.name
        for tool in registry.tools()
        if tool.api in apis and tool.upstream_scope and tool.upstream_scope not in asked
    }
    if lacking:
        scope, tool = next(iter(lacking.items()))
        found = f"{tool} needs {scope}, which is not asked for"
        yield warning(line, found, f"Add {' '.join(sorted(lacking))} to {variable(name, 'SCOPE')}.")
    else:
        yield good(line, "everything that the tools need is asked for")


def offline_access(visit: Visit, name: str) -> Iterator[Finding]:
    """Without a refresh token people sign in again as often as the provider's access tokens end."""
    line = f"{name} offline_access"
    if not _asks_for_refresh_token(name):
        found = "not asked for: people must sign in again when the provider's token ends"
        yield warning(line, found, f"Add {settings.OFFLINE_ACCESS} to {variable(name, 'SCOPE')}.")
        return
    visit.need_tables()
    newest = _newest_credential(name)
    if newest is None:
        yield good(line, "asked for; nobody has signed in yet, so it is not known whether a refresh token comes")
        return
    try:
        facts = upstream_credentials.facts_of(newest)
    except vault.VaultError:
        yield failure(line, "the newest stored credential cannot be opened", "See the line “master keys”.")
        return
    if not facts.has_refresh_token:
        found = "asked for, and the newest sign-in brought no refresh token: “Allow Offline Access” is off"
        repair = (
            f"Auth0: Applications → APIs → {newest.audience} → Settings → Allow Offline Access, and the application's "
            "grant type Refresh Token. Then sign in again."
        )
        yield failure(line, found, repair)
        return
    yield good(line, "asked for, and the newest sign-in brought a refresh token")


def _asks_for_refresh_token(name: str) -> bool:
    """By the scope; Google has a parameter for it, and no such scope."""
    upstream = provider(name)
    return settings.OFFLINE_ACCESS in upstream.scope.split() or upstream.parameters.get("access_type") == "offline"


def recheck(visit: Visit, name: str) -> Iterator[Finding]:
    """Whom the provider has disabled, a refresh finds out within UPSTREAM_RECHECK; without one nobody does (T37)."""
    line, every = f"{name} recheck", settings.UPSTREAM_RECHECK
    if not every:
        yield good(line, "off (UPSTREAM_RECHECK is 0): whoever is disabled there goes on until their token there ends")
        return
    why = "" if _asks_for_refresh_token(name) else "no refresh token is asked for"
    if not why:
        visit.need_tables()
        why = _why_no_refresh_token(name)
    if why:
        found = f"{name} cannot be asked whether it still stands by people: {why}"
        repair = (
            "See the line above. Until then UPSTREAM_RECHECK does not hold: register the back-channel logout there, and "
            "switch people off in /admin/."
        )
        yield warning(line, found, repair)
    else:
        yield good(line, f"whoever is disabled there is refused here within {every} s")


def _why_no_refresh_token(name: str) -> str:
    newest = _newest_credential(name)
    if newest is None:
        return ""
    try:
        came = upstream_credentials.facts_of(newest).has_refresh_token
    except vault.VaultError:
        raise NotLookedAt("the newest stored credential cannot be opened", "See the line “master keys”.") from None
    return "" if came else "the newest sign-in brought no refresh token"


def audience_of_tokens(visit: Visit, name: str) -> Iterator[Finding]:
    """The newest access token is for the API that it is kept for. Auth0 gives an opaque one where it knows no audience."""
    line = f"{name} access token"
    if not provider(name).audience:
        yield good(line, "it only says who people are: it issues no tokens for an API")
        return
    visit.need_tables()
    newest = _newest_credential(name)
    if newest is None:
        yield good(line, "nobody has signed in yet")
        return
    try:
        audiences = upstream_credentials.facts_of(newest).unverified_audiences
    except vault.VaultError:
        raise NotLookedAt("the newest stored credential cannot be opened", "See the line “master keys”.") from None
    if audiences is None:
        repair = f"If the API wants a JWT, check {variable(name, 'AUDIENCE')}: it must be the API's identifier there."
        yield warning(line, "the newest one is opaque: only the provider can say what it is for", repair)
    elif newest.audience not in audiences:
        found = f"the newest one is for {quoted(', '.join(audiences)) or 'nobody'}, not for {newest.audience}"
        yield failure(line, found, f"Check {variable(name, 'AUDIENCE')}, and the API's settings at the provider.")
    else:
        yield good(line, f"the newest one is for {newest.audience}")


def _newest_credential(name: str) -> UpstreamCredential | None:
    """The one whose token came last: what is set up now shows there, not in what came before."""
    rows = UpstreamCredential.objects.filter(provider=name).exclude(state=UpstreamCredential.State.SIGN_IN_NEEDED)
    return rows.order_by(F("expires_at").desc(nulls_last=True), "-created").first()


CHECKS = (
    ("discovery", discovery),
    ("keys", keys),
    ("client", client),
    ("redirect URI", authorization),
    ("scope", scopes),
    ("offline_access", offline_access),
    ("recheck", recheck),
    ("access token", audience_of_tokens),
)
