"""docs/flow.md is the story these tests walk: what it names must be there."""

import re

import pytest

from tests.servers import ROOT

TEXT = (ROOT / "docs/flow.md").read_text()
SYMBOLS = sorted(
    {name for line in re.findall(r"^In code: ([^#]+?)\.$", TEXT, re.M | re.S) for name in re.findall(r"`(\w+)`", line)}
)
PATHS = sorted(set(re.findall(r"`([a-z_]+/[\w/.]*)`", TEXT)))


def _code() -> str:
    packages = ("cair", "todos", "mcp_gateway", "oauth_relay")
    return "\n".join(file.read_text() for package in packages for file in (ROOT / package).rglob("*.py"))


def test_it_names_symbols_in_every_step() -> None:
    assert len(SYMBOLS) > 40
    assert TEXT.count("In code: ") == TEXT.count("\n## ") - 1


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_each_symbol_it_names_exists(symbol: str) -> None:
    assert re.search(rf"^\s*(?:async def|def|class) {symbol}\b|^{symbol}\b.*=", _code(), re.M), symbol


@pytest.mark.parametrize("path", PATHS)
def test_each_path_it_names_exists(path: str) -> None:
    assert (ROOT / path).exists(), path
