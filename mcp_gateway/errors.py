"""What can go wrong with a tool call, apart from the unforeseen."""

from collections.abc import Iterable


class ToolError(Exception):
    """Something the model may be told. The message is one or two sentences that say what to do now."""


class InsufficientScope(Exception):
    """The token lacks a scope of this operation. `scopes` names all that the operation needs, RFC 6750 §3.1."""

    def __init__(self, scopes: Iterable[str]) -> None:
        self.scopes = tuple(sorted(scopes))
        super().__init__(" ".join(self.scopes))
