"""docs/flow.md is the story these tests walk: what it names must be there."""

import re

import pytest

from tests.servers import ROOT

TEXT = (ROOT / "docs/flow.md").read_text()
SYMBOLS = sorted(
    {name for line in re.findall(r"^In code: ([^#]+?)\.$", TEXT, re.M | re.S) for name in re.findall(r"`(\w+)`", line)}
)
PATHS = sorted(set(re.findall(r"`([a-z_]+/[\w/.]*)`", TEXT)))
NO_STEP = {
    "__init__", "apps", "admin",
    "database", "digests", "hashers", "loopback", "per_loop", "sessions", "traces",
    "client_secrets", "key_rotation", "master_key_rotation", "vault_rotation",
}  # fmt: skip
"""What a client never meets on its walk: Django's own, what others lean on, and what an operator's commands do."""


def _code() -> str:
    packages = ("cair", "todos", "mcp_gateway", "oauth_relay")
    return "\n".join(file.read_text() for package in packages for file in (ROOT / package).rglob("*.py"))


def test_it_names_symbols_in_every_step() -> None:
    assert len(SYMBOLS) > 40
    assert TEXT.count("In code: ") == TEXT.count("\n## ") - 1


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_each_symbol_it_names_exists(symbol: str) -> None:
    assert re.search(rf"^\s*(?:async def|def|class) {symbol}\b|^{symbol}\b.*=", _code(), re.M), symbol


def test_each_step_of_the_authorization_server_is_in_its_list() -> None:
    there = {file.stem for file in (ROOT / "oauth_relay").glob("*.py")}
    named = {path.removeprefix("oauth_relay/").removesuffix(".py") for path in PATHS if path.startswith("oauth_relay/")}
    assert there - named == NO_STEP


@pytest.mark.parametrize("path", PATHS)
def test_each_path_it_names_exists(path: str) -> None:
    assert (ROOT / path).exists(), path
