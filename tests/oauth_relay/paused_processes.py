"""Processes that refresh one credential, each stopped where a test wants it: paused, killed, or waiting for the provider.

A process is a thread with a database connection of its own. The provider is scripted: no real one can be made to answer
in every order.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connections

from oauth_relay import upstream_refresh
from oauth_relay.identity_providers import Provider, ProviderUnavailable, TokenAnswer
from oauth_relay.upstream_credentials import Credential

BOUND = 10.0
CLAIMED, MARKED, AT_PROVIDER, ENDED = "claimed", "marked", "at the provider", "ended"

Answer = Callable[[], TokenAnswer]


class Killed(BaseException):
    """The process is no more: nothing behind this point is run, no lease is given back."""


class Process:
    """One process that has read a credential and now acts on it. Runs from stop to stop, never by itself."""

    def __init__(
        self, credential: Credential, *, rejected_by: str = "", stops: str = "", can_read: bool = True
    ) -> None:
        self.credential, self.can_read = credential, can_read
        self.at, self.shown = "", ""
        self._stops = {stops, AT_PROVIDER}
        self._order: Answer | type[Killed] | None = None
        self._arrived, self._leaves = threading.Semaphore(0), threading.Semaphore(0)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(rejected_by,), daemon=True)
        self._thread.start()
        self._wait()

    @property
    def version(self) -> int:
        return self.credential.row.version

    def goes_on(self, order: "Answer | type[Killed] | None" = None) -> None:
        """To the next stop. `order` is what the provider answers, or that this is the end."""
        self._order = order
        self._leaves.release()
        self._wait()

    def _wait(self) -> None:
        assert self._arrived.acquire(timeout=BOUND), f"a process hangs, last seen {self.at}"
        if self._failure is not None:
            raise AssertionError("a process broke") from self._failure
        if self.at == ENDED:
            self._thread.join(BOUND)

    # -- within the process --------------------------------------------------------------------------------------------

    def _run(self, rejected_by: str) -> None:
        _here.process = self
        try:
            upstream_refresh._renew(self.credential, rejected_by, None)
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - the test says what broke, not the thread
            self._failure = error
        finally:
            connections.close_all()
            self.at = ENDED
            self._arrived.release()

    def stop(self, where: str) -> "Answer | None":
        if where not in self._stops:
            return None
        self.at = where
        self._arrived.release()
        assert self._leaves.acquire(timeout=BOUND)
        if self._order is Killed:
            raise Killed
        return self._order  # type: ignore[return-value]


_here = threading.local()


class ScriptedProvider(Provider):
    """Answers a refresh when the test lets it."""

    def metadata(self) -> dict[str, Any]:
        if not _here.process.can_read:
            raise ProviderUnavailable("its documents cannot be read")
        return {}

    def _ask_for_tokens(self, form: dict[str, str]) -> TokenAnswer:
        process: Process = _here.process
        process.shown = form["refresh_token"]
        answer = process.stop(AT_PROVIDER)
        assert answer is not None
        return answer()


@dataclass
class Clock:
    """The monotonic clock of every process."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@contextmanager
def paused_processes(settings: Any) -> Iterator[Clock]:
    """From here on, processes stop after their claim and after their mark, and time passes when the clock is told."""
    clock, claim, mark = Clock(), upstream_refresh._claim, upstream_refresh._mark_sent
    scripted = ScriptedProvider("auth0", settings.UPSTREAM_PROVIDERS["auth0"])

    def claim_and_stop(*given: Any) -> Any:
        holder = claim(*given)
        if holder is not None:
            _here.process.stop(CLAIMED)
        return holder

    def mark_and_stop(*given: Any) -> bool:
        marked = mark(*given)
        if marked:
            _here.process.stop(MARKED)
        return marked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upstream_refresh, "time", SimpleNamespace(monotonic=clock.monotonic))
        patch.setattr(upstream_refresh, "provider", lambda name: scripted)
        patch.setattr(upstream_refresh, "_claim", claim_and_stop)
        patch.setattr(upstream_refresh, "_mark_sent", mark_and_stop)
        yield clock
