"""The walk itself, in the order of docs/flow.md; each step says in one line what happened."""

import asyncio
import select
import sys
import time
import webbrowser
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2
import requests
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from cair.demo.oauth_client import Listener, OAuthClient
from cair.demo.person import Browser, NoSuchButton, Page
from cair.demo.terminal import Terminal, shortened
from cair.demo.trouble import DemoFailed

PATIENCE = 300.0
ENDED_WITHIN = 5.0
CALL_SECONDS = 20.0
NAME, PASSWORD = "demo", "demo"  # the development server prints them, too


class Walk:
    """One walk through a running server. `is_headless` says who signs in: a program, or you in your browser."""

    def __init__(self, url: str, terminal: Terminal, *, is_headless: bool) -> None:
        self.url = url.rstrip("/")
        self.terminal = terminal
        self.is_headless = is_headless
        self.listener = Listener()
        port = urlsplit(self.listener.origin).port
        self.client = OAuthClient(f"{self.url}/mcp", self.listener.redirect_uri, name=f"CAIR demo {port}")
        self.browser = Browser(self.url, follow_to=[self.listener.origin])

    def run(self) -> None:
        """All of it. Raises DemoFailed."""
        try:
            self._discover()
            self._register()
            self._authorize()
            asyncio.run(self._use())
            self._withdraw()
        finally:
            self.listener.close()

    # -- 1, 2  who protects this, and registration ---------------------------------------------------------------------

    def _discover(self) -> None:
        client, say = self.client, self.terminal.step
        status, challenge = client.knock()
        if status != 401 or "resource_metadata" not in challenge:
            raise DemoFailed(
                f"{client.resource} answered {status} without saying where to sign in.", "Is URL a CAIR server?"
            )
        client.scope = challenge.get("scope", "")
        say("asked", f"POST {client.resource} without a token: 401; sign in for “{client.scope}” first")
        described = client.discover(challenge["resource_metadata"])
        say(
            "discovered",
            f"{urlsplit(challenge['resource_metadata']).path}: {described['authorization_servers'][0]} gives tokens",
        )
        methods = ", ".join(client.metadata["code_challenge_methods_supported"])
        say(
            "discovered",
            f"/.well-known/oauth-authorization-server: where to register, authorize, get tokens; PKCE {methods}",
        )

    def _register(self) -> None:
        self.client.register()
        said = f"“{self.client.name}” is client {shortened(self.client.client_id)}; redirect {self.client.redirect_uri}"
        self.terminal.step("registered", said)

    # -- 3 to 7  the person, the code, the token -----------------------------------------------------------------------

    def _authorize(self) -> None:
        address = self.client.authorization_url()
        if self.is_headless:
            self._play_the_person(address)
        else:
            self._ask_the_person(address)
        answer = self._wait_for_answer()
        code = self.client.code_from(answer)
        self.terminal.step(
            "answered", f"code {shortened(code)} came to {self.listener.origin}; state and issuer are right"
        )
        tokens = self.client.redeem(code)
        self.terminal.step(
            "token",
            f"access token {shortened(self.client.access_token)} for {tokens['expires_in']} s, "
            f"refresh token {shortened(self.client.refresh_token)}; scopes: {tokens['scope']}",
        )

    def _play_the_person(self, address: str) -> None:
        """HEADLESS: fetch the pages and post their forms, as the demo user would."""
        page = self._look(lambda: self.browser.open(address))
        page = self._look(lambda: self.browser.press(page, "sign_in", fill={"username": NAME, "password": PASSWORD}))
        self.terminal.step("signed in", f"as {NAME}, on the page that names the client and what it asks for")
        consent = page
        page = self._look(lambda: self.browser.press(consent, "allow"))
        self.terminal.step("consented", "on the page that shows account, destination, permissions and tools: Allow")

    def _look(self, act: Any) -> Page:
        try:
            page: Page = act()
        except NoSuchButton as missing:
            raise DemoFailed(
                f"The page was not the expected one: {missing}.",
                "HEADLESS=1 plays the demo user of a development server; elsewhere run it without HEADLESS.",
            ) from missing
        except requests.RequestException as error:
            raise DemoFailed(
                f"{self.url} stopped answering ({error.__class__.__name__}).", "See the server's log."
            ) from error
        return page

    def _ask_the_person(self, address: str) -> None:
        opened = webbrowser.open(address)
        self.terminal.step(
            "browser", "sign in and answer there" if opened else "open this address, sign in, and answer:"
        )
        self.terminal.under(address)

    def _wait_for_answer(self) -> Mapping[str, str]:
        """The authorization response. In a browser a person takes their time, but not for ever."""
        until = time.monotonic() + (CALL_SECONDS if self.is_headless else PATIENCE)
        while (left := until - time.monotonic()) > 0:
            if not self.is_headless:
                self.terminal.waiting(f"waiting for your answer in the browser ({_clock(left)} left)")
            answer = self.listener.wait(min(1.0, left))
            if answer is not None:
                return answer
        raise DemoFailed(
            f"No answer came within {PATIENCE / 60:.0f} minutes." if not self.is_headless else "No answer came back.",
            "Run it again; sign in as demo / demo on a development server, then choose Allow or Deny.",
        )

    # -- 8  tools ------------------------------------------------------------------------------------------------------

    async def _use(self) -> None:
        """The MCP part, by the official client."""
        headers = {"Authorization": f"Bearer {self.client.access_token}"}
        try:
            http = httpx2.AsyncClient(headers=headers, trust_env=False, timeout=CALL_SECONDS)
            async with asyncio.timeout(CALL_SECONDS * 3), http:
                async with Client(streamable_http_client(self.client.resource, http_client=http)) as mcp:
                    await self._use_tools(mcp)
        except TimeoutError as late:
            raise DemoFailed("A tool call did not come back.", "See the server's log.") from late
        except (MCPError, httpx2.HTTPError) as error:
            raise DemoFailed(f"The MCP endpoint refused: {error}", "See the server's log.") from error
        except ExceptionGroup as several:  # the client's own task group wraps what it meets
            told = "; ".join(str(error) for error in several.exceptions)
            raise DemoFailed(f"The MCP endpoint refused: {told}", "See the server's log.") from several

    async def _use_tools(self, mcp: Client) -> None:
        say = self.terminal.step
        tools = (await mcp.list_tools()).tools
        say("tools/list", f"MCP {mcp.protocol_version}: {', '.join(tool.name for tool in tools)}")
        if not self._was_allowed("list_todos", "read:todos"):
            return
        before = (await self._call(mcp, "list_todos"))["todos"]
        say("list_todos", _listed(before))
        if not self._was_allowed("create_todo", "write:todos"):
            return
        made = await self._call(mcp, "create_todo", title="Watch an AI client work on my todos")
        say("create_todo", f"“{made['title']}”, id {made['id']}")
        after = (await self._call(mcp, "list_todos"))["todos"]
        if made["id"] not in [todo["id"] for todo in after]:
            raise DemoFailed("The new todo is not in the list.", "See the server's log.")
        say(
            "list_todos",
            f"{len(after)} now; the API knows their owner as {shortened(made['owner'])}, and never saw the client's token",
        )

    def _was_allowed(self, tool: str, scope: str) -> bool:
        """Whether the person left `scope` ticked; says what their no means for `tool`."""
        if scope in self.client.granted_scopes:
            return True
        self.terminal.step(
            tool, f"left out: you unticked {scope}, so it is 403 insufficient_scope, and may be asked for again"
        )
        return False

    async def _call(self, mcp: Client, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await mcp.call_tool(tool, arguments)
        if result.is_error or not isinstance(result.structured_content, dict):
            said = " ".join(getattr(part, "text", "") for part in result.content)
            raise DemoFailed(f"{tool} failed: {said}", "See the server's log.")
        return result.structured_content

    # -- 9  the end ----------------------------------------------------------------------------------------------------

    def _withdraw(self) -> None:
        """Disconnect on /connections, and proof that the token is dead."""
        if self.is_headless:
            page = self._look(lambda: self.browser.open(f"{self.url}/connections"))
            self._look(lambda: self.browser.press(page, "withdraw", about=self.client.name))
            self.terminal.step("withdrew", f"on /connections: Disconnect “{self.client.name}”")
            self._prove_dead()
        else:
            self._ask_to_disconnect()

    def _prove_dead(self) -> None:
        """Knock until the token is refused: from outside there is no event but the answer."""
        started = time.monotonic()
        while not self._is_refused():
            if time.monotonic() - started > ENDED_WITHIN:
                raise DemoFailed("The token still works after Disconnect.", "This is a defect: please report it.")
            time.sleep(0.05)
        self._say_over(f", {time.monotonic() - started:.1f} s later")

    def _ask_to_disconnect(self) -> None:
        address = f"{self.url}/connections"
        webbrowser.open(address)
        self.terminal.step("withdraw", f"press Disconnect beside “{self.client.name}”; Enter here skips this")
        self.terminal.under(address)
        until = time.monotonic() + PATIENCE
        while (left := until - time.monotonic()) > 0:
            if self._is_refused():
                self._say_over("")
                return
            self.terminal.waiting(f"waiting for Disconnect in the browser ({_clock(left)} left)")
            if _enter_was_pressed(1.0):
                break
        self.terminal.step("skipped", "the client stays connected: /connections ends it at any time")

    def _is_refused(self) -> bool:
        status, challenge = self.client.knock()
        return status == 401 and challenge.get("error") == "invalid_token"

    def _say_over(self, when: str) -> None:
        self.terminal.step("over", f"the same token at /mcp{when}: 401 invalid_token")


def _listed(todos: list[dict[str, Any]]) -> str:
    titles = ", ".join(f"“{todo['title']}”" for todo in todos[:3])
    return f"{len(todos)}: {titles}{' …' if len(todos) > 3 else ''}" if todos else "none yet"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _enter_was_pressed(within: float) -> bool:
    """Wait a moment for a line on the terminal; where there is no terminal, just wait."""
    if not sys.stdin.isatty():
        time.sleep(within)
        return False
    readable, _, _ = select.select([sys.stdin], [], [], within)
    return bool(readable and sys.stdin.readline() is not None)
