"""The shape of the project: one direction, a removable sample, and a paragraph for every variable."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT

READ = re.compile(r"(?:ENVIRONMENT|env|_?environment)\.(?:text|words|boolean|integer|origin)\(\s*\"([A-Z0-9_]+)\"")
PACKAGES = ("cair", "oauth_relay", "mcp_gateway", "todos")


def variables_read() -> set[str]:
    """Every environment variable that the code asks for."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    named = {name for path in files for name in READ.findall(path.read_text())}
    return named | {"DATABASE_URL", "CAIR_ENV", "CAIR_ENV_FILE", "CAIR_MASTER_KEYS"}


def test_every_variable_has_its_paragraph() -> None:
    headings = set(re.findall(r"^### `([A-Z0-9_]+)`", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE))
    assert variables_read() - headings == set()


def test_every_paragraph_is_of_a_variable_that_is_read() -> None:
    code = "\n".join(path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    headings = re.findall(r"^### `([A-Z0-9_]+)`", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE)
    assert [name for name in headings if f'"{name}"' not in code] == []


def test_every_table_has_its_place_in_the_page_of_stored_data() -> None:
    from django.apps import apps

    page = (ROOT / "docs/stored-data.md").read_text()
    own = [model for model in apps.get_models() if model.__module__.split(".")[0] in PACKAGES]
    assert [model.__name__ for model in own if f"`{model.__name__}`" not in page] == []


def test_the_walk_goes_one_way() -> None:
    """When this fails, move the knowledge to cair/, as cair/scopes.py does."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_cair_starts_with_the_sample_api_removed(tmp_path: Path) -> None:
    """Delete the folder, one line in settings, one in urls: docs/plugging-in-an-api.md says so."""
    copy = tmp_path / "cair"
    copy.mkdir()
    for name in ("cair", "oauth_relay", "mcp_gateway", "templates"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "manage.py", copy)
    for name in ("cair/settings.py", "cair/urls.py"):
        lines = (copy / name).read_text().splitlines(keepends=True)
        kept = [line for line in lines if '"todos.apps' not in line and '"todos.urls"' not in line]
        assert len(kept) == len(lines) - 1
        (copy / name).write_text("".join(kept))
    environment = {
        "PATH": os.environ["PATH"], "CAIR_ENV": "development", "CAIR_ENV_FILE": os.devnull,
        "DATABASE_URL": f"sqlite:///{tmp_path}/x.sqlite3",
    }  # fmt: skip
    command = [sys.executable, "-c", "import cair.asgi; print('started')"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "started" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_what_is_installed_is_pinned(name: str) -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    assert [line for line in lines if line and not line.startswith("-r") and "==" not in line] == []


CLOSED_THREATS = (
    "T1 T2 T3 T4 T5 T6 T8 T9 T10 T11 T12 T13 T14 T15 T17 T18 T20 T21 T22 T23 T24 T25 T26 T27 T28 T29 T30 T31 T33 T37 T41"
).split()


@pytest.mark.parametrize("number", CLOSED_THREATS)
def test_every_threat_that_is_closed_has_its_test(number: str) -> None:
    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if "node_modules" not in path.parts]
    assert any(f'threat("{number}")' in text for text in tests)


PAINS = "P5 P6 P7 P8 P9 P10 P11 P12 P13 P14 P15 P16 P17 P18 P19 P20 P21 P22 P23 P24 P25 P30 P33 P34 P35 P39".split()


@pytest.mark.parametrize("number", PAINS)
def test_every_pain_of_other_servers_has_its_test(number: str) -> None:
    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if "node_modules" not in path.parts]
    assert any(f'pain("{number}")' in text for text in tests)
