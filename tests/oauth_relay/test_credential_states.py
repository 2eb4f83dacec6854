"""One credential through every order of events: asked for, renewed, refused, lost, signed out and in (DESIGN §5; T10, T14).

Beside the rows a small model keeps what should be true of them. Processes are stopped in the middle of a refresh, paused
and killed there; the provider answers whenever, and whatever, it likes.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db.models import F
from django.db.transaction import atomic
from django.utils import timezone
from hypothesis import HealthCheck
from hypothesis import settings as bounds
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from oauth_relay import suspensions, upstream_refresh, vault_rotation
from oauth_relay.database import in_database
from oauth_relay.identity_providers import ProviderRefused, ProviderUnavailable, TokenAnswer
from oauth_relay.models import DataKey, LoginTransaction, UpstreamCredential
from oauth_relay.models.secrets import LOST
from oauth_relay.upstream_credentials import (
    Credential,
    Tokens,
    UpstreamLoginRequired,
    UpstreamRefused,
    UpstreamUnavailable,
    open_tokens,
    seal_tokens,
)
from tests import identity_provider
from tests.oauth_relay.paused_processes import (
    AT_PROVIDER,
    CLAIMED,
    ENDED,
    MARKED,
    Clock,
    Killed,
    Process,
    paused_processes,
)
from tests.oauth_relay.test_upstream_tokens import Person, make_person

pytestmark = pytest.mark.django_db(transaction=True)

NARROW, FULL = "openid read:todos", identity_provider.SCOPE
State = UpstreamCredential.State


@pytest.fixture
def clock(settings: Any) -> Iterator[Clock]:
    identity_provider.configure(settings, "http://127.0.0.1:9")
    with paused_processes(settings) as running:
        yield running


def read(person: Person) -> Credential:
    return upstream_refresh._open_credential(person.principal(), "todos")


def make_due(person: Person, *, ends_in: float = -1) -> None:
    """As if the access token had grown old; over altogether if `ends_in` is negative."""
    row = person.credential
    old = open_tokens(row, user_id=row.user_id, provider_name=row.provider, audience=row.audience)
    tokens = Tokens(old.access_token, old.refresh_token, time.time() - 1)
    sealed = seal_tokens(row, tokens, version=row.version)
    expires_at = timezone.now() + timedelta(seconds=ends_in)
    UpstreamCredential.objects.filter(pk=row.pk).update(tokens=sealed, expires_at=expires_at)


def let_lease_pass(clock: Clock) -> None:
    """As much time passes as a lease has, for the database as for every process."""
    seconds = upstream_refresh._lease_seconds() + 1
    clock.now += seconds
    earlier = timedelta(seconds=seconds)
    UpstreamCredential.objects.update(
        lease_until=F("lease_until") - earlier,
        lease_sent_at=F("lease_sent_at") - earlier,
        failed_at=F("failed_at") - earlier,
    )


def succeed(number: int = 2, *, rotates: bool = True) -> Any:
    refresh_token = f"refresh-{number}" if rotates else None
    return lambda: TokenAnswer(f"access-{number}", refresh_token, None, None, time.time() + 3600)


def fail_with(error: Exception) -> Any:
    def fail() -> TokenAnswer:
        raise error

    return fail


@pytest.fixture
def ada(clock: Clock) -> Person:
    person = make_person("ada", "http://127.0.0.1:9")
    person.sign_in()
    make_due(person)
    return person


# -- the orders that were once got wrong -------------------------------------------------------------------------------


@pytest.mark.threat("T14")
def test_a_holder_paused_after_it_marked_its_call_does_not_send(ada: Person, clock: Clock) -> None:
    """Writing the mark may itself take long: the time left is looked at last."""
    slow = Process(read(ada), stops=MARKED)
    let_lease_pass(clock)
    slow.goes_on()
    assert (slow.at, slow.shown) == (ENDED, "")
    assert ada.credential.lease_holder is None


@pytest.mark.threat("T14")
def test_documents_that_cannot_be_read_cost_one_attempt_although_a_holder_has_died(ada: Person, clock: Clock) -> None:
    dead = Process(read(ada))
    dead.goes_on(Killed)
    let_lease_pass(clock)
    assert Process(read(ada), can_read=False).at == ENDED
    assert read(ada).has_just_failed
    let_lease_pass(clock)
    second = Process(read(ada))
    assert (second.at, ada.credential.failure) == (AT_PROVIDER, LOST), "the loss is still remembered"
    second.goes_on(Killed)


@pytest.mark.threat("T10")
def test_a_late_success_brings_nothing_back_after_a_sign_out_whoever_failed_between(ada: Person, clock: Clock) -> None:
    reader = read(ada)
    late = Process(read(ada))
    suspensions.suspend(ada.user, "auth0")
    assert Process(reader, can_read=False).at == ENDED
    late.goes_on(succeed())
    assert ada.credential.state == State.SIGN_IN_NEEDED


@pytest.mark.threat("T10")
def test_a_sign_out_of_what_is_already_over_is_final_too(ada: Person, clock: Clock) -> None:
    """`invalid_grant` may yet be beaten by a late success on the same version; the person's word may not."""
    late = Process(read(ada))
    let_lease_pass(clock)
    Process(read(ada)).goes_on(fail_with(ProviderRefused("invalid_grant")))
    suspensions.suspend(ada.user, "auth0")
    late.goes_on(succeed())
    assert ada.credential.state == State.SIGN_IN_NEEDED


@pytest.mark.threat("T14")
def test_who_waited_a_whole_lease_still_hears_what_its_own_call_brought(
    ada: Person, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came a moment after the holder that died, so the lease ends with its patience; then the provider takes a second."""
    Process(read(ada)).goes_on(Killed)

    async def wait_for_the_end(seconds: float) -> None:
        await in_database(let_lease_pass, clock)
        clock.now -= 1.1

    def renew(credential: Credential, *rest: Any) -> None:
        clock.now += 1
        upstream_refresh._store(credential.row, succeed()(), "", None)

    monkeypatch.setattr(upstream_refresh, "asyncio", SimpleNamespace(sleep=wait_for_the_end))
    monkeypatch.setattr(upstream_refresh, "_renew", renew)
    token = asyncio.run(upstream_refresh.token_from_vault(ada.principal(), "todos", None))
    assert token.value == "Bearer access-2"


@pytest.mark.threat("T14")
@pytest.mark.parametrize("error", [ProviderUnavailable("503"), ProviderRefused("invalid_grant")])
def test_a_late_failure_takes_nothing_from_the_holder_of_today(ada: Person, clock: Clock, error: Exception) -> None:
    late = Process(read(ada))
    let_lease_pass(clock)
    holder = Process(read(ada))
    late.goes_on(fail_with(error))
    assert read(ada).is_leased
    holder.goes_on(succeed())
    assert (ada.credential.version, ada.credential.state) == (2, State.GOOD)


# -- every order -------------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """What should be true of the one credential."""

    version: int = 1
    access_token: str = "access-1"
    refresh_token: str | None = "refresh-1"
    scope: str = FULL
    why_over: str = ""
    is_due: bool = False
    has_ended: bool = False
    has_just_failed: bool = False
    holder: Process | None = None
    is_lease_live: bool = False
    is_sent: bool = False
    is_second_try: bool = False
    shown: Counter[str] = field(default_factory=Counter)

    @property
    def is_good(self) -> bool:
        return not self.why_over

    @property
    def is_held(self) -> bool:
        return self.holder is not None and self.is_lease_live

    @property
    def is_lost(self) -> bool:
        return self.holder is not None and not self.is_lease_live and self.is_sent and self.is_second_try

    def may_be_claimed(self, version: int) -> bool:
        return self.is_good and version == self.version and not (self.is_held or self.has_just_failed or self.is_lost)

    def let_go(self) -> None:
        self.holder, self.is_lease_live, self.is_sent = None, False, False

    def is_over(self, why: str) -> None:
        self.why_over = why
        self.let_go()
        self.is_second_try = self.has_just_failed = False

    def renew(self, access_token: str, refresh_token: str | None) -> None:
        self.version += 1
        self.access_token, self.refresh_token = access_token, refresh_token
        self.is_due = self.has_ended = False
        self.is_over("")
        self.shown.clear()


class CredentialStates(RuleBasedStateMachine):
    """Rules are what may happen; the invariants are looked at after each."""

    clock: Clock
    ada: Person

    def __init__(self) -> None:
        super().__init__()
        self.model, self.made = Model(), 1
        self.readers: list[tuple[Credential, bool]] = []
        self.processes: list[Process] = []
        self.claimed_at: dict[Process, float] = {}

    @initialize()
    def the_person_is_connected(self) -> None:
        self.clock.now = 0.0
        suspensions.resume(self.ada.user)
        self.ada.sign_in()

    def teardown(self) -> None:
        for process in self.processes:
            process.goes_on(Killed)
        UpstreamCredential.objects.all().delete()
        LoginTransaction.objects.all().delete()

    # -- time ----------------------------------------------------------------------------------------------------------

    def _the_access_token_grows_old(self, *, has_ended: bool) -> None:
        if self.model.is_good:
            make_due(self.ada, ends_in=-1 if has_ended else 50)
            self.model.is_due, self.model.has_ended = True, has_ended

    @precondition(lambda self: self.model.holder or self.model.has_just_failed or self.processes)
    @rule()
    def a_lease_passes(self) -> None:
        let_lease_pass(self.clock)
        self.model.is_lease_live = self.model.has_just_failed = False

    # -- somebody asks -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.is_good and not self.model.is_held)
    @rule(why=st.sampled_from(["over", "due", "rejected"]))
    def somebody_asks(self, why: str) -> None:
        """A turn of door 2: the token has grown old, or the API has refused it. Whoever refreshes waits for an answer."""
        self._ask(why, AT_PROVIDER)

    @precondition(lambda self: self.model.is_good and not self.model.is_held)
    @rule(why=st.sampled_from(["over", "rejected"]), stops=st.sampled_from([MARKED, CLAIMED]))
    def somebody_asks_and_is_paused_in_the_middle(self, why: str, stops: str) -> None:
        self._ask(why, stops)

    @precondition(lambda self: self.model.is_good and not self.model.is_held)
    @rule()
    def somebody_asks_and_cannot_find_the_provider(self) -> None:
        self._ask("over", AT_PROVIDER, can_read=False)

    @precondition(lambda self: self.model.is_good and len(self.readers) < 3)
    @rule()
    def somebody_reads_and_is_paused(self) -> None:
        self._the_access_token_grows_old(has_ended=True)
        self._read_and_decide(is_rejected=False)

    @precondition(lambda self: self.model.is_good and self.model.is_held)
    @rule()
    def a_lease_passes_and_somebody_takes_over(self) -> None:
        self.a_lease_passes()
        self._ask("over", AT_PROVIDER)

    @precondition(lambda self: self.readers)
    @rule(can_read=st.booleans())
    def who_read_long_ago_acts(self, can_read: bool) -> None:
        self._act(self.readers.pop(0), AT_PROVIDER, can_read)

    def _ask(self, why: str, stops: str, *, can_read: bool = True) -> None:
        before = len(self.readers)
        if why != "rejected":
            self._the_access_token_grows_old(has_ended=why == "over")
        self._read_and_decide(is_rejected=why == "rejected")
        if len(self.readers) > before:
            self._act(self.readers.pop(), stops, can_read)

    def _read_and_decide(self, *, is_rejected: bool) -> None:
        if credential := self._read():
            self._decide(credential, is_rejected)

    def _read(self) -> Credential | None:
        model = self.model
        must_sign_in = not model.is_good or model.is_lost or (model.refresh_token is None and model.has_ended)
        try:
            credential = read(self.ada)
        except UpstreamLoginRequired:
            assert must_sign_in
            if model.is_good:
                model.is_over(LOST if model.is_lost else "expired")
            return None
        assert not must_sign_in
        return credential

    def _decide(self, credential: Credential, is_rejected: bool) -> None:
        model = self.model
        try:
            token = upstream_refresh._decided(credential, "todos", credential.version if is_rejected else None)
        except UpstreamRefused:
            assert is_rejected
        except UpstreamUnavailable:
            assert model.has_just_failed and (is_rejected or model.has_ended)
        else:
            free = not (model.is_held or model.has_just_failed)
            if model.is_due and model.refresh_token and free and not is_rejected:
                assert token is None, "what is due must be renewed by whoever comes"
            if token is not None:
                assert not is_rejected and not model.has_ended
            elif not credential.is_leased:
                self.readers.append((credential, is_rejected))

    def _act(self, reader: tuple[Credential, bool], stops: str, can_read: bool) -> None:
        credential, is_rejected = reader
        model, version = self.model, credential.row.version
        may_claim = model.may_be_claimed(version)
        process = Process(credential, rejected_by="todos" if is_rejected else "", stops=stops, can_read=can_read)
        if not can_read:
            assert process.at == ENDED
            model.has_just_failed |= model.is_good and version == model.version and not model.is_held
            return
        assert (process.at != ENDED) == may_claim, process.at
        if may_claim:
            self._is_claimed_by(process)

    def _is_claimed_by(self, process: Process) -> None:
        model = self.model
        model.is_second_try |= model.holder is not None and model.is_sent
        model.holder, model.is_lease_live, model.is_sent = process, True, process.at != CLAIMED
        self.processes.append(process)
        self.claimed_at[process] = self.clock.now
        self._look_at_what_is_shown(process)

    def _look_at_what_is_shown(self, process: Process) -> None:
        """A refresh token is shown once; once more where a holder's time ended without its answer."""
        if process.at == AT_PROVIDER:
            self.model.shown[process.shown] += 1
            assert self.model.shown[process.shown] <= 2

    # -- what becomes of a call ----------------------------------------------------------------------------------------

    def _are(self, *places: str) -> list[Process]:
        return [process for process in self.processes if process.at in places]

    @precondition(lambda self: self._are(CLAIMED, MARKED))
    @rule(which=st.integers(0, 3))
    def a_paused_process_goes_on(self, which: int) -> None:
        paused, model = self._are(CLAIMED, MARKED), self.model
        process = paused[which % len(paused)]
        is_in_time, was = process is model.holder and model.is_lease_live, process.at
        process.goes_on()
        if process is model.holder:
            model.is_sent = is_in_time
        if process.at == ENDED:
            assert not is_in_time
            self._ends(process)
        else:
            assert is_in_time or (was == MARKED and process is not model.holder)
            self._look_at_what_is_shown(process)

    def _ends(self, process: Process) -> None:
        self.processes.remove(process)
        if process is self.model.holder:
            self.model.let_go()

    def _who_waits(self, which: int) -> Process:
        waiting = self._are(AT_PROVIDER)
        self.processes.remove(process := waiting[which % len(waiting)])
        return process

    @precondition(lambda self: self._are(AT_PROVIDER))
    @rule(which=st.integers(0, 3))
    def the_provider_renews(self, which: int) -> None:
        self._renews(self._who_waits(which), rotates=True)

    @precondition(lambda self: self._are(AT_PROVIDER))
    @rule(which=st.integers(0, 3))
    def the_provider_renews_the_access_token_alone(self, which: int) -> None:
        self._renews(self._who_waits(which), rotates=False)

    def _renews(self, process: Process, *, rotates: bool) -> None:
        """However late: what it gives counts, unless something newer is kept or the person has signed out."""
        self.made += 1
        process.goes_on(succeed(self.made, rotates=rotates))
        if process.version == self.model.version and self.model.why_over != "signed_out":
            self.model.renew(f"access-{self.made}", f"refresh-{self.made}" if rotates else process.shown)

    @precondition(lambda self: self._are(AT_PROVIDER))
    @rule(
        which=st.integers(0, 3), error=st.sampled_from([ProviderUnavailable("503"), ProviderRefused("invalid_client")])
    )
    def the_provider_fails(self, which: int, error: Exception) -> None:
        process, model = self._who_waits(which), self.model
        process.goes_on(fail_with(error))
        if process is model.holder:
            model.let_go()
            model.is_second_try, model.has_just_failed = False, True
            model.shown.clear()

    @precondition(lambda self: self._are(AT_PROVIDER))
    @rule(which=st.integers(0, 3))
    def the_provider_says_invalid_grant(self, which: int) -> None:
        """Who has lost the lease meanwhile has nothing to say."""
        process, model = self._who_waits(which), self.model
        process.goes_on(fail_with(ProviderRefused("invalid_grant")))
        if process is model.holder:
            model.is_over("invalid_grant")

    @precondition(lambda self: self.processes)
    @rule(which=st.integers(0, 3))
    def a_process_is_killed(self, which: int) -> None:
        """After its claim, after its mark, or while the provider has its refresh token. Its lease stays."""
        process = self.processes.pop(which % len(self.processes))
        process.goes_on(Killed)

    # -- the person, and the operator ----------------------------------------------------------------------------------

    @precondition(lambda self: self._are(AT_PROVIDER))
    @rule()
    def the_person_signs_in_meanwhile(self) -> None:
        self._sign_in(has_refresh_token=True, scope=FULL)

    @precondition(lambda self: not self.model.is_good or self.processes)
    @rule(has_refresh_token=st.booleans(), scope=st.sampled_from([FULL, FULL, NARROW]))
    def the_person_signs_in(self, has_refresh_token: bool, scope: str) -> None:
        self._sign_in(has_refresh_token=has_refresh_token, scope=scope)

    def _sign_in(self, *, has_refresh_token: bool, scope: str) -> None:
        assert self.model.is_good or self._read() is None, "nothing that is over is handed out"
        self.made += 1
        access_token, brought = f"access-{self.made}", f"refresh-{self.made}" if has_refresh_token else None
        self.ada.sign_in(access_token=access_token, refresh_token=brought, scope=scope)
        suspensions.resume(self.ada.user)
        model = self.model
        is_alive = model.is_good and not (model.has_ended and model.refresh_token is None)
        if is_alive and set(model.scope.split()) - set(scope.split()):
            return
        if is_alive and brought is None and model.refresh_token is not None:
            if model.is_held:
                return
            brought = model.refresh_token
            # Carried over, it is no newer than it was: a loss on it still counts.
            has_been_sent, shown = model.holder is not None and model.is_sent, model.shown.copy()
        else:
            has_been_sent, shown = False, Counter()
        model.renew(access_token, brought)
        model.scope, model.is_second_try, model.shown = scope, has_been_sent, shown

    @precondition(lambda self: self.processes or self.readers)
    @rule()
    def the_person_signs_out_at_the_provider(self) -> None:
        suspensions.suspend(self.ada.user, "auth0")
        self.model.is_over("signed_out")

    @precondition(lambda self: self.processes)
    @rule()
    def the_vault_key_is_rotated(self) -> None:
        with atomic():
            DataKey.objects.filter(retired_at__isnull=False).update(retired_at=timezone.now() - timedelta(hours=1))
        vault_rotation.remove_unused()
        vault_rotation.begin()
        for _ in vault_rotation.reseal():
            pass

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def the_row_is_what_the_model_says(self) -> None:
        """So the version never goes back, nothing is over but for a reason, no refresh token gives way to none."""
        row, model = UpstreamCredential.objects.with_clock().get(), self.model
        tokens = open_tokens(row, user_id=row.user_id, provider_name=row.provider, audience=row.audience)
        assert (row.version, row.state) == (model.version, State.GOOD if model.is_good else State.SIGN_IN_NEEDED)
        assert (tokens.access_token, tokens.refresh_token) == (model.access_token, model.refresh_token)
        assert row.scope == model.scope
        assert (row.lease_holder is not None) == (model.holder is not None)
        assert row.is_leased == model.is_held
        assert model.is_good or row.failure == model.why_over

    @invariant()
    def one_process_at_most_waits_for_the_provider_in_its_time(self) -> None:
        began = self.clock.now - upstream_refresh._lease_seconds()
        now = [p for p in self._are(AT_PROVIDER) if p.version == self.model.version and self.claimed_at[p] > began]
        assert len(now) <= 1


@pytest.mark.threat("T10")
@pytest.mark.threat("T14")
def test_no_order_of_events_loses_a_credential_or_spends_a_token_twice(clock: Clock) -> None:
    CredentialStates.clock, CredentialStates.ada = clock, make_person("ada", "http://127.0.0.1:9")
    run_state_machine_as_test(
        CredentialStates,
        settings=bounds(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
