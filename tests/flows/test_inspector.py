"""MCP Inspector's command line, as a developer would use it: one command, one answer."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.flows.node_program import NODE
from tests.servers import Server
from tests.walk import OAuthClient, Person

pytestmark = pytest.mark.node

BOUND = 60.0


@pytest.fixture(scope="module")
def server(sqlite_server: Server) -> Server:
    """Which database it is is not the point here: the walks are made on both elsewhere."""
    return sqlite_server


@pytest.fixture(scope="module")
def token(server: Server) -> str:
    client = OAuthClient(server.url, name="Inspector").connect(Person(server.url), resource=None)
    raw_token: str = client.tokens["access_token"]
    return raw_token


def inspect(home: Path, url: str, *arguments: str, token: str = "") -> "subprocess.CompletedProcess[str]":
    header = ["--header", f"Authorization: Bearer {token}"] if token else []
    command = ["node", str(NODE / "node_modules/.bin/mcp-inspector"), "--cli", url, *arguments, *header]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "NO_COLOR": "1", "BROWSER": "true"}
    return subprocess.run(
        command, env=environment, cwd=home, capture_output=True, text=True, timeout=BOUND, stdin=subprocess.DEVNULL
    )


def answer_of(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("endpoint", ["mcp", "sse"])
def test_it_lists_the_tools(server: Server, token: str, tmp_path: Path, endpoint: str) -> None:
    listed = answer_of(inspect(tmp_path, f"{server.url}/{endpoint}", "--method", "tools/list", token=token))
    tools = {tool["name"]: tool for tool in listed["tools"]}
    assert {"whoami", "list_todos", "create_todo", "list_billing"} <= set(tools)
    assert tools["list_todos"]["annotations"]["readOnlyHint"] is True
    assert tools["delete_todo"]["annotations"]["destructiveHint"] is True
    assert tools["list_todos"]["outputSchema"]["properties"]["todos"]["type"] == "array"


def test_its_own_review_of_our_schemas_finds_nothing_wrong(server: Server, token: str, tmp_path: Path) -> None:
    done = inspect(tmp_path, server.mcp, "--method", "tools/list", "--strict", token=token)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("endpoint", ["mcp", "sse"])
def test_it_calls_a_tool_as_the_person(server: Server, token: str, tmp_path: Path, endpoint: str) -> None:
    call = ["--method", "tools/call", "--tool-name", "create_todo", "--tool-arg", f"title=From Inspector at {endpoint}"]
    made = answer_of(inspect(tmp_path, f"{server.url}/{endpoint}", *call, token=token))
    assert made["structuredContent"]["title"] == f"From Inspector at {endpoint}"


def test_a_bad_token_sends_it_to_the_browser_not_into_the_wall(server: Server, tmp_path: Path) -> None:
    """401 with a challenge: it wants to sign in, which it cannot do here for want of a terminal, and says so."""
    done = inspect(tmp_path, server.mcp, "--method", "tools/list", token="not-a-token")
    assert done.returncode != 0
    assert json.loads(done.stderr.splitlines()[-1])["error"]["code"] == "auth_required"
