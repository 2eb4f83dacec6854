"""The end of the process: streams and calls under way do not keep it, and nothing that was answered is lost."""

import contextlib
import http.server
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests import servers
from tests.walk import OAuthClient, Person, plain

BOUND = 5.0
SIGNALS = [signal.SIGTERM, signal.SIGINT]


class SlowApi(http.server.ThreadingHTTPServer):
    """An API that has received a request, says so, and answers only when it is let go."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked, self.let_go = threading.Event(), threading.Event()
        asked, let_go = self.asked, self.let_go

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.set()
                let_go.wait(30)
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                with contextlib.suppress(BrokenPipeError):  # who asked may be gone by now
                    self.end_headers()
                    self.wfile.write(b'{"todos": []}')

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def slow_api() -> Iterator[SlowApi]:
    api = SlowApi()
    yield api
    api.let_go.set()
    api.shutdown()
    api.server_close()


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    with servers.database(getattr(request, "param", "sqlite")) as url:
        yield url


both = pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)


def connected(server: servers.Server) -> OAuthClient:
    return OAuthClient(server.url).register().connect(Person(server.url), resource=None)


class Stream:
    """An SSE stream that has said its first word. A connection that is cut off, rather than ended, raises."""

    def __init__(self, client: OAuthClient) -> None:
        headers = {"Authorization": f"Bearer {client.tokens['access_token']}", "Accept": "text/event-stream"}
        self.response = plain().get(f"{client.url}/sse", headers=headers, stream=True, timeout=10)
        assert self.response.status_code == 200
        self.lines = self.response.iter_lines()
        assert b"endpoint" in next(self.lines)

    def rest(self) -> list[bytes]:
        return list(self.lines)


@both
@pytest.mark.parametrize("number", SIGNALS)
def test_it_ends_within_five_seconds_with_a_stream_and_a_call_under_way(
    database_url: str, slow_api: SlowApi, number: int
) -> None:
    with servers.serve(database_url, {"API_BASE_URL": slow_api.url}) as server:
        client = connected(server)
        stream = Stream(client)
        with ThreadPoolExecutor() as pool:
            call = pool.submit(_outcome, client)
            assert slow_api.asked.wait(BOUND), "the call never reached the API"
            took = server.end(number)
            outcome = call.result(timeout=BOUND)
        assert took < BOUND, f"{took:.1f} s"
        assert json.loads(outcome)["error"] == "temporarily_unavailable", outcome
        stream.rest()


def _outcome(client: OAuthClient) -> str:
    """What became of a call: the answer, or that the connection ended."""
    try:
        return client.call("list_todos").text
    except requests.RequestException as error:
        return error.__class__.__name__


@pytest.mark.parametrize("number", SIGNALS)
def test_it_ends_within_five_seconds_when_nothing_happens(database_url: str, number: int) -> None:
    with servers.serve(database_url) as server:
        connected(server)
        assert server.end(number) < BOUND
        assert "Traceback" not in "".join(server.log)


def test_a_second_signal_does_not_break_the_first(database_url: str) -> None:
    with servers.serve(database_url) as server:
        stream = Stream(connected(server))
        server.process.send_signal(signal.SIGINT)
        assert server.end(signal.SIGTERM) < BOUND
        stream.rest()


@both
def test_what_was_answered_is_there_after_the_end(database_url: str) -> None:
    """Durable when it returns: rows and audit are on disk before the answer leaves."""
    with servers.serve(database_url) as server:
        client = connected(server)
        made = client.call("create_todo", title="Written just before the end").json()["result"]["structuredContent"]
        server.process.kill()
        server.process.wait(BOUND)
        port = server.environment["PORT"]
    with servers.serve(database_url, {"PORT": port}) as again:
        client.url = again.url
        assert made["id"] in [todo["id"] for todo in client.todos()]
        recorded = json.loads(again.shell(_LAST_CALL))
        assert "create_todo" in recorded


_LAST_CALL = """
import json
from oauth_relay.models import AuditEvent
print(json.dumps(' '.join(str(vars(row)) for row in AuditEvent.objects.all()[:50])))
"""


def test_a_stream_that_is_left_does_not_keep_the_process(database_url: str) -> None:
    with servers.serve(database_url) as server:
        client = connected(server)
        for _ in range(5):
            Stream(client).response.close()
        started = time.monotonic()
        server.end()
        assert time.monotonic() - started < BOUND
