"""/token and /revoke: once, for whom it was meant, on a grant that is alive."""

import hashlib
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.http import HttpResponse
from django.utils import timezone

from oauth_relay import withdrawals
from oauth_relay.models import AccessToken, AuditEvent, AuthorizationCode, Client, Consent, Grant, RefreshToken, User
from oauth_relay.request_validator import MOST_REPLAYS
from tests.oauth_relay.conftest import VERIFIER, Browser, make_client

pytestmark = pytest.mark.django_db


def error_of(response: HttpResponse) -> str:
    assert response["Content-Type"].startswith("application/json")
    assert response["Cache-Control"] == "no-store"
    return str(response.json()["error"]) if response.status_code >= 400 else ""


# -- codes -------------------------------------------------------------------------------------------------------------


def test_a_code_becomes_a_bearer_pair(browser: Browser, ada: User, inspector: Client) -> None:
    answer = browser.tokens(inspector, ada)
    assert answer["token_type"] == "Bearer"
    assert (answer["expires_in"], answer["scope"]) == (600, "read:todos write:todos")
    assert AccessToken.objects.get().resource == [settings.RESOURCES[0]]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_verifier": "w" * 64}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_grant"),
        ({"code": "unknown"}, "invalid_grant"),
        ({"code": "a\0b"}, "invalid_request"),
        ({"redirect_uri": "http://127.0.0.1:1/callback"}, "invalid_request"),
        ({"client_id": "unknown"}, "invalid_client"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"grant_type": "urn:ietf:params:oauth:grant-type:device_code"}, "unsupported_grant_type"),
        ({"grant_type": ""}, "invalid_request"),
        ({"resource": settings.RESOURCES[1]}, "invalid_target"),
        ({"resource": "https://other.example"}, "invalid_target"),
    ],
)
def test_a_wrong_request_gets_its_error_and_leaves_the_code_unused(
    browser: Browser, ada: User, inspector: Client, changes: dict[str, str], error: str
) -> None:
    code = browser.connect(inspector, ada)["code"]
    assert error_of(browser.redeem(inspector, code, **changes)) == error
    assert not AccessToken.objects.exists()
    assert browser.redeem(inspector, code).status_code == 200


def test_a_failed_client_is_told_how_to_authenticate(browser: Browser, ada: User, inspector: Client) -> None:
    response = browser.redeem(inspector, "x", client_id="unknown")
    assert (response.status_code, response["WWW-Authenticate"]) == (401, 'Basic realm="CAIR"')  # RFC 6749 §5.2


def test_another_clients_code_is_unknown(browser: Browser, ada: User, inspector: Client) -> None:
    code = browser.connect(inspector, ada)["code"]
    assert error_of(browser.redeem(make_client("Other"), code)) == "invalid_grant"
    assert browser.redeem(inspector, code).status_code == 200


def test_a_replayed_code_ends_what_it_gave(browser: Browser, ada: User, inspector: Client) -> None:
    code = browser.connect(inspector, ada)["code"]
    given = browser.redeem(inspector, code).json()
    assert error_of(browser.redeem(inspector, code)) == "invalid_grant"  # RFC 6749 §4.1.2
    assert not AccessToken.objects.exists()
    assert error_of(browser.refresh(inspector, given["refresh_token"])) == "invalid_grant"
    assert AuditEvent.objects.filter(event="token_family.ended", outcome="code_replayed").exists()


def test_a_code_is_good_for_a_minute(browser: Browser, ada: User, inspector: Client) -> None:
    code = browser.connect(inspector, ada)["code"]
    AuthorizationCode.objects.update(expires=timezone.now() - timedelta(seconds=1))
    assert error_of(browser.redeem(inspector, code)) == "invalid_grant"


def test_redirect_uri_may_be_left_out_at_the_token_endpoint(browser: Browser, ada: User, inspector: Client) -> None:
    code = browser.connect(inspector, ada)["code"]
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "client_id": inspector.client_id,
        "code_verifier": VERIFIER,
    }
    assert browser.token(**form).status_code == 200  # OAuth 2.1 §4.1.3


def test_a_token_may_be_for_less_than_was_authorized(browser: Browser, ada: User, inspector: Client) -> None:
    code = browser.connect(inspector, ada, resource=None)["code"]
    browser.redeem(inspector, code, resource=settings.RESOURCES[1])
    assert AccessToken.objects.get().resource == [settings.RESOURCES[1]]


@pytest.mark.parametrize(
    "field", ["refresh_token_instance", "code_row", "relay_grant", "replayed_answer", "user", "client"]
)
def test_form_fields_never_become_the_servers_own_attributes(
    browser: Browser, ada: User, inspector: Client, field: str
) -> None:
    code = browser.connect(inspector, ada)["code"]
    response = browser.redeem(inspector, code, **{field: "forged"})
    assert response.status_code == 200
    assert AccessToken.objects.get().user == ada


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{}", "application/json"),
        (b"grant_type=refresh_token&grant_type=refresh_token", "application/x-www-form-urlencoded"),
        (b"grant_type=" + b"x" * 300_000, "application/x-www-form-urlencoded"),
        (b"\xff\xfe=\xff", "application/x-www-form-urlencoded"),
        (b"", "application/x-www-form-urlencoded"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
    ],
)
@pytest.mark.parametrize("path", ["/token", "/revoke"])
def test_a_malformed_body_gets_a_json_error(
    browser: Browser, db: None, path: str, body: bytes, content_type: str
) -> None:
    browser.raise_request_exception = False
    response = browser.post(path, body, content_type=content_type)
    assert 400 <= response.status_code < 500
    assert response.json()["error"] in ("invalid_request", "invalid_client", "unsupported_grant_type")


@pytest.mark.parametrize("credentials", ["\xe9", "=", "%%%", "Og==", "AAAA"])
@pytest.mark.parametrize("path", ["/token", "/revoke"])
def test_unreadable_basic_credentials_are_a_failed_client(
    browser: Browser, db: None, path: str, credentials: str
) -> None:
    form = "application/x-www-form-urlencoded"
    headers = {"Authorization": f"Basic {credentials}"}
    response = browser.post(path, "grant_type=refresh_token&refresh_token=x&token=x", form, headers=headers)
    assert (response.status_code, error_of(response)) == (401, "invalid_client")


@pytest.mark.parametrize("path", ["/token", "/revoke", "/register"])
def test_another_method_gets_a_json_error(browser: Browser, db: None, path: str) -> None:
    response = browser.get(path)
    assert (response.status_code, response["Allow"], error_of(response)) == (405, "POST", "invalid_request")


# -- confidential clients ----------------------------------------------------------------------------------------------


def confidential() -> Client:
    return make_client("Server", client_type="confidential", client_secret="s" * 40)


@pytest.mark.parametrize(("secret", "status"), [("s" * 40, 200), ("wrong", 401), (None, 401)])
def test_a_confidential_client_must_show_its_secret(
    browser: Browser, ada: User, secret: str | None, status: int
) -> None:
    client = confidential()
    code = browser.connect(client, ada)["code"]
    extra = {"client_secret": secret} if secret else {}
    assert browser.redeem(client, code, **extra).status_code == status


# -- refresh -----------------------------------------------------------------------------------------------------------


def test_refresh_rotates(browser: Browser, ada: User, inspector: Client) -> None:
    first = browser.tokens(inspector, ada)
    second = browser.refresh(inspector, first["refresh_token"]).json()
    assert second["refresh_token"] != first["refresh_token"]
    assert second["scope"] == first["scope"]


def test_a_retry_gets_the_byte_identical_answer(browser: Browser, ada: User, inspector: Client) -> None:
    first = browser.tokens(inspector, ada)
    answers = {browser.refresh(inspector, first["refresh_token"]).content for _ in range(3)}
    assert len(answers) == 1
    assert RefreshToken.objects.filter(revoked=None).count() == 1


def test_a_predecessor_after_its_time_ends_the_family(browser: Browser, ada: User, inspector: Client) -> None:
    first = browser.tokens(inspector, ada)
    second = browser.refresh(inspector, first["refresh_token"]).json()
    RefreshToken.objects.filter(revoked=None).update(first_used_at=timezone.now() - timedelta(seconds=31))
    assert error_of(browser.refresh(inspector, first["refresh_token"])) == "invalid_grant"
    assert error_of(browser.refresh(inspector, second["refresh_token"])) == "invalid_grant"
    assert AuditEvent.objects.filter(outcome="refresh_token_reused").count() == 1


def test_an_older_ancestor_ends_the_family(browser: Browser, ada: User, inspector: Client) -> None:
    first = browser.tokens(inspector, ada)
    second = browser.refresh(inspector, first["refresh_token"]).json()
    third = browser.refresh(inspector, second["refresh_token"]).json()
    RefreshToken.objects.filter(first_used_at__isnull=False).update(
        first_used_at=timezone.now() - timedelta(seconds=31)
    )
    assert error_of(browser.refresh(inspector, first["refresh_token"])) == "invalid_grant"
    assert error_of(browser.refresh(inspector, third["refresh_token"])) == "invalid_grant"


def test_a_retry_is_not_for_ever(browser: Browser, ada: User, inspector: Client) -> None:
    first = browser.tokens(inspector, ada)
    statuses = [browser.refresh(inspector, first["refresh_token"]).status_code for _ in range(MOST_REPLAYS + 2)]
    assert statuses == [200] * (MOST_REPLAYS + 1) + [400]


def test_a_retry_that_asks_for_something_else_changes_nothing(browser: Browser, ada: User, inspector: Client) -> None:
    first = browser.tokens(inspector, ada)
    second = browser.refresh(inspector, first["refresh_token"]).json()
    assert error_of(browser.refresh(inspector, first["refresh_token"], scope="read:todos")) == "invalid_scope"
    assert browser.refresh(inspector, second["refresh_token"]).status_code == 200


def test_refresh_may_ask_for_less_and_keeps_the_right_to_more(browser: Browser, ada: User, inspector: Client) -> None:
    first = browser.tokens(inspector, ada)
    narrow = browser.refresh(inspector, first["refresh_token"], scope="read:todos").json()
    assert narrow["scope"] == "read:todos"
    assert browser.refresh(inspector, narrow["refresh_token"]).json()["scope"] == "read:todos write:todos"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"scope": "read:todos read:billing"}, "invalid_scope"),
        ({"resource": "https://other.example"}, "invalid_target"),
        ({"refresh_token": "unknown"}, "invalid_grant"),
        ({"client_id": "unknown"}, "invalid_client"),
    ],
)
def test_refresh_never_widens(
    browser: Browser, ada: User, inspector: Client, changes: dict[str, str], error: str
) -> None:
    first = browser.tokens(inspector, ada)
    assert error_of(browser.refresh(inspector, first["refresh_token"], **changes)) == error
    assert browser.refresh(inspector, first["refresh_token"]).status_code == 200


def test_another_clients_refresh_token_is_unknown(browser: Browser, ada: User, inspector: Client) -> None:
    first = browser.tokens(inspector, ada)
    assert error_of(browser.refresh(make_client("Thief"), first["refresh_token"])) == "invalid_grant"
    assert browser.refresh(inspector, first["refresh_token"]).status_code == 200


def test_an_idle_refresh_token_dies_after_its_lifetime(browser: Browser, ada: User, inspector: Client) -> None:
    first = browser.tokens(inspector, ada)
    RefreshToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert error_of(browser.refresh(inspector, first["refresh_token"])) == "invalid_grant"


# -- T11: the grant is the anchor --------------------------------------------------------------------------------------


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    "end",
    [
        lambda ada, client: withdrawals.withdraw_grant(Grant.objects.get().pk, "test"),
        lambda ada, client: withdrawals.block_client(client),
        lambda ada, client: User.objects.filter(pk=ada.pk).update(is_active=False),
    ],
)
def test_whatever_ends_the_permission_ends_codes_and_refresh(
    browser: Browser, ada: User, inspector: Client, end: Any
) -> None:
    given = browser.tokens(inspector, ada)
    code = browser.connect(inspector, ada)["code"]
    end(ada, inspector)
    assert error_of(browser.redeem(inspector, code)) in ("invalid_grant", "invalid_client")
    assert error_of(browser.refresh(inspector, given["refresh_token"])) in ("invalid_grant", "invalid_client")
    assert RefreshToken.objects.filter(revoked=None).count() == 1  # none was born afterwards


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    "change", [{"expires_at": timezone.now()}, {"withdrawn_at": timezone.now()}, {"scope": "read:todos"}]
)
def test_nothing_is_issued_beyond_a_consent_that_is_alive(
    browser: Browser, ada: User, inspector: Client, change: dict[str, Any]
) -> None:
    given = browser.tokens(inspector, ada)
    code = browser.connect(inspector, ada)["code"]
    Consent.objects.update(**change)
    assert error_of(browser.refresh(inspector, given["refresh_token"])) == "invalid_grant"
    assert error_of(browser.redeem(inspector, code)) == "invalid_grant"


def test_two_devices_of_one_client_share_the_grant_and_not_the_family(
    browser: Browser, ada: User, inspector: Client
) -> None:
    laptop, phone = browser.tokens(inspector, ada), browser.tokens(inspector, ada)
    browser.token_revoke = browser.post(
        "/revoke",
        f"token={laptop['refresh_token']}&client_id={inspector.client_id}",
        "application/x-www-form-urlencoded",
    )
    assert Grant.objects.count() == 1
    assert error_of(browser.refresh(inspector, laptop["refresh_token"])) == "invalid_grant"
    assert browser.refresh(inspector, phone["refresh_token"]).status_code == 200


# -- revocation --------------------------------------------------------------------------------------------------------


def revoke(browser: Browser, client: Client, token: str) -> HttpResponse:
    body = f"token={token}&client_id={client.client_id}"
    return browser.post("/revoke", body, content_type="application/x-www-form-urlencoded")


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
def test_revoking_either_token_ends_its_family(browser: Browser, ada: User, inspector: Client, kind: str) -> None:
    given = browser.tokens(inspector, ada)
    assert revoke(browser, inspector, given[kind]).status_code == 200
    assert not AccessToken.objects.exists()
    assert error_of(browser.refresh(inspector, given["refresh_token"])) == "invalid_grant"


def test_an_unknown_token_and_another_clients_read_the_same(browser: Browser, ada: User, inspector: Client) -> None:
    given = browser.tokens(inspector, ada)
    other = make_client("Other")
    assert (
        revoke(browser, other, given["refresh_token"]).status_code
        == revoke(browser, other, "unknown").status_code
        == 200
    )
    assert browser.refresh(inspector, given["refresh_token"]).status_code == 200


# -- T18: what the tables hold -----------------------------------------------------------------------------------------


@pytest.mark.threat("T18")
def test_no_table_holds_anything_that_opens_a_door(browser: Browser, ada: User, inspector: Client) -> None:
    registered = browser.post(
        "/register", {"redirect_uris": ["https://a.example/cb"]}, content_type="application/json"
    ).json()
    answer = browser.connect(inspector, ada)
    given = browser.redeem(inspector, answer["code"]).json()
    later = browser.refresh(inspector, given["refresh_token"]).json()
    secrets = [
        answer["code"], given["access_token"], given["refresh_token"], later["access_token"], later["refresh_token"],
        registered["client_secret"], registered["registration_access_token"], *(c.value for c in browser.cookies.values()),
    ]  # fmt: skip
    stored = [
        bytes(value) if isinstance(value, memoryview) else value if isinstance(value, bytes) else str(value).encode()
        for model in apps.get_models()
        for row in model._default_manager.values_list()
        for value in row
    ]
    for secret in secrets:
        assert not any(secret.encode() in value for value in stored)
    assert any(hashlib.sha256(given["access_token"].encode()).hexdigest().encode() in value for value in stored)
