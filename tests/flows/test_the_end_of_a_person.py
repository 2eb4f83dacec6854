"""Sign-out and the end of a person, with a real provider: what ends where, how soon, and what goes on (T37)."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from cair.demo.person import Page
from tests import identity_provider, servers
from tests.flows.sign_in_at_provider import Installation, PersonWithProvider, installation
from tests.flows.test_parallel_processes import through
from tests.flows.test_shutdown import SlowApi, Stream
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET
from tests.servers import Server
from tests.walk import OAuthClient, challenge_of, plain

pytestmark = pytest.mark.node

BOUND = 1.5
"""Seconds, where a second is promised: the rest is for a slow machine, and for looking."""
WITHIN = 5.0


@pytest.fixture(scope="module")
def running() -> Iterator[Installation]:
    with installation() as found:
        yield found


def looks(within: float, every: float = 0.05) -> Iterator[None]:
    """Again and again; fails when it has taken too long."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        yield
        time.sleep(every)
    raise AssertionError(f"not within {within} s")


# -- the person, in one browser that is at CAIR and at the provider ----------------------------------------------------


def sign_in(person: PersonWithProvider) -> None:
    page = person.sign_in(person.open("/login"))
    assert page.url == f"{person.url}/connections", (page.url, page.text)


def is_signed_in(person: PersonWithProvider) -> bool:
    """Whether /connections shows this browser somebody's, and does not send it to the sign-in page."""
    page = person.open("/connections")
    assert page.status == 200, page.text
    return page.url == f"{person.url}/connections"


def times_asked_in_another_browser(person: PersonWithProvider) -> int:
    """How often the provider asks who it is when CAIR, which knows nothing of this browser yet, wants nobody asked."""
    newcomer = PersonWithProvider(person.url, person.subject)
    newcomer.elsewhere, before = person.elsewhere, person.elsewhere.times_asked
    sign_in(newcomer)
    return person.elsewhere.times_asked - before


def press_sign_out(person: PersonWithProvider) -> str:
    """Press CAIR's own button; where its page goes on to by itself."""
    page = person.browser.press(person.open("/connections"), "")
    assert page.title.startswith("Signed out"), page.text
    seconds, _, address = page.headers["Refresh"].partition("; url=")
    assert seconds == "0" and address in page.html.replace("&amp;", "&")
    return address


def end_session_at(provider: str, person: PersonWithProvider) -> None:
    left = person.elsewhere.sign_out(f"{provider}/session/end")
    assert left == f"{provider}/session/end/success"


def bearer_of(client: OAuthClient) -> dict[str, str]:
    return {"Authorization": f"Bearer {client.tokens['access_token']}", "Accept": "text/event-stream"}


def is_good_at(provider: str, refresh_token: str) -> bool:
    """What the provider itself says of a refresh token; asking does not spend it (RFC 7662)."""
    form = {"token": refresh_token, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    response = plain().post(f"{provider}/token/introspection", data=form, timeout=WITHIN)
    assert response.status_code == 200, response.text
    return response.json()["active"] is True


def refusal_at(provider: str, refresh_token: str) -> str:
    """What the token endpoint there answers to whoever still comes with this token."""
    form = {
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
    }
    response = plain().post(f"{provider}/token", data=form, timeout=WITHIN)
    return str(response.json().get("error"))


# -- sign-out ----------------------------------------------------------------------------------------------------------


def test_signing_out_ends_the_session_here_and_at_the_provider_and_clients_stay(running: Installation) -> None:
    """Also though the provider tells us of it: that is an echo of what the person did here."""
    person = PersonWithProvider(running.server.url)
    client = OAuthClient(running.server.url).connect(person)
    address = press_sign_out(person)
    assert not is_signed_in(person)
    assert urlsplit(address).netloc == urlsplit(running.provider).netloc
    back = person.elsewhere.sign_out(address)
    assert back == f"{running.server.url}/"
    assert person.open(back).status == 200
    assert "POST /backchannel-logout 200" in running.server.log_with("/backchannel-logout")
    client.todos()
    refreshed = client.refresh(client.tokens["refresh_token"])
    assert refreshed.status_code == 200, refreshed.text
    assert times_asked_in_another_browser(person) == 1


@pytest.mark.threat("T37")
def test_the_end_of_the_session_at_the_provider_lets_clients_wait_for_the_next_sign_in(running: Installation) -> None:
    person = PersonWithProvider(running.server.url)
    client = OAuthClient(running.server.url).connect(person)
    client.todos()
    assert times_asked_in_another_browser(person) == 0
    end_session_at(running.provider, person)
    assert not is_signed_in(person)
    for _ in range(2):
        refused = client.refresh(client.tokens["refresh_token"])
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
    sign_in(person)
    refreshed = client.refresh(client.tokens["refresh_token"])
    assert refreshed.status_code == 200, refreshed.text
    client.tokens = refreshed.json()
    client.todos()


@pytest.mark.threat("T37")
def test_a_sign_out_here_is_no_excuse_for_the_next_session(running: Installation) -> None:
    """Whoever signs out here, and in again, and then ends the session at the provider, is taken at their word."""
    person = PersonWithProvider(running.server.url)
    client = OAuthClient(running.server.url).connect(person)
    press_sign_out(person)  # and never goes on: the session at the provider stays what it was
    sign_in(person)
    end_session_at(running.provider, person)
    assert not is_signed_in(person)
    refused = client.refresh(client.tokens["refresh_token"])
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


@pytest.mark.threat("T37")
def test_a_sign_out_here_explains_a_logout_token_for_a_minute(running: Installation) -> None:
    """Longer ago, and never carried through at the provider: what it says then is news."""
    person = PersonWithProvider(running.server.url)
    client = OAuthClient(running.server.url).connect(person)
    press_sign_out(person)
    running.server.shell(
        "from django.utils.timezone import now; from oauth_relay.models import SpentLogoutToken as Spent\n"
        "Spent.objects.update(until=now())"
    )
    end_session_at(running.provider, person)
    refused = client.refresh(client.tokens["refresh_token"])
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


@pytest.mark.threat("T37")
def test_an_open_stream_ends_when_the_provider_says_that_its_person_signed_out(running: Installation) -> None:
    """DESIGN §4.8: what is open ends, and the next request gets the 401; after a sign-in the same token opens another."""
    person = PersonWithProvider(running.server.url)
    client = OAuthClient(running.server.url).connect(person, resource=None)
    stream = Stream(client)
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(stream.rest)
        end_session_at(running.provider, person)
        told = time.monotonic()
        ended.result(WITHIN)
        assert time.monotonic() - told < BOUND
    refused = client.http.get(f"{client.url}/sse", headers=bearer_of(client), timeout=WITHIN)
    assert (refused.status_code, challenge_of(refused)["error"]) == (401, "invalid_token")
    assert client.call("whoami").status_code == 401
    sign_in(person)
    Stream(client).response.close()
    assert client.call("whoami").status_code == 200


# -- the last connection -----------------------------------------------------------------------------------------------


def refresh_token_in_vault(server: Server) -> str:
    return server.shell(_REFRESH_TOKEN)


_REFRESH_TOKEN = """
from oauth_relay.models import UpstreamCredential
from oauth_relay.upstream_credentials import open_tokens
row = UpstreamCredential.objects.get()
print(open_tokens(row, user_id=row.user_id, provider_name=row.provider, audience=row.audience).refresh_token)
"""


def test_withdrawing_the_last_connection_revokes_at_the_provider() -> None:
    """RFC 7009, and not before the last."""
    with installation() as running:
        person = PersonWithProvider(running.server.url)
        OAuthClient(running.server.url, name="First").connect(person)
        OAuthClient(running.server.url, name="Second").connect(person)
        refresh_token = refresh_token_in_vault(running.server)
        person.withdraw("First")
        assert running.states() == ["good"]
        assert is_good_at(running.provider, refresh_token)
        person.withdraw("Second")
        assert running.states() == []
        for _ in looks(WITHIN):
            if not is_good_at(running.provider, refresh_token):
                break
        assert refusal_at(running.provider, refresh_token) == "invalid_grant"


# -- switched off ------------------------------------------------------------------------------------------------------


@dataclass
class Operator:
    """Somebody in the admin of one process, which is addressed by the public name of both."""

    server: Server

    def __post_init__(self) -> None:
        self.http = plain()
        self.http.headers.update({"Host": urlsplit(self.server.url).netloc, "Origin": self.server.url})
        self.server.shell(
            "from oauth_relay.models import User; User.objects.create_superuser('operator', password='a long one')"
        )
        self.submit("/admin/login/", "Log in", {"username": "operator", "password": "a long one"})

    def submit(self, path: str, button: str, fill: dict[str, str] | None = None, untick: tuple[str, ...] = ()) -> None:
        """Open a page, fill in the form that has a button of this value, and send it."""
        address = f"{self.server.address}{path}"
        page = Page.read(self.http.get(address, timeout=WITHIN))
        sent = page.form_with(button).filled_in(fill or {}, untick)
        answered = self.http.post(address, data=sent, allow_redirects=False, timeout=WITHIN)
        assert answered.status_code == 302, Page.read(answered).text

    def switch_off(self, number: str) -> None:
        self.submit(f"/admin/oauth_relay/user/{number}/change/", "Save", untick=("on",))


@dataclass
class Pair:
    """Two processes on one database, and the provider of both."""

    first: Server
    second: Server
    provider: str


@pytest.fixture
def pair(slow_api: SlowApi) -> Iterator[Pair]:
    port = servers.free_port()
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(identity_provider.real_provider(f"http://localhost:{port}/callback"))
        url = stack.enter_context(servers.database("postgres"))
        common = {**identity_provider.environment(provider), "API_BASE_URL": slow_api.url}
        first = stack.enter_context(servers.serve(url, {**common, "PORT": str(port)}))
        second = stack.enter_context(servers.serve(url, {**common, "PUBLIC_URL": first.url}))
        yield Pair(first, second, provider)


@pytest.fixture
def slow_api() -> Iterator[SlowApi]:
    api = SlowApi()
    yield api
    api.let_go.set()
    api.shutdown()
    api.server_close()


@pytest.mark.postgres
@pytest.mark.threat("T12")
@pytest.mark.threat("T37")
def test_a_person_switched_off_in_one_process_is_over_in_both_within_a_second(pair: Pair, slow_api: SlowApi) -> None:
    """Tokens in use, a stream, a call under way, the browser, the vault, and what the provider gave."""
    person = PersonWithProvider(pair.first.url)
    here = OAuthClient(pair.first.url).connect(person, resource=None)
    there = through(here, pair.second)
    operator, refresh_token = Operator(pair.second), refresh_token_in_vault(pair.first)
    number = pair.first.shell("from oauth_relay.models import Identity; print(Identity.objects.get().user_id)")
    stream = Stream(here)
    with ThreadPoolExecutor() as pool:
        call = pool.submit(here.call, "list_todos")
        assert slow_api.asked.wait(WITHIN), "the call never reached the API"
        tokens = [pool.submit(_until_refused, client) for client in (here, there)]
        ended = pool.submit(_moment_after, stream.rest)
        cut = pool.submit(_moment_after, call.result)
        operator.switch_off(number)
        off = time.monotonic()
        moments = [future.result(WITHIN) for future in (*tokens, ended, cut)]
    assert max(moments) - off < BOUND, [round(moment - off, 2) for moment in moments]
    assert challenge_of(call.result())["error"] == "invalid_token"
    assert pair.first.shell("from oauth_relay.models import UpstreamCredential as C; print(C.objects.count())") == "0"
    assert here.refresh(here.tokens["refresh_token"]).json()["error"] == "invalid_grant"
    assert not is_signed_in(person)
    for _ in looks(WITHIN):
        if not is_good_at(pair.provider, refresh_token):
            break
    assert refusal_at(pair.provider, refresh_token) == "invalid_grant"


def _until_refused(client: OAuthClient) -> float:
    """Use a token until it is refused; when that was. It is good at first."""
    assert client.ask("tools/list").status_code == 200
    for _ in looks(2 * WITHIN):
        answer = client.ask("tools/list")
        if answer.status_code != 200:
            break
    assert (answer.status_code, challenge_of(answer)["error"]) == (401, "invalid_token")
    return time.monotonic()


def _moment_after(wait: Callable[[], Any]) -> float:
    wait()
    return time.monotonic()
