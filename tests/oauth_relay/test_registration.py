"""/register: real clients get in, junk does not, and every registration is its own client."""

import json
from typing import Any

import pytest
from django.conf import settings
from django.http import HttpResponse

from oauth_relay.models import AccessToken, Client, UpstreamCredential, User
from tests.oauth_relay.conftest import Browser

pytestmark = pytest.mark.django_db
VS_CODE = {
    "client_name": "Visual Studio Code",
    "client_uri": "https://code.visualstudio.com",
    "grant_types": ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"],
    "response_types": ["code"],
    "redirect_uris": ["https://vscode.dev/redirect", "http://127.0.0.1/", "http://127.0.0.1:33418/"],
    "scope": "",
    "token_endpoint_auth_method": "none",
    "application_type": "native",
}
CURSOR = {
    "client_name": "Cursor",
    "redirect_uris": [
        "cursor://anysphere.cursor-mcp/oauth/callback",
        "http://evil.example/cb",
        "https://www.cursor.com/cb",
    ],
    "token_endpoint_auth_method": "none",
}


def register(browser: Browser, metadata: Any) -> HttpResponse:
    body = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    return browser.post("/register", body, content_type="application/json")


def test_vs_codes_own_request_is_registered_without_what_it_cannot_have(browser: Browser) -> None:
    response = register(browser, VS_CODE)
    answer = response.json()
    assert response.status_code == 201
    assert answer["grant_types"] == ["authorization_code", "refresh_token"]
    assert answer["redirect_uris"] == VS_CODE["redirect_uris"]
    assert answer["client_uri"] == "https://code.visualstudio.com"
    assert answer["application_type"] == "native"
    assert isinstance(answer["client_id_issued_at"], int)
    assert "client_secret" not in answer
    assert answer["registration_client_uri"] == f"{settings.PUBLIC_URL}/register/{answer['client_id']}"


@pytest.mark.pain("P7")
def test_one_bad_redirect_uri_does_not_spoil_the_others(browser: Browser) -> None:
    assert register(browser, CURSOR).json()["redirect_uris"] == [CURSOR["redirect_uris"][0], CURSOR["redirect_uris"][2]]


@pytest.mark.pain("P7")
def test_a_scheme_is_refused_by_name_until_an_operator_lists_it(browser: Browser, settings: Any) -> None:
    metadata = {**CURSOR, "redirect_uris": ["rikkahub://callback"]}
    refused = register(browser, metadata).json()
    assert refused["error"] == "invalid_redirect_uri"
    assert "one of cursor:, vscode:, vscode-insiders:" in refused["error_description"]
    settings.CUSTOM_REDIRECT_SCHEMES = ["cursor", "rikkahub"]
    client = Client.objects.get(client_id=register(browser, metadata).json()["client_id"])
    assert "sign in" in browser.authorize(client, redirect_uri="rikkahub://callback").content.decode().lower()


def test_a_confidential_client_gets_a_secret_that_never_expires_and_is_shown_once(browser: Browser) -> None:
    answer = register(browser, {"redirect_uris": ["https://a.example/cb"]}).json()
    assert answer["token_endpoint_auth_method"] == "client_secret_basic"  # RFC 7591 §2, the default
    assert len(answer["client_secret"]) > 40
    assert answer["client_secret_expires_at"] == 0
    assert "client_secret" not in manage(browser, answer, "get").json()


@pytest.mark.threat("T6")
def test_the_same_metadata_twice_is_two_clients(browser: Browser) -> None:
    first, second = register(browser, VS_CODE).json(), register(browser, VS_CODE).json()
    assert first["client_id"] != second["client_id"]
    assert Client.objects.count() == 2


@pytest.mark.pain("P39")
@pytest.mark.parametrize(
    "uri",
    [
        "http://evil.example/cb", "http://localhost.evil.example/cb", "https://a.example/cb#x", "javascript:alert(1)",
        "https://u:p@a.example/cb", "ftp://a.example", "https://", "/relative", "https://a.example/a b", "data:text/html,x",
        "https://a.example:port/", "http://127.0.0.1.evil.example/", "myapp://cb", "https://a.example/\u202ecb",
        "", "https:\\\\a",
    ],
)  # fmt: skip
def test_a_redirect_uri_that_could_lead_elsewhere_is_refused(browser: Browser, uri: str) -> None:
    response = register(browser, {"redirect_uris": [uri]})
    assert (response.status_code, response.json()["error"]) == (400, "invalid_redirect_uri")
    assert not Client.objects.exists()


@pytest.mark.parametrize(
    "metadata",
    [
        b"", b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b"[" * 100_000, {}, {"redirect_uris": "https://a.example"},
        {"redirect_uris": []}, {"redirect_uris": [1]}, {"redirect_uris": [f"https://a.example/{n}" for n in range(31)]},
        {"redirect_uris": ["https://a.example/"], "grant_types": ["client_credentials"]},
        {"redirect_uris": ["https://a.example/"], "grant_types": ["password"]},
        {"redirect_uris": ["https://a.example/"], "grant_types": "authorization_code"},
        {"redirect_uris": ["https://a.example/"], "client_name": {"a": 1}},
        {"redirect_uris": ["https://a.example/"], "client_name": "a\0b"},
        {"redirect_uris": ["https://a.example/"], "client_name": "x" * 20_000},
        {"redirect_uris": ["https://a.example/"], "token_endpoint_auth_method": "private_key_jwt"},
        {"redirect_uris": ["https://a.example/"], "token_endpoint_auth_method": ["none"]},
        {"redirect_uris": ["https://a.example/"], "contacts": "me"},
    ],
)  # fmt: skip
def test_junk_gets_a_json_error_and_leaves_no_client(browser: Browser, metadata: Any) -> None:
    response = register(browser, metadata)
    assert response.status_code == 400
    assert response.json()["error"] in ("invalid_client_metadata", "invalid_redirect_uri")
    assert not Client.objects.exists()


@pytest.mark.threat("T31")
def test_a_name_cannot_turn_the_page_around(browser: Browser) -> None:
    register(browser, {**VS_CODE, "client_name": "\u202eedualC\u2066\n\x1b[31m"})
    assert Client.objects.get().name == "edualC[31m"


def test_the_registration_token_is_no_access_token(browser: Browser) -> None:
    register(browser, VS_CODE)
    assert not AccessToken.objects.exists()


# -- RFC 7592 ----------------------------------------------------------------------------------------------------------


def manage(
    browser: Browser, registered: dict[str, Any], method: str, body: Any = None, token: str = ""
) -> HttpResponse:
    return getattr(browser, method)(
        f"/register/{registered['client_id']}",
        headers={"Authorization": f"Bearer {token or registered['registration_access_token']}"},
        **({"data": json.dumps(body), "content_type": "application/json"} if method == "put" else {}),
    )


def test_a_client_reads_changes_and_deletes_itself(browser: Browser) -> None:
    registered = register(browser, VS_CODE).json()
    assert manage(browser, registered, "get").json()["client_name"] == "Visual Studio Code"
    change = {
        **VS_CODE,
        "client_id": registered["client_id"],
        "client_name": "Code",
        "redirect_uris": ["https://b.example/"],
    }
    assert manage(browser, registered, "put", change).json()["redirect_uris"] == ["https://b.example/"]
    assert manage(browser, registered, "delete").status_code == 204
    assert manage(browser, registered, "get").status_code == 401
    assert not Client.objects.exists()


@pytest.mark.parametrize("method", ["get", "put", "delete"])
def test_somebody_elses_token_and_an_unknown_client_read_the_same(browser: Browser, method: str) -> None:
    mine, theirs = register(browser, VS_CODE).json(), register(browser, CURSOR).json()
    answers = {
        manage(browser, theirs, method, {}, mine["registration_access_token"]).content,
        manage(browser, {**theirs, "client_id": "unknown"}, method, {}).content,
        manage(browser, {**theirs, "client_id": "%00"}, method, {}).content,
    }
    assert len(answers) == 1
    assert Client.objects.count() == 2


@pytest.mark.threat("T6")
@pytest.mark.parametrize(
    "change",
    [
        {"client_id": "other"},
        {"token_endpoint_auth_method": "client_secret_post"},
        {"redirect_uris": ["http://evil.example"]},
    ],
)
def test_a_change_never_moves_the_client_to_other_hands(browser: Browser, change: dict[str, Any]) -> None:
    registered = register(browser, VS_CODE).json()
    body = {**VS_CODE, "client_id": registered["client_id"], **change}
    assert manage(browser, registered, "put", body).status_code == 400
    assert Client.objects.get().redirect_uris.split() == VS_CODE["redirect_uris"]


def test_a_client_that_deletes_itself_leaves_nothing_of_the_person_in_the_vault(browser: Browser, ada: User) -> None:
    registered = register(browser, {**VS_CODE, "redirect_uris": ["http://127.0.0.1:33418/callback"]}).json()
    browser.tokens(Client.objects.get(), ada)
    UpstreamCredential.objects.create(user=ada, provider="auth0", audience="x", issuer="i", subject="s", tokens=b"")
    manage(browser, registered, "delete")
    assert not UpstreamCredential.objects.exists()


def test_contacts_that_cannot_be_written_are_left_out(browser: Browser) -> None:
    answer = register(browser, {**VS_CODE, "contacts": ["\ud800", "me@example.com"]}).json()
    assert answer["contacts"] == ["me@example.com"]


def test_a_client_that_deletes_itself_leaves_no_live_token(browser: Browser, ada: User) -> None:
    registered = register(browser, {**VS_CODE, "redirect_uris": ["http://127.0.0.1:33418/callback"]}).json()
    browser.tokens(Client.objects.get(), ada)
    manage(browser, registered, "delete")
    assert not AccessToken.objects.exists()


# -- keys, languages, and what a client may not choose -----------------------------------------------------------------


def test_texts_in_other_languages_are_kept_and_echoed(browser: Browser) -> None:
    """RFC 7591 §2.2."""
    metadata = {**VS_CODE, "client_name#de": "Visual Studio Code (de)", "client_name#\u202e": "x", "unknown#de": "y"}
    answer = register(browser, metadata).json()
    assert answer["client_name#de"] == "Visual Studio Code (de)"
    assert not {"client_name#\u202e", "unknown#de"} & set(answer)


PUBLIC_KEY = {"kty": "EC", "crv": "P-256", "x": "a", "y": "b", "kid": "1"}


@pytest.mark.parametrize("keys", [{"jwks": {"keys": [PUBLIC_KEY]}}, {"jwks_uri": "https://a.example/jwks"}])
def test_public_keys_are_kept_and_echoed(browser: Browser, keys: dict[str, Any]) -> None:
    answer = register(browser, {**VS_CODE, **keys}).json()
    assert {name: answer[name] for name in keys} == keys


@pytest.mark.parametrize(
    "keys",
    [
        {"jwks": {"keys": [{**PUBLIC_KEY, "d": "private"}]}}, {"jwks": {"keys": [{"kty": "oct", "k": "secret"}]}},
        {"jwks": {"keys": "x"}}, {"jwks": []}, {"jwks": {}}, {"jwks": {"keys": [1]}}, {"jwks_uri": "http://a.example/"},
        {"jwks_uri": 1}, {"jwks_uri": "https://a.example/\u202e"}, {"jwks": {"keys": []}, "jwks_uri": "https://a.example"},
    ],
)  # fmt: skip
def test_other_keys_are_refused(browser: Browser, keys: dict[str, Any]) -> None:
    response = register(browser, {**VS_CODE, **keys})
    assert (response.status_code, response.json()["error"]) == (400, "invalid_client_metadata")


def test_a_client_does_not_choose_its_secret(browser: Browser) -> None:
    """RFC 7592 §2.2."""
    metadata = {"redirect_uris": ["https://a.example/cb"]}
    answer = register(browser, metadata).json()
    kept = {**metadata, "client_id": answer["client_id"]}
    assert manage(browser, answer, "put", {**kept, "client_secret": answer["client_secret"]}).status_code == 200
    refused = manage(browser, answer, "put", {**kept, "client_secret": "mine"})
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_client_metadata")
    assert manage(browser, answer, "put", {**kept, "client_secret": 1}).status_code == 400
