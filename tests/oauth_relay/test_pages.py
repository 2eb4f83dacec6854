"""What is public, what is a page, and what an operator sees."""

from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError

from oauth_relay.models import AuditEvent, Client, Grant, User
from tests.oauth_relay.conftest import Browser

pytestmark = pytest.mark.django_db
SERVER_SPELLINGS = [
    "/.well-known/oauth-authorization-server", "/.well-known/oauth-authorization-server/mcp",
    "/.well-known/oauth-authorization-server/sse", "/.well-known/openid-configuration",
    "/.well-known/openid-configuration/mcp", "/.well-known/openid-configuration/sse",
    "/mcp/.well-known/openid-configuration", "/sse/.well-known/openid-configuration",
]  # fmt: skip


# -- discovery ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SERVER_SPELLINGS)
def test_every_spelling_gives_the_one_document(browser: Browser, path: str) -> None:
    document = browser.get(path).json()
    assert document["issuer"] == settings.PUBLIC_URL
    assert document["code_challenge_methods_supported"] == ["S256"]
    assert document["authorization_response_iss_parameter_supported"] is True
    assert "none" in document["token_endpoint_auth_methods_supported"]
    assert document["grant_types_supported"] == ["authorization_code", "refresh_token"]
    for name in ("authorization", "token", "registration", "revocation"):
        assert document[f"{name}_endpoint"].startswith(settings.PUBLIC_URL + "/")


@pytest.mark.parametrize(("path", "resource"), [("", "mcp"), ("/mcp", "mcp"), ("/sse", "sse")])
def test_each_resource_has_its_document_and_the_root_names_mcp(browser: Browser, path: str, resource: str) -> None:
    document = browser.get(f"/.well-known/oauth-protected-resource{path}").json()
    assert document["resource"] == f"{settings.PUBLIC_URL}/{resource}"
    assert document["authorization_servers"] == [settings.PUBLIC_URL]
    assert "offline_access" not in document["scopes_supported"]
    assert {"read:todos", "write:todos", "read:billing"} <= set(document["scopes_supported"])


def test_a_resource_that_is_not_ours_has_no_document(browser: Browser) -> None:
    response = browser.get("/.well-known/oauth-protected-resource/any/thing")
    assert (response.status_code, response.json()["error"]) == (404, "not_found")


def test_what_metadata_says_never_follows_the_host_header(browser: Browser) -> None:
    document = browser.get(
        "/.well-known/oauth-authorization-server", headers={"X-Forwarded-Host": "evil.example"}
    ).json()
    assert "evil" not in str(document)


# -- pages -------------------------------------------------------------------------------------------------------------


def test_the_front_page_says_how_to_connect(browser: Browser) -> None:
    text = browser.get("/").content.decode()
    for words in ("claude mcp add", "Cursor", "VS Code", "Inspector", settings.RESOURCES[0]):
        assert words in text


@pytest.mark.parametrize(("path", "kind"), [("/nowhere", "text/html"), ("/api/nowhere", "application/json")])
def test_nothing_there_is_said_in_the_askers_own_form(browser: Browser, path: str, kind: str) -> None:
    response = browser.get(path)
    assert response.status_code == 404
    assert response["Content-Type"].startswith(kind)


@pytest.mark.parametrize("path", ["/connections", "/token"])
def test_a_database_that_is_away_is_a_503_that_says_when_to_retry(
    browser: Browser, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("connection refused at 10.0.0.3")

    browser.raise_request_exception = False
    monkeypatch.setattr("oauth_relay.connections.signed_in_person", away)
    monkeypatch.setattr("oauth_relay.token_grants.RelayTokenView.create_token_response", away)
    response = browser.get(path) if path == "/connections" else browser.token(grant_type="refresh_token")
    assert response.status_code == 503
    assert int(response["Retry-After"]) > 0
    assert b"10.0.0.3" not in response.content


def test_what_nobody_foresaw_says_no_detail(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise ValueError("a secret detail")

    browser.raise_request_exception = False
    monkeypatch.setattr("oauth_relay.token_grants.RelayTokenView.create_token_response", failing)
    response = browser.token(grant_type="refresh_token")
    assert (response.status_code, response.json()["error"]) == (500, "server_error")
    assert b"secret" not in response.content


@pytest.mark.parametrize(
    ("method", "path", "status"), [("post", "/", 405), ("get", "/mcp/", 404), ("post", "/sse/", 404)]
)
def test_a_client_with_nearly_the_right_address_is_told_the_right_one(
    browser: Browser, method: str, path: str, status: int
) -> None:
    response = getattr(browser, method)(path)
    assert response.status_code == status
    resource = settings.RESOURCES[1 if "sse" in path else 0]
    assert resource in response.json()["error_description"]


# -- connections -------------------------------------------------------------------------------------------------------


def test_a_person_sees_and_ends_what_is_connected(browser: Browser, ada: User, inspector: Client) -> None:
    given = browser.tokens(inspector, ada)
    page = browser.get("/connections").content.decode()
    assert "Inspector" in page
    assert "127.0.0.1:33418" in page
    response = browser.read(browser.post("/connections", {"action": "withdraw", "grant": str(Grant.objects.get().pk)}))
    assert "Inspector is disconnected" in response.content.decode()
    assert browser.refresh(inspector, given["refresh_token"]).status_code == 400
    assert Grant.objects.get().withdrawn_by == "person"


@pytest.mark.parametrize("grant", [None, "", "nonsense", "00000000-0000-0000-0000-000000000000"])
def test_somebody_elses_connection_reads_like_none(
    browser: Browser, ada: User, mallory: User, inspector: Client, grant: str | None
) -> None:
    browser.tokens(inspector, ada)
    theirs = str(Grant.objects.get().pk)
    attacker = Browser()
    attacker.read(attacker.get("/login"))
    attacker.sign_in(mallory)
    response = attacker.read(
        attacker.post("/connections", {"action": "withdraw", "grant": theirs if grant is None else grant})
    )
    assert "had already ended" in response.content.decode()
    assert Grant.objects.get().is_open


# -- admin -------------------------------------------------------------------------------------------------------------

SEEN = ["client", "grant", "consent", "accesstoken", "refreshtoken", "authorizationcode", "auditevent"]


@pytest.fixture
def operator(browser: Browser) -> Browser:
    User.objects.create_superuser("operator", password="open sesame")
    operators = Browser()
    operators.post("/admin/login/", {"username": "operator", "password": "open sesame"})
    return operators


@pytest.mark.pain("P30")
@pytest.mark.parametrize("name", SEEN)
def test_an_operator_sees_rows_and_changes_none(
    browser: Browser, operator: Browser, ada: User, inspector: Client, name: str
) -> None:
    given = browser.tokens(inspector, ada)
    browser.refresh(inspector, given["refresh_token"])
    listing = operator.get(f"/admin/oauth_relay/{name}/")
    assert listing.status_code == 200
    from django.apps import apps

    row = apps.get_model("oauth_relay", name).objects.first()
    assert row is not None
    detail = operator.get(f"/admin/oauth_relay/{name}/{row.pk}/change/")
    assert detail.status_code == 200
    assert ('name="_save"' in detail.content.decode()) == (name == "client"), "two switches of a client, nothing else"
    assert operator.post(f"/admin/oauth_relay/{name}/{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert operator.get(f"/admin/oauth_relay/{name}/add/").status_code == 403
    for secret in (
        given["access_token"],
        given["refresh_token"],
        getattr(row, "token_checksum", None),
        getattr(row, "code", None),
    ):
        assert not secret or secret not in detail.content.decode()


def test_an_audit_event_is_written_once(browser: Browser, ada: User, inspector: Client) -> None:
    browser.tokens(inspector, ada)
    event = AuditEvent.objects.get(event="token.issued")
    assert (event.pseudonym, event.client_id) == (ada.pseudonym, inspector.client_id)
    with pytest.raises(TypeError):
        event.save()
    with pytest.raises(TypeError):
        event.delete()


def test_health_asks_nothing_of_anybody(browser: Browser, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert browser.get("/health").json() == {"status": "ok"}
