"""The pages people see, rendered as views render them: what strangers write stays text, and the forms say enough."""

import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.template.loader import get_template
from django.test import RequestFactory

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)></bdi>' {{ 7 }}"
TRANSACTION = {"transaction_id": "7a0c2d0e", "form_token": "form-token"}
SCOPES = [
    {"name": "read:todos", "words": "See your todos", "tools": [("list_todos", "List todos")], "new": True},
    {"name": HOSTILE, "words": HOSTILE, "tools": [(HOSTILE, HOSTILE)], "granted": True},
]


def client(**said: Any) -> dict[str, Any]:
    return {
        "name": HOSTILE,
        "described_at": None,
        "is_verified": False,
        "is_operator_made": False,
        "warnings": [HOSTILE],
    } | said


def redirect(**said: Any) -> dict[str, Any]:
    return {"uri": HOSTILE, "host": HOSTILE, "is_loopback": False, "is_custom_scheme": False} | said


def sign_in(**said: Any) -> dict[str, Any]:
    page = {"client": client(), "redirect": redirect(), "api_name": HOSTILE, "scopes": SCOPES, "error": HOSTILE}
    ways = {"providers": [{"name": "auth0", "label": HOSTILE}], "own_accounts": True, "demo_user": True}
    return TRANSACTION | page | ways | {"username": HOSTILE} | said


def consent(**said: Any) -> dict[str, Any]:
    account = {"name": HOSTILE, "email": HOSTILE, "provider": HOSTILE}
    page = {"client": client(), "redirect": redirect(), "api_name": HOSTILE, "scopes": SCOPES, "account": account}
    return TRANSACTION | page | {"notice": HOSTILE, "lasts_until": datetime.date(2027, 7, 14)} | said


DAY = datetime.datetime(2026, 7, 14, tzinfo=datetime.UTC)
RECORD = {"at": DAY, "host": HOSTILE, "scopes": SCOPES, "until": DAY, "has_run_out": False, "withdrawn": None}
HISTORY = [RECORD, RECORD | {"withdrawn": DAY}, RECORD | {"has_run_out": True, "scopes": []}]
CONNECTION = {
    "id": HOSTILE, "client_name": HOSTILE, "hosts": [HOSTILE], "scopes": SCOPES, "connected": DAY, "last_used": DAY,
    "last_tool": HOSTILE, "last_address": HOSTILE, "history": HISTORY,
}  # fmt: skip
ENDED = {"client_name": HOSTILE, "connected": DAY, "ended": DAY, "ended_by": "by you", "history": HISTORY}
LINK = {"href": HOSTILE, "text": HOSTILE, "host": HOSTILE}
PAGES: dict[str, dict[str, Any]] = {
    "home": {"mcp_url": HOSTILE, "clients": [{"name": HOSTILE, "how": HOSTILE, "line": HOSTILE}]},
    "sign_in": sign_in(),
    "consent": consent(),
    "connections": {"connections": [CONNECTION, CONNECTION], "ended": [ENDED], "notice": HOSTILE},
    "refusal": {"title": HOSTILE, "what": HOSTILE, "repair": HOSTILE, "trace_id": HOSTILE, "link": LINK, "status": 400},
}


class Page(HTMLParser):
    """The elements of a rendered page in their order, with their attributes, and its text."""

    def __init__(self, template: str, context: dict[str, Any]) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        context = {"person": {"name": HOSTILE}, **context}
        self.html = get_template(f"oauth_relay/{template}.html").render(context, RequestFactory().get("/"))
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, name: str) -> list[str | None]:
        return [attributes.get("value") for _, attributes in self.elements if attributes.get("name") == name]


@pytest.mark.parametrize("template", PAGES)
def test_what_strangers_write_stays_text(template: str) -> None:
    page = Page(template, PAGES[template])
    assert HOSTILE in page.text
    assert not [tag for tag, attributes in page.elements if tag == "script" or "onerror" in attributes]


@pytest.mark.parametrize("template", PAGES)
def test_nothing_on_a_page_needs_more_than_the_policy_allows(template: str) -> None:
    page = Page(template, PAGES[template])
    for tag, attributes in page.elements:
        assert tag not in ("script", "style", "iframe", "object", "base")
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
    sheets = [a["href"] for tag, a in page.elements if tag == "link" and a["rel"] == "stylesheet"]
    assert sheets == ["/static/cair.css"]


@pytest.mark.parametrize("template", PAGES)
def test_a_page_has_one_title_one_main_part_and_headings_in_order(template: str) -> None:
    tags = [tag for tag, _ in Page(template, PAGES[template]).elements]
    assert [tags.count(tag) for tag in ("title", "main", "h1")] == [1, 1, 1]
    levels = [int(tag[1]) for tag in tags if tag in ("h1", "h2", "h3", "h4")]
    assert all(below <= above + 1 for above, below in zip([0, *levels], levels, strict=False))


@pytest.mark.parametrize("template", PAGES)
def test_every_field_has_its_label(template: str) -> None:
    elements = Page(template, PAGES[template]).elements
    labelled = {attributes.get("for") for tag, attributes in elements if tag == "label"}
    inputs = [a for tag, a in elements if tag == "input" and a["type"] not in ("hidden", "checkbox")]
    assert all(attributes["id"] in labelled for attributes in inputs)


def test_the_consent_page_puts_deny_before_allow_and_focuses_neither() -> None:
    page = Page("consent", consent())
    assert page.named("action") == ["switch_account", "deny", "allow"]
    assert not [tag for tag, attributes in page.elements if "autofocus" in attributes]


def test_the_consent_page_sends_transaction_token_and_each_scope_ticked() -> None:
    page = Page("consent", consent())
    assert set(page.named("transaction")) == {"7a0c2d0e"}
    assert set(page.named("form_token")) == {"form-token"}
    boxes = [attributes for _, attributes in page.elements if attributes.get("name") == "scope"]
    assert [box["value"] for box in boxes] == ["read:todos", HOSTILE]
    assert all("checked" in box for box in boxes)


@pytest.mark.threat("T9")
def test_the_page_of_one_click_says_whose_click_and_sends_the_same() -> None:
    said = "Continue as"
    page, whole = Page("consent", consent(is_known=True)), Page("consent", consent())
    assert said in page.text
    assert said not in whole.text
    for name in ("action", "transaction", "form_token", "scope"):
        assert page.named(name) == whole.named(name)


@pytest.mark.threat("T31")
@pytest.mark.parametrize(("template", "context"), [("sign_in", sign_in), ("consent", consent)])
def test_it_warns_of_a_name_that_passes_for_another(template: str, context: Any) -> None:
    said = "Look twice at this name."
    assert said in Page(template, context()).text
    assert said not in Page(template, context(client=client(warnings=[]))).text


def test_a_connection_sends_what_it_showed_beside_what_is_ticked() -> None:
    page = Page("connections", PAGES["connections"])
    assert page.named("shown") == page.named("scope") == ["read:todos", HOSTILE] * 2
    assert page.named("action") == ["withdraw", "narrow"] * 2 + ["withdraw_all"]


def test_no_page_keeps_an_old_token_across_a_reload() -> None:
    for template in ("sign_in", "consent", "connections"):
        forms = [a for tag, a in Page(template, PAGES[template]).elements if tag == "form" and a["action"] != "/logout"]
        assert forms
        assert all(form.get("autocomplete") == "off" for form in forms)


def test_a_password_does_not_travel_with_a_provider_or_a_refusal() -> None:
    page = Page("sign_in", sign_in())
    forms = page.html.split('action="/login"')[1:]
    assert [("password" in form, 'name="provider"' in form, 'value="cancel"' in form) for form in (
        form.split("</form>")[0] for form in forms
    )] == [(False, True, False), (True, False, False), (False, False, True)]  # fmt: skip


def test_only_a_client_can_be_cancelled() -> None:
    assert Page("sign_in", sign_in()).named("action") == ["sign_in", "cancel"]
    assert Page("sign_in", sign_in(client=None, redirect=None, scopes=[])).named("action") == ["sign_in"]


@pytest.mark.threat("T41")
@pytest.mark.parametrize(("template", "context"), [("sign_in", sign_in), ("consent", consent)])
def test_it_warns_where_any_program_on_the_device_may_get_the_answer(template: str, context: Any) -> None:
    said = "CAIR cannot tell which"
    assert said not in Page(template, context()).text
    loopback = redirect(host="localhost:33418", is_loopback=True)
    assert f"{said} program" in Page(template, context(redirect=loopback)).text
    custom = redirect(host="cursor:", is_custom_scheme=True)
    assert f"{said} app" in Page(template, context(redirect=custom)).text


@pytest.mark.parametrize(("template", "context"), [("sign_in", sign_in), ("consent", consent)])
def test_it_says_whether_anybody_has_checked_the_name(template: str, context: Any) -> None:
    unchecked = "Nobody has checked the name it gives"
    assert unchecked in Page(template, context()).text
    assert unchecked not in Page(template, context(client=client(described_at="claude.ai", is_verified=True))).text
    assert unchecked not in Page(template, context(client=client(is_operator_made=True))).text


def test_no_template_switches_escaping_off() -> None:
    templates = Path(settings.BASE_DIR, "templates").rglob("*.html")
    assert [path for path in templates if "|safe" in path.read_text() or "autoescape off" in path.read_text()] == []
