"""Several providers at once: what the environment makes of them, what each is sent, and GitHub, which is no OpenID provider."""

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from django.test import Client as Browser

from cair import providers
from cair.env import Environment
from oauth_relay import upstream_credentials
from oauth_relay.identity_providers import Provider, ProviderRefused, ProviderUnavailable, provider
from oauth_relay.models import Client, Identity, LoginTransaction, UpstreamCredential
from oauth_relay.providers.presets import PRESETS
from tests import github_stand_in, identity_provider
from tests.cair.doctoring import examine, prepared
from tests.github_stand_in import Account, StandIn, address
from tests.identity_provider import FakedProvider, PersonAtTheProvider
from tests.oauth_relay.test_upstream_login import REDIRECT_URI, answered, ask, come_back, fields
from tests.servers import ROOT

pytestmark = pytest.mark.django_db

OCTOCAT = Account(583231, "octocat", "The Octocat", "shown@example.com", [address("octocat@github.example")])
ENTRA = "https://login.microsoftonline.com/0a1b2c3d-0000-4000-8000-0123456789ab/v2.0"
ISSUERS = {
    "openid": "https://id.example.com/any/path",
    "auth0": "https://example.eu.auth0.com/",
    "google": "https://accounts.google.com",
    "entra": ENTRA,
    "okta": "https://example.okta.com/oauth2/default",
    "authkit": "https://example.authkit.app",
    "stytch": "https://example.customers.stytch.com",
    "keycloak": "https://id.example.com/realms/staff",
    "logto": "https://example.logto.app/oidc",
    "descope": "https://api.descope.com/P2example",
}


def read(development: bool = False, **variables: str) -> tuple[dict[str, dict[str, str]], str, list[str]]:
    """Providers, source of the API's tokens, and the names of the variables that are wrong."""
    environment = Environment(variables, {}, {})
    found = providers.configured_providers(environment, development=development)
    source = providers.api_token_provider(environment, found)
    return found, source, [problem.variable for problem in environment.problems]


def work(**changes: str) -> dict[str, str]:
    return {
        "PROVIDERS": "work",
        "PROVIDER_WORK_ISSUER": "https://id.example.com",
        "PROVIDER_WORK_CLIENT_ID": "cair",
        "PROVIDER_WORK_CLIENT_SECRET": "secret",
        **changes,
    }


AUTH0 = {"AUTH0_DOMAIN": "example.eu.auth0.com", "AUTH0_CLIENT_ID": "a", "AUTH0_CLIENT_SECRET": "b"}
GITHUB = {"GITHUB_CLIENT_ID": "a", "GITHUB_CLIENT_SECRET": "b"}


# -- what the environment makes of them --------------------------------------------------------------------------------


def test_auth0_stays_first_then_the_named_issuers_then_github() -> None:
    found, source, wrong = read(**AUTH0, **GITHUB, **work())
    assert (list(found), source, wrong) == (["auth0", "work", "github"], "auth0", [])
    assert found["work"]["discovery"] == "https://id.example.com/.well-known/openid-configuration"


def test_without_any_variable_there_is_no_provider_and_cair_issues() -> None:
    assert read() == ({}, "cair", [])


@pytest.mark.threat("T22")
@pytest.mark.parametrize(
    ("variables", "source"),
    [
        (work(), "cair"),
        (work(PROVIDER_WORK_AUDIENCE="urn:api"), "work"),
        (GITHUB, "cair"),
        ({**AUTH0, **work(PROVIDER_WORK_AUDIENCE="urn:api"), "API_TOKEN_PROVIDER": "work"}, "work"),
        ({**AUTH0, "API_TOKEN_PROVIDER": "cair"}, "cair"),
    ],
)
def test_the_api_has_one_source_of_tokens(variables: dict[str, str], source: str) -> None:
    assert read(**variables)[1:] == (source, [])


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        (work(PROVIDER_WORK_ISSUER=""), ["PROVIDER_WORK_ISSUER"]),
        (work(PROVIDER_WORK_ISSUER="https://["), ["PROVIDER_WORK_ISSUER"]),
        (work(PROVIDER_WORK_ISSUER="http://id.example.com"), ["PROVIDER_WORK_ISSUER"]),
        (work(PROVIDER_WORK_ISSUER="http://localhost:5000"), ["PROVIDER_WORK_ISSUER"]),
        (work(PROVIDER_WORK_CLIENT_ID="", PROVIDER_WORK_CLIENT_SECRET=""),
         ["PROVIDER_WORK_CLIENT_ID", "PROVIDER_WORK_CLIENT_SECRET"]),
        (work(PROVIDER_WORK_PRESET="gogle"), ["PROVIDER_WORK_PRESET"]),
        ({"PROVIDERS": "Work"}, ["PROVIDERS"]),
        ({"PROVIDERS": "auth0"}, ["PROVIDERS"]),
        ({"PROVIDERS": "../x"}, ["PROVIDERS"]),
        ({"PROVIDER_WORK_CLIENT_ID": "cair"}, ["PROVIDERS"]),
        ({"GITHUB_CLIENT_ID": "a"}, ["GITHUB_CLIENT_SECRET"]),
        ({**GITHUB, "GITHUB_BASE_URL": "https://evil.example.com"}, ["GITHUB_BASE_URL"]),
        ({**GITHUB, "GITHUB_BASE_URL": "http://localhost:1"}, ["GITHUB_BASE_URL"]),
        (work(API_TOKEN_PROVIDER="nobody"), ["API_TOKEN_PROVIDER"]),
        (work(API_TOKEN_PROVIDER="work"), ["API_TOKEN_PROVIDER"]),
        ({**GITHUB, "API_TOKEN_PROVIDER": "github"}, ["API_TOKEN_PROVIDER"]),
    ],
)  # fmt: skip
def test_what_is_wrong_or_missing_is_named_by_its_variable(variables: dict[str, str], named: list[str]) -> None:
    assert read(**variables)[2] == named


def test_in_development_an_issuer_on_this_machine_may_stand_in_for_any_product() -> None:
    stands_in = work(PROVIDER_WORK_PRESET="logto", PROVIDER_WORK_ISSUER="http://localhost:5000")
    assert read(development=True, **stands_in)[2] == []
    assert read(development=False, **stands_in)[2] == ["PROVIDER_WORK_ISSUER"]


@pytest.mark.parametrize("name", list(PRESETS))
def test_each_preset_takes_its_products_issuer(name: str) -> None:
    assert read(**work(PROVIDER_WORK_PRESET=name, PROVIDER_WORK_ISSUER=ISSUERS[name]))[2] == []
    assert PRESETS[name].fits(PRESETS[name].example)


@pytest.mark.parametrize(
    ("preset", "issuer"),
    [
        ("entra", "https://login.microsoftonline.com/common/v2.0"),
        ("entra", "https://login.microsoftonline.com/organizations/v2.0"),
        ("entra", "https://login.microsoftonline.com/example.onmicrosoft.com/v2.0"),
        ("entra", f"{ENTRA}.example.com"),
        ("google", "https://accounts.google.com.example.com"),
        ("keycloak", "https://id.example.com"),
        ("logto", "https://example.logto.app"),
    ],
)
def test_a_preset_refuses_an_issuer_that_is_not_its_products(preset: str, issuer: str) -> None:
    wrong = read(**work(PROVIDER_WORK_PRESET=preset, PROVIDER_WORK_ISSUER=issuer))[2]
    assert wrong == ["PROVIDER_WORK_ISSUER"]


def test_every_variable_of_a_named_provider_has_its_paragraph() -> None:
    environment = Environment({"PROVIDERS": "work"}, {}, {})
    providers.configured_providers(environment, development=False)
    asked = {name for name in environment.asked if name.startswith("PROVIDER_WORK_") and not name.endswith("_FILE")}
    page = (ROOT / "docs/configuration.md").read_text()
    headings = set(re.findall(r"^### `PROVIDER_<NAME>_([A-Z_]+)`", page, re.MULTILINE))
    assert {f"PROVIDER_WORK_{name}" for name in headings} == asked


def test_the_page_of_providers_shows_what_each_preset_sends() -> None:
    page = (ROOT / "docs/providers.md").read_text()
    rows = {cells[1].strip(" `"): cells for line in page.splitlines() if len(cells := line.split("|")) > 5}
    for name, preset in PRESETS.items():
        sent = [f"`{key}={value}`" for key, value in preset.parameters.items()]
        if preset.audience_parameter:
            sent.append(f"`{preset.audience_parameter}`")
        assert [part for part in sent if part not in "".join(rows[name])] == [], name
        assert f"`{preset.scope}`" in "".join(rows[name])


# -- what each is sent -------------------------------------------------------------------------------------------------


def asked_of(preset: str, **changes: Any) -> dict[str, str]:
    variables = work(
        PROVIDER_WORK_PRESET=preset, PROVIDER_WORK_ISSUER=ISSUERS[preset], PROVIDER_WORK_AUDIENCE="urn:api"
    )
    upstream = Provider("work", read(**variables)[0]["work"])
    secrets = {"state": "s", "nonce": "n", "code_challenge": "c", "redirect_uri": "https://cair.example.com/callback"}
    return upstream.authentication_request(**{**secrets, **changes})


@pytest.mark.parametrize(
    ("preset", "sent"),
    [
        ("openid", {"audience": "urn:api"}),
        ("auth0", {"audience": "urn:api"}),
        ("google", {"access_type": "offline", "prompt": "consent"}),
        ("entra", {}),
        ("okta", {}),
        ("keycloak", {}),
        ("stytch", {}),
        ("descope", {}),
        ("authkit", {"resource": "urn:api"}),
        ("logto", {"resource": "urn:api", "prompt": "consent"}),
    ],
)
def test_each_preset_sends_what_its_product_wants_beside_the_standard(preset: str, sent: dict[str, str]) -> None:
    standard = {"response_type", "client_id", "redirect_uri", "scope", "state", "nonce", "code_challenge"}
    asked = asked_of(preset)
    assert {name: value for name, value in asked.items() if name not in standard | {"code_challenge_method"}} == sent
    assert "openid" in asked["scope"].split()
    assert ("offline_access" in asked["scope"].split()) == (preset != "google")


def test_the_clients_prompt_and_the_products_are_both_asked() -> None:
    asked = asked_of("google", prompt=("login",), login_hint="ada@example.com")
    assert (asked["prompt"], asked["max_age"], asked["login_hint"]) == ("login consent", "0", "ada@example.com")
    assert asked_of("google", prompt=("none",))["prompt"] == "none"


@pytest.fixture
def mcp_client() -> Client:
    return Client.objects.create(
        client_id="inspector",
        name="Inspector",
        client_type=Client.CLIENT_PUBLIC,
        authorization_grant_type=Client.GRANT_AUTHORIZATION_CODE,
        redirect_uris=REDIRECT_URI,
    )


# -- several at once, on the wire --------------------------------------------------------------------------------------


@pytest.fixture
def pair(settings: Any) -> Iterator[tuple[FakedProvider, FakedProvider]]:
    """Auth0 with /callback, and `work` with /callback/work, which wants `resource`."""
    with identity_provider.faked_provider() as first, identity_provider.faked_provider() as second:
        identity_provider.configure(settings, first.origin)
        entry = {
            **settings.UPSTREAM_PROVIDERS["auth0"],
            "label": "Work",
            "discovery": f"{second.origin}/.well-known/openid-configuration",
            "audience": "urn:work",
            "audience_parameter": "resource",
        }
        settings.UPSTREAM_PROVIDERS = {**settings.UPSTREAM_PROVIDERS, "work": entry}
        yield first, second


def leave(browser: Browser, name: str, **extra: str) -> str:
    response = browser.post("/login", {**fields(ask(browser, **extra)), "provider": name})
    assert response.status_code == 303, response.content.decode()
    return str(response["Location"])


def test_the_sign_in_page_lists_them_all(client: Browser, mcp_client: Client, pair: Any) -> None:
    page = ask(client).content.decode()
    assert re.findall(r'name="provider" value="(\w+)"', page) == ["auth0", "work"]
    assert 'name="password"' not in page


@pytest.mark.threat("T29")
def test_each_has_its_own_way_back(client: Browser, mcp_client: Client, pair: Any) -> None:
    _, second = pair
    location = leave(client, "work")
    asked = dict(parse_qsl(urlsplit(location).query))
    assert asked["redirect_uri"] == "http://localhost:8788/callback/work"
    response = come_back(client, second.approve(location))
    assert response["Location"].startswith("/authorize?transaction=")
    assert Identity.objects.get().provider == "work"


@pytest.mark.threat("T22")
def test_who_signs_in_where_the_api_has_no_tokens_from_is_told_where_to_go(
    client: Browser, mcp_client: Client, pair: Any
) -> None:
    first, second = pair
    page = client.get(come_back(client, second.approve(leave(client, "work")))["Location"])
    assert "Todos can only be reached through Auth0" in page.content.decode()
    assert 'name="scope"' not in page.content.decode()
    there = client.post("/login", {**fields(page), "provider": "auth0"})["Location"]
    consent = client.get(come_back(client, first.approve(there))["Location"])
    allowed = client.post("/authorize", {**fields(consent), "scope": "read:todos", "action": "allow"})
    assert "code" in answered(allowed)
    assert UpstreamCredential.objects.get().provider == "auth0"


@pytest.mark.threat("T29")
@pytest.mark.parametrize(
    ("name", "elsewhere"),
    [("work", "/callback"), ("auth0", "/callback/work"), ("auth0", "/callback/auth0"), ("work", "/callback/nobody")],
)
def test_an_answer_at_anothers_address_is_refused_and_asks_nobody(
    client: Browser, mcp_client: Client, pair: Any, name: str, elsewhere: str
) -> None:
    first, second = pair
    address = (first if name == "auth0" else second).approve(leave(client, name))
    response = client.get(f"{elsewhere}?{urlsplit(address).query}")
    assert response.status_code == 400
    assert not Identity.objects.exists()
    assert first.calls("/token") + second.calls("/token") == []
    assert LoginTransaction.objects.get().upstream_state_spent_at is None


def test_a_product_that_wants_resource_gets_it_at_the_token_endpoint_too(
    client: Browser, mcp_client: Client, pair: Any
) -> None:
    """RFC 8707 §2.2."""
    _, second = pair
    come_back(client, second.approve(leave(client, "work")))
    provider("work").refresh("a refresh token")
    assert [form["resource"] for form in second.calls("/token")] == ["urn:work", "urn:work"]


@pytest.mark.node
def test_two_real_providers_stand_side_by_side(client: Browser, mcp_client: Client, settings: Any) -> None:
    """The second is asked for an API's token the way of RFC 8707, and both keep a credential of their own."""
    home, work = "http://localhost:8788/callback", "http://localhost:8788/callback/work"
    with identity_provider.real_provider(home) as first, identity_provider.real_provider(work) as second:
        identity_provider.configure(settings, first)
        auth0 = settings.UPSTREAM_PROVIDERS["auth0"]
        entry = {**auth0, "discovery": f"{second}/.well-known/openid-configuration", "audience_parameter": "resource"}
        settings.UPSTREAM_PROVIDERS = {"auth0": auth0, "work": entry}
        for name in ("auth0", "work"):
            source = {**settings.UPSTREAM_APIS["todos"], "token_source": name}
            settings.UPSTREAM_APIS = {"todos": source}
            browser = Browser()
            arrived = come_back(browser, PersonAtTheProvider().sign_in(leave(browser, name), "auth0|ada"))
            page = browser.get(arrived["Location"])
            allowed = browser.post("/authorize", {**fields(page), "scope": "read:todos", "action": "allow"})
            assert "code" in answered(allowed), name
        assert set(Identity.objects.values_list("issuer", "subject")) == {(first, "auth0|ada"), (second, "auth0|ada")}
        for row in UpstreamCredential.objects.all():
            facts = upstream_credentials.facts_of(row)
            assert (facts.has_refresh_token, facts.unverified_audiences) == (True, (identity_provider.AUDIENCE,))
    assert set(UpstreamCredential.objects.values_list("provider", flat=True)) == {"auth0", "work"}


# -- GitHub ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def github(settings: Any) -> Iterator[StandIn]:
    with github_stand_in.running() as peer:
        settings.UPSTREAM_PROVIDERS = {"github": peer.configuration()}
        settings.OWN_ACCOUNTS = settings.DEMO_USER = False
        yield peer


def test_a_person_signs_in_at_github_and_is_their_number(client: Browser, mcp_client: Client, github: StandIn) -> None:
    location = leave(client, "github", login_hint="octocat")
    asked = dict(parse_qsl(urlsplit(location).query))
    assert (asked["redirect_uri"], asked["login"]) == ("http://localhost:8788/callback", "octocat")
    assert asked["scope"] == "read:user user:email"
    arrived = come_back(client, github.approve(location, OCTOCAT))
    page = client.get(arrived["Location"])
    assert "The Octocat" in page.content.decode()
    identity = Identity.objects.get()
    assert (identity.issuer, identity.subject) == (github.origin, "583231")
    assert identity.claims["email"] == "octocat@github.example"
    allowed = client.post("/authorize", {**fields(page), "scope": "read:todos", "action": "allow"})
    assert "code" in answered(allowed)
    credential = UpstreamCredential.objects.get()
    assert (credential.provider, credential.scope, credential.expires_at) == ("github", "read:user user:email", None)


def test_its_issuer_is_github_and_its_api_is_elsewhere() -> None:
    entry = read(**GITHUB)[0]["github"]
    assert (entry["origin"], entry["api"]) == ("https://github.com", "https://api.github.com")


@pytest.mark.threat("T25")
def test_a_renamed_login_is_the_same_person_and_its_next_owner_another(mcp_client: Client, github: StandIn) -> None:
    renamed, successor = Account(583231, "octocat-retired"), Account(9_999_999, "octocat")
    for account in (OCTOCAT, renamed, successor):
        browser = Browser()
        come_back(browser, github.approve(leave(browser, "github"), account))
    assert sorted(Identity.objects.values_list("subject", flat=True)) == ["583231", "9999999"]


@pytest.mark.parametrize(
    ("emails", "kept"),
    [
        ([address("first@example.com", primary=False), address("main@example.com")], "main@example.com"),
        ([address("other@example.com", primary=False), address("main@example.com", verified=False)], None),
        ([address(f"{n}@example.com", primary=False) for n in range(40)] + [address("main@example.com")],
         "main@example.com"),
        ([], None),
    ],
)  # fmt: skip
def test_only_a_verified_primary_address_is_taken(
    client: Browser, mcp_client: Client, github: StandIn, emails: list[dict[str, Any]], kept: str | None
) -> None:
    account = Account(1, "ada", email="typed-by-its-owner@example.com", emails=emails)
    come_back(client, github.approve(leave(client, "github"), account))
    assert Identity.objects.get().claims.get("email") == kept


def test_who_does_not_grant_the_addresses_signs_in_without(
    client: Browser, mcp_client: Client, github: StandIn
) -> None:
    github.grants_only = "read:user"
    come_back(client, github.approve(leave(client, "github"), OCTOCAT))
    identity = Identity.objects.get()
    assert "email" not in identity.claims
    assert identity.claims["preferred_username"] == "octocat"


def test_denying_at_github_reaches_the_client(client: Browser, mcp_client: Client, github: StandIn) -> None:
    assert answered(come_back(client, github.deny(leave(client, "github"))))["error"] == "access_denied"


def test_a_code_that_is_refused_with_status_200_signs_nobody_in(
    client: Browser, mcp_client: Client, github: StandIn
) -> None:
    address = github.approve(leave(client, "github"), OCTOCAT)
    github.authorized.clear()
    assert answered(come_back(client, address))["error"] == "temporarily_unavailable"
    assert not Identity.objects.exists()


@pytest.mark.parametrize(
    "said",
    [[], {}, {"id": "583231", "login": "octocat"}, {"id": True, "login": "octocat"}, {"id": 1}, {"id": 1, "login": 7}],
    ids=str,
)
def test_an_answer_that_names_nobody_signs_nobody_in(
    client: Browser, mcp_client: Client, github: StandIn, monkeypatch: Any, said: Any
) -> None:
    monkeypatch.setattr(Account, "user", lambda account: said)
    response = come_back(client, github.approve(leave(client, "github"), OCTOCAT))
    assert answered(response)["error"] == "temporarily_unavailable"
    assert not Identity.objects.exists()


def test_an_unwell_github_is_told_as_such(client: Browser, mcp_client: Client, github: StandIn) -> None:
    address = github.approve(leave(client, "github"), OCTOCAT)
    github.is_broken = True
    assert answered(come_back(client, address))["error"] == "temporarily_unavailable"


@pytest.mark.parametrize(("trouble", "raised"), [("revoked", ProviderRefused), ("limited", ProviderUnavailable)])
def test_a_revoked_token_is_told_from_one_used_too_often(
    github: StandIn, trouble: str, raised: type[Exception]
) -> None:
    github.tokens["gho_x"] = (OCTOCAT, frozenset({"read:user"}))
    upstream = provider("github")
    assert upstream.claims_of("gho_x")["sub"] == "583231"  # type: ignore[attr-defined]
    if trouble == "revoked":
        github.revoke_tokens()
    github.is_rate_limited = trouble == "limited"
    with pytest.raises(raised):
        upstream.claims_of("gho_x")  # type: ignore[attr-defined]


@pytest.mark.parametrize("trouble", ["revoked", "suspended"])
def test_github_vouches_for_a_token_until_it_is_over(github: StandIn, trouble: str) -> None:
    github.tokens["gho_x"] = (OCTOCAT, frozenset())
    upstream = provider("github")
    upstream.check_access_token("gho_x")
    if trouble == "revoked":
        github.revoke_tokens()
    github.is_suspended = trouble == "suspended"
    with pytest.raises(ProviderRefused, match="invalid_grant"):
        upstream.check_access_token("gho_x")
    github.is_broken = True
    with pytest.raises(ProviderUnavailable):
        upstream.check_access_token("gho_x")


def test_a_refresh_token_that_is_over_is_called_invalid_grant(github: StandIn, monkeypatch: Any) -> None:
    """Only that code says that a credential is over (T10)."""
    monkeypatch.setattr(github, "_token", lambda form: {"error": "bad_refresh_token"})
    with pytest.raises(ProviderRefused, match="invalid_grant"):
        provider("github").refresh("ghr_x")


@pytest.mark.threat("T30")
def test_github_cannot_prove_that_it_asked_anew_so_a_fresh_sign_in_fails(
    client: Browser, mcp_client: Client, github: StandIn
) -> None:
    response = come_back(client, github.approve(leave(client, "github", prompt="login"), OCTOCAT))
    assert answered(response)["error"] == "temporarily_unavailable"
    assert not Identity.objects.exists()


def test_the_settings_of_a_whole_process_have_them_all(tmp_path: Any) -> None:
    """As a process reads them: API, sample API and sign-in page from one configuration."""
    import json
    import subprocess
    import sys

    script = (
        "import json, django; django.setup(); from django.conf import settings as s; "
        "print(json.dumps([list(s.UPSTREAM_PROVIDERS), s.UPSTREAM_APIS['todos']['token_source'],"
        " s.UPSTREAM_APIS['todos']['audience'], s.TODOS['DISCOVERY'], s.TODOS['ISSUER'], s.OWN_ACCOUNTS]))"
    )
    environment = {
        "PATH": os.environ["PATH"], "CAIR_ENV": "development", "CAIR_ENV_FILE": os.devnull,
        "DJANGO_SETTINGS_MODULE": "cair.settings", "DATABASE_URL": f"sqlite:///{tmp_path}/x.sqlite3",
        **GITHUB, **work(PROVIDER_WORK_AUDIENCE="urn:work"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    discovery = "https://id.example.com/.well-known/openid-configuration"
    assert json.loads(done.stdout) == [["work", "github"], "work", "urn:work", discovery, "", False]


@pytest.mark.node
def test_doctor_names_the_variables_of_a_named_provider() -> None:
    with prepared() as checkout, identity_provider.real_provider(f"http://localhost:{checkout['PORT']}/callback") as at:
        sound = {
            **checkout, **GITHUB, "PROVIDERS": "work", "PROVIDER_WORK_ISSUER": at,
            "PROVIDER_WORK_CLIENT_ID": identity_provider.CLIENT_ID,
            "PROVIDER_WORK_CLIENT_SECRET": identity_provider.CLIENT_SECRET,
        }  # fmt: skip
        report = examine(sound)
        assert report.failures() == []
        assert report["work redirect URI"]["status"] == "ok"
        assert "issues no tokens" in report["work access token"]["found"]
        report = examine({**sound, "PROVIDER_WORK_CLIENT_SECRET": "another"})
        assert report.failures() == ["work client"]
        assert "PROVIDER_WORK_CLIENT_SECRET" in report["work client"]["repair"]
