"""Who is signed in: the one question that needs no scope."""

from typing_extensions import TypedDict

from mcp_gateway.tools import Call, Toolset

identity = Toolset("identity")


class Person(TypedDict):
    subject: str
    username: str
    name: str | None
    email: str | None
    provider: str
    scopes: list[str]


@identity.tool(title="Who am I", read_only=True)
async def whoami(call: Call) -> Person:
    """Say who is signed in, where they signed in, and which scopes this connection has."""
    claims = call.principal.claims
    # Named one by one: what else the claims may hold one day is not for the client.
    return Person(
        subject=call.principal.subject,
        username=claims["username"],
        name=claims.get("name"),
        email=claims.get("email"),
        provider=claims["provider"],
        scopes=sorted(call.principal.scopes),
    )
