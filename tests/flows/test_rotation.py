"""Rotating each key while people work: two processes, one PostgreSQL database, no failed call and nobody signed out.

Tools are called, tokens refreshed on both sides and people signed in all the while. What a step has to wait for is
not waited for here: the rows are told that the time has passed.
"""

import base64
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
import requests

from cair.demo.person import NoSuchButton
from tests.flows.test_parallel_processes import through
from tests.identity_provider import (
    AUDIENCE,
    RSA_KEY,
    SCOPE,
    Answer,
    FakedProvider,
    environment,
    faked_provider,
    signed_with,
)
from tests.oauth_relay import racing
from tests.servers import ROOT, Server, database, serve
from tests.walk import OAuthClient, Person

pytestmark = pytest.mark.postgres
BOUND = 30.0
WAYS_TO_FAIL = (AssertionError, LookupError, NoSuchButton, requests.RequestException)


class Load:
    """People and clients at work, each on a thread of their own, until the end. Whatever goes wrong is kept."""

    def __init__(self) -> None:
        self.rounds: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, name: str, act: Callable[[], Any]) -> None:
        self._threads.append(threading.Thread(target=self._work, args=(name, act), name=name))

    def _work(self, name: str, act: Callable[[], Any]) -> None:
        while not self._stop.wait(0.05):
            try:
                act()
            except WAYS_TO_FAIL as error:
                self.failures.append(f"{name}, round {self.rounds[name]}: {error!r}")
            self.rounds[name] += 1

    def goes_on(self, rounds: int = 3, also: Callable[[], bool] = lambda: True) -> None:
        """Everybody has come through some whole rounds since this was asked, and `also` has come true."""
        begun, until = Counter(self.rounds), time.monotonic() + BOUND
        while not all(self.rounds[t.name] >= begun[t.name] + rounds + 1 for t in self._threads) or not also():
            assert time.monotonic() < until, (begun, self.rounds, self.failures)
            self._stop.wait(0.02)
        assert self.failures == []

    @contextmanager
    def running(self) -> "Iterator[Load]":
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(BOUND)


class Deployment:
    """Two servers on one database, and the operator's shell beside them."""

    def __init__(self, database_url: str, servers: tuple[Server, Server]) -> None:
        self.database_url, self.servers = database_url, servers

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def time_passes(self, seconds: int) -> None:
        """As far as keys can tell."""
        self.sql(f"UPDATE oauth_relay_signingkey SET state_since = state_since - interval '{seconds} seconds'")
        self.sql(f"UPDATE oauth_relay_datakey SET retired_at = retired_at - interval '{seconds} seconds'")

    def published(self) -> set[str]:
        """The key ids in the document, which is the same at both."""
        documents = [
            requests.get(
                f"{server.address}/.well-known/jwks.json",
                headers={"Host": self.servers[0].url.split("//")[1]},
                timeout=5,
            ).json()
            for server in self.servers
        ]
        assert documents[0] == documents[1]
        return {key["kid"] for key in documents[0]["keys"]}

    def operator(self, *arguments: str, **extra: str) -> "subprocess.Popen[str]":
        """A command begun in another shell, whose progress can be read while it works."""
        return subprocess.Popen(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT, env={**self.servers[0].environment, **extra}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str, **extra: str) -> str:
        out, err = (process := self.operator(*arguments, **extra)).communicate(timeout=BOUND)
        assert process.returncode == 0, err
        return out


@contextmanager
def deployed(seed: str = "", seeded_with: dict[str, str] | None = None, **extra: str) -> Iterator[Deployment]:
    """Two servers. `seed` is run before them, in an environment of its own: what a former deployment has left."""
    with ExitStack() as stack:
        url = stack.enter_context(database("postgres"))
        if seed:
            former = racing.environment(url, {**extra, **(seeded_with or {})})
            racing.migrate(former)
            racing.run(former, seed)
        first = stack.enter_context(serve(url, extra))
        second = stack.enter_context(serve(url, {**extra, "PUBLIC_URL": first.url}))
        yield Deployment(url, (first, second))


def at_work(
    deployment: Deployment, connect: Callable[[], OAuthClient], sign_in: Callable[[], OAuthClient] | None = None
) -> Load:
    """A client that calls at each process, one that refreshes at both in turn, and a person who signs in afresh."""
    load = Load()
    for number, server in enumerate(deployment.servers, start=1):
        load.add(f"calls at {number}", through(connect(), server).todos)
    client = connect()
    ends = [through(client, server) for server in deployment.servers]

    def refresh() -> None:
        response = ends[0].refresh(client.tokens["refresh_token"])
        assert response.status_code == 200, response.text
        client.tokens.update(response.json())
        assert ends[1].tokens is client.tokens
        ends[1].todos()
        ends.reverse()

    load.add("refreshes", refresh)
    load.add("signs in", lambda: (sign_in or connect)().todos())
    return load


# -- where CAIR issues the tokens --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own() -> Iterator[Deployment]:
    with deployed() as deployment:
        yield deployment


@pytest.mark.threat("T20")
def test_the_signing_key_changes_while_people_work(own: Deployment) -> None:
    url = own.servers[0].url
    forged = own.servers[0].shell(
        "import time; from django.conf import settings; from oauth_relay import keys;"
        "audience = settings.UPSTREAM_APIS['todos']['audience'];"
        "claims = {'iss': settings.PUBLIC_URL, 'aud': audience, 'sub': 'thief', 'scope': 'read:todos'};"
        "print(keys.sign_api_token({**claims, 'exp': int(time.time()) + 3600}))"
    )
    (first,) = own.published()
    with at_work(own, lambda: OAuthClient(url).connect(Person(url))).running() as load:
        load.goes_on()
        assert "is next" in own.run("rotate_signing_key")
        (coming,) = own.published() - {first}
        own.time_passes(400)
        two = [own.operator("rotate_signing_key") for _ in range(2)]  # two operators, the same minute
        assert {process.communicate(timeout=BOUND)[0][:36] for process in two} == {coming}
        load.goes_on(5)
        assert own.published() == {first, coming}
        assert api_status(own, forged) == 200
        own.time_passes(600)
        assert "Nothing more to do" in own.run("rotate_signing_key")
        assert own.published() == {coming}
        load.goes_on(5)
    own.run("rotate_signing_key", "--compromised", coming)
    until = time.monotonic() + BOUND
    while (signed_with_gone := api_status(own, forged)) == 200:
        OAuthClient(url).connect(Person(url)).call("list_todos")  # shows the API the new key
        assert time.monotonic() < until
    assert signed_with_gone == 401
    assert coming not in own.published()


def api_status(deployment: Deployment, raw_token: str) -> int:
    headers = {"Authorization": f"Bearer {raw_token}"}
    return requests.get(f"{deployment.servers[0].url}/api/todos", headers=headers, timeout=5).status_code


def test_a_client_secret_changes_while_its_client_works(own: Deployment) -> None:
    url = own.servers[0].url
    client = OAuthClient(url, name="Confidential").register(token_endpoint_auth_method="client_secret_post")
    secret = {"now": client.registration["client_secret"]}
    answer = Person(url).allow(client.authorization_url())
    client.tokens = client.redeem(answer["code"], client_secret=secret["now"]).json()
    ends = [through(client, server) for server in own.servers]

    def refresh() -> None:
        response = ends[0].refresh(client.tokens["refresh_token"], client_secret=secret["now"])
        assert response.status_code == 200, response.text
        client.tokens.update(response.json())
        ends.reverse()

    load = Load()
    load.add("refreshes", refresh)
    with load.running():
        load.goes_on()
        former, raw_secret = secret["now"], own.run("rotate_client_secret", client.client_id).strip()
        load.goes_on(5)  # with the old one, in its overlap
        secret["now"] = raw_secret
        load.goes_on(5)
        own.run("rotate_client_secret", client.client_id, "--end-overlap")
        load.goes_on(5)
    refused = ends[0].refresh(client.tokens["refresh_token"], client_secret=former)
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")


OLD_SECRET, NEW_SECRET = "o" * 50, "n" * 50


def test_the_secret_of_sessions_and_forms_changes_while_people_work() -> None:
    """One process after the other, as a rolling restart does it: at one moment each has another secret."""
    before = {"COOKIE_ENCRYPTION_KEY": OLD_SECRET, "COOKIE_ENCRYPTION_KEY_FALLBACKS": NEW_SECRET}
    after = {"COOKIE_ENCRYPTION_KEY": NEW_SECRET, "COOKIE_ENCRYPTION_KEY_FALLBACKS": OLD_SECRET}
    with database("postgres") as url, ExitStack() as stack:
        first = stack.enter_context(serve(url, before))
        second = stack.enter_context(serve(url, {**before, "PUBLIC_URL": first.url}))
        person, client = Person(first.url), OAuthClient(first.url)
        client.connect(person)
        page = person.consent_page(client.authorization_url(prompt="consent"))
        live, load = [first, second], Load()
        load.add("calls", lambda: [through(client, server).todos() for server in list(live)])
        load.add("looks", lambda: [sees_their_connections(person, server) for server in list(live)])
        with load.running():
            load.goes_on()
            for server in (first, second):
                live.remove(server)  # as a balancer would, before it is stopped
                load.goes_on(1)
                server.end()
                again = {**after, "PUBLIC_URL": first.url, "PORT": server.environment["PORT"]}
                live.append(stack.enter_context(serve(url, again)))
                load.goes_on(5)
        assert "code" in person.answer(page, "allow"), "a form that was open all the while"


def sees_their_connections(person: Person, server: Server) -> None:
    """This process knows the person by the cookie they were given at the beginning, and gives them no other."""
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in person.browser.session.cookies)
    headers = {"Host": person.url.split("//")[1], "Cookie": cookies}
    response = requests.get(f"{server.address}/connections", headers=headers, allow_redirects=False, timeout=5)
    assert response.status_code == 200 and "withdraw" in response.text, response.text[:500]
    assert "Set-Cookie" not in response.headers or "cair_session" not in response.headers["Set-Cookie"]


# -- where a provider issues them, and the vault keeps them ------------------------------------------------------------


class OneTimeProvider:
    """Access tokens of two seconds, and refresh tokens that are good once: whoever spends one twice is signed out."""

    def __init__(self, peer: FakedProvider) -> None:
        self.peer, self.refreshed, self.refused = peer, 0, 0
        self._subjects: dict[str, str] = {}
        self._lock = threading.Lock()
        peer.answer = self.answer

    def answer(self, form: dict[str, str]) -> Answer:
        if form["grant_type"] == "authorization_code":
            id_token = self.peer.id_token(self.peer.journeys[form["code"]])
            return 200, {**self._given(self.peer.claims["sub"]), "id_token": id_token}
        with self._lock:
            subject = self._subjects.pop(form["refresh_token"], None)
            self.refused += subject is None
            self.refreshed += subject is not None
        return (200, self._given(subject)) if subject else (400, {"error": "invalid_grant"})

    def _given(self, subject: str) -> dict[str, Any]:
        refresh_token = secrets.token_urlsafe(16)
        self._subjects[refresh_token] = subject
        claims = {"iss": self.peer.origin, "aud": AUDIENCE, "sub": subject, "scope": SCOPE, "exp": time.time() + 30}
        access_token = signed_with(RSA_KEY, "RS256", "key-1")(claims)
        return {"access_token": access_token, "refresh_token": refresh_token, "token_type": "Bearer", "expires_in": 2}


OLD, NEW = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
SEED = """
import time
from oauth_relay.models import UpstreamCredential, User
from oauth_relay.upstream_credentials import Tokens, seal_tokens
people = User.objects.bulk_create(User(username=f"person{n}", password="!") for n in range(350))
rows = [UpstreamCredential(user=user, provider="auth0", audience="urn:a", issuer="i", subject="s") for user in people]
for row in rows:
    row.tokens = seal_tokens(row, Tokens("access", "refresh", None), version=1)
UpstreamCredential.objects.bulk_create(rows)
"""
OPENED = """
from oauth_relay import upstream_credentials, vault_rotation
from oauth_relay.models import UpstreamCredential
opened = sum(bool(upstream_credentials.facts_of(row)) for row in UpstreamCredential.objects.all())
print(opened, UpstreamCredential.objects.count(), sum(vault_rotation.remaining().values()))
"""


@pytest.fixture(scope="module")
def vault() -> Iterator[tuple[Deployment, OneTimeProvider]]:
    """The database knows the old master key only; both servers have been restarted with the new one in front."""
    with faked_provider() as peer:
        provider = OneTimeProvider(peer)
        both_keys = {"CAIR_MASTER_KEYS": f"{NEW},{OLD}"}
        with deployed(SEED, {"CAIR_MASTER_KEYS": OLD}, **both_keys, **environment(peer.origin)) as both:
            yield both, provider


def connected(deployment: Deployment, provider: OneTimeProvider, subject: str = "auth0|ada") -> OAuthClient:
    """Somebody who has come all the way: to the provider, back, and through our consent page."""
    url = deployment.servers[0].url
    client, person = OAuthClient(url).register(), Person(url)
    page = person.browser.press(person.open(client.authorization_url()), "auth0")
    assert page.left, (page.status, page.text)
    consent = person.open(provider.peer.approve(page.left, sub=subject))
    response = client.redeem(person.answer(consent, "allow")["code"])
    assert response.status_code == 200, response.text
    client.tokens = response.json()
    return client


def at_work_through(deployment: Deployment, provider: OneTimeProvider) -> Load:
    """Ada works, and only refreshes keep her going; Mallory signs in again and again."""
    return at_work(
        deployment, lambda: connected(deployment, provider), lambda: connected(deployment, provider, "auth0|mallory")
    )


def nobody_was_signed_out(deployment: Deployment, provider: OneTimeProvider) -> bool:
    events = deployment.sql("SELECT DISTINCT event FROM oauth_relay_auditevent")
    assert ("upstream_token.refreshed",) in events
    return provider.refused == 0 and ("upstream_token.sign_in_needed",) not in events


@pytest.mark.threat("T20")
def test_the_master_key_changes_while_people_work(vault: tuple[Deployment, OneTimeProvider]) -> None:
    """Before the next test: there, data keys are made that the old master key has never seen."""
    both, provider = vault
    assert "1 data keys would be wrapped" in both.run("rotate_master_key", "--dry-run")
    with at_work_through(both, provider).running() as load:
        load.goes_on()
        two = [both.operator("rotate_master_key") for _ in range(2)]
        for process in two:
            out, err = process.communicate(timeout=BOUND)
            assert process.returncode == 0, err
            assert "No longer needed" in out
        load.goes_on()
        assert opened_with(both, OLD) == opened_with(both, NEW) == "352 352 0", "each alone, until the old is dropped"
        assert "Nothing more to do" in both.run("rotate_master_key", "--drop", CAIR_MASTER_KEYS=NEW)
        load.goes_on(5)
        client = connected(both, provider)
    assert nobody_was_signed_out(both, provider)
    alone = {"PUBLIC_URL": both.servers[0].url, "CAIR_MASTER_KEYS": NEW, **environment(provider.peer.origin)}
    with serve(both.database_url, alone) as restarted:
        assert isinstance(through(client, restarted).todos(), list)
    assert "opens under no configured master key" in opened_with(both, OLD)


def opened_with(deployment: Deployment, master_key: str) -> str:
    """What a process with this master key alone can open of the vault; or why it cannot."""
    out, err = deployment.operator(
        "shell", "--no-imports", "--command", OPENED, CAIR_MASTER_KEYS=master_key
    ).communicate(timeout=BOUND)
    return out.strip() or err


@pytest.mark.threat("T21")
def test_the_vault_is_sealed_anew_while_people_work(vault: tuple[Deployment, OneTimeProvider]) -> None:
    both, provider = vault
    with at_work_through(both, provider).running() as load:
        load.goes_on()
        ((old_key,),) = both.sql("SELECT id FROM oauth_relay_datakey")
        ((row, copied),) = both.sql(
            "SELECT id, tokens FROM oauth_relay_upstreamcredential WHERE audience = 'urn:a' LIMIT 1"
        )
        killed = both.operator("rotate_vault_key")
        assert killed.stderr is not None
        while "sealed anew" not in killed.stderr.readline():
            assert killed.poll() is None
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=5)
        load.goes_on(2)
        two = [both.operator("rotate_vault_key") for _ in range(2)]
        for process in two:
            out, err = process.communicate(timeout=BOUND)
            assert process.returncode == 0, err
            assert "run again" in out
        ((keys,),) = both.sql("SELECT count(*) FROM oauth_relay_datakey")
        assert keys == 2, "killed once and started twice, it is one rotation"
        load.goes_on(3)
        both.time_passes(400)
        assert "Nothing more to do" in both.run("rotate_vault_key")
        before = provider.refreshed
        load.goes_on(5, also=lambda: provider.refreshed > before)
    assert nobody_was_signed_out(both, provider)
    assert opened_with(both, NEW) == "352 352 0"
    both.sql(f"UPDATE oauth_relay_upstreamcredential SET tokens = '\\x{copied.hex()}' WHERE id = '{row}'")  # a backup
    assert f"data key {old_key} opens under no configured master key" in opened_with(both, NEW)
    both.sql(f"DELETE FROM oauth_relay_upstreamcredential WHERE id = '{row}'")
