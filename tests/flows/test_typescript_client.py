"""The official TypeScript clients, 1.x and 2.x, do the whole flow; the scripted person sits at their browser."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.flows.node_program import NodeProgram, node
from tests.servers import Server
from tests.walk import REDIRECT_URI, Person, parameters_of

pytestmark = pytest.mark.node

GENERATIONS = [("1", "legacy"), ("2", "legacy"), ("2", "auto")]
SPEAKS = {"legacy": "2025-11-25", "auto": "2026-07-28"}


class TypeScript:
    """One client: gives orders, plays the browser whenever it asks for one, and remembers what it was told."""

    def __init__(self, server: Server, program: NodeProgram, button: str = "allow") -> None:
        self.person = Person(server.url)
        self.program = program
        self.button = button
        self.opened: list[dict[str, str]] = []
        self.told: list[dict[str, Any]] = []

    def order(self, what: str, **more: Any) -> dict[str, Any]:
        """Give an order and wait for its end: a result, or an error. A browser is played on the way."""
        self.program.write({"do": what, **more})
        while True:
            message = self.program.message()
            self.told.append(message)
            if "open" in message:
                self._browse(message["open"])
            elif not {"registered", "tokens", "forgot"} & set(message):
                return message

    def _browse(self, url: str) -> None:
        self.opened.append(parameters_of(url))
        page = self.person.consent_page(url)
        self.program.write({"answer": self.person.browser.press(page, self.button).left})

    def call(self, tool: str, **arguments: Any) -> Any:
        message = self.order("call", name=tool, arguments=arguments)
        assert "result" in message and not message["result"].get("isError"), message
        return message["result"]["structuredContent"]


def start(server: Server, generation: str, mode: str, endpoint: str = "mcp") -> Any:
    return node("clients/typescript.mjs", generation, f"{server.url}/{endpoint}", REDIRECT_URI, mode)


@pytest.fixture(params=GENERATIONS, ids=lambda param: "-".join(param))
def typescript(server: Server, request: pytest.FixtureRequest) -> Iterator[tuple[TypeScript, str]]:
    generation, mode = request.param
    with start(server, generation, mode) as program:
        yield TypeScript(server, program), mode


def test_it_connects_signs_in_and_works_on_the_persons_todos(
    server: Server, typescript: tuple[TypeScript, str]
) -> None:
    client, mode = typescript
    connected = client.order("connect")
    assert connected.get("speaks") == SPEAKS[mode], (connected, client.told)
    assert client.opened[0]["resource"] == f"{server.url}/mcp"
    assert set(client.opened[0]["scope"].split()) >= {"read:todos", "write:todos"}
    assert "list_todos" in client.order("list")["tools"]
    made = client.call("create_todo", title="From the TypeScript client")
    assert made["id"] in [todo["id"] for todo in client.call("list_todos")["todos"]]
    assert client.call("update_todo", id=made["id"], done=True)["done"] is True
    client.call("delete_todo", id=made["id"])
    assert made["id"] not in [todo["id"] for todo in client.call("list_todos")["todos"]]
    assert len(client.opened) == 1
    assert client.order("close") == {"closed": True}


@pytest.mark.pain("P12")
def test_it_refreshes_by_itself_when_its_token_is_refused(typescript: tuple[TypeScript, str]) -> None:
    """401 → refresh → the same call again; the person is not asked (threats.md, what real clients do)."""
    client, _ = typescript
    client.order("connect")
    client.call("list_todos")
    client.order("expire")
    client.call("list_todos")
    assert len(client.opened) == 1
    assert len([message for message in client.told if "tokens" in message]) == 2


def test_a_wrong_call_comes_back_as_an_error_and_the_connection_lives(typescript: tuple[TypeScript, str]) -> None:
    client, _ = typescript
    client.order("connect")
    unknown = client.order("call", name="no_such_tool", arguments={})
    assert unknown["code"] == -32602, unknown
    wrong = client.order("call", name="create_todo", arguments={"titel": "misspelled"})
    assert wrong["result"]["isError"] is True
    client.call("list_todos")


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_the_newer_one_asks_the_person_for_more_when_a_tool_needs_more(server: Server, mode: str) -> None:
    with start(server, "2", mode) as program:
        client = TypeScript(server, program)
        client.order("connect")
        assert client.call("list_billing") is not None
        assert len(client.opened) == 2
        assert "read:billing" in client.opened[1]["scope"].split()


@pytest.mark.parametrize("generation", ["1", "2"])
def test_it_learns_that_the_person_refused(server: Server, generation: str) -> None:
    with start(server, generation, "legacy") as program:
        refused = TypeScript(server, program, button="deny").order("connect")
    assert "access_denied" in refused["message"]


@pytest.mark.parametrize("generation", ["1", "2"])
def test_its_sse_client_signs_in_and_works_on_the_persons_todos(server: Server, generation: str) -> None:
    with start(server, generation, "legacy", "sse") as program:
        client = TypeScript(server, program)
        client.order("connect")
        assert client.opened and client.opened[0]["resource"] == f"{server.url}/sse", client.told
        made = client.call("create_todo", title="Over SSE")
        assert made["id"] in [todo["id"] for todo in client.call("list_todos")["todos"]]
        assert client.order("close") == {"closed": True}
