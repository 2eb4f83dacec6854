"""Two processes on one PostgreSQL database, as behind a plain balancer: whatever happens at once happens once (T11)."""

import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.servers import Server, database, serve
from tests.walk import OAuthClient, Person

pytestmark = pytest.mark.postgres
AT_ONCE = 8


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Server]]:
    with database("postgres") as url, serve(url) as first, serve(url, {"PUBLIC_URL": first.url}) as second:
        yield first, second


def through(client: OAuthClient, server: Server) -> OAuthClient:
    """The same client, its requests carried to one process; that process is addressed by the public name."""
    other = copy.copy(client)
    other.http = requests.Session()
    other.http.trust_env = False
    other.http.headers["Host"] = urlsplit(client.url).netloc
    other.url = server.address
    return other


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(30) for future in [pool.submit(call) for call in calls]]


def spread(client: OAuthClient, pair: tuple[Server, Server], act: Callable[[OAuthClient], Any]) -> list[Any]:
    clients = [through(client, pair[number % 2]) for number in range(AT_ONCE)]
    return at_once([lambda c=c: act(c) for c in clients])  # type: ignore[misc]


@pytest.fixture
def client(pair: tuple[Server, Server]) -> OAuthClient:
    return OAuthClient(pair[0].url).register()


@pytest.fixture
def person(pair: tuple[Server, Server]) -> Person:
    return Person(pair[0].url)


@pytest.mark.threat("T11")
def test_a_code_sent_to_two_processes_at_once_gives_one_pair(
    pair: tuple[Server, Server], client: OAuthClient, person: Person
) -> None:
    code = person.allow(client.authorization_url())["code"]
    resource = client.mcp
    answers = spread(client, pair, lambda c: c.redeem(code, resource=resource))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * (AT_ONCE - 1)
    assert {answer.json().get("error") for answer in answers if answer.status_code == 400} == {"invalid_grant"}


@pytest.mark.threat("T13")
def test_a_refresh_sent_to_two_processes_at_once_has_one_successor(
    pair: tuple[Server, Server], client: OAuthClient, person: Person
) -> None:
    client.connect(person)
    answers = spread(client, pair, lambda c: c.refresh(client.tokens["refresh_token"]))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    alive = pair[0].shell(
        "from oauth_relay.models import RefreshToken;"
        f"print(RefreshToken.objects.filter(application__client_id='{client.client_id}', revoked=None).count())"
    )
    assert alive == "1"


@pytest.mark.threat("T11")
def test_a_withdrawal_that_races_a_refresh_always_wins(
    pair: tuple[Server, Server], client: OAuthClient, person: Person
) -> None:
    for _ in range(5):
        client.connect(person)
        clients = [through(client, pair[number % 2]) for number in range(4)]
        refreshes = [lambda c=c: c.refresh(client.tokens["refresh_token"]) for c in clients]  # type: ignore[misc]
        answers = at_once([*refreshes, lambda: person.withdraw(client.name)])[:-1]
        newest = [answer.json()["refresh_token"] for answer in answers if answer.status_code == 200]
        for refresh_token in [client.tokens["refresh_token"], *newest]:
            assert client.refresh(refresh_token).json()["error"] == "invalid_grant"


@pytest.mark.threat("T12")
def test_a_withdrawal_at_one_process_is_known_at_the_other_within_a_second(
    pair: tuple[Server, Server], client: OAuthClient, person: Person
) -> None:
    client.connect(person)
    there = through(client, pair[1])
    assert there.ask("tools/list").status_code == 200
    person.withdraw(client.name)
    started = time.monotonic()
    while there.ask("tools/list").status_code == 200:
        assert time.monotonic() - started < 1.5
    assert there.ask("tools/list").status_code == 401


def test_two_tabs_that_allow_at_once_share_one_grant(
    pair: tuple[Server, Server], client: OAuthClient, person: Person
) -> None:
    pages = []
    for _ in range(2):
        url = client.authorization_url()
        pages.append(person.consent_page(url))
    answers = at_once([lambda page=page: person.answer(page, "allow") for page in pages])  # type: ignore[misc]
    assert all("code" in answer for answer in answers)
    grants = pair[0].shell(
        f"from oauth_relay.models import Grant; print(Grant.objects.filter(client__client_id='{client.client_id}').count())"
    )
    assert grants == "1"


def test_allowing_and_refreshing_at_once_never_wait_for_each_other(
    pair: tuple[Server, Server], client: OAuthClient, person: Person
) -> None:
    """Both lock the grant and touch the client: in one order, or PostgreSQL ends one of them as a deadlock."""
    client.connect(person)
    refresh_token = client.tokens["refresh_token"]
    for _ in range(6):
        page = person.consent_page(client.authorization_url())
        other = through(client, pair[1])
        allowed, refreshed = at_once([lambda p=page: person.answer(p, "allow"), lambda: other.refresh(refresh_token)])  # type: ignore[misc]  # noqa: B023
        assert "code" in allowed
        assert refreshed.status_code == 200, refreshed.text
        refresh_token = refreshed.json()["refresh_token"]


def test_one_page_posted_twice_at_once_is_answered_once(
    pair: tuple[Server, Server], client: OAuthClient, person: Person
) -> None:
    page = person.consent_page(client.authorization_url())

    def post() -> str:
        try:
            return "code" if "code" in person.answer(page, "allow") else "other"
        except AssertionError:
            return "page"

    assert sorted(at_once([post, post])) == ["code", "page"]


def test_both_processes_sign_with_one_key_and_seal_with_one(
    pair: tuple[Server, Server], client: OAuthClient, person: Person
) -> None:
    client.connect(person)
    for server in pair:
        response = through(client, server).call("list_todos")
        assert response.status_code == 200
        assert not response.json().get("result", {}).get("isError"), response.text
