"""What every test may ask for: real servers, and an honest word where a part is missing."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers

HERE = Path(__file__).resolve().parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _node_is_ready() -> bool:
    if not shutil.which("node") or not (HERE / "node" / "node_modules").is_dir():
        return False
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False, timeout=20).stdout
    return int(version.strip().lstrip("v").split(".")[0] or 0) >= 20


PARTS = {
    "postgres": (lambda: servers.is_listening("tcp://127.0.0.1:5432"), "PostgreSQL on 127.0.0.1:5432"),
    "redis": (lambda: servers.is_listening("tcp://127.0.0.1:6379"), "Redis on 127.0.0.1:6379"),
    "node": (_node_is_ready, "Node 20 and `npm ci` in tests/node"),
    "chromium": (lambda: CHROMIUM is not None, "Chromium"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what lacks a real part, saying which; in CI nothing may be skipped for that."""
    for name, (is_there, what) in PARTS.items():
        marked = [item for item in items if item.get_closest_marker(name)]
        if marked and not os.environ.get("CI") and not is_there():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=f"needs {what}"))


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def server(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    """A server of this module's own, with own accounts and the demo user; once on each database."""
    with servers.database(request.param) as url, servers.serve(url) as running:
        yield running


@pytest.fixture(scope="module")
def sqlite_server() -> Iterator[servers.Server]:
    """The same on SQLite only, where the database is not the point."""
    with servers.database("sqlite") as url, servers.serve(url) as running:
        yield running
