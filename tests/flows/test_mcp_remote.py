"""mcp-remote: what people put between a client that only speaks stdio and a server like this one."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.node_program import NODE, NodeProgram, node
from tests.servers import Server
from tests.walk import OAuthClient, Person, parameters_of, plain

pytestmark = pytest.mark.node

_AUTHORIZE = re.compile(r"https?://\S+/authorize\?\S+")
STARTS_WITHIN = 30.0


@pytest.fixture(scope="module")
def server(sqlite_server: Server) -> Server:
    """Which database it is is not the point here: the walks are made on both elsewhere."""
    return sqlite_server


class Remote:
    """One mcp-remote with a memory folder, and the person whom it asks to visit an address."""

    def __init__(self, server: Server, program: NodeProgram) -> None:
        self.server = server
        self.program = program
        self.person = Person(server.url)

    def address_to_visit(self) -> str:
        while True:
            line = self.program.line(STARTS_WITHIN, self.program.complaints)
            if found := _AUTHORIZE.search(line):
                return found[0]

    def sign_in(self, button: str = "allow") -> str:
        """Do what it asks; gives the address asked for. The answer really goes to its own listener."""
        address = self.address_to_visit()
        page = self.person.consent_page(address)
        back = self.person.browser.press(page, button).left
        assert plain().get(back, timeout=10).status_code == 200 or button == "deny"
        return address

    def ask(self, number: int, method: str, **params: Any) -> dict[str, Any]:
        self.program.write({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        while (message := self.program.message(STARTS_WITHIN)).get("id") != number:
            pass
        return message

    def greet(self) -> dict[str, Any]:
        client = {"name": "flows", "version": "1"}
        answer = self.ask(1, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=client)
        self.program.write({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer


@pytest.fixture
def remote(server: Server, tmp_path: Path) -> Iterator[Remote]:
    with start(server, tmp_path) as program:
        yield Remote(server, program)


def start(server: Server, folder: Path, endpoint: str = "mcp") -> Any:
    surroundings = {"HOME": str(folder), "MCP_REMOTE_CONFIG_DIR": str(folder), "BROWSER": "true"}
    return node(str(NODE / "node_modules/.bin/mcp-remote"), f"{server.url}/{endpoint}", environment=surroundings)


def test_it_signs_in_and_lists_the_tools_over_stdio(server: Server, remote: Remote) -> None:
    asked = parameters_of(remote.sign_in())
    assert asked["redirect_uri"].startswith("http://localhost:")
    assert asked["code_challenge_method"] == "S256"
    assert remote.greet()["result"]["serverInfo"]["name"]
    tools = [tool["name"] for tool in remote.ask(2, "tools/list")["result"]["tools"]]
    assert "list_todos" in tools
    made = remote.ask(3, "tools/call", name="create_todo", arguments={"title": "Through mcp-remote"})["result"]
    listed = remote.ask(4, "tools/call", name="list_todos", arguments={})["result"]
    assert made["structuredContent"]["id"] in json.dumps(listed)


@pytest.mark.pain("P13")
@pytest.mark.pain("P25")
def test_started_again_it_asks_nobody(server: Server, remote: Remote, tmp_path: Path) -> None:
    """The daily case: it keeps its tokens in a folder, and the person sees no page the second time."""
    remote.sign_in()
    remote.greet()
    remote.program.end()
    with start(server, tmp_path) as program:
        again = Remote(server, program)
        assert again.greet()["result"]["serverInfo"]["name"]
        assert "list_todos" in str(again.ask(2, "tools/list"))
        assert not [line for line in program.said if _AUTHORIZE.search(line)]


@pytest.mark.pain("P25")
def test_after_withdrawing_it_finds_its_way_back(server: Server, remote: Remote, tmp_path: Path) -> None:
    """The revoked-token loop that people end by deleting ~/.mcp-auth (pains P25): here it asks again by itself."""
    remote.sign_in()
    remote.greet()
    connections = remote.person.open("/connections")
    name = next(form.about for form in connections.forms if form.about)
    remote.program.end()
    witness = OAuthClient(server.url, name="Witness").connect(remote.person)
    assert witness.ask("tools/list").status_code == 200  # remembered by the server from here on
    remote.person.withdraw(name)
    remote.person.withdraw(witness.name)
    until = time.monotonic() + 5
    while witness.ask("tools/list").status_code != 401:  # withdrawn later: when this is known, so is the other
        assert time.monotonic() < until
    with start(server, tmp_path) as program:
        again = Remote(server, program)
        again.sign_in()
        again.greet()
        assert "list_todos" in str(again.ask(2, "tools/list"))
