"""Several processes on one PostgreSQL database behind a balancer that knows nothing, and clients that try again."""

import asyncio
import hashlib
import random
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from urllib.parse import urlencode, urlsplit

import aiohttp
from psycopg_pool import AsyncConnectionPool

from tests.servers import Server, free_port, serve
from tests.soak.households import REDIRECT_URI, VERIFIER, Device, Household

TRIES = 40
SECONDS = aiohttp.ClientTimeout(total=60)
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
CSRF = "c" * 32


def digest_of(raw_token: str) -> str:
    return hashlib.sha256(raw_token.encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def is_good(self) -> bool:
        return self.status == 200

    def __str__(self) -> str:
        return f"{self.status}" if self.is_good else f"{self.status} {self.body[:80]!r}"


class Fleet:
    """The processes, each with a stack that ends it; `broken` counts the requests that a crash cut short."""

    def __init__(self, database_url: str, processes: int) -> None:
        self.database_url = database_url
        self.broken: Counter[str] = Counter()
        self._stacks = [ExitStack() for _ in range(processes)]
        self.servers: list[Server] = []
        for stack in self._stacks:
            self.servers.append(stack.enter_context(serve(database_url, self._environment(free_port()))))
        self._alive = set(range(processes))

    def _environment(self, port: int) -> dict[str, str]:
        public = {"PUBLIC_URL": self.servers[0].url} if self.servers else {}
        return {"PORT": str(port), "DATABASE_POOL": "6", "LOG_LEVEL": "ERROR", **public}

    async def __aenter__(self) -> "Fleet":
        tracing = aiohttp.TraceConfig()
        tracing.on_request_headers_sent.append(_tell_that_it_is_sent)
        self._http = aiohttp.ClientSession(
            timeout=SECONDS, connector=aiohttp.TCPConnector(limit=0), trust_env=False, trace_configs=[tracing]
        )
        self._rows = AsyncConnectionPool(self.database_url, min_size=1, max_size=4, open=False)
        await self._rows.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.close()
        await self._rows.close()
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        for server, stack in zip(self.servers, self._stacks, strict=True):
            server.process.kill()
            server.process.wait(10)
            stack.close()

    # -- processes that die --------------------------------------------------------------------------------------------

    @property
    def alive(self) -> list[int]:
        return sorted(self._alive)

    def pause(self, number: int) -> None:
        """SIGSTOP: it takes connections, for the kernel does, and answers nothing."""
        self.servers[number].process.send_signal(signal.SIGSTOP)

    def kill(self, number: int) -> None:
        """SIGKILL: nothing is put away, no answer is finished."""
        self._alive.discard(number)
        self.servers[number].process.kill()

    async def restart(self, number: int) -> None:
        await asyncio.to_thread(self._restart, number)
        self._alive.add(number)

    def _restart(self, number: int) -> None:
        dead = self.servers[number]
        dead.process.wait(10)
        self._stacks[number].close()
        port = dead.environment["PORT"]
        environment = {**dead.environment, "PUBLIC_URL": self.servers[0].url}
        daphne = ["-m", "daphne", "-b", "127.0.0.1", "-p", port, "-v", "0", "--no-server-name", "cair.asgi:application"]
        self.servers[number] = self._stacks[number].enter_context(serve(self.database_url, environment, daphne))

    # -- requests ------------------------------------------------------------------------------------------------------

    async def post(
        self,
        kind: str,
        path: str,
        form: Mapping[str, str],
        at: int,
        cookies: Mapping[str, str] | None = None,
        sent: asyncio.Event | None = None,
    ) -> Answer:
        """At process `at`; where the connection breaks, or nothing is decided yet, the same again at the next that lives.

        `sent` is set once the request is on its way.
        """
        headers = {**FORM, "Host": urlsplit(self.servers[0].url).netloc}
        if cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        for attempt in range(TRIES):
            alive = self.alive
            number = at if not attempt and at in self._alive else alive[(at + attempt) % len(alive)]
            try:
                address = f"{self.servers[number].address}{path}"
                async with self._http.post(
                    address, data=urlencode(form), headers=headers, allow_redirects=False, trace_request_ctx=sent
                ) as response:
                    answer = Answer(response.status, await response.read())
            except aiohttp.ClientError:
                self.broken[kind] += 1
                continue
            if answer.status != 503:
                return answer
            self.broken["503"] += 1
            await asyncio.sleep(0.05)
        raise AssertionError(f"{path} was not answered in {TRIES} attempts")

    async def redeem(self, device: Device, at: int) -> Answer:
        form = {
            "grant_type": "authorization_code", "code": device.code, "client_id": device.client_id,
            "redirect_uri": REDIRECT_URI, "code_verifier": VERIFIER,
        }  # fmt: skip
        return await self.post("redeem", "/token", form, at)

    async def refresh(
        self, kind: str, device: Device, raw_token: str, at: int, *, sent: asyncio.Event | None = None, **changes: str
    ) -> Answer:
        form = {"grant_type": "refresh_token", "refresh_token": raw_token, "client_id": device.client_id, **changes}
        return await self.post(kind, "/token", form, at, sent=sent)

    async def revoke(self, kind: str, device: Device, raw_token: str, at: int) -> Answer:
        return await self.post(kind, "/revoke", {"token": raw_token, "client_id": device.client_id}, at)

    async def withdraw(self, kind: str, household: Household, at: int) -> Answer:
        """The button at /connections, pressed in the person's browser."""
        cookies = {"cair_session": household.session, "cair_csrf": CSRF}
        return await self.post(
            kind, "/connections", {"grant": household.grant_id, "csrfmiddlewaretoken": CSRF, **WITHDRAW}, at, cookies
        )

    # -- rows ----------------------------------------------------------------------------------------------------------

    async def living_tokens(self, device: Device) -> list[str]:
        """The digests of the family's refresh tokens that were neither spent nor withdrawn."""
        async with self._rows.connection() as connection:
            rows = await connection.execute(_LIVING, [digest_of(device.raw_tokens[0])])
            return [row[0] for row in await rows.fetchall()]

    async def set_first_use(self, raw_token: str, seconds_ago: float) -> None:
        """As if the pair had first been used so long ago, by the database's clock."""
        async with self._rows.connection() as connection:
            await connection.execute(_USED, [seconds_ago, digest_of(raw_token)])

    async def total(self, table: str) -> int:
        async with self._rows.connection() as connection:
            row = await (await connection.execute(_TOTALS[table])).fetchone()
            assert row is not None
            return int(row[0])


async def _tell_that_it_is_sent(session: aiohttp.ClientSession, context: SimpleNamespace, sent: object) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.set()


WITHDRAW = {"action": "withdraw"}
_LIVING = """
    SELECT token_checksum FROM oauth_relay_refreshtoken WHERE revoked IS NULL AND token_family =
    (SELECT token_family FROM oauth_relay_refreshtoken WHERE token_checksum = %s)
"""
_USED = """
    UPDATE oauth_relay_refreshtoken SET first_used_at = clock_timestamp() - make_interval(secs => %s)
    WHERE token_checksum = %s
"""
_TOTALS = {
    "families with two living tokens": """
        SELECT count(*) FROM (SELECT 1 FROM oauth_relay_refreshtoken WHERE revoked IS NULL
        GROUP BY token_family HAVING count(*) > 1) AS families
    """,
    "tokens with two successors": """
        SELECT count(*) FROM (SELECT 1 FROM oauth_relay_refreshtoken WHERE predecessor_id IS NOT NULL
        GROUP BY predecessor_id HAVING count(*) > 1) AS tokens
    """,
}


def some(numbers: Iterable[int], choice: random.Random, count: int) -> list[int]:
    """So many of the processes, none twice before all were taken once."""
    numbers = list(numbers)
    return [number for _ in range(count // len(numbers) + 1) for number in choice.sample(numbers, len(numbers))][:count]
