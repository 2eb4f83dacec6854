from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class McpGatewayConfig(AppConfig):
    name = "mcp_gateway"
    verbose_name = "MCP gateway"

    def ready(self) -> None:
        """Find every installed app's `tools.py`, as Django finds `admin.py`; the built-in toolsets come first."""
        from mcp_gateway import checks, toolsets  # noqa: F401

        autodiscover_modules("tools")
