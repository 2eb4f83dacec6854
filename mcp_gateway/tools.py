"""The plug-in surface: declare a `Toolset` in your app's `tools.py`, then one decorated coroutine per tool.

todos/tools.py is written to be copied; docs/plugging-in-an-api.md says the rest.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import mcp_types as types

from mcp_gateway.errors import ToolError
from mcp_gateway.schemas import Arguments, Result
from oauth_relay.access_tokens import Principal

if TYPE_CHECKING:
    from mcp_gateway.upstream_api import UpstreamApi

__all__ = ["Call", "Registry", "Tool", "ToolError", "Toolset", "registry"]

ToolFunction = TypeVar("ToolFunction", bound=Callable[..., Awaitable[Any]])
Progress = Callable[[float, float | None, str | None], Awaitable[None]]


class Call:
    """What a tool knows of the call it serves: who asks, the API as that person, and a way to tell of progress."""

    def __init__(self, principal: Principal, api: "UpstreamApi | None", report: Progress) -> None:
        self.principal = principal
        self._api = api
        self._report = report

    @property
    def api(self) -> "UpstreamApi":
        """The API of the toolset, called with the person's own token."""
        if self._api is None:
            raise RuntimeError("this toolset names no API: Toolset(…, api=…)")
        return self._api

    async def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Tell a waiting client how far the call is; nothing happens if it did not ask."""
        await self._report(done, total, message)


@dataclass(frozen=True)
class Tool:
    """One tool as declared. `scopes` are all needed; a missing `permission` hides the tool from that person."""

    name: str
    title: str
    function: Callable[..., Awaitable[Any]] = field(repr=False)
    scopes: frozenset[str]
    api: str | None
    upstream_scope: str | None
    permission: str | None
    arguments: Arguments = field(repr=False)
    result: Result = field(repr=False)
    listing: types.Tool = field(repr=False)

    @property
    def is_read_only(self) -> bool:
        return bool(self.listing.annotations and self.listing.annotations.read_only_hint)


class Registry:
    """All toolsets, in the order in which their apps are installed."""

    def __init__(self) -> None:
        self.toolsets: list[Toolset] = []
        self._by_name: dict[str, Tool] = {}

    def scopes(self) -> dict[str, str]:
        """Each scope that exists, with its words for the consent page, in the order of declaration."""
        words: dict[str, str] = {}
        for toolset in self.toolsets:
            for scope, meaning in toolset.scopes.items():
                words.setdefault(scope, meaning)
        return words

    def tools(self) -> list[Tool]:
        """Every tool, in the one order in which they are ever listed."""
        return [tool for toolset in self.toolsets for tool in toolset.tools]

    def find(self, name: str) -> Tool | None:
        return self._by_name.get(name)

    def add(self, tool: Tool) -> None:
        # The first of two of one name stays; `mcp_gateway.E001` reports the other.
        self._by_name.setdefault(tool.name, tool)


registry = Registry()


class Toolset:
    """Tools that belong together: one API, and the scopes they ask for, in words a person understands."""

    def __init__(
        self,
        name: str,
        *,
        api: str | None = None,
        scopes: Mapping[str, str] | None = None,
        registry: Registry = registry,
    ) -> None:
        self.name = name
        self.api = api
        self.scopes = dict(scopes or {})
        self.tools: list[Tool] = []
        self._registry = registry
        registry.toolsets.append(self)

    def tool(
        self,
        *,
        scope: str | Iterable[str] = (),
        upstream_scope: str | None = None,
        permission: str | None = None,
        title: str | None = None,
        read_only: bool = False,
        destructive: bool | None = None,
        idempotent: bool = False,
        open_world: bool = False,
    ) -> Callable[[ToolFunction], ToolFunction]:
        """Make a coroutine a tool. Its name is the tool's, its docstring is what the model reads, its annotations
        are the schemas. The first parameter is the `Call`."""
        hints = types.ToolAnnotations(
            read_only_hint=read_only,
            destructive_hint=not read_only if destructive is None else destructive,
            idempotent_hint=idempotent or read_only,
            open_world_hint=open_world,
        )

        def declare(function: ToolFunction) -> ToolFunction:
            tool = _tool(
                function,
                title=title,
                hints=hints,
                scopes=frozenset([scope] if isinstance(scope, str) else scope),
                api=self.api,
                upstream_scope=upstream_scope,
                permission=permission,
            )
            self.tools.append(tool)
            self._registry.add(tool)
            return function

        return declare


def _tool(function: Any, *, title: str | None, hints: types.ToolAnnotations, **properties: Any) -> Tool:
    """The tool that `function` declares. Raises TypeError for what would fail at the first call, or mislead a model."""
    name = function.__name__
    if not inspect.iscoroutinefunction(function):
        # A thread for a synchronous tool costs more than the tool, and cannot be cancelled.
        raise TypeError(f"the tool {name} must be an `async def`")
    description = inspect.getdoc(function)
    if not description:
        raise TypeError(f"the tool {name} needs a docstring: it is what the model reads")
    title = title or name.replace("_", " ").capitalize()
    arguments, result = Arguments(function), Result(function)
    listing = types.Tool(
        name=name,
        title=title,
        description=description,
        input_schema=arguments.schema,
        output_schema=result.schema,
        annotations=hints,
    )
    return Tool(
        name=name, title=title, function=function, arguments=arguments, result=result, listing=listing, **properties
    )
