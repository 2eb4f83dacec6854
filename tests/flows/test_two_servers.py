"""Several servers from one checkout, each with its own PORT and DATABASE_URL; and one that is started again."""

import contextlib
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.walk import OAuthClient, Person, challenge_of

KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(scope="module", params=KINDS)
def two(request: pytest.FixtureRequest) -> Iterator[tuple[servers.Server, servers.Server]]:
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(servers.database(request.param)) for _ in range(2)]
        yield stack.enter_context(servers.serve(urls[0])), stack.enter_context(servers.serve(urls[1]))


def test_two_servers_know_nothing_of_each_other(two: tuple[servers.Server, servers.Server]) -> None:
    one, other = two
    client = OAuthClient(one.url).connect(Person(one.url))
    made = client.call("create_todo", title="Only here").json()["result"]["structuredContent"]
    there = OAuthClient(other.url).connect(Person(other.url))
    assert made["id"] not in [todo["id"] for todo in there.todos()]
    foreign = there.ask("tools/list", token=client.tokens["access_token"])
    assert foreign.status_code == 401 and challenge_of(foreign)["error"] == "invalid_token"
    assert there.refresh(client.tokens["refresh_token"]).json()["error"] == "invalid_grant"
    stranger = Person(other.url).open(OAuthClient(other.url, client_id=client.client_id).authorization_url())
    assert stranger.status == 400 and "not known to this server" in stranger.text


@pytest.mark.threat("T26")
def test_one_browser_signs_in_to_both_in_turn(two: tuple[servers.Server, servers.Server]) -> None:
    """Cookies ignore ports: the session of one must not be taken for a session of the other, nor break it."""
    one, other = two
    person = Person(one.url, also=[other.url])
    person.sign_in_first()
    elsewhere = person.open(f"{other.url}/connections")
    assert elsewhere.has_button("sign_in")
    person.sign_in(elsewhere)
    assert person.open(f"{other.url}/connections").has_button("sign_in") is False


@pytest.mark.parametrize("kind", KINDS)
def test_a_restart_keeps_data_and_tokens(kind: str) -> None:
    with servers.database(kind) as url:
        with servers.serve(url) as first:
            person = Person(first.url)
            client = OAuthClient(first.url).connect(person)
            made = client.call("create_todo", title="Survives").json()["result"]["structuredContent"]
            port = first.environment["PORT"]
        with servers.serve(url, {"PORT": port}) as again:
            assert again.url == client.url
            assert made["id"] in [todo["id"] for todo in client.todos()]
            assert client.refresh(client.tokens["refresh_token"]).status_code == 200
            assert "Inspector" in person.open("/connections").text, "the person is still signed in"
            people = "from oauth_relay.models import User; print(User.objects.filter(username='demo').count())"
            assert again.shell(people) == "1"


def test_a_taken_port_is_said_with_the_way_out(sqlite_server: servers.Server) -> None:
    environment = dict(sqlite_server.environment)
    done = subprocess.run(
        [sys.executable, "manage.py", "serve"],
        cwd=servers.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=40,
    )
    port = int(environment["PORT"])
    assert done.returncode != 0
    assert f"Port {port} cannot be used" in done.stderr and f"PORT={port + 1}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.threat("T26")
def test_the_database_file_is_nobody_elses_business(sqlite_server: servers.Server) -> None:
    file = Path(sqlite_server.environment["DATABASE_URL"].removeprefix("sqlite:///"))
    for path in (file, *file.parent.glob(f"{file.name}-*")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
