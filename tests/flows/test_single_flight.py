"""One refresh at the provider however many ask, whoever dies in the middle (DESIGN §5, T14), and no storm at one that is down.

Real processes and real calls of a tool. What has to grow old is told in the database that it has; only where the wait
for a dead process is itself the point does a test sit through it.
"""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import pairwise

import pytest
import requests

from tests import servers
from tests.flows.refresh_at_provider import BOUND, Fleet, HoldingProvider, has_todos, patiently
from tests.flows.sign_in_at_provider import PersonWithProvider
from tests.flows.test_rotation import connected
from tests.flows.test_sign_in_again import ticks
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, environment, faked_provider, real_provider
from tests.servers import Server, database, serve
from tests.walk import OAuthClient, challenge_of, message_of

CALLS = 50
ADA = "auth0|ada"


# -- a storm, at a real provider that rotates --------------------------------------------------------------------------


@contextmanager
def fleet(kind: str, processes: int, variables: dict[str, str]) -> Iterator[Fleet]:
    """So many processes on one new database; no Redis anywhere."""
    with ExitStack() as stack:
        url = stack.enter_context(database(kind))
        first = stack.enter_context(serve(url, variables))
        others = [stack.enter_context(beside(first)) for _ in range(processes - 1)]
        yield Fleet((first, *others))


def beside(first: Server, **variables: str) -> AbstractContextManager[Server]:
    """One more process on the same database, addressed by the same name."""
    extra = {**first.environment, "PORT": str(servers.free_port()), "PUBLIC_URL": first.url, **variables}
    return serve(first.environment["DATABASE_URL"], extra)


@pytest.fixture(
    scope="module",
    params=[("sqlite", 1), pytest.param(("postgres", 3), marks=pytest.mark.postgres)],
    ids=lambda p: p[0],
)
def at_real_provider(request: pytest.FixtureRequest) -> Iterator[tuple[Fleet, str]]:
    port = servers.free_port()
    with real_provider(f"http://localhost:{port}/callback") as origin:
        with fleet(*request.param, {**environment(origin), "PORT": str(port)}) as found:
            yield found, origin


@pytest.fixture
def ada(at_real_provider: tuple[Fleet, str]) -> OAuthClient:
    """Newly connected, with a grant of her own: no process remembers a token for it."""
    url = at_real_provider[0].servers[0].url
    return OAuthClient(url).connect(PersonWithProvider(url, ADA))


@pytest.mark.node
@pytest.mark.threat("T14")
@pytest.mark.parametrize("ends_in", [-1, 20], ids=["over", "due"])
def test_a_storm_of_calls_at_every_process_is_one_refresh(
    at_real_provider: tuple[Fleet, str], ada: OAuthClient, ends_in: float
) -> None:
    """Twice: the provider ends the grant of whoever shows it a spent token, and then the second storm would fail."""
    those, _ = at_real_provider
    for caller in (ada, OAuthClient(ada.url, name="Another").connect(PersonWithProvider(ada.url, ADA))):
        those.make_due(ADA, ends_in=ends_in)
        before = those.told_of(ADA)
        responses = those.storm(caller, CALLS)
        assert len(responses) == CALLS * len(those.servers)
        assert [response.text for response in responses if not has_todos(response)] == []
        after = those.told_of(ADA)
        assert (after.version - before.version, after.refreshed - before.refreshed) == (1, 1)
        assert (after.state, after.failure) == ("good", "")


@pytest.mark.node
@pytest.mark.threat("T14")
def test_the_provider_of_that_storm_ends_the_grant_of_a_spent_token(
    at_real_provider: tuple[Fleet, str], ada: OAuthClient
) -> None:
    """What makes the storm a proof; and the end that it would have had."""
    those, origin = at_real_provider
    another = OAuthClient(ada.url, name="Another").connect(PersonWithProvider(ada.url, ADA))
    spent = those.make_due(ADA)
    assert has_todos(ada.call("list_todos"))
    form = {
        "grant_type": "refresh_token",
        "refresh_token": spent,
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
    }
    assert requests.post(f"{origin}/token", data=form, timeout=5).json()["error"] == "invalid_grant"
    those.make_due(ADA)
    assert another.call("list_todos").status_code == 401
    assert those.told_of(ADA).failure == "invalid_grant"


# -- a holder that dies, or is paused ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Fleet, HoldingProvider]]:
    """Two processes that stay alive, at a provider of which anything can be asked."""
    with faked_provider() as peer:
        provider = HoldingProvider(peer)
        with fleet("postgres", 2, {**environment(peer.origin), "UPSTREAM_TIMEOUT": "2"}) as those:
            yield those, provider


@pytest.fixture
def survivors(two: tuple[Fleet, HoldingProvider]) -> Iterator[tuple[Fleet, HoldingProvider]]:
    those, provider = two
    provider.grace, provider.rotates, provider.is_down, provider.takes = False, True, False, 0.0
    yield those, provider
    provider.let_go()


def kill_in_the_middle(
    those: Fleet, provider: HoldingProvider, client: OAuthClient, moment: str, pool: ThreadPoolExecutor
) -> None:
    """A process asks the provider for a refresh and is killed before it hears the answer."""
    with beside(those.servers[0]) as doomed:
        provider.hold(moment)
        call = pool.submit(patiently(client, doomed).call, "list_todos")
        assert provider.holds.wait(BOUND)
        doomed.process.kill()
        doomed.process.wait(5)
        provider.let_go()
        assert isinstance(call.exception(BOUND), requests.ConnectionError)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as running:
        yield running


@pytest.mark.postgres
@pytest.mark.threat("T14")
def test_who_waits_behind_a_killed_holder_refreshes_when_its_lease_ends(
    survivors: tuple[Fleet, HoldingProvider], pool: ThreadPoolExecutor
) -> None:
    """The one test that sits a lease through: the waiting call has to be the one that takes over, and has time for it."""
    those, provider = survivors
    provider.takes = 1.0
    client, since = connected(those, provider, "auth0|waits"), len(provider.shown())
    refresh_token = those.make_due("auth0|waits")
    with beside(those.servers[0]) as doomed:
        provider.hold("before")
        lost = pool.submit(patiently(client, doomed).call, "list_todos")
        assert provider.holds.wait(BOUND)
        waiting = pool.submit(patiently(client, those.servers[1]).call, "list_todos")
        doomed.process.kill()
        doomed.process.wait(5)
        provider.let_go()
        assert isinstance(lost.exception(BOUND), requests.ConnectionError)
        response = waiting.result(BOUND)
    assert has_todos(response), response.text
    assert provider.shown(since=since) == [refresh_token, refresh_token]
    assert those.told_of("auth0|waits").events == ["upstream_token.refreshed"]


@pytest.mark.postgres
@pytest.mark.threat("T14")
def test_a_token_spent_by_a_killed_holder_is_renewed_within_the_providers_grace(
    survivors: tuple[Fleet, HoldingProvider], pool: ThreadPoolExecutor
) -> None:
    those, provider = survivors
    provider.grace = True
    client, since = connected(those, provider, "auth0|grace"), len(provider.shown())
    refresh_token = those.make_due("auth0|grace")
    kill_in_the_middle(those, provider, client, "after", pool)
    those.let_lease_end("auth0|grace")
    responses = those.storm(client, 5)
    assert all(has_todos(response) for response in responses), [response.text for response in responses]
    assert provider.shown(since=since) == [refresh_token, refresh_token]
    assert those.told_of("auth0|grace").events == ["upstream_token.refreshed"]


@pytest.mark.postgres
@pytest.mark.threat("T10")
@pytest.mark.threat("T14")
def test_a_token_spent_by_a_killed_holder_without_grace_ends_in_one_challenge_and_no_loop(
    survivors: tuple[Fleet, HoldingProvider], pool: ThreadPoolExecutor
) -> None:
    those, provider = survivors
    client, since = connected(those, provider, "auth0|no-grace"), len(provider.shown())
    refresh_token = those.make_due("auth0|no-grace")
    kill_in_the_middle(those, provider, client, "after", pool)
    those.let_lease_end("auth0|no-grace")
    for response in [*those.storm(client, 5), *those.storm(client, 5)]:
        assert response.status_code == 401, response.text
        assert challenge_of(response)["error"] == "invalid_token"
    assert provider.shown(since=since) == [refresh_token, refresh_token]
    told = those.told_of("auth0|no-grace")
    assert (told.state, told.failure) == ("sign_in_needed", "invalid_grant")
    assert told.events == ["upstream_token.sign_in_needed"]
    connected(those, provider, "auth0|no-grace")
    assert has_todos(client.call("list_todos"))


@pytest.mark.postgres
@pytest.mark.threat("T14")
def test_after_two_killed_holders_nobody_tries_a_third_time(
    survivors: tuple[Fleet, HoldingProvider], pool: ThreadPoolExecutor
) -> None:
    those, provider = survivors
    client, since = connected(those, provider, "auth0|twice"), len(provider.shown())
    refresh_token = those.make_due("auth0|twice")
    for _ in range(2):
        kill_in_the_middle(those, provider, client, "before", pool)
        those.let_lease_end("auth0|twice")
    assert {response.status_code for response in those.storm(client, 5)} == {401}
    assert provider.shown(since=since) == [refresh_token, refresh_token]
    assert those.told_of("auth0|twice").failure == "lost"


@pytest.mark.postgres
@pytest.mark.threat("T14")
def test_a_holder_that_was_only_paused_brings_back_what_was_given_up(
    survivors: tuple[Fleet, HoldingProvider], pool: ThreadPoolExecutor
) -> None:
    """Its success, late, beats the `invalid_grant` that its successor got for the same token."""
    those, provider = survivors
    client, since = connected(those, provider, "auth0|paused"), len(provider.shown())
    refresh_token = those.make_due("auth0|paused")
    with beside(those.servers[0], UPSTREAM_TIMEOUT="20") as paused:
        provider.hold("after")
        late = pool.submit(patiently(client, paused).call, "list_todos")
        assert provider.holds.wait(BOUND)
        paused.process.send_signal(signal.SIGSTOP)
        try:
            provider.let_go()
            those.let_lease_end("auth0|paused")
            assert patiently(client, those.servers[0]).call("list_todos").status_code == 401
            assert those.told_of("auth0|paused").failure == "invalid_grant"
        finally:
            paused.process.send_signal(signal.SIGCONT)
        response = late.result(BOUND)
        assert has_todos(response), response.text
    assert has_todos(patiently(client, those.servers[0]).call("list_todos"))
    assert provider.shown(since=since) == [refresh_token, refresh_token]
    told = those.told_of("auth0|paused")
    assert (told.version, told.state, told.refreshed) == (2, "good", 1)


# -- a provider that is down, or keeps its refresh tokens --------------------------------------------------------------


@pytest.mark.postgres
@pytest.mark.threat("T14")
def test_storms_at_two_processes_cost_a_provider_that_is_down_one_call_in_five_seconds(
    survivors: tuple[Fleet, HoldingProvider],
) -> None:
    those, provider = survivors
    client = connected(those, provider, "auth0|outage")
    those.make_due("auth0|outage")
    provider.is_down, since = True, len(provider.asked_at)
    for _ in ticks(BOUND):
        for response in those.storm(client, 10):
            result = message_of(response)["result"]
            assert result["isError"] and "Try again in" in result["content"][0]["text"]
        if len(provider.asked_at) >= since + 3:
            break
    asked = provider.asked_at[since:]
    assert all(later - earlier >= 5 for earlier, later in pairwise(asked)), asked
    assert those.told_of("auth0|outage").state == "good", "a provider that is down ends nothing"
    provider.is_down = False
    for _ in ticks():
        if has_todos(client.call("list_todos")):
            break
    assert those.told_of("auth0|outage").events == ["upstream_token.refreshed"]


@pytest.mark.postgres
def test_a_refresh_token_that_stays_is_shown_again(survivors: tuple[Fleet, HoldingProvider]) -> None:
    those, provider = survivors
    provider.rotates = False
    since = len(provider.shown())
    clients = [connected(those, provider, "auth0|stays") for _ in range(2)]
    kept = []
    for client in clients:  # each with a grant of its own: no process remembers the other's token for it
        kept.append(those.make_due("auth0|stays"))
        assert all(has_todos(response) for response in those.storm(client, 5))
    assert kept == provider.shown(since=since) == [kept[0]] * 2
    assert those.told_of("auth0|stays").refreshed == 2
