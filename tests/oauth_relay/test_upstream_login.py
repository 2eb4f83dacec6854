"""The journey to the identity provider and back (OpenID Connect Core 1.0 §3.1; T3, T4, T8, T30)."""

import html
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
import pytest
from django.contrib.auth import authenticate
from django.test import Client as Browser
from django.utils import timezone

from oauth_relay import keys, vault
from oauth_relay.models import AuditEvent, Client, Grant, Identity, LoginTransaction, UpstreamCredential, User
from oauth_relay.upstream_identities import UpstreamLoginBackend
from tests import identity_provider
from tests.identity_provider import EC_KEY, OTHER_RSA_KEY, RSA_KEY, FakedProvider, PersonAtTheProvider, signed_with

REDIRECT_URI = "http://127.0.0.1:33418/callback"

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    vault.forget_keys()
    keys.forget_signer()
    yield
    vault.forget_keys()
    keys.forget_signer()


@pytest.fixture
def mcp_client() -> Client:
    return Client.objects.create(
        client_id="inspector",
        name="Inspector",
        client_type=Client.CLIENT_PUBLIC,
        authorization_grant_type=Client.GRANT_AUTHORIZATION_CODE,
        redirect_uris=REDIRECT_URI,
    )


@pytest.fixture
def peer(settings: Any) -> Iterator[FakedProvider]:
    with identity_provider.faked_provider() as running:
        identity_provider.configure(settings, running.origin)
        yield running


@pytest.fixture(scope="module")
def real_origin() -> Iterator[str]:
    with identity_provider.real_provider("http://localhost:8788/callback") as origin:
        yield origin


@pytest.fixture
def real(settings: Any, real_origin: str) -> str:
    assert settings.PUBLIC_URL == "http://localhost:8788"
    identity_provider.configure(settings, real_origin)
    return real_origin


# -- what a person does in front of our pages --------------------------------------------------------------------------


def ask(browser: Browser, **extra: str) -> Any:
    """An MCP client sends this browser to /authorize."""
    parameters = {
        "response_type": "code",
        "client_id": "inspector",
        "redirect_uri": REDIRECT_URI,
        "scope": "read:todos",
        "state": "the-client's-state",
        "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
        "code_challenge_method": "S256",
        **extra,
    }
    return browser.get(f"/authorize?{urlencode(parameters)}")


def fields(page: Any) -> dict[str, str]:
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.content.decode())
    return {name: html.unescape(value) for name, value in found}


def go_on(browser: Browser, page: Any) -> str:
    """Press "Continue with Auth0"; where that leads."""
    response = browser.post("/login", {**fields(page), "provider": "auth0"})
    assert response.status_code in (302, 303), response.content.decode()
    return str(response["Location"])


def leave_for_provider(browser: Browser, **extra: str) -> str:
    return go_on(browser, ask(browser, **extra))


def come_back(browser: Browser, address: str) -> Any:
    parts = urlsplit(address)
    assert f"{parts.scheme}://{parts.netloc}" == "http://localhost:8788", address
    return browser.get(f"{parts.path}?{parts.query}")


def answered(response: Any) -> dict[str, str]:
    """What the client hears, where the response sends the browser back to it."""
    assert response.status_code in (302, 303), response.content.decode()
    assert response["Location"].startswith(REDIRECT_URI), response["Location"]
    return dict(parse_qsl(urlsplit(response["Location"]).query))


def person_of(browser: Browser) -> str | None:
    return browser.session.get("_auth_user_id")


def staged() -> list[LoginTransaction]:
    return list(LoginTransaction.objects.exclude(staged_tokens=None))


# -- the walk, with a real provider ------------------------------------------------------------------------------------


@pytest.mark.node
def test_a_person_signs_in_at_a_real_provider_consents_and_is_known(
    client: Browser, mcp_client: Client, real: str
) -> None:
    back = PersonAtTheProvider().sign_in(leave_for_provider(client), "auth0|ada")
    arrived = come_back(client, back)
    assert arrived["Location"].startswith("/authorize?transaction=")
    page = client.get(arrived["Location"])
    assert "Ada Lovelace" in page.content.decode()
    assert not UpstreamCredential.objects.exists()
    allowed = client.post("/authorize", {**fields(page), "scope": "read:todos", "action": "allow"})
    assert set(answered(allowed)) == {"code", "state", "iss"}
    identity = Identity.objects.get()
    assert (identity.issuer, identity.subject, identity.provider) == (real, "auth0|ada", "auth0")
    credential = UpstreamCredential.objects.get(user=identity.user)
    assert (credential.audience, credential.state, credential.version) == (identity_provider.AUDIENCE, "good", 1)
    assert not staged()


@pytest.mark.node
def test_what_it_keeps_is_an_rs256_token_for_the_api_and_a_refresh_token(
    client: Browser, mcp_client: Client, real: str
) -> None:
    come_back(client, PersonAtTheProvider().sign_in(leave_for_provider(client), "auth0|ada"))
    (transaction,) = staged()
    found = opened(transaction)
    unverified_claims = jwt.decode(found["access_token"], options={"verify_signature": False})
    assert jwt.get_unverified_header(found["access_token"])["alg"] == "RS256"
    assert (unverified_claims["aud"], unverified_claims["sub"]) == (identity_provider.AUDIENCE, "auth0|ada")
    assert {"read:todos", "write:todos"} <= set(unverified_claims["scope"].split())
    assert found["refresh_token"]


def opened(transaction: LoginTransaction) -> dict[str, Any]:
    assert transaction.staged_tokens is not None
    plaintext = vault.open_sealed(
        transaction.staged_tokens,
        purpose="staged-tokens",
        row=transaction.pk,
        field="login_transaction.staged_tokens",
        user=transaction.user_id,
        provider="auth0",
    )
    return dict(json.loads(plaintext))


@pytest.mark.node
def test_cancel_at_a_real_provider_reaches_the_client_as_access_denied(
    client: Browser, mcp_client: Client, real: str
) -> None:
    response = come_back(client, PersonAtTheProvider().cancel(leave_for_provider(client)))
    heard = answered(response)
    assert (heard["error"], heard["state"]) == ("access_denied", "the-client's-state")
    assert heard["iss"] == "http://localhost:8788"
    assert person_of(client) is None


@pytest.mark.node
def test_the_same_person_comes_back_as_the_same_user_and_another_as_another(
    client: Browser, mcp_client: Client, real: str
) -> None:
    ada = PersonAtTheProvider()
    come_back(client, ada.sign_in(leave_for_provider(client), "auth0|ada"))
    first = person_of(client)
    second_browser, third_browser = Browser(), Browser()
    come_back(second_browser, ada.sign_in(leave_for_provider(second_browser), "auth0|ada"))
    assert person_of(second_browser) == first
    # The same e-mail address at the same provider, but another subject.
    come_back(third_browser, PersonAtTheProvider().sign_in(leave_for_provider(third_browser), "auth0|mallory"))
    assert person_of(third_browser) not in (first, None)


@pytest.mark.node
@pytest.mark.threat("T30")
def test_a_real_provider_asks_anew_when_the_client_wants_a_fresh_sign_in(
    client: Browser, mcp_client: Client, real: str
) -> None:
    ada = PersonAtTheProvider()
    come_back(client, ada.sign_in(leave_for_provider(client), "auth0|ada"))
    location = leave_for_provider(client, prompt="login")
    page = ada.session.get(location, timeout=5)
    assert "Sign in to the test provider" in page.text
    assert come_back(client, ada.sign_in(location, "auth0|ada"))["Location"].startswith("/authorize?transaction=")


# -- the way there -----------------------------------------------------------------------------------------------------


def test_it_asks_for_audience_scope_nonce_and_pkce_at_our_own_callback(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    sent = dict(parse_qsl(urlsplit(leave_for_provider(client, login_hint="ada@example.com")).query))
    assert sent["audience"] == identity_provider.AUDIENCE
    assert sent["scope"] == identity_provider.SCOPE
    assert sent["redirect_uri"] == "http://localhost:8788/callback"
    assert sent["login_hint"] == "ada@example.com"
    assert (sent["response_type"], sent["code_challenge_method"]) == ("code", "S256")
    assert all(len(sent[name]) >= 43 for name in ("state", "nonce", "code_challenge"))
    assert "prompt" not in sent


@pytest.mark.pain("P35")
@pytest.mark.parametrize("prompt", ["login", "select_account", "consent"])
def test_it_hands_on_the_prompt_that_the_client_asked_for(
    client: Browser, mcp_client: Client, peer: FakedProvider, prompt: str
) -> None:
    sent = dict(parse_qsl(urlsplit(leave_for_provider(client, prompt=prompt)).query))
    assert sent["prompt"] == prompt


@pytest.mark.threat("T8")
@pytest.mark.pain("P18")
def test_it_forwards_nobody_before_their_own_decision(client: Browser, mcp_client: Client, peer: FakedProvider) -> None:
    assert ask(client).status_code == 200
    transaction = LoginTransaction.objects.get()
    assert transaction.forward_decided_at is None
    assert transaction.upstream_state_digest is None
    assert peer.requests == []


@pytest.mark.threat("T18")
def test_it_stores_no_state_nonce_or_verifier_that_can_be_read(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    sent = dict(parse_qsl(urlsplit(leave_for_provider(client)).query))
    transaction = LoginTransaction.objects.get()
    assert transaction.forward_decided_at is not None
    row = repr(LoginTransaction.objects.values_list().get()).encode() + bytes(transaction.upstream_secrets or b"")
    assert sent["state"].encode() not in row
    assert sent["nonce"].encode() not in row
    assert transaction.upstream_state_expires_at is not None
    assert transaction.upstream_state_expires_at <= timezone.now() + timedelta(minutes=10)


@pytest.mark.pain("P21")
def test_a_provider_that_is_down_before_the_journey_ends_at_the_client(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    peer.discovery = (503, "<h1>Service unavailable</h1>")
    page = ask(client)
    response = client.post("/login", {**fields(page), "provider": "auth0"})
    assert answered(response)["error"] == "temporarily_unavailable"


def test_it_refuses_a_discovery_document_of_another_issuer(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    peer.issuer = "https://somebody-else.example/"
    response = client.post("/login", {**fields(ask(client)), "provider": "auth0"})
    assert answered(response)["error"] == "temporarily_unavailable"


# -- the way back: whose it is (T3) ------------------------------------------------------------------------------------


def nothing_happened(response: Any, peer: FakedProvider) -> bool:
    """A page, and no trace: no call to the provider, no person, no tokens, no spent state."""
    assert response.status_code == 400
    assert "Nothing was changed" in response.content.decode()
    spent = LoginTransaction.objects.exclude(upstream_state_spent_at=None).exists()
    return not (peer.calls("/token") or staged() or User.objects.exists() or spent)


@pytest.mark.threat("T3")
def test_it_refuses_another_browsers_callback_and_signs_nobody_in(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    address = peer.approve(leave_for_provider(client))
    victim = Browser()
    ask(victim)  # the victim has a cookie of their own
    assert nothing_happened(come_back(victim, address), peer)
    assert person_of(victim) is None
    assert come_back(client, address)["Location"].startswith("/authorize?transaction=")


@pytest.mark.threat("T3")
def test_it_refuses_a_callback_of_a_browser_without_the_cookie(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    address = peer.approve(leave_for_provider(client))
    assert nothing_happened(come_back(Browser(), address), peer)
    LoginTransaction.objects.update(browser_digest="")
    assert nothing_happened(come_back(Browser(), address), peer)


@pytest.mark.threat("T3")
def test_it_signs_nobody_out(client: Browser, mcp_client: Client, peer: FakedProvider) -> None:
    come_back(client, peer.approve(leave_for_provider(client)))
    person = person_of(client)
    assert person is not None
    for query in ("error=access_denied", "error=access_denied&state=unknown", "code=x&state=unknown", "code=x", ""):
        assert client.get(f"/callback?{query}").status_code == 400
    assert person_of(client) == person


@pytest.mark.threat("T3")
@pytest.mark.parametrize(
    "query", ["state=&code=x", "state=a&state=b&code=x", "state=%00&code=x", "state=" + "a" * 9000]
)
def test_it_refuses_a_state_that_is_none(client: Browser, mcp_client: Client, peer: FakedProvider, query: str) -> None:
    leave_for_provider(client)
    assert nothing_happened(client.get(f"/callback?{query}"), peer)


@pytest.mark.threat("T3")
def test_it_refuses_a_state_that_has_expired(client: Browser, mcp_client: Client, peer: FakedProvider) -> None:
    address = peer.approve(leave_for_provider(client))
    LoginTransaction.objects.update(upstream_state_expires_at=timezone.now() - timedelta(seconds=1))
    assert nothing_happened(come_back(client, address), peer)


@pytest.mark.threat("T3")
def test_it_spends_the_state_before_it_asks_the_provider(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    address = peer.approve(leave_for_provider(client))
    peer.answer = lambda form: (503, "down")
    assert answered(come_back(client, address))["error"] == "temporarily_unavailable"
    peer.answer = None
    assert come_back(client, address).status_code == 400
    assert len(peer.calls("/token")) == 1


@pytest.mark.threat("T3")
def test_a_second_load_of_the_same_address_goes_nowhere(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    address = peer.approve(leave_for_provider(client))
    assert come_back(client, address).status_code == 303
    (first,) = staged()
    assert come_back(client, address).status_code == 400
    assert len(peer.calls("/token")) == 1
    assert staged() == [first] and person_of(client) is not None


def test_it_leaves_the_state_alone_when_somebody_only_looks(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    address = peer.approve(leave_for_provider(client))
    parts = urlsplit(address)
    assert client.head(f"{parts.path}?{parts.query}").status_code == 405
    assert come_back(client, address).status_code == 303


def test_a_second_journey_of_one_transaction_ends_the_first(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    page = ask(client)
    first, second = go_on(client, page), go_on(client, page)
    assert come_back(client, peer.approve(first)).status_code == 400
    assert come_back(client, peer.approve(second)).status_code == 303


def test_two_tabs_never_mix(client: Browser, mcp_client: Client, peer: FakedProvider) -> None:
    tab_a, tab_b = ask(client, state="a"), ask(client, state="b")
    there_a, there_b = go_on(client, tab_a), go_on(client, tab_b)
    back_b = come_back(client, peer.approve(there_b))
    back_a = come_back(client, peer.approve(there_a))
    assert fields(tab_a)["transaction"] in back_a["Location"]
    assert fields(tab_b)["transaction"] in back_b["Location"]


# -- the way back: what is believed ------------------------------------------------------------------------------------


def hour_ago() -> int:
    return int(time.time()) - 3600


def unsigned(claims: dict[str, Any]) -> str:
    return jwt.encode(claims, None, algorithm="none")


WRONG_CLAIMS: dict[str, dict[str, Any]] = {
    "another audience": {"aud": "somebody-else"},
    "no audience": {"aud": None},
    "several audiences and no authorized party": {"aud": [identity_provider.CLIENT_ID, "somebody-else"]},
    "another authorized party": {"azp": "somebody-else"},
    "another issuer": {"iss": "https://somebody-else.example/"},
    "no issuer": {"iss": None},
    "an issuer with a slash too many": {"iss": "WITH SLASH"},
    "no end": {"exp": None},
    "an end in the past": {"exp": hour_ago(), "iat": hour_ago() - 60},
    "an end that is no time": {"exp": "soon"},
    "an end beyond numbers": {"exp": float("1e999")},
    "no time of issue": {"iat": None},
    "a time of issue in the future": {"iat": hour_ago() + 7200},
    "no nonce": {"nonce": None},
    "another nonce": {"nonce": "another"},
    "a nonce that is no text": {"nonce": 7},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject that is a number": {"sub": 7},
    "a subject too long": {"sub": "a" * 256},
}


@pytest.mark.parametrize("wrong", WRONG_CLAIMS)
def test_it_refuses_an_id_token_with(client: Browser, mcp_client: Client, peer: FakedProvider, wrong: str) -> None:
    claims = {k: f"{peer.origin}/" if v == "WITH SLASH" else v for k, v in WRONG_CLAIMS[wrong].items()}
    response = come_back(client, peer.approve(leave_for_provider(client), **claims))
    assert answered(response)["error"] == "temporarily_unavailable"
    assert person_of(client) is None
    assert not User.objects.exists() and not staged()


WRONG_SIGNATURES: dict[str, Callable[[dict[str, Any]], str]] = {
    "an unknown key": signed_with(OTHER_RSA_KEY, "RS256", "key-9"),
    "another key under a known name": signed_with(OTHER_RSA_KEY, "RS256", "key-1"),
    "a key of another kind under a known name": signed_with(EC_KEY, "ES256", "key-1"),
    "the client secret": signed_with(identity_provider.CLIENT_SECRET, "HS256", "key-1"),
    "an algorithm that is not on the list": signed_with(RSA_KEY, "RS512", "any-algorithm"),
    "no signature": unsigned,
    "something that is no token": lambda claims: "abc",
    "nothing": lambda claims: "",
}


@pytest.mark.parametrize("wrong", WRONG_SIGNATURES)
@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_it_refuses_an_id_token_signed_with(
    client: Browser, mcp_client: Client, peer: FakedProvider, wrong: str
) -> None:
    peer.sign = WRONG_SIGNATURES[wrong]
    any_algorithm = identity_provider.rsa_jwk(RSA_KEY, "any-algorithm")
    del any_algorithm["alg"]
    peer.keys.append(any_algorithm)
    response = come_back(client, peer.approve(leave_for_provider(client)))
    assert answered(response)["error"] == "temporarily_unavailable"
    assert person_of(client) is None and not staged()


@pytest.mark.parametrize(
    "sign",
    [
        signed_with(RSA_KEY, "RS256", "key-1"),
        signed_with(EC_KEY, "ES256", "key-2"),
        signed_with(RSA_KEY, "RS256", None),
        signed_with(RSA_KEY, "PS256", "key-3"),
    ],
    ids=["RS256", "ES256", "without kid", "PS256"],
)
def test_it_believes_each_algorithm_of_its_list(
    client: Browser, mcp_client: Client, peer: FakedProvider, sign: Callable[[dict[str, Any]], str]
) -> None:
    peer.sign = sign
    peer.keys.append({**identity_provider.rsa_jwk(RSA_KEY, "key-3"), "alg": "PS256"})
    come_back(client, peer.approve(leave_for_provider(client)))
    assert person_of(client) is not None


def test_it_finds_a_key_that_the_provider_has_begun_to_use_since(
    client: Browser, mcp_client: Client, peer: FakedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    come_back(client, peer.approve(leave_for_provider(client)))
    peer.keys = [identity_provider.rsa_jwk(OTHER_RSA_KEY, "new")]
    peer.sign = signed_with(OTHER_RSA_KEY, "RS256", "new")
    monkeypatch.setattr("oauth_relay.identity_providers.RETRY_AFTER", 0.0)
    newcomer = Browser()
    come_back(newcomer, peer.approve(leave_for_provider(newcomer)))
    assert person_of(newcomer) is not None


def test_invented_keys_cost_the_provider_one_look_in_five_seconds(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    for number in range(4):
        peer.sign = signed_with(OTHER_RSA_KEY, "RS256", f"invented-{number}")
        come_back(client, peer.approve(leave_for_provider(client)))
    assert len(peer.calls("/jwks")) == 1


@pytest.mark.parametrize(
    ("advertised", "sent", "is_accepted"),
    [(True, "right", True), (False, "right", True), (False, "", True), (True, "", False), (False, "wrong", False)],
)
def test_it_compares_the_issuer_of_the_response(
    client: Browser, mcp_client: Client, peer: FakedProvider, advertised: bool, sent: str, is_accepted: bool
) -> None:
    peer.metadata = {"authorization_response_iss_parameter_supported": advertised}
    address = peer.approve(leave_for_provider(client))
    if sent:
        address += "&" + urlencode({"iss": peer.origin if sent == "right" else "https://somebody-else.example"})
    come_back(client, address)
    assert (person_of(client) is not None) is is_accepted
    assert bool(peer.calls("/token")) is is_accepted


@pytest.mark.threat("T30")
@pytest.mark.parametrize(("asked_at", "is_accepted"), [(0, True), (-3600, False), (None, False)])
def test_a_fresh_sign_in_must_be_fresh(
    client: Browser, mcp_client: Client, peer: FakedProvider, asked_at: int | None, is_accepted: bool
) -> None:
    location = leave_for_provider(client, prompt="login")
    assert "max_age=0" in location
    auth_time = None if asked_at is None else int(time.time()) + asked_at
    come_back(client, peer.approve(location, auth_time=auth_time))
    assert (person_of(client) is not None) is is_accepted


@pytest.mark.pain("P21")
@pytest.mark.parametrize(
    ("error", "heard"),
    [
        ("access_denied", "access_denied"),
        ("server_error", "temporarily_unavailable"),
        ("login_required", "temporarily_unavailable"),
        ("<script>", "temporarily_unavailable"),
    ],
)
def test_an_error_of_the_provider_ends_at_the_client(
    client: Browser, mcp_client: Client, peer: FakedProvider, error: str, heard: str
) -> None:
    state = dict(parse_qsl(urlsplit(leave_for_provider(client)).query))["state"]
    response = client.get(f"/callback?{urlencode({'error': error, 'state': state, 'error_description': 'x'})}")
    assert answered(response)["error"] == heard
    assert not peer.calls("/token")


ANSWERS: dict[str, tuple[int, Any]] = {
    "an HTML page": (200, "<h1>Welcome to the hotel's network</h1>"),
    "half of a document": (200, '{"access_token": "a'),
    "a list": (200, []),
    "a number": (200, 7),
    "a document nested too deep": (200, "[" * 100_000),
    "no access token": (200, {"token_type": "Bearer", "id_token": "x"}),
    "an access token that is a number": (200, {"access_token": 7, "token_type": "Bearer"}),
    "a token of another type": (200, {"access_token": "x", "token_type": "mac"}),
    "no ID token": (200, {"access_token": "x", "token_type": "Bearer"}),
    "a refused code": (400, {"error": "invalid_grant"}),
    "an error that is no text": (400, {"error": ["invalid_grant"]}),
    "a server error": (500, "<h1>Oops</h1>"),
    "a bad gateway in JSON": (502, {"error": "invalid_grant"}),
    "a redirect": (307, {}),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_it_survives_a_token_endpoint_that_answers(
    client: Browser, mcp_client: Client, peer: FakedProvider, what: str
) -> None:
    peer.answer = lambda form: ANSWERS[what]
    response = come_back(client, peer.approve(leave_for_provider(client)))
    assert answered(response)["error"] == "temporarily_unavailable"
    assert not peer.calls("/elsewhere")
    assert person_of(client) is None


def test_it_reads_no_answer_without_end(client: Browser, mcp_client: Client, peer: FakedProvider) -> None:
    peer.tokens = {"padding": "x" * 600_000}
    response = come_back(client, peer.approve(leave_for_provider(client)))
    assert answered(response)["error"] == "temporarily_unavailable"


def test_a_document_that_cannot_be_read_is_asked_for_once_in_five_seconds(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    peer.discovery = (503, "<h1>Service unavailable</h1>")
    for _ in range(3):
        response = client.post("/login", {**fields(ask(client)), "provider": "auth0"})
        assert answered(response)["error"] == "temporarily_unavailable"
    assert len(peer.calls("/.well-known/openid-configuration")) == 1


def test_it_tells_the_client_nothing_of_what_went_wrong_and_logs_no_secret(
    client: Browser, mcp_client: Client, peer: FakedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    location = leave_for_provider(client)
    address = peer.approve(location, aud="somebody-else")
    heard = answered(come_back(client, address))
    assert "aud" not in heard["error_description"].lower()
    assert "ID token" in caplog.text
    journey = dict(parse_qsl(urlsplit(location).query))
    verifier = peer.calls("/token")[0]["code_verifier"]
    kept = caplog.text + repr(list(AuditEvent.objects.values_list()))
    for secret in (journey["state"], journey["nonce"], verifier, identity_provider.CLIENT_SECRET):
        assert secret not in kept


# -- who it is ---------------------------------------------------------------------------------------------------------


def test_a_new_person_gets_an_account_that_nobody_can_mistake(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    User.objects.create_user("ada", "ada@example.com", "a password of her own")
    come_back(
        client,
        peer.approve(
            leave_for_provider(client),
            preferred_username="ada",
            nickname="ada",
            email="ada@example.com",
            email_verified=True,
            name="Ada\u202e\0 Lovelace",
            is_staff=True,
        ),
    )
    user = Identity.objects.get().user
    assert re.fullmatch(r"auth0-[0-9a-f]{24}", user.username)  # random: nothing of the claims
    assert not (user.has_usable_password() or user.is_staff or user.is_superuser or user.email)
    assert Identity.objects.get().claims == {
        "name": "Ada Lovelace",
        "nickname": "ada",
        "preferred_username": "ada",
        "email": "ada@example.com",
        "email_verified": True,
    }


def test_a_person_switched_off_here_is_refused(client: Browser, mcp_client: Client, peer: FakedProvider) -> None:
    come_back(client, peer.approve(leave_for_provider(client)))
    User.objects.update(is_active=False)
    newcomer = Browser()
    assert answered(come_back(newcomer, peer.approve(leave_for_provider(newcomer))))["error"] == "access_denied"
    assert person_of(newcomer) is None
    assert UpstreamLoginBackend().get_user(User.objects.get().pk) is None


def test_the_backend_signs_nobody_in_by_password(peer: FakedProvider) -> None:
    User.objects.create_user("auth0-1", password=None)
    assert authenticate(username="auth0-1", password="") is None
    assert peer.requests == []


# -- what becomes of the tokens (T4) -----------------------------------------------------------------------------------


@pytest.mark.threat("T4")
def test_it_keeps_no_token_before_consent_and_none_after_a_no(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    page = client.get(come_back(client, peer.approve(leave_for_provider(client)))["Location"])
    assert not UpstreamCredential.objects.exists() and staged()
    assert answered(client.post("/authorize", {**fields(page), "action": "deny"}))["error"] == "access_denied"
    assert not UpstreamCredential.objects.exists() and not staged()


@pytest.mark.threat("T4")
def test_another_account_at_the_provider_is_openly_the_new_person(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    come_back(client, peer.approve(leave_for_provider(client), name="Ada"))
    ada = person_of(client)
    location = leave_for_provider(client, prompt="select_account")
    page = client.get(come_back(client, peer.approve(location, sub="auth0|bob", name="Bob"))["Location"])
    assert person_of(client) not in (ada, None)
    assert "Bob" in page.content.decode()


def test_a_visit_keeps_tokens_only_for_clients_that_are_connected(
    client: Browser, mcp_client: Client, peer: FakedProvider
) -> None:
    response = come_back(client, peer.approve(go_on(client, client.get("/login"))))
    assert response["Location"] == "/connections"
    assert not UpstreamCredential.objects.exists() and not staged()
    user = User.objects.get()
    Grant.objects.create(user=user, client=mcp_client)
    again = Browser()
    come_back(again, peer.approve(go_on(again, again.get("/login"))))
    assert UpstreamCredential.objects.get().user == user
    assert not staged()


def test_it_writes_the_journey_into_the_audit(client: Browser, mcp_client: Client, peer: FakedProvider) -> None:
    come_back(client, peer.approve(leave_for_provider(client)))
    events = dict(AuditEvent.objects.values_list("event", "pseudonym"))
    assert events["upstream_login.forwarded"] is None
    assert events["upstream_login.completed"] == User.objects.get().pseudonym
