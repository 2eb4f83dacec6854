# ruff: noqa: RUF001 - letters that are mistaken for others are what this is about
"""Names that pass for others, and names that merely look unusual (T31, UTS #39)."""

import time

import pytest

from oauth_relay.client_names import BRANDS, THIS_DEVICE, KnownClient, place_of, warnings_for

pytestmark = pytest.mark.threat("T31")
LOOPBACK = "http://127.0.0.1:33418/callback"
EVIL = "https://evil.example/callback"


def kinds(name: str, redirect_uri: str = LOOPBACK, **known: object) -> list[str]:
    return [warning.kind for warning in warnings_for(name, redirect_uri, **known)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "redirect_uri"),
    [
        ("Claude", "https://claude.ai/api/mcp/auth_callback"),
        ("Claude", "https://claude.com/api/mcp/auth_callback"),
        ("Claude Code", LOOPBACK),
        ("ChatGPT", "https://chatgpt.com/connector_platform_oauth_redirect"),
        ("Cursor", "cursor://anysphere.cursor-mcp/oauth/callback"),
        ("Visual Studio Code", "https://insiders.vscode.dev/redirect"),
        ("Visual Studio Code - Insiders", "vscode-insiders://vscode.github-authentication/did-authenticate"),
        ("GitHub Copilot CLI", "http://127.0.0.1:1/"),
        ("MCP Inspector", "http://localhost:6274/oauth/callback"),
        ("MCP CLI Proxy (mcp-remote 0.1.37)", "http://127.0.0.1:3334/oauth/callback"),
        ("WINDSURF", "windsurf://codeium.windsurf/callback"),
    ],
)
def test_it_says_nothing_of_the_clients_that_people_really_use(name: str, redirect_uri: str) -> None:
    assert kinds(name, redirect_uri) == []


@pytest.mark.parametrize(
    "name",
    [
        "Acme Todo", "Précursor Analytics", "Recursor", "Клиент", "日本語クライアント", "Ελληνικά", "מחשב", "تطبيق",
        "می\u200cخواهم", "Inspector ❤️", "👩\u200d💻 helper", "Käse & Söhne", "λ-calculus", "An unnamed client", "",
        "x" * 300, "Node.js MCP client v2",
    ],
)  # fmt: skip
@pytest.mark.parametrize("redirect_uri", [LOOPBACK, "https://acme.example/cb"])
def test_an_unusual_name_is_no_suspicion(name: str, redirect_uri: str) -> None:
    assert kinds(name, redirect_uri) == []


@pytest.mark.parametrize("brand", BRANDS, ids=lambda brand: brand.name)
@pytest.mark.parametrize("written", ["{}", "My {} connector", "{} Desktop (beta)", "{}2"])
def test_a_known_name_that_is_answered_elsewhere_is_flagged(brand: object, written: str) -> None:
    name = written.format(brand.name)  # type: ignore[attr-defined]
    for redirect_uri in (EVIL, f"https://{name.split()[0].lower()}.evil.example/", "evil://callback"):
        assert kinds(name, redirect_uri) == ["foreign_brand"], redirect_uri


def test_it_says_who_and_where() -> None:
    (warning,) = warnings_for("Claude", EVIL)
    assert warning.sentence == "It calls itself Claude, but its answer goes to evil.example."


@pytest.mark.parametrize(
    "redirect_uri",
    [
        "https://claude.ai.evil.example/", "https://evilclaude.ai/", "https://evil.example/claude.ai",
        "https://xn--clude-ora.ai/", "https://claude-ai.example/", "cursor://callback", "claude.evil:/x",
    ],
)  # fmt: skip
def test_an_address_that_only_looks_like_theirs_is_not_theirs(redirect_uri: str) -> None:
    assert kinds("Claude", redirect_uri) == ["foreign_brand"]


def test_a_verified_host_of_the_brand_is_the_brand() -> None:
    assert kinds("Claude", "https://partner.example/cb", verified_host="claude.ai") == []
    assert kinds("Claude", "https://partner.example/cb", verified_host="claude.ai.evil.example") == ["foreign_brand"]


@pytest.mark.parametrize(
    "name",
    [
        "Сlaude", "Clаude", "CIaude", "C1aude", "С‌laude", "ᏟLAUDE", "Claudé", "сӏаυԁе", "ChatGРТ", "0penAI", "Gernini",
        "Ⲥursor", "VЅ Code", "Gitнub", "Ꮃindsurf", "Miсrosoft", "СURSOR",
    ],
)  # fmt: skip
def test_a_known_name_in_other_letters_is_flagged_wherever_it_is_answered(name: str) -> None:
    for redirect_uri in (LOOPBACK, EVIL, "https://claude.ai/api/mcp/auth_callback"):
        assert "disguised_brand" in kinds(name, redirect_uri)


@pytest.mark.parametrize(
    "name", ["𝐂𝐥𝐚𝐮𝐝𝐞", "Ｃｌａｕｄｅ", "C l a u d e", "C.L.A.U.D.E", "claude", "CLAUDE", "ClaudeDesktop"]
)
def test_another_style_of_the_same_letters_is_the_same_name(name: str) -> None:
    assert kinds(name, EVIL) == ["foreign_brand"]
    assert kinds(name, "https://claude.ai/") == []


@pytest.mark.parametrize("name", ["Аcme", "Acmе", "Ѕtatus board", "Τodo", "pаypаl", "Bоx of Ωmega"])
def test_alphabets_mixed_within_a_word_are_flagged(name: str) -> None:
    assert kinds(name) == ["mixed_alphabets"]


@pytest.mark.parametrize(
    "name",
    [
        "To\u200bdo", "\u202eodoT", "Todo\u2066x", "Todo\u00ad", "Todo\u200d", "\ufeffTodo", "Todo\u3164", "To\u034fdo",
        "Todo\n", "\u2800", "Todo\U000e0041", "Todo\ufe0f", "Приве\u200cт",
    ],
)  # fmt: skip
def test_characters_that_nobody_sees_are_flagged(name: str) -> None:
    assert "unseen_characters" in kinds(name)


# -- the person's other clients ----------------------------------------------------------------------------------------


def known(name: str, *redirect_uris: str) -> list[KnownClient]:
    return [KnownClient(name, frozenset(map(place_of, redirect_uris)))]


@pytest.mark.parametrize("name", ["Acme Notes", "ACME notes", "Acme-Notes", "Acme Nοtes", "Acrne Notes"])
def test_the_name_of_another_client_at_another_place_is_flagged(name: str) -> None:
    theirs = known("Acme Notes", "https://acme.example/cb")
    assert "twin" in kinds(name, EVIL, known=theirs)
    assert "acme.example" in warnings_for(name, EVIL, known=theirs)[-1].sentence


def test_the_same_client_registered_again_is_not() -> None:
    assert kinds("Acme", "https://acme.example/2", known=known("Acme", "https://acme.example/1")) == []
    assert kinds("Acme", "http://localhost:2/", known=known("Acme", "http://127.0.0.1:1/")) == []
    three = known("Cursor", "cursor://a/b", "https://www.cursor.com/cb", "http://localhost:8787/cb")
    assert kinds("Cursor", "http://localhost:9/cb", known=three) == []
    assert kinds("Claude", "https://claude.com/cb", known=known("Claude", "https://claude.ai/cb")) == []


def test_another_name_is_no_twin() -> None:
    assert kinds("Acme Notes 2", EVIL, known=known("Acme Todos", "https://acme.example/")) == []
    assert kinds("123", EVIL, known=known("456", "https://acme.example/")) == []


def test_every_loopback_address_is_one_place() -> None:
    assert {place_of(uri) for uri in (LOOPBACK, "http://localhost:1/", "http://[::1]:2/x")} == {THIS_DEVICE}


def test_the_longest_name_that_a_client_may_have_takes_no_time() -> None:
    started = time.process_time()
    for name in ("ﷺ" * 255, " ".join("abc" for _ in range(80)), "a" * 255, "\u0301" * 255, "аa" * 127):
        warnings_for(name, EVIL, known=known("Acme", EVIL) * 50)
    assert time.process_time() - started < 2
