"""The scopes that exist are the scopes the tools ask for: one catalogue for metadata, consent page and token endpoint."""

from collections.abc import Collection, Sequence
from typing import Any

from django.conf import settings
from oauth2_provider.scopes import BaseScopes

from mcp_gateway.tools import registry


class ToolScopes(BaseScopes):
    """The library's scopes backend over the tool registry; `cair` is the only package that may know both."""

    def get_all_scopes(self) -> dict[str, str]:
        return {**registry.scopes(), settings.OFFLINE_ACCESS: "Stay connected when you are away"}

    def get_available_scopes(
        self, application: Any = None, request: Any = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        return list(self.get_all_scopes())

    def get_default_scopes(self, application: Any = None, request: Any = None, *args: Any, **kwargs: Any) -> list[str]:
        known = registry.scopes()
        return [scope for scope in settings.DEFAULT_SCOPES if scope in known]

    def tools_opened_by(self, scope: str) -> Sequence[tuple[str, str]]:
        """Name and title of each tool that `scope` opens, in listing order."""
        return [(tool.name, tool.title) for tool in registry.tools() if scope in tool.scopes]

    def apis_reached_with(self, scopes: Collection[str]) -> frozenset[str]:
        """The APIs that somebody with these scopes can reach through some tool."""
        held = set(scopes)
        return frozenset(tool.api for tool in registry.tools() if tool.api is not None and tool.scopes <= held)
