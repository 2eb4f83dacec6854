"""Memory that one client can take is bounded: what comes in, and what waits for a reader who does not read."""

import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.servers import Server, database, serve
from tests.walk import OAuthClient, Person

MANY = 300 * 1024 * 1024


@pytest.fixture(scope="module")
def lone_server() -> Iterator[Server]:
    """A server of this module's own: its memory is looked at."""
    with database("sqlite") as url, serve(url) as running:
        yield running


def memory_of(server: Server) -> int:
    """Resident bytes of the process."""
    with open(f"/proc/{server.process.pid}/statm") as statistics:
        return int(statistics.read().split()[1]) * 4096


def connect(server: Server) -> socket.socket:
    port = urlsplit(server.url).port
    assert port is not None
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def head(server: Server, path: str, *lines: str) -> bytes:
    host = urlsplit(server.url).netloc
    return "\r\n".join([f"POST {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


@pytest.mark.parametrize("path", ["/mcp", "/token", "/register", "/messages/", "/login", "/api/todos"])
def test_a_body_declared_too_large_is_refused_before_it_is_sent(lone_server: Server, path: str) -> None:
    with connect(lone_server) as client:
        client.sendall(head(lone_server, path, "Content-Type: application/json", f"Content-Length: {MANY}"))
        answer = client.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 413")
    assert json.loads(answer.partition("\r\n\r\n")[2])["error"] == "invalid_request"


def test_a_body_that_never_ends_is_cut_off_and_takes_no_memory(lone_server: Server) -> None:
    before = memory_of(lone_server)
    with connect(lone_server) as client:
        client.sendall(head(lone_server, "/mcp", "Content-Type: application/json", "Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        with pytest.raises((BrokenPipeError, ConnectionResetError, TimeoutError)):
            until = time.monotonic() + 10
            while time.monotonic() < until:
                client.sendall(chunk)
    assert memory_of(lone_server) - before < 30 * 1024 * 1024


def test_a_header_that_moves_every_path_does_nothing_and_breaks_nothing(lone_server: Server) -> None:
    with connect(lone_server) as client:
        raw = head(lone_server, "/token", "Content-Length: 0", "Daphne-Root-Path: /x", "Connection: close")
        client.sendall(raw.replace(b"/x", b"/\xe9"))
        assert client.recv(4096).startswith(b"HTTP/1.1 400")


def test_a_reader_that_never_reads_is_let_go(lone_server: Server) -> None:
    client = OAuthClient(lone_server.url).connect(Person(lone_server.url), resource=f"{lone_server.url}/sse")
    lone_server.shell(
        "from todos.models import Owner, Todo;"
        "owner = Owner.objects.first() or Owner.objects.create(issuer='x', subject='x');"
        "from oauth_relay.models import User; owner.issuer = '" + lone_server.url + "';"
        "owner.subject = User.objects.get(username='demo').subject; owner.save();"
        "Todo.objects.bulk_create([Todo(owner=owner, title='t', description='x' * 4000) for _ in range(120)])"
    )
    token = client.tokens["access_token"]
    with connect(lone_server) as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opening = head(lone_server, "/sse", f"Authorization: Bearer {token}").replace(b"POST", b"GET", 1)
        stream.sendall(opening)
        heard = b""
        while b"session_id=" not in heard or not heard.endswith(b"\r\n\r\n"):
            heard += stream.recv(4096)
        session = heard.partition(b"session_id=")[2].split()[0].decode()
        before = memory_of(lone_server)
        statuses = []
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list_todos", "arguments": {}}}
        for _ in range(200):
            response = client.http.post(
                f"{lone_server.url}/messages/?session_id={session}",
                json=call, headers={"Authorization": f"Bearer {token}"}, timeout=15,
            )  # fmt: skip
            statuses.append(response.status_code)
            if response.status_code != 202:
                break
    assert statuses[0] == 202
    assert statuses[-1] in (404, 503)
    assert memory_of(lone_server) - before < 80 * 1024 * 1024
    lone_server.log_with("reads too slowly")
