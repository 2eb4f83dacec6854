"""Sign-in with own accounts, and whose session counts where."""

from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from oauth_relay import sign_in_failures
from oauth_relay.models import AuditEvent, Client, Session, SignInFailure, User
from tests.oauth_relay.conftest import Browser

pytestmark = pytest.mark.django_db
PROVIDER = {"auth0": {"label": "Auth0", "discovery": "https://idp.example/.well-known/openid-configuration"}}


def visit(browser: Browser, user: User, **fields: str) -> Any:
    browser.read(browser.get("/login", {"next": "/connections"}))
    return browser.sign_in(user, **fields)


def test_a_visit_ends_where_it_wanted_to_go(browser: Browser, ada: User) -> None:
    response = visit(browser, ada)
    assert response.request["PATH_INFO"] == "/connections"
    assert "Ada" in response.content.decode()


def test_a_wrong_password_says_so_and_signs_nobody_in(browser: Browser, ada: User) -> None:
    response = visit(browser, ada, password="wrong")
    assert response.status_code == 403
    assert "do not match" in response.content.decode()
    assert "_auth_user_id" not in browser.session
    assert AuditEvent.objects.filter(event="user.sign_in_failed").count() == 1


@pytest.mark.parametrize("name", ["nobody", "a\0b", "x" * 500, ""])
def test_a_name_that_is_nobodys_reads_the_same(browser: Browser, ada: User, name: str) -> None:
    assert visit(browser, ada, username=name).status_code == 403


def test_only_failures_are_delayed_and_the_delay_grows(browser: Browser, ada: User) -> None:
    for _ in range(sign_in_failures.FREE_FAILURES):
        assert visit(browser, ada, password="wrong").status_code == 403
    assert sign_in_failures.seconds_to_wait("ada") == 0
    visit(browser, ada, password="wrong")
    first = sign_in_failures.seconds_to_wait("ada")
    assert visit(browser, ada).status_code == 429
    sign_in_failures.note_failure("ADA")
    assert sign_in_failures.seconds_to_wait("ada") > first > 0
    sign_in_failures.forget_failures("ada")
    assert visit(browser, ada).status_code == 200


@pytest.mark.threat("T5")
def test_an_operators_admin_session_counts_as_signed_in_nowhere_else(browser: Browser, inspector: Client) -> None:
    operator = User.objects.create_superuser("operator", password="open sesame")
    browser.post("/admin/login/", {"username": "operator", "password": "open sesame"})
    assert browser.get("/admin/").status_code == 200
    assert 'name="password"' in browser.authorize(inspector).content.decode()
    assert browser.get("/connections")["Location"] == "/login?next=/connections"
    assert operator.grants.count() == 0


@pytest.mark.threat("T5")
def test_a_session_opened_in_a_way_no_longer_enabled_is_no_session(browser: Browser, ada: User, settings: Any) -> None:
    visit(browser, ada)
    assert browser.get("/connections").status_code == 200
    settings.OWN_ACCOUNTS, settings.UPSTREAM_PROVIDERS = False, PROVIDER
    assert browser.get("/connections").status_code == 303


@pytest.mark.threat("T5")
def test_own_passwords_open_nothing_where_a_provider_signs_people_in(
    browser: Browser, ada: User, settings: Any
) -> None:
    settings.OWN_ACCOUNTS, settings.UPSTREAM_PROVIDERS = False, PROVIDER
    page = browser.read(browser.get("/login"))
    assert "Continue with" in page.content.decode()
    assert 'name="password"' not in page.content.decode()
    assert browser.sign_in(ada).status_code == 400
    assert "_auth_user_id" not in browser.session


def test_own_accounts_can_stand_beside_a_provider(browser: Browser, ada: User, settings: Any) -> None:
    settings.OWN_ACCOUNTS, settings.UPSTREAM_PROVIDERS = True, PROVIDER
    page = browser.read(browser.get("/login")).content.decode()
    assert "Continue with" in page
    assert 'name="password"' in page


@pytest.mark.threat("T1")
def test_the_demo_user_is_there_only_while_it_may_be(browser: Browser, db: None, settings: Any) -> None:
    call_command("prepare")
    demo = User.objects.get(username="demo")
    assert not demo.is_staff
    assert visit(browser, demo, password="demo").status_code == 200
    settings.DEMO_USER = False
    assert browser.get("/connections").status_code == 303
    assert visit(Browser(), demo, password="demo").status_code == 403
    call_command("prepare")
    assert not User.objects.filter(is_demo=True).exists()


@pytest.mark.threat("T1")
def test_the_demo_user_can_never_become_staff(db: None) -> None:
    from django.db import IntegrityError

    call_command("prepare")
    with pytest.raises(IntegrityError):
        User.objects.filter(username="demo").update(is_staff=True)


@pytest.mark.threat("T18")
def test_a_session_row_does_not_hold_the_cookie(browser: Browser, ada: User) -> None:
    visit(browser, ada)
    cookie = browser.cookies["cair_session"].value
    assert Session.objects.exists()
    assert not Session.objects.filter(session_key=cookie).exists()
    thief = Browser()
    thief.cookies["cair_session"] = Session.objects.get().session_key
    assert thief.get("/connections").status_code == 303


def test_signing_out_ends_this_session_only(browser: Browser, ada: User) -> None:
    other = Browser()
    visit(browser, ada)
    visit(other, ada)
    assert browser.post("/logout").status_code == 303
    assert browser.get("/connections").status_code == 303
    assert other.get("/connections").status_code == 200


@pytest.mark.threat("T3")
def test_nobody_is_signed_out_by_a_link(browser: Browser, ada: User) -> None:
    visit(browser, ada)
    assert browser.get("/logout").status_code == 405
    assert browser.get("/connections").status_code == 200


def test_without_its_csrf_token_a_form_of_ours_changes_nothing(ada: User) -> None:
    browser = Browser()
    browser.handler.enforce_csrf_checks = True
    visit(browser, ada)
    response = browser.post("/logout")
    assert response.status_code == 403
    assert "no longer valid" in response.content.decode()
    assert browser.get("/connections").status_code == 200


@pytest.mark.threat("T26")
def test_cookies_are_kept_from_scripts_and_other_sites(browser: Browser, ada: User) -> None:
    visit(browser, ada)
    for name in ("cair_session", "cair_browser"):
        assert browser.cookies[name]["httponly"]
        assert browser.cookies[name]["samesite"] == "Lax"


def test_the_operators_own_sign_in_is_delayed_too(browser: Browser, db: None) -> None:
    User.objects.create_superuser("operator", password="open sesame")
    wrong = {"username": "operator", "password": "wrong"}
    for _ in range(sign_in_failures.FREE_FAILURES + 1):
        browser.post("/admin/login/", wrong)
    response = browser.post("/admin/login/", {"username": "operator", "password": "open sesame"})
    assert "Too many failed attempts" in response.content.decode()
    assert "_auth_user_id" not in browser.session
    assert AuditEvent.objects.filter(event="operator.sign_in_failed").count() == sign_in_failures.FREE_FAILURES + 1
    sign_in_failures.forget_failures("operator")
    browser.post("/admin/login/", {"username": "operator", "password": "open sesame"})
    assert AuditEvent.objects.filter(event="operator.signed_in").count() == 1


def test_a_name_typed_wrong_is_not_kept_as_it_was_typed(browser: Browser, ada: User) -> None:
    visit(browser, ada, username="my-password-in-the-wrong-field")
    assert SignInFailure.objects.count() == 1
    assert "my-password" not in str(SignInFailure.objects.values_list())


def test_old_failures_are_forgotten_and_leave_no_row(browser: Browser, ada: User) -> None:
    sign_in_failures.note_failure("somebody")
    SignInFailure.objects.update(last_at=timezone.now() - sign_in_failures.REMEMBERED)
    sign_in_failures.note_failure("ada")
    assert SignInFailure.objects.count() == 1
