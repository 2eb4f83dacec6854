"""The people of these tests: ada owns what is asked for, mallory does not. Both have tokens of one real issuer."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.test import Client

from tests.todos.issuer import AUDIENCE, SampleIssuer


@pytest.fixture
def issuer(settings: Any) -> Iterator[SampleIssuer]:
    """The issuer that the API trusts, by its name and the address of its keys."""
    sample = SampleIssuer()
    settings.TODOS = {
        "AUDIENCE": AUDIENCE,
        "ISSUER": sample.url,
        "DISCOVERY": "",
        "JWKS_URL": sample.jwks_url,
        "JWKS_HOST": "",
        "SAMPLE_ROWS": False,
    }
    yield sample
    sample.close()


@pytest.fixture
def discovered(issuer: SampleIssuer, settings: Any) -> SampleIssuer:
    """The same, known by its discovery document only."""
    settings.TODOS = {**settings.TODOS, "ISSUER": "", "DISCOVERY": issuer.discovery, "JWKS_URL": ""}
    return issuer


@pytest.fixture
def ask() -> Callable[..., Any]:
    """`ask(token)`: what /api/me answers to it."""

    def get(raw_token: str | None = None, **headers: str) -> Any:
        if raw_token is not None:
            headers["Authorization"] = f"Bearer {raw_token}"
        return Client(raise_request_exception=False).get("/api/me", headers=headers)

    return get


class Clock:
    """Stands in for `todos.bearer.monotonic`: time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr("todos.bearer.monotonic", stopped)
    return stopped
