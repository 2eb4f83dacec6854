"""What every test may ask for: real servers, and an honest word where a part is missing."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from oauth_relay import access_tokens, audit, keys, outbound_documents, upstream_tokens, vault, withdrawals
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


LONGEST = ("test_rotation.py", "test_refresh_interleavings.py", "test_single_flight.py", "test_bad_input.py")
"""Files that take minutes: begun first, so that no worker is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what lacks a real part, saying which; in CI nothing may be skipped for that."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for name, (is_there, what) in PARTS.items():
        marked = [item for item in items if item.get_closest_marker(name)]
        if marked and not os.environ.get("CI") and not is_there():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=f"needs {what}"))


@pytest.fixture(scope="session")
def sqlite_server() -> Iterator[servers.Server]:
    """A server on SQLite with own accounts and the demo user. Tests share it: each makes a client of its own."""
    with servers.database("sqlite") as url, servers.serve(url) as running:
        yield running


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[servers.Server]:
    with servers.database("postgres") as url, servers.serve(url) as running:
        yield running


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def server(request: pytest.FixtureRequest) -> servers.Server:
    """The same, once on each database."""
    running: servers.Server = request.getfixturevalue(f"{request.param}_server")
    return running


@pytest.fixture(autouse=True)
def empty_memories() -> None:
    """What a process remembers of rows goes with the rows: each test begins with a database of its own."""
    for remembered in (access_tokens._caches, audit._writers, withdrawals._readers, upstream_tokens._memories):
        remembered.clear()
    vault.forget_keys()
    keys.forget_signer()
    outbound_documents.forget_documents()
