"""System checks over the declared tools: what is wrong here would only show at a call, or on the consent page."""

from collections.abc import Iterator, Sequence
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from mcp_gateway.tools import Registry, registry

PAGE = "See docs/plugging-in-an-api.md."


@register("mcp_gateway")
def check_tools(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    return list(faults(registry))


def faults(registry: Registry) -> Iterator[CheckMessage]:
    """What is wrong with the tools of `registry` (mcp_gateway.E001 … E006)."""
    yield from _names(registry)
    yield from _scopes(registry)
    yield from _words(registry)
    yield from _apis(registry)
    yield from _settings_of_apis()


def _error(number: int, message: str, hint: str) -> Error:
    return Error(message, hint=f"{hint} {PAGE}", id=f"mcp_gateway.E{number:03}")


def _names(registry: Registry) -> Iterator[CheckMessage]:
    owners: dict[str, str] = {}
    for toolset in registry.toolsets:
        for tool in toolset.tools:
            if tool.name in owners:
                message = f"Two tools are called {tool.name}: in {owners[tool.name]} and in {toolset.name}."
                yield _error(1, message, "Clients call tools by name alone: rename one.")
            owners.setdefault(tool.name, toolset.name)


def _scopes(registry: Registry) -> Iterator[CheckMessage]:
    known = registry.scopes()
    for tool in registry.tools():
        for scope in sorted(tool.scopes - known.keys()):
            hint = "Say in the toolset's `scopes` what it means: the consent page shows those words."
            yield _error(2, f"The tool {tool.name} asks for the undeclared scope {scope}.", hint)


def _words(registry: Registry) -> Iterator[CheckMessage]:
    known = registry.scopes()
    for toolset in registry.toolsets:
        for scope, words in toolset.scopes.items():
            if words != known[scope]:
                hint = f"People are shown {known[scope]!r}; give both the same words, or another scope."
                yield _error(4, f"The toolset {toolset.name} describes {scope} in other words.", hint)


def _settings_of_apis() -> Iterator[CheckMessage]:
    sources = ["cair", *settings.UPSTREAM_PROVIDERS]
    for name, api in settings.UPSTREAM_APIS.items():
        for key in ("base_url", "audience", "token_source"):
            if not api.get(key):
                hint = "Each API has base_url, audience and token_source."
                yield _error(5, f"The API {name} in UPSTREAM_APIS has no {key}.", hint)
        source = api.get("token_source")
        if source and source not in sources:
            known = " or ".join(repr(known) for known in sources)
            hint = f"Set token_source to {known}; a provider's name counts once the provider is configured."
            yield _error(6, f"The API {name} takes its tokens from {source!r}, which is not known here.", hint)


def _apis(registry: Registry) -> Iterator[CheckMessage]:
    for toolset in registry.toolsets:
        if toolset.api is not None and toolset.api not in settings.UPSTREAM_APIS:
            hint = f"Add it to UPSTREAM_APIS, which knows: {', '.join(settings.UPSTREAM_APIS) or 'none'}."
            yield _error(3, f"The toolset {toolset.name} names the unknown API {toolset.api}.", hint)
