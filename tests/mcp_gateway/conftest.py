"""Ada, her client and tokens made through the ORM; an upstream API on a port of its own; the registry with test tools."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any

import pytest
from aiohttp import web
from asgiref.sync import sync_to_async
from django.conf import settings
from django.utils import timezone
from oauth2_provider.models import set_token_value
from pydantic import Field

from mcp_gateway import tools, upstream_api
from mcp_gateway.tools import Call, ToolError, Toolset
from oauth_relay import upstream_tokens
from oauth_relay.access_tokens import Principal
from oauth_relay.models import AccessToken, AuditEvent, Client, Grant, User
from oauth_relay.upstream_tokens import UpstreamToken

UPSTREAM_SECRET = "upstream-secret-of-ada"


@dataclass
class Holder:
    """Somebody with a token: what a test needs to know of them."""

    user: User
    client: Client
    grant: Grant
    raw_token: str

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.raw_token}"}


def _issue(grant: Grant, scope: str, resources: list[str], lives: timedelta) -> str:
    raw_token = secrets.token_urlsafe(32)
    token = AccessToken(
        user=grant.user,
        application=grant.client,
        grant=grant,
        family=uuid.uuid4(),
        scope=scope,
        resource=resources,
        expires=timezone.now() + lives,
    )
    set_token_value(token, raw_token)
    token.save()
    return raw_token


def _hold(name: str, scope: str, resources: list[str], lives: timedelta) -> Holder:
    user = User.objects.create(username=name, first_name=name.title(), email=f"{name}@example.com")
    client = Client.objects.create(
        name="Inspector", client_type="public", authorization_grant_type="authorization-code",
        redirect_uris="http://127.0.0.1/cb",
    )  # fmt: skip
    grant = Grant.objects.create(user=user, client=client)
    return Holder(user, client, grant, _issue(grant, scope, resources, lives))


@pytest.fixture
def hold(transactional_db: None) -> Callable[..., Awaitable[Holder]]:
    """Make a person with a client, a grant and a token."""

    async def make(
        name: str = "ada",
        scope: str = "read:todos write:todos",
        resources: tuple[str, ...] = settings.RESOURCES,
        lives: timedelta = timedelta(minutes=10),
    ) -> Holder:
        return await sync_to_async(_hold)(name, scope, list(resources), lives)

    return make


@pytest.fixture
def another_token() -> Callable[..., Awaitable[str]]:
    """Another token of the same grant."""

    async def make(holder: Holder, scope: str, lives: timedelta = timedelta(minutes=10)) -> str:
        return await sync_to_async(_issue)(holder.grant, scope, list(settings.RESOURCES), lives)

    return make


@pytest.fixture
def principal() -> Principal:
    return Principal(
        subject="ada-subject", user_id=None, client_id="inspector", grant_id=uuid.uuid4(),
        scopes=frozenset({"read:todos"}), resource=settings.RESOURCES[0], expires_at=4e9,
        claims={"username": "ada", "name": "Ada", "email": "ada@example.com", "provider": "cair"},
        pseudonym=uuid.uuid4(),
    )  # fmt: skip


@pytest.fixture
def audited(transactional_db: None) -> Callable[[], Awaitable[list[AuditEvent]]]:
    """The tool calls written down so far, oldest first."""

    async def read() -> list[AuditEvent]:
        return await sync_to_async(lambda: list(AuditEvent.objects.filter(event="tool.called").order_by("at")))()

    return read


# -- an API ------------------------------------------------------------------------------------------------------------


@dataclass
class FakeApi:
    """An HTTP API whose next answers a test decides, and which remembers what it was asked."""

    url: str = ""
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    answers: list[Callable[[web.Request], Awaitable[web.StreamResponse]]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)

    def will(self, *answers: Any, **options: Any) -> None:
        """Answer with these, one after the other: documents, or responses."""
        for answer in answers:
            self.answers.append(self._giver(answer, options))

    @staticmethod
    def _giver(answer: Any, options: dict[str, Any]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def give(request: web.Request) -> web.StreamResponse:
            return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer, **options)

        return give

    def will_hang(self) -> None:
        async def hang(request: web.Request) -> web.StreamResponse:
            try:
                await asyncio.Event().wait()
            finally:
                self.abandoned.set()
            raise AssertionError

        self.answers.append(hang)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        self.arrived.set()
        return await self.answers.pop(0)(request)


@pytest.fixture
async def api(settings: Any) -> AsyncIterator[FakeApi]:
    """The `todos` API, replaced by one that a test holds in its hand."""
    fake = FakeApi()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", fake.handle)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    todos = {"base_url": fake.url, "host": "", "audience": "urn:todos-api", "token_source": "cair"}
    settings.UPSTREAM_APIS = {"todos": todos}
    yield fake
    await upstream_api.close()
    await runner.cleanup()


@dataclass
class FakeDoor:
    """Door 2 with tokens that a test can see: `version` goes up when one was rejected."""

    version: int = 1
    rejected: list[str | None] = field(default_factory=list)
    failure: Exception | None = None

    async def token_for(self, principal: Principal, api: str, rejected_version: str | None = None) -> UpstreamToken:
        self.rejected.append(rejected_version)
        if self.failure is not None:
            raise self.failure
        if rejected_version is not None:
            self.version += 1
        return UpstreamToken("Authorization", f"Bearer {UPSTREAM_SECRET}-{self.version}", str(self.version), 4e9)


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> FakeDoor:
    fake = FakeDoor()
    monkeypatch.setattr(upstream_tokens, "upstream_token_for", fake.token_for)
    return fake


# -- tools of the tests ------------------------------------------------------------------------------------------------


@dataclass
class Workbench:
    """What the test tools wait for and tell."""

    started: asyncio.Event = field(default_factory=asyncio.Event)
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    runs: int = 0


@pytest.fixture
def workbench() -> Iterator[Workbench]:
    """A few tools beside the real ones, gone after the test."""
    bench = Workbench()
    before = list(tools.registry.toolsets), dict(tools.registry._by_name)
    _add_tools(bench)
    yield bench
    tools.registry.toolsets[:], tools.registry._by_name = before


def _add_tools(bench: Workbench) -> None:
    plain = Toolset("bench")

    @plain.tool()
    async def wait(call: Call) -> str:
        """Wait until the test says so."""
        bench.runs += 1
        bench.started.set()
        try:
            await bench.may_go_on.wait()
        except asyncio.CancelledError:
            bench.cancelled.set()
            raise
        return "waited"

    @plain.tool()
    async def climb(call: Call) -> str:
        """Tell of progress: 1, 1 again, 2."""
        await call.progress(1, 2, "half")
        await call.progress(1, 2, "half again")
        await call.progress(2, 2)
        return "there"

    @plain.tool()
    async def stumble(call: Call) -> str:
        """Fail as nobody foresaw."""
        raise ZeroDivisionError("a detail that is nobody's business")

    @plain.tool()
    async def decline(call: Call) -> str:
        """Fail with a sentence."""
        raise ToolError("Ask for something else.")

    @plain.tool(permission="oauth_relay.view_auditevent")
    async def secret_tool(call: Call) -> str:
        """Only for some."""
        return "seen"

    @plain.tool()
    async def chatter(call: Call) -> str:
        """Tell of much more progress than any queue holds."""
        for number in range(1000):
            await call.progress(number)
        return "said"

    @plain.tool()
    async def route(call: Call, region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> str:
        """Mirror an argument in a header."""
        return region

    @plain.tool(scope=("read:todos", "read:billing"))
    async def both(call: Call) -> str:
        """Needs two scopes."""
        bench.runs += 1
        return "both"
