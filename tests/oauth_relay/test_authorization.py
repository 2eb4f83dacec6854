"""/authorize: the request is checked, the person is asked once, and every end is the right one."""

from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.http import HttpResponse
from django.utils import timezone

from oauth_relay.authorization import AuthorizationView
from oauth_relay.models import AuthorizationCode, Client, Consent, Grant, LoginTransaction, User
from oauth_relay.withdrawals import withdraw_grant
from tests.oauth_relay.conftest import CHALLENGE, LOOPBACK, Browser, answered, make_client

pytestmark = pytest.mark.django_db
ELSEWHERE = "https://client.example/callback"


def is_page(response: HttpResponse, *said: str) -> bool:
    text = response.content.decode()
    return response["Content-Type"].startswith("text/html") and all(words in text for words in said)


# -- the whole way -----------------------------------------------------------------------------------------------------


def test_it_ends_at_the_client_with_code_state_and_issuer(browser: Browser, ada: User, inspector: Client) -> None:
    answer = browser.connect(inspector, ada)
    assert answer["state"] == "its state"
    assert answer["iss"] == settings.PUBLIC_URL  # RFC 9207 §2
    assert answer["code"]


def test_the_consent_is_a_record_of_what_was_shown(browser: Browser, ada: User, inspector: Client) -> None:
    browser.connect(inspector, ada)
    record = Consent.objects.get()
    assert (record.grant.user, record.grant.client) == (ada, inspector)
    assert (record.redirect_uri, record.scope, record.resource) == (
        LOOPBACK,
        "read:todos write:todos",
        [settings.RESOURCES[0]],
    )
    assert record.client_digest == inspector.digest()


@pytest.mark.pain("P19")
def test_the_sign_in_page_names_client_redirect_and_scopes(browser: Browser, inspector: Client) -> None:
    page = browser.authorize(inspector)
    assert is_page(page, "Inspector", LOOPBACK, "See your todos")


@pytest.mark.pain("P19")
@pytest.mark.pain("P35")
def test_the_consent_page_names_account_host_scopes_and_tools(browser: Browser, ada: User, inspector: Client) -> None:
    browser.authorize(inspector)
    page = browser.sign_in(ada)
    assert is_page(page, "Inspector", "ada@example.com", "127.0.0.1:33418", "Add, change and delete your todos")
    assert browser.page.scopes == ["read:todos", "write:todos"]


def test_unticking_narrows_what_is_granted(browser: Browser, ada: User, inspector: Client) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    answered(browser.answer(scope=["read:todos"]))
    assert AuthorizationCode.objects.get().scope == "read:todos"


def test_ticking_what_was_not_asked_gives_nothing(browser: Browser, ada: User, inspector: Client) -> None:
    browser.authorize(inspector, scope="read:todos")
    browser.sign_in(ada)
    answered(browser.answer(scope=["read:todos", "read:billing"]))
    assert AuthorizationCode.objects.get().scope == "read:todos"


def test_unticking_everything_is_asked_about_again(browser: Browser, ada: User, inspector: Client) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    assert is_page(browser.answer(scope=[]), "Tick at least one permission")
    assert not AuthorizationCode.objects.exists()


def test_a_request_for_offline_access_alone_can_be_allowed(browser: Browser, ada: User, inspector: Client) -> None:
    browser.authorize(inspector, scope="offline_access")
    browser.sign_in(ada)
    assert answered(browser.answer())["code"]


def test_a_wider_request_says_what_is_new(browser: Browser, ada: User, inspector: Client) -> None:
    browser.connect(inspector, ada, scope="read:todos")
    page = browser.authorize(inspector, scope="read:todos read:billing").content.decode()
    assert (page.count("Allowed before"), page.count(">New<")) == (1, 1)


def test_deny_and_cancel_reach_the_client(browser: Browser, ada: User, inspector: Client) -> None:
    browser.authorize(inspector)
    cancelled = answered(browser.read(browser.post("/login", {**browser.page.hidden, "action": "cancel"})))
    browser.authorize(inspector)
    browser.sign_in(ada)
    denied = answered(browser.answer("deny"))
    for answer in (cancelled, denied):
        assert (answer["error"], answer["state"], answer["iss"]) == ("access_denied", "its state", settings.PUBLIC_URL)
    assert not Grant.objects.exists()


@pytest.mark.pain("P35")
def test_not_you_asks_again_who_it_is(browser: Browser, ada: User, mallory: User, inspector: Client) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    browser.answer("switch_account")
    browser.sign_in(mallory)
    answered(browser.answer())
    assert Grant.objects.get().user == mallory


# -- requests that are wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"code_challenge": CHALLENGE + "\0"}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_type": None}, "invalid_request"),
        ({"response_mode": "fragment"}, "invalid_request"),
        ({"scope": "read:everything"}, "invalid_scope"),
        ({"resource": "https://other.example/mcp"}, "invalid_target"),
        ({"resource": f"{settings.PUBLIC_URL}/mcp/"}, "invalid_target"),
        ({"resource": f"{settings.PUBLIC_URL}/mcp/more"}, "invalid_target"),
        ({"resource": list(settings.RESOURCES)}, "invalid_target"),
        ({"request": "eyJ"}, "request_not_supported"),
        ({"state": ["one", "two"]}, "invalid_request"),
        ({"prompt": "none login"}, "invalid_request"),
        ({"prompt": "none"}, "login_required"),
    ],
)
def test_a_wrong_request_ends_at_a_loopback_client_with_its_error(
    browser: Browser, inspector: Client, changes: dict[str, Any], error: str
) -> None:
    answer = answered(browser.authorize(inspector, **changes))
    assert answer["error"] == error
    assert answer["iss"] == settings.PUBLIC_URL
    assert not LoginTransaction.objects.filter(answered_at=None).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "unknown"},
        {"client_id": "a\0b"},
        {"client_id": None},
        {"client_id": ["one", "two"]},
        {"redirect_uri": "http://127.0.0.1:33418/other"},
        {"redirect_uri": "http://localhost:33418/callback"},
        {"redirect_uri": LOOPBACK + "?more=1"},
        {"redirect_uri": LOOPBACK + "#fragment"},
        {"redirect_uri": "http://me@127.0.0.1:33418/callback"},
        {"redirect_uri": [LOOPBACK, ELSEWHERE]},
    ],
)
def test_without_a_proved_redirect_uri_there_is_a_page_and_no_redirect(
    browser: Browser, inspector: Client, changes: dict[str, Any]
) -> None:
    response = browser.authorize(inspector, **changes)
    assert response.status_code == 400
    assert is_page(response, "must connect anew")
    assert LOOPBACK not in response.content.decode()


@pytest.mark.pain("P5")
def test_the_difference_of_a_redirect_uri_is_in_the_log_and_not_on_the_page(
    browser: Browser, inspector: Client, caplog: pytest.LogCaptureFixture
) -> None:
    page = browser.authorize(inspector, redirect_uri=f"{LOOPBACK}/").content.decode()
    assert "that it has not registered" in page and LOOPBACK not in page
    [line] = [record.getMessage() for record in caplog.records if "is none of" in record.getMessage()]
    assert inspector.client_id in line and f"'{LOOPBACK}/'" in line and f"['{LOOPBACK}']" in line


def test_a_blocked_client_is_answered_by_a_page_that_sends_nobody_round_the_block(
    browser: Browser, inspector: Client
) -> None:
    """Told to register afresh, people would: a block is the operator's word, and no secret."""
    Client.objects.update(blocked_at="2026-01-01T00:00:00Z")
    response = browser.authorize(inspector)
    assert response.status_code == 400
    page = response.content.decode()
    assert "has blocked the application" in page and "registers afresh" not in page


def test_a_loopback_redirect_may_use_any_port(browser: Browser, ada: User, inspector: Client) -> None:
    answer = browser.connect(inspector, ada, redirect_uri="http://127.0.0.1:50000/callback")  # RFC 8252 §7.3
    assert answer["code"]


def test_no_resource_means_both_of_ours(browser: Browser, ada: User, inspector: Client) -> None:
    browser.connect(inspector, ada, resource=None)
    assert AuthorizationCode.objects.get().resource == list(settings.RESOURCES)


@pytest.mark.threat("T41")
def test_a_custom_scheme_is_shown_as_a_claim(browser: Browser, ada: User) -> None:
    uri = "cursor://anysphere.cursor-mcp/oauth/callback"
    client = make_client("Cursor", uri)
    browser.authorize(client, redirect_uri=uri)
    page = browser.sign_in(ada)
    assert is_page(page, "cursor:", "an app on this device")
    assert "form-action 'self' https: cursor:" in page["Content-Security-Policy"]
    assert browser.answer()["Location"].startswith(uri + "?code=")


# -- T28: who may be sent away without a click -------------------------------------------------------------------------


@pytest.mark.threat("T28")
def test_a_self_registered_client_elsewhere_gets_a_link_not_a_redirect(browser: Browser, ada: User) -> None:
    client = make_client("Evil", ELSEWHERE)
    page = browser.authorize(client, redirect_uri=ELSEWHERE, scope="nonsense")
    assert is_page(page, "client.example", "error=invalid_scope", "no such scope here: nonsense")
    assert page.status_code == 400


@pytest.mark.threat("T28")
@pytest.mark.parametrize("signed_in", [False, True])
def test_prompt_none_tells_a_stranger_nothing_without_a_click(browser: Browser, ada: User, signed_in: bool) -> None:
    if signed_in:
        browser.read(browser.get("/login"))
        browser.sign_in(ada)
    client = make_client("Evil", ELSEWHERE)
    page = browser.authorize(client, redirect_uri=ELSEWHERE, prompt="none")
    assert is_page(page, "client.example", "_required")
    assert page.status_code == 400


@pytest.mark.threat("T28")
def test_an_operators_client_or_one_consented_to_before_is_redirected(browser: Browser, ada: User) -> None:
    own = make_client("Ours", ELSEWHERE, registration_source="manual")
    assert answered(browser.authorize(own, redirect_uri=ELSEWHERE, scope="nonsense"))["error"] == "invalid_scope"
    known = make_client("Known", ELSEWHERE)
    browser.connect(known, ada, redirect_uri=ELSEWHERE)
    assert answered(browser.authorize(known, redirect_uri=ELSEWHERE, scope="nonsense"))["error"] == "invalid_scope"


@pytest.mark.threat("T28")
@pytest.mark.parametrize(
    "next_page", ["https://evil.example", "//evil.example", "/admin/", "/authorize?x", "javascript:1"]
)
def test_after_sign_in_nobody_is_sent_off_our_pages(browser: Browser, ada: User, next_page: str) -> None:
    browser.read(browser.get("/login", {"next": next_page}))
    response = browser.post(
        "/login", {**browser.page.hidden, "action": "sign_in", "username": "ada", "password": "open sesame"}
    )
    assert (response.status_code, response["Location"]) == (303, "/")


# -- T27: a form is for one transaction, browser, account and set of scopes --------------------------------------------


@pytest.mark.threat("T27")
def test_two_tabs_with_two_accounts_never_mix(browser: Browser, ada: User, mallory: User, inspector: Client) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    first_tab = dict(browser.page.hidden)
    browser.post("/logout")
    browser.read(browser.get("/login"))
    browser.sign_in(mallory)
    response = browser.read(browser.post("/authorize", {**first_tab, "scope": ["read:todos"], "action": "allow"}))
    assert is_page(response, "The account in this browser has changed", "mallory")
    assert not Grant.objects.exists()


@pytest.mark.threat("T27")
def test_a_second_answer_says_so_and_records_nothing(browser: Browser, ada: User, inspector: Client) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    form = {**browser.page.hidden, "scope": browser.page.scopes, "action": "allow"}
    answered(browser.post("/authorize", form))
    again = browser.post("/authorize", form)
    assert again.status_code == 409
    assert is_page(again, "already answered")
    assert (Consent.objects.count(), AuthorizationCode.objects.count()) == (1, 1)


@pytest.mark.threat("T27")
def test_loading_a_page_twice_keeps_both_good(browser: Browser, ada: User, inspector: Client) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    first = dict(browser.page.hidden)
    browser.read(browser.get(f"/authorize?transaction={first['transaction']}"))
    assert browser.page.hidden["form_token"] == first["form_token"]
    browser.authorize(inspector)
    assert answered(browser.read(browser.post("/authorize", {**first, "scope": ["read:todos"], "action": "allow"})))[
        "code"
    ]


@pytest.mark.threat("T27")
@pytest.mark.pain("P20")
def test_a_form_token_of_another_transaction_redraws_and_records_nothing(
    browser: Browser, ada: User, inspector: Client
) -> None:
    browser.authorize(inspector, scope="read:todos")
    browser.sign_in(ada)
    narrow = dict(browser.page.hidden)
    browser.authorize(inspector, scope="read:todos write:todos read:billing")
    wide = {**browser.page.hidden, "form_token": narrow["form_token"]}
    response = browser.read(browser.post("/authorize", {**wide, "scope": browser.page.scopes, "action": "allow"}))
    assert is_page(response, "out of date")
    assert not Consent.objects.exists()


@pytest.mark.threat("T3")
def test_a_transaction_belongs_to_one_browser(browser: Browser, ada: User, inspector: Client) -> None:
    browser.authorize(inspector)
    stolen, other = dict(browser.page.hidden), Browser()
    response = other.post("/login", {**stolen, "action": "sign_in", "username": "ada", "password": "open sesame"})
    assert response.status_code == 409
    assert "_auth_user_id" not in other.session
    assert other.get(f"/authorize?transaction={stolen['transaction']}").status_code == 409


def test_an_expired_transaction_says_so(browser: Browser, ada: User, inspector: Client) -> None:
    browser.authorize(inspector)
    LoginTransaction.objects.update(expires_at="2026-01-01T00:00:00Z")
    response = browser.sign_in(ada)
    assert response.status_code == 409
    assert is_page(response, "expired")


@pytest.mark.parametrize("scope", ["", " "])
def test_an_empty_scope_is_like_none(browser: Browser, ada: User, inspector: Client, scope: str) -> None:
    """RFC 6749 §3.1; VS Code registers with one."""
    browser.authorize(inspector, scope=scope)
    browser.sign_in(ada)
    assert browser.page.scopes == list(settings.DEFAULT_SCOPES)


@pytest.mark.threat("T4")
def test_what_the_provider_sent_is_erased_when_the_person_never_comes_back(browser: Browser, inspector: Client) -> None:
    browser.authorize(inspector)
    an_hour_ago = timezone.now() - timedelta(hours=1)
    LoginTransaction.objects.update(expires_at=an_hour_ago, staged_tokens=b"sealed", upstream_secrets=b"sealed")
    browser.authorize(inspector)
    assert LoginTransaction.objects.count() == 2
    assert not LoginTransaction.objects.exclude(staged_tokens=None, upstream_secrets=None).exists()


def test_what_expired_a_day_ago_is_gone(browser: Browser, inspector: Client) -> None:
    browser.authorize(inspector)
    LoginTransaction.objects.update(expires_at=timezone.now() - timedelta(hours=25))
    browser.authorize(inspector)
    assert LoginTransaction.objects.count() == 1


@pytest.mark.threat("T31")
def test_a_client_that_changes_while_the_page_is_open_gets_nothing(
    browser: Browser, ada: User, inspector: Client
) -> None:
    browser.authorize(inspector)
    browser.sign_in(ada)
    Client.objects.filter(pk=inspector.pk).update(name="Claude")
    assert answered(browser.answer())["error"] == "access_denied"
    assert not Grant.objects.exists()


@pytest.mark.threat("T27")
@pytest.mark.parametrize("page", ["/", "/login", "/connections", "authorize"])
def test_no_page_can_be_framed_or_run_a_script(browser: Browser, inspector: Client, page: str) -> None:
    response = browser.authorize(inspector) if page == "authorize" else browser.read(browser.get(page))
    policy = response["Content-Security-Policy"]
    assert response["X-Frame-Options"] == "DENY"
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy


# -- T9: silence -------------------------------------------------------------------------------------------------------


def trusted(redirect_uri: str, **fields: Any) -> Client:
    return make_client("Ours", redirect_uri, registration_source="manual", skip_authorization=True, **fields)


@pytest.mark.threat("T9")
def test_only_a_trusted_client_at_its_own_https_address_is_answered_in_silence(browser: Browser, ada: User) -> None:
    client = trusted(ELSEWHERE)
    browser.connect(client, ada, redirect_uri=ELSEWHERE)
    assert answered(browser.authorize(client, redirect_uri=ELSEWHERE, prompt="none"))["code"]
    assert answered(browser.authorize(client, redirect_uri=ELSEWHERE))["code"]


@pytest.mark.threat("T11")
def test_a_silent_yes_is_looked_at_again_under_the_grants_lock(
    browser: Browser, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A withdrawal that commits between the look and the code wins, and leaves no new grant behind."""
    client = trusted(ELSEWHERE)
    browser.connect(client, ada, redirect_uri=ELSEWHERE)
    look = AuthorizationView._may_be_silent

    def then_withdrawn(view: Any, *arguments: Any) -> bool:
        found = look(view, *arguments)
        withdraw_grant(Grant.objects.open().get().pk, by="person")
        return found

    monkeypatch.setattr(AuthorizationView, "_may_be_silent", then_withdrawn)
    answer = answered(browser.authorize(client, redirect_uri=ELSEWHERE, prompt="none"))
    assert answer["error"] == "consent_required"
    assert not Grant.objects.open().exists()


@pytest.mark.threat("T9")
@pytest.mark.parametrize("changes", [{"scope": "read:todos read:billing"}, {"resource": settings.RESOURCES[1]}])
def test_silence_never_covers_more_than_was_consented(browser: Browser, ada: User, changes: dict[str, str]) -> None:
    client = trusted(ELSEWHERE)
    browser.connect(client, ada, redirect_uri=ELSEWHERE)
    refused = answered(browser.authorize(client, redirect_uri=ELSEWHERE, prompt="none", **changes))
    assert refused["error"] == "consent_required"


@pytest.mark.threat("T9")
@pytest.mark.parametrize("client", [lambda: trusted(LOOPBACK), lambda: make_client("Self-made", ELSEWHERE)])
def test_loopback_and_self_registered_clients_are_never_answered_in_silence(
    browser: Browser, ada: User, client: Any
) -> None:
    client = client()
    uri = client.redirect_uris
    browser.connect(client, ada, redirect_uri=uri)
    assert answered(browser.authorize(client, redirect_uri=uri, prompt="none"))["error"] == "consent_required"
    assert is_page(browser.authorize(client, redirect_uri=uri), "Allow")


@pytest.mark.threat("T9")
def test_a_first_grant_costs_a_click_even_for_a_trusted_client(browser: Browser, ada: User, inspector: Client) -> None:
    browser.connect(inspector, ada)
    assert (
        answered(browser.authorize(trusted(ELSEWHERE), redirect_uri=ELSEWHERE, prompt="none"))["error"]
        == "consent_required"
    )


def test_prompt_login_asks_a_signed_in_person_to_sign_in_again(browser: Browser, ada: User, inspector: Client) -> None:
    browser.connect(inspector, ada)
    assert is_page(browser.authorize(inspector, prompt="login"), 'name="password"')
    assert is_page(browser.sign_in(ada), 'value="allow"')


def test_approval_prompt_is_ignored(browser: Browser, ada: User, inspector: Client) -> None:
    browser.connect(inspector, ada)
    assert is_page(browser.authorize(inspector, approval_prompt="auto"), 'value="allow"')
