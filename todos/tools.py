"""What AI clients can do with todos: the file to copy for your own API. docs/plugging-in-an-api.md explains it."""

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from mcp_gateway.tools import Call, Toolset

todos = Toolset(
    "todos",
    api="todos",
    scopes={
        "read:todos": "See your todos",
        "write:todos": "Add, change and delete your todos",
        "read:billing": "See your billing details",
    },
)

TodoId = Annotated[str, Field(description="The id of a todo, as list_todos gives it")]
Title = Annotated[str, Field(min_length=1, max_length=200)]
Description = Annotated[str, Field(max_length=4000)]
Due = Annotated[str, Field(pattern=r"^(\d{4}-\d{2}-\d{2})?$", description="A day, such as 2026-12-31; empty for none")]


class Todo(TypedDict):
    id: str
    title: str
    description: str
    due: str | None
    done: bool
    created: str
    owner: str


class Todos(TypedDict):
    todos: list[Todo]


class Deleted(TypedDict):
    deleted: str


@todos.tool(scope="read:todos", upstream_scope="read:todos", read_only=True)
async def list_todos(call: Call, done: bool | None = None) -> Todos:
    """List the todos of the signed-in person: all of them, or only those that are done or not done."""
    return await call.api.get("/api/todos", params={"done": done})


@todos.tool(scope="read:todos", upstream_scope="read:todos", read_only=True)
async def get_todo(call: Call, id: TodoId) -> Todo:
    """Read one todo."""
    return await call.api.get("/api/todos", id)


@todos.tool(scope="write:todos", upstream_scope="write:todos", destructive=False)
async def create_todo(call: Call, title: Title, description: Description = "", due: Due | None = None) -> Todo:
    """Add a todo."""
    return await call.api.post("/api/todos", json={"title": title, "description": description, "due": due or None})


@todos.tool(scope="write:todos", upstream_scope="write:todos", idempotent=True)
async def update_todo(
    call: Call,
    id: TodoId,
    title: Title | None = None,
    description: Description | None = None,
    due: Due | None = None,
    done: bool | None = None,
) -> Todo:
    """Change a todo. What is left out stays as it is."""
    given: dict[str, Any] = {"title": title, "description": description, "due": due, "done": done}
    changes = {name: value for name, value in given.items() if value is not None}
    if due == "":
        changes["due"] = None
    return await call.api.patch("/api/todos", id, json=changes)


@todos.tool(scope="write:todos", upstream_scope="write:todos", idempotent=True)
async def delete_todo(call: Call, id: TodoId) -> Deleted:
    """Delete a todo for good."""
    await call.api.delete("/api/todos", id)
    return {"deleted": id}


@todos.tool(scope="read:billing", upstream_scope="read:billing", read_only=True)
async def list_billing(call: Call) -> dict[str, Any]:
    """Show the billing details of the signed-in person."""
    return await call.api.get("/api/billing")
