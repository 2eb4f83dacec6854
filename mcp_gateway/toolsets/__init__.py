"""The built-in toolsets, one file each."""

from mcp_gateway.toolsets import identity

__all__ = ["identity"]
