"""`manage.py doctor` on the API behind the tools: the real one set up wrongly, and stand-ins that answer anything."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cair.doctor import api
from cair.doctor.findings import Status
from cair.doctor.visit import Visit
from oauth_relay.models import UpstreamCredential, User
from tests import identity_provider
from tests.cair.doctoring import Reply, Request, examine, prepared, serving
from tests.servers import Server, free_port
from tests.todos import process

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="todos"'}


@pytest.fixture(scope="module")
def checkout() -> Iterator[dict[str, str]]:
    with prepared() as environment:
        yield environment


# -- the real one, as a process of its own -----------------------------------------------------------------------------


@pytest.mark.parametrize(("audience", "is_right"), [("urn:todos-api", True), ("urn:another-api", False)])
def test_it_finds_an_api_that_expects_another_audience(
    sqlite_server: Server, tmp_path: Path, audience: str, is_right: bool
) -> None:
    environment = {
        "TODOS_ISSUER": sqlite_server.url,
        "AUTH0_AUDIENCE": audience,
        "DATABASE_URL": f"sqlite:///{tmp_path}/todos.sqlite3",
    }
    with process.running(process.lonely_copy(tmp_path), **environment) as todos:
        report = examine({**sqlite_server.environment, "API_BASE_URL": todos.url()})
    assert report.status("todos API without a token") == "ok"
    assert report.failures() == ([] if is_right else ["todos API with a token"])
    if not is_right:
        assert "for urn:todos-api: The token is for another API." in report["todos API with a token"]["found"]
        assert "AUTH0_AUDIENCE" in report["todos API with a token"]["repair"]


def test_it_finds_an_api_that_is_away(checkout: dict[str, str]) -> None:
    report = examine({**checkout, "API_BASE_URL": f"http://localhost:{free_port()}"})
    assert report.failures() == ["todos API without a token"]
    assert "nothing listens there" in report["todos API without a token"]["found"]
    assert "API_BASE_URL" in report["todos API without a token"]["repair"]
    assert "does not answer" in report["todos API with a token"]["found"]


# -- stand-ins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "status", "said"),
    [
        (Reply(401, {}, CHALLENGE), "ok", "answers 401"),
        (Reply(401, {}), "warning", "without WWW-Authenticate"),
        (Reply(404, "nothing"), "warning", "does not exist"),
        (Reply(200, {"todos": []}), "failure", "answers anybody"),
        (Reply(302, "", {"Location": "https://elsewhere.example.com"}), "failure", "redirects"),
        (Reply(500, "oops"), "failure", "HTTP 500"),
    ],
)
def test_it_looks_what_the_api_says_to_whoever_brings_no_token(
    checkout: dict[str, str], reply: Reply, status: str, said: str
) -> None:
    def answer(request: Request) -> Reply:
        return Reply(200, {}) if "Authorization" in request.headers else reply

    with serving(answer) as origin:
        report = examine({**checkout, "API_BASE_URL": origin})
    assert report.status("todos API without a token") == status
    assert said in report["todos API without a token"]["found"]
    assert report.failures() == (["todos API without a token"] if status == "failure" else [])


@pytest.mark.parametrize(
    ("reply", "status", "said"),
    [
        (Reply(200, {}), "ok", "accepts"),
        (Reply(403, {}), "ok", "accepts"),
        (
            Reply(401, {}, {"WWW-Authenticate": 'Bearer error="invalid_token", error_description="issuer unknown"'}),
            "failure",
            "issuer unknown",
        ),
        (Reply(404, {}), "warning", "no such path"),
        (Reply(503, {"error_description": "keys away"}), "failure", "HTTP 503: keys away"),
    ],
)
def test_it_looks_what_the_api_says_to_a_token_of_cair(
    checkout: dict[str, str], reply: Reply, status: str, said: str
) -> None:
    seen: list[str] = []

    def answer(request: Request) -> Reply:
        if "Authorization" not in request.headers:
            return Reply(401, {}, CHALLENGE)
        seen.append(request.headers["Authorization"].removeprefix("Bearer "))
        return reply

    with serving(answer) as origin:
        report = examine({**checkout, "API_BASE_URL": origin})
    assert report.status("todos API with a token") == status
    assert said in report["todos API with a token"]["found"]
    assert len(seen) == 1 and seen[0].startswith("eyJ") and seen[0] not in report.printed


@pytest.mark.threat("T23")
def test_it_never_prints_the_token_even_if_the_api_does(checkout: dict[str, str]) -> None:
    def answer(request: Request) -> Reply:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return Reply(401, {"error_description": f"What is {token}?"}, CHALLENGE)

    with serving(answer) as origin:
        report = examine({**checkout, "API_BASE_URL": origin})  # which fails on whatever looks like a token
    assert report["todos API with a token"]["found"] == "it refuses a token of CAIR's for urn:todos-api"


def test_it_asks_at_the_path_that_it_is_told(checkout: dict[str, str]) -> None:
    asked: list[str] = []

    def answer(request: Request) -> Reply:
        asked.append(request.path)
        return Reply(401, {}, CHALLENGE)

    with serving(answer) as origin:
        examine({**checkout, "API_BASE_URL": f"{origin}/v2"}, "--api-path", "/whoami")
    assert set(asked) == {"/v2/whoami"}


# -- where a provider issues the tokens --------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.threat("T10")
@pytest.mark.parametrize(
    ("variables", "named"), [("AUTH0_", "AUTH0_AUDIENCE"), ("PROVIDER_WORK_", "PROVIDER_WORK_AUDIENCE")]
)
def test_it_names_the_audience_where_an_api_has_refused_fresh_tokens(settings: Any, variables: str, named: str) -> None:
    identity_provider.configure(settings, "http://localhost:1")
    settings.UPSTREAM_PROVIDERS["auth0"]["variables"] = variables
    (fine,) = api.with_token(Visit("/api/me"), "todos")
    assert fine.status == Status.GOOD and "not tried" in fine.found
    UpstreamCredential.objects.create(
        user=User.objects.create_user("ada"), provider="auth0", audience=identity_provider.AUDIENCE,
        issuer="https://example.eu.auth0.com/", subject="auth0|ada", tokens=b"", failure="rejected:todos",
    )  # fmt: skip
    (found,) = api.with_token(Visit("/api/me"), "todos")
    assert found.status == Status.WARNING
    assert identity_provider.AUDIENCE in found.found and f"{identity_provider.AUDIENCE} ({named})" in found.repair
