"""The resource server: MCP in, the person's own API calls out."""

VERSION = "0.1.0"
"""What clients are told in `serverInfo`."""
