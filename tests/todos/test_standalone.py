"""`python -m todos`: the real process, from a folder without CAIR, against a real issuer."""

import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import servers
from tests.todos.issuer import SampleIssuer
from tests.todos.process import ask, lonely_copy, running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lonely_copy(tmp_path_factory.mktemp("lonely"))


@pytest.fixture(scope="module")
def real_issuer() -> Iterator[SampleIssuer]:
    sample = SampleIssuer()
    yield sample
    sample.close()


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def api(request: pytest.FixtureRequest, folder: Path, real_issuer: SampleIssuer) -> Iterator[str]:
    """The address of a running API, once on each database."""
    with servers.database(request.param) as url:
        with running(folder, TODOS_ISSUER=real_issuer.url, DATABASE_URL=url) as process:
            yield process.url()
            assert process.end() == 0


def test_it_serves_todos_to_tokens_of_its_issuer(api: str, real_issuer: SampleIssuer) -> None:
    assert ask("GET", f"{api}/api/health").json()["status"] == "ok"
    raw_token = real_issuer.token()
    made = ask("POST", f"{api}/api/todos", raw_token, json={"title": "Walk", "due": "2026-11-20"})
    assert made.status_code == 201
    found = ask("GET", f"{api}/api/todos?done=false", raw_token).json()["todos"]
    assert made.json() in found
    assert len(found) == 3  # beside it the two samples that are not done: the issuer is on this machine
    assert ask("GET", f"{api}/api/me", raw_token).json()["iss"] == real_issuer.url
    assert ask("GET", f"{api}/api/todos", real_issuer.token(aud="urn:another")).status_code == 401
    assert ask("GET", f"{api}/anything").json()["error"] == "not_found"


def test_many_first_requests_make_one_owner_and_one_set_of_samples(api: str, real_issuer: SampleIssuer) -> None:
    raw_token = real_issuer.token(sub="newcomer")
    together, counts = threading.Barrier(8), []

    def first_visit() -> None:
        together.wait(5)
        response = ask("GET", f"{api}/api/todos", raw_token)
        counts.append((response.status_code, len(response.json().get("todos", ()))))

    threads = [threading.Thread(target=first_visit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    assert counts == [(200, 3)] * 8


def test_it_refuses_two_authorization_headers_on_the_wire(api: str, real_issuer: SampleIssuer) -> None:
    connection = http.client.HTTPConnection(urlsplit(api).netloc, timeout=5)
    connection.putrequest("GET", "/api/me")
    for _ in range(2):
        connection.putheader("Authorization", f"Bearer {real_issuer.token()}")
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 400
    assert b"invalid_request" in response.read()


@pytest.mark.threat("T17")
def test_a_root_path_header_moves_nothing(api: str) -> None:
    for root_path in ("/api", "/x"):
        assert ask("GET", f"{api}/api/health", headers={"Daphne-Root-Path": root_path}).status_code == 200
    document = ask("GET", f"{api}/api/openapi.json", headers={"Daphne-Root-Path": "/x"}).json()
    assert "/api/todos" in document["paths"]


def test_it_refuses_a_large_body_on_the_wire(api: str, real_issuer: SampleIssuer) -> None:
    response = ask("POST", f"{api}/api/todos", real_issuer.token(), json={"title": "x" * 1024 * 1024})
    assert (response.status_code, response.json()["error"]) == (413, "invalid_request")


def test_it_keeps_the_data_in_a_file_of_its_own(folder: Path, real_issuer: SampleIssuer) -> None:
    for expected in (201, 200):
        with running(folder, TODOS_ISSUER=real_issuer.url, TODOS_SAMPLE_ROWS="false") as process:
            url = process.url()
            if expected == 201:
                assert ask("POST", f"{url}/api/todos", real_issuer.token(), json={"title": "Kept"}).status_code == 201
            todos = ask("GET", f"{url}/api/todos", real_issuer.token()).json()["todos"]
            assert [todo["title"] for todo in todos] == ["Kept"]
            assert process.end() == 0
    assert (folder / "todos.sqlite3").is_file()


def test_it_reads_the_file_of_the_cloudflare_demo(tmp_path: Path, real_issuer: SampleIssuer) -> None:
    lonely_copy(tmp_path)
    (tmp_path / ".dev.vars").write_text(f"AUTH0_DOMAIN={real_issuer.url}\nAUTH0_AUDIENCE=urn:their-api\n")
    with running(tmp_path) as process:
        url = process.url()
        assert ask("GET", f"{url}/api/me", real_issuer.token(aud="urn:their-api")).status_code == 200
        assert ask("GET", f"{url}/api/me", real_issuer.token()).status_code == 401
        assert "urn:their-api" in process.log


def test_port_and_database_in_that_file_are_another_process_s(tmp_path: Path) -> None:
    lonely_copy(tmp_path)
    (tmp_path / ".dev.vars").write_text("PORT=8788\nDATABASE_URL=sqlite:////elsewhere.sqlite3\n")
    code = "from todos import standalone as s; print(s.PORT, s.DATABASES['default']['NAME'])"
    plain = {"PATH": os.environ["PATH"]}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=plain, capture_output=True, text=True, timeout=20
    )
    assert told.stdout.split() == ["8789", str(tmp_path / "todos.sqlite3")]


def test_it_says_when_the_port_is_taken(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with running(folder, PORT=str(taken.getsockname()[1])) as process:
            assert process.exit_code() == 1
            assert "Address already in use" in process.log


def test_it_names_every_wrong_variable_at_once(folder: Path) -> None:
    wrong = {
        "PORT": "eighty",
        "DATABASE_URL": "mysql://x",
        "TODOS_ISSUER": "http://issuer.example",
        "TODOS_DISCOVERY": "file:///etc/passwd",
        "TODOS_SAMPLE_ROWS": "perhaps",
    }
    with running(folder, **wrong) as process:
        assert process.exit_code() == 2
        assert {line.split()[0] for line in process.lines} == wrong.keys()


SIGN_A_TOKEN = """
import time
from django.conf import settings
from oauth_relay.keys import sign_api_token
now = int(time.time())
claims = {"iss": settings.PUBLIC_URL, "aud": settings.API_AUDIENCE, "sub": "ada", "iat": now, "exp": now + 60}
print(sign_api_token({**claims, "scope": "read:todos", "client_id": "inspector", "jti": "one"}))
"""


def test_cairs_own_tokens_open_it_in_either_process(folder: Path) -> None:
    """CAIR as the issuer, the API beside it or inside it: the same token, proved by the same published key."""
    with servers.database("sqlite") as url, servers.serve(url) as cair:
        raw_token = cair.shell(SIGN_A_TOKEN)
        inside = ask("GET", f"{cair.url}/api/todos", raw_token)
        with servers.database("sqlite") as own, running(folder, TODOS_ISSUER=cair.url, DATABASE_URL=own) as process:
            beside = ask("GET", f"{process.url()}/api/todos", raw_token)
    for response in (inside, beside):
        assert response.status_code == 200, response.text
        assert {todo["owner"] for todo in response.json()["todos"]} == {"ada"}


def test_settings_in_the_shell_are_not_taken_for_its_own(folder: Path, real_issuer: SampleIssuer) -> None:
    with running(folder, DJANGO_SETTINGS_MODULE="cair.settings", TODOS_ISSUER=real_issuer.url) as process:
        assert ask("GET", f"{process.url()}/api/health").status_code == 200


def test_a_signal_ends_it_while_the_issuer_is_silent(folder: Path) -> None:
    """A request that waits for keys must not keep the process alive."""
    silent = SampleIssuer()
    try:
        with running(folder, TODOS_ISSUER=silent.url) as process:
            url = process.url()
            silent.may_answer.clear()
            waiting = threading.Thread(target=_ask_in_vain, args=(url, silent.token()), daemon=True)
            waiting.start()
            assert silent.was_asked.wait(5)
            assert process.end() == 0
    finally:
        silent.close()


def _ask_in_vain(url: str, raw_token: str) -> None:
    try:
        ask("GET", f"{url}/api/me", raw_token)
    except OSError:
        pass
