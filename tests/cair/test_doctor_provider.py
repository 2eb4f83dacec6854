"""`manage.py doctor` on the identity provider: the real one set up wrongly, and a stand-in that speaks as Auth0 does."""

import datetime
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
import pytest

from cair.doctor import examination, provider
from cair.doctor.findings import Finding, NotLookedAt, Status
from cair.doctor.visit import Visit
from oauth_relay import staged_tokens, vault
from oauth_relay.models import UpstreamCredential, User
from tests import identity_provider
from tests.cair.doctoring import Reply, Report, Request, examine, prepared, serving, with_provider
from tests.identity_provider import AUDIENCE, CLIENT_SECRET, RSA_KEY, rsa_jwk
from tests.servers import free_port

LINES = (
    "discovery",
    "keys",
    "client",
    "redirect URI",
    "audience",
    "scope",
    "offline_access",
    "recheck",
    "access token",
)


@pytest.fixture(scope="module")
def checkout() -> Iterator[dict[str, str]]:
    with prepared() as environment:
        yield environment


# -- the real one ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_origin(checkout: dict[str, str]) -> Iterator[str]:
    with identity_provider.real_provider(f"http://localhost:{checkout['PORT']}/callback") as origin:
        yield origin


@pytest.mark.node
def test_it_finds_no_fault_with_a_provider_that_is_set_up_right(checkout: dict[str, str], real_origin: str) -> None:
    report = examine(with_provider(checkout, real_origin))
    assert report.failures() == []
    assert [report.status(f"auth0 {line}") for line in LINES] == ["ok"] * len(LINES)
    assert report["auth0 redirect URI"]["found"] == f"http://localhost:{checkout['PORT']}/callback is registered there"
    assert report["clock"]["found"] == "agrees with auth0"


@pytest.mark.node
def test_it_finds_a_wrong_secret(checkout: dict[str, str], real_origin: str) -> None:
    wrong = "some-other-secret-of-somebody"
    report = examine(with_provider(checkout, real_origin, AUTH0_CLIENT_SECRET=wrong), unseen=(CLIENT_SECRET,))
    assert report.failures() == ["auth0 client"]
    assert "AUTH0_CLIENT_SECRET" in report["auth0 client"]["repair"]
    assert "Regular Web Application" in report["auth0 client"]["found"]


@pytest.mark.node
def test_it_finds_a_wrong_audience(checkout: dict[str, str], real_origin: str) -> None:
    report = examine(with_provider(checkout, real_origin, AUTH0_AUDIENCE="urn:another-api"))
    assert report.failures() == ["auth0 audience"]
    assert report["auth0 audience"]["found"].startswith("wrong audience: invalid_target")
    assert "urn:another-api" in report["auth0 audience"]["repair"]


@pytest.mark.node
def test_it_finds_a_callback_that_is_not_registered(checkout: dict[str, str], real_origin: str) -> None:
    port = str(free_port())
    report = examine(with_provider(checkout, real_origin, PORT=port))
    assert report.failures() == ["auth0 redirect URI"]
    assert report["auth0 redirect URI"]["found"] == "callback URL not registered (HTTP 400)"
    assert f"exactly http://localhost:{port}/callback" in report["auth0 redirect URI"]["repair"]


@pytest.mark.node
def test_it_finds_an_unknown_client(checkout: dict[str, str], real_origin: str) -> None:
    report = examine(with_provider(checkout, real_origin, AUTH0_CLIENT_ID="nobody"))
    assert report.failures() == ["auth0 client", "auth0 redirect URI"]
    assert report["auth0 redirect URI"]["found"] == "unknown client (HTTP 400)"


@pytest.mark.node
def test_it_warns_where_no_refresh_token_is_asked_for(checkout: dict[str, str], real_origin: str) -> None:
    report = examine(with_provider(checkout, real_origin, AUTH0_SCOPE="openid read:todos write:todos"))
    assert report.failures() == []
    assert report["auth0 offline_access"]["repair"] == "Add offline_access to AUTH0_SCOPE."
    assert report.status("auth0 recheck") == "warning"
    assert "auth0 cannot be asked" in report["auth0 recheck"]["found"]
    assert report["auth0 scope"]["found"] == "list_billing needs read:billing, which is not asked for"


# -- away, or not itself -----------------------------------------------------------------------------------------------


def test_it_finds_a_provider_away_and_leaves_what_hangs_on_it(checkout: dict[str, str]) -> None:
    report = examine(with_provider(checkout, f"http://localhost:{free_port()}"))
    assert report.failures() == ["auth0 discovery"]
    assert "nothing listens there" in report["auth0 discovery"]["found"]
    for line in ("keys", "client", "redirect URI"):
        assert "not looked at" in report[f"auth0 {line}"]["found"]


def test_it_does_not_wait_for_a_provider_that_hangs(checkout: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        report = examine(with_provider(checkout, f"http://localhost:{silent.getsockname()[1]}"))
    assert "no answer within 5 s" in report["auth0 discovery"]["found"]
    assert time.monotonic() - started < 30


# -- as Auth0 speaks ---------------------------------------------------------------------------------------------------


class Auth0:
    """A tenant that is set up right, until a test says otherwise. Its words are those of the real one's answers."""

    def __init__(self, callback: str) -> None:
        self.callback = callback
        self.origin = ""
        self.document: dict[str, Any] = {"id_token_signing_alg_values_supported": ["HS256", "RS256", "PS256"]}
        self.discovery: Reply | None = None
        self.jwks: Reply | None = None
        self.page: Reply | None = None
        self.back = {"error": "login_required", "error_description": "Login required"}
        self.secret = CLIENT_SECRET
        self.wrong_secret = (401, "access_denied", "Unauthorized")
        self.after_the_secret = (403, "invalid_grant", "Invalid authorization code")
        self.headers: dict[str, str | None] = {}
        self.asked: list[dict[str, str]] = []

    def __call__(self, request: Request) -> Reply:
        parts = urlsplit(request.path)
        match parts.path:
            case "/.well-known/openid-configuration":
                return self.discovery or Reply(200, self._metadata(), self.headers)
            case "/.well-known/jwks.json":
                return self.jwks or Reply(200, {"keys": [rsa_jwk(RSA_KEY, "key-1")]})
            case "/authorize":
                return self._authorize(dict(parse_qsl(parts.query)))
            case "/oauth/token":
                return self._token(dict(parse_qsl(request.body.decode())))
        return Reply(404, "Not found")

    def _metadata(self) -> dict[str, Any]:
        return {
            "issuer": f"{self.origin}/",
            "authorization_endpoint": f"{self.origin}/authorize",
            "token_endpoint": f"{self.origin}/oauth/token",
            "jwks_uri": f"{self.origin}/.well-known/jwks.json",
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            **self.document,
        }

    def _authorize(self, asked: dict[str, str]) -> Reply:
        self.asked.append(asked)
        back = f"{self.callback}?{urlencode({**self.back, 'state': asked['state']})}"
        return self.page or Reply(302, f"Found. Redirecting to {back}", {"Location": back})

    def _token(self, form: dict[str, str]) -> Reply:
        is_right = not self.secret or form.get("client_secret") == self.secret
        status, error, description = self.after_the_secret if is_right else self.wrong_secret
        return Reply(status, {"error": error, "error_description": description})


@pytest.fixture
def auth0(settings: Any, monkeypatch: pytest.MonkeyPatch, db: None) -> Iterator[Auth0]:
    """A tenant, and this process set up for it: only what looks at the provider is asked."""
    tenant = Auth0(f"{settings.PUBLIC_URL}/callback")
    with serving(tenant) as origin:
        tenant.origin = origin
        identity_provider.configure(settings, origin)
        wanted = [(name, check) for name, check in examination.checks() if name.startswith(("auth0", "clock"))]
        monkeypatch.setattr(examination, "checks", lambda: iter(wanted))
        yield tenant


def look() -> Report:
    """What the doctor says; whatever the provider answered, nothing secret and nothing unforeseen."""
    findings = [finding.as_json() for finding in examination.examine(Visit("/api/me"))]
    report = Report(0, json.dumps(findings), findings)
    assert CLIENT_SECRET not in report.printed and "this check itself failed" not in report.printed
    return report


def test_a_whole_run_finds_no_fault_with_auth0_set_up_right(checkout: dict[str, str]) -> None:
    tenant = Auth0(f"http://localhost:{checkout['PORT']}/callback")
    with serving(tenant) as origin:
        tenant.origin = origin
        assert examine(with_provider(checkout, origin)).failures() == []
        tenant.secret = "rotated at Auth0, and not here"
        assert examine(with_provider(checkout, origin)).failures() == ["auth0 client"]


def test_it_finds_no_fault_with_auth0_set_up_right(auth0: Auth0) -> None:
    report = look()
    assert report.failures() == []
    assert report["auth0 client"]["found"] == "client id and secret are accepted"
    (asked,) = auth0.asked
    assert (asked["prompt"], asked["audience"]) == ("none", AUDIENCE)
    assert asked["code_challenge_method"] == "S256" and asked["redirect_uri"] == auth0.callback


OOPS = (
    "<html><head><style>h1 { color: red }</style></head><body><h1>Oops!, something went wrong</h1><p>{}</p>"
    "<script>var state = 'redirect_uri'</script></body></html>"
)


@pytest.mark.parametrize(
    ("page", "found"),
    [
        (
            Reply(403, OOPS.replace("{}", "Callback URL mismatch. The provided redirect_uri is not in the list.")),
            "callback URL not registered (HTTP 403)",
        ),
        (Reply(400, OOPS.replace("{}", "Unknown client: cair-at-the-provider")), "unknown client (HTTP 400)"),
        (Reply(500, OOPS.replace("{}", "Internal error")), "the provider refuses the authorization request (HTTP 500)"),
        (
            Reply(302, "", {"Location": "/error?error=invalid_request&error_description=Callback+URL+mismatch"}),
            "callback URL not registered (HTTP 404)",
        ),
    ],
)
def test_it_reads_the_page_that_the_provider_keeps_the_person_at(auth0: Auth0, page: Reply, found: str) -> None:
    auth0.page = page
    report = look()
    assert report.failures() == ["auth0 redirect URI"]
    assert report["auth0 redirect URI"]["found"] == found
    assert (
        auth0.callback in report["auth0 redirect URI"]["repair"]
        or "AUTH0_CLIENT_ID" in report["auth0 redirect URI"]["repair"]
    )


def test_a_sign_in_page_in_spite_of_prompt_none_proves_nothing(auth0: Auth0) -> None:
    auth0.page = Reply(200, "<h1>Welcome</h1>")
    report = look()
    assert report.failures() == [] and report.status("auth0 redirect URI") == "warning"


@pytest.mark.parametrize(
    ("error", "description", "name", "repair"),
    [
        ("access_denied", f"Service not found: {AUDIENCE}", "wrong audience", "AUTH0_AUDIENCE"),
        (
            "access_denied",
            'Client "x" is not authorized to access resource server "urn:todos-api".',
            "application not allowed to use the API",
            "Application Access",
        ),
        (
            "unauthorized_client",
            "Grant type 'authorization_code' not allowed for the client.",
            "application is not a “Regular Web Application”",
            "Grant Types",
        ),
        ("invalid_scope", "read:billing", "scope not known", "AUTH0_SCOPE"),
        ("server_error", "Something \x1b[2Jnew", "the provider refuses the request", "Monitoring"),
    ],
)
def test_it_names_the_mistake_that_the_provider_sends_back(
    auth0: Auth0, error: str, description: str, name: str, repair: str
) -> None:
    auth0.back = {"error": error, "error_description": description}
    report = look()
    assert report.failures() == ["auth0 audience"] and report.status("auth0 redirect URI") == "ok"
    assert report["auth0 audience"]["found"].startswith(name)
    assert repair in report["auth0 audience"]["repair"]
    assert "\x1b" not in report["auth0 audience"]["found"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((403, "unauthorized_client", "Grant type 'authorization_code' not allowed"), "Regular Web Application"),
        ((401, "access_denied", "Unauthorized"), "client id or the secret is wrong"),
        ((400, "invalid_request", CLIENT_SECRET), "answers invalid_request"),
        ((503, "temporarily_unavailable", "Later"), "status 503"),
    ],
)
def test_it_reads_what_the_token_endpoint_says_to_a_code_of_nobody(
    auth0: Auth0, answer: tuple[int, str, str], said: str
) -> None:
    auth0.after_the_secret = answer
    report = look()
    assert report.failures() == ["auth0 client"]
    assert said in report["auth0 client"]["found"]


def test_it_finds_an_application_whose_secret_nobody_looks_at(auth0: Auth0) -> None:
    auth0.secret = ""
    report = look()
    assert report["auth0 client"]["status"] == "warning"
    assert "does not look at the secret" in report["auth0 client"]["found"]


@pytest.mark.parametrize(
    ("discovery", "said"),
    [
        (Reply(404, "<h1>Not found</h1>"), "HTTP 404"),
        (Reply(200, '{"issuer": "htt'), "no discovery document"),
        (Reply(200, {"issuer": "https://another.eu.auth0.com/"}), "does not accept the document"),
        (Reply(302, "", {"Location": "https://elsewhere.example.com"}), "HTTP 302"),
    ],
)
def test_it_finds_a_discovery_document_that_is_none(auth0: Auth0, discovery: Reply, said: str) -> None:
    auth0.discovery = discovery
    report = look()
    assert report.failures() == ["auth0 discovery"]
    assert said in report["auth0 discovery"]["found"]


def test_it_finds_a_tenant_that_signs_with_a_shared_secret(auth0: Auth0) -> None:
    auth0.document = {"id_token_signing_alg_values_supported": ["HS256"]}
    report = look()
    assert report.failures() == ["auth0 discovery"]
    assert "RS256" in report["auth0 discovery"]["repair"]


@pytest.mark.parametrize(
    "jwks",
    [
        Reply(200, {"keys": []}),
        Reply(200, {"keys": [{"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}, "x", {"kty": "RSA", "use": "enc"}]}),
        Reply(200, {"keys": [{"kty": "RSA", "n": "?", "e": 3}]}),
        Reply(500, "oops"),
    ],
)
def test_it_finds_keys_that_can_check_nothing(auth0: Auth0, jwks: Reply) -> None:
    auth0.jwks = jwks
    assert look().failures() == ["auth0 keys"]


# -- the clock ---------------------------------------------------------------------------------------------------------


def said_in(seconds: float) -> str:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return format_datetime(moment, usegmt=True)


@pytest.mark.parametrize(("seconds", "said"), [(7200, "behind"), (-7200, "ahead of")])
def test_it_finds_a_clock_that_is_wrong(auth0: Auth0, seconds: int, said: str) -> None:
    auth0.headers = {"Date": said_in(seconds)}
    report = look()
    assert report.failures() == ["clock"]
    found = re.fullmatch(rf"this machine is (\d+) s {said} auth0", report["clock"]["found"])
    assert found and abs(int(found[1]) - 7200) < 30


@pytest.mark.parametrize(
    "headers",
    [
        lambda: {"Date": None},
        lambda: {"Date": "yesterday"},
        lambda: {"Date": said_in(-3000), "Age": "3000"},
        lambda: {"Date": said_in(-20)},
    ],
    ids=["none", "unreadable", "cached", "close"],
)
def test_a_date_that_says_nothing_or_was_kept_by_a_cache_is_no_wrong_clock(
    auth0: Auth0, headers: Callable[[], dict[str, str | None]]
) -> None:
    auth0.headers = headers()
    assert look().failures() == []


# -- what came with the newest sign-in ---------------------------------------------------------------------------------


@pytest.fixture
def configured(settings: Any, db: None) -> Iterator[None]:
    vault.forget_keys()
    with identity_provider.faked_provider() as peer:
        identity_provider.configure(settings, peer.origin)
        yield
    vault.forget_keys()


def signed_in(
    name: str = "ada", refresh_token: str | None = "r", access_token: str = "opaque", lifetime: int = 600
) -> None:
    """A person, with what the provider gave them, in the vault."""
    staged = staged_tokens._Staged(
        user_id=User.objects.create_user(name).pk,
        provider="auth0",
        issuer="https://example.eu.auth0.com/",
        subject=f"auth0|{name}",
        audience=AUDIENCE,
        scope="openid",
        access_token=access_token,
        refresh_token=refresh_token,
        expires_at=time.time() + lifetime,
    )
    staged_tokens._insert(staged)


def finding(check: Any) -> Finding:
    (found,) = check(Visit("/"), "auth0")
    assert isinstance(found, Finding)
    return found


def for_audience(audience: Any) -> str:
    return jwt.encode({"aud": audience}, RSA_KEY, algorithm="RS256")


def test_it_names_allow_offline_access_where_no_refresh_token_came(configured: None) -> None:
    signed_in(refresh_token=None)
    found = finding(provider.offline_access)
    assert found.status == Status.FAILURE
    assert "“Allow Offline Access” is off" in found.found and AUDIENCE in found.repair


@pytest.mark.threat("T37")
@pytest.mark.parametrize(
    ("refresh_token", "seconds", "status", "said"),
    [
        (None, 3600, Status.WARNING, "auth0 cannot be asked whether it still stands by people: the newest sign-in"),
        ("r", 3600, Status.GOOD, "within 3600 s"),
        ("", 3600, Status.GOOD, "within 3600 s"),
        (None, 0, Status.GOOD, "UPSTREAM_RECHECK is 0"),
    ],
)
def test_it_says_where_a_provider_cannot_be_asked_whom_it_has_disabled(
    configured: None, settings: Any, refresh_token: str | None, seconds: int, status: Status, said: str
) -> None:
    settings.UPSTREAM_RECHECK = seconds
    if refresh_token != "":
        signed_in(refresh_token=refresh_token)
    found = finding(provider.recheck)
    assert (found.status, said in found.found) == (status, True), found


def test_it_looks_at_what_came_last(configured: None) -> None:
    signed_in("ada", refresh_token=None, lifetime=600)
    signed_in("mallory", lifetime=900)
    assert finding(provider.offline_access).status == Status.GOOD


def test_a_credential_that_waits_for_a_sign_in_says_nothing_of_today(configured: None) -> None:
    signed_in(refresh_token=None)
    UpstreamCredential.objects.update(state=UpstreamCredential.State.SIGN_IN_NEEDED)
    assert "nobody has signed in yet" in finding(provider.offline_access).found


@pytest.mark.parametrize(
    ("access_token", "status"),
    [
        (for_audience(AUDIENCE), Status.GOOD),
        (for_audience(["https://example.eu.auth0.com/userinfo", AUDIENCE]), Status.GOOD),
        (for_audience("urn:another-api"), Status.FAILURE),
        ("opaque-0a1b2c3d", Status.WARNING),
    ],
)
def test_it_looks_whom_the_newest_access_token_is_for(configured: None, access_token: str, status: Status) -> None:
    signed_in(access_token=access_token)
    found = finding(provider.audience_of_tokens)
    assert found.status == status
    assert access_token not in found.found + found.repair


def test_it_says_that_a_credential_cannot_be_opened(configured: None) -> None:
    signed_in()
    UpstreamCredential.objects.update(version=7)
    assert finding(provider.offline_access).status == Status.FAILURE
    with pytest.raises(NotLookedAt):
        finding(provider.audience_of_tokens)
