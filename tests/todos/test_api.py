"""The Todos API as its clients meet it: what it does, to whom, and how it says no."""

import json
import logging
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client
from django.utils import timezone

from tests.todos.issuer import SampleIssuer
from todos.models import Owner, Todo

pytestmark = pytest.mark.django_db

JSON = "application/json"
UNKNOWN = f"/api/todos/{uuid.UUID(int=7)}"


class Caller:
    """One person's HTTP client of the API."""

    def __init__(self, issuer: SampleIssuer, **claims: Any) -> None:
        self.issuer, self.claims = issuer, claims
        self.client = Client(raise_request_exception=False)

    def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.issuer.token(**self.claims)}", **options.pop("headers", {})}
        if body is not None:
            options |= {"data": body if isinstance(body, bytes) else json.dumps(body), "content_type": JSON, **options}
        return self.client.generic(method, path, headers=headers, **options)

    def makes(self, **todo: Any) -> dict[str, Any]:
        response = self("POST", "/api/todos", {"title": "Water the plants", **todo})
        assert response.status_code == 201, response.content
        return response.json()


@pytest.fixture
def ada(issuer: SampleIssuer) -> Caller:
    return Caller(issuer, sub="ada")


@pytest.fixture
def mallory(issuer: SampleIssuer) -> Caller:
    return Caller(issuer, sub="mallory")


@pytest.fixture
def nothing_changes(ada: Caller) -> Iterator[None]:
    """Whatever the test does, ada's one todo is as it was, and the only one."""
    ada.makes()
    before = list(Todo.objects.values())
    yield
    assert list(Todo.objects.values()) == before


def refused(response: Any, status: int, error: str) -> dict[str, str]:
    """The refusal's body, after a look at its form."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == JSON
    assert response.json()["error"] == error
    assert set(response.json()) == {"error", "error_description"}
    return response.json()


# -- what it does ------------------------------------------------------------------------------------------------------


def test_health_needs_no_token(client: Client) -> None:
    response = client.get("/api/health")
    assert response.status_code == 200
    assert response.json()["status"] == "ok"


def test_a_todo_lives_from_post_to_delete(ada: Caller) -> None:
    made = ada("POST", "/api/todos", {"title": " Water the plants ", "due": "2026-11-20"})
    assert made.status_code == 201
    todo = made.json()
    assert todo == {
        "id": str(uuid.UUID(todo["id"])),
        "title": "Water the plants",
        "description": "",
        "due": "2026-11-20",
        "done": False,
        "created": todo["created"],
        "owner": "ada",
    }
    address = f"/api/todos/{todo['id']}"
    assert ada("GET", address).json() == todo
    assert ada("GET", "/api/todos").json() == {"todos": [todo]}

    changed = ada("PATCH", address, {"done": True, "due": None, "description": "Both\nof them"})
    assert changed.status_code == 200
    assert changed.json() == {**todo, "done": True, "due": None, "description": "Both\nof them"}
    assert ada("GET", address).json() == changed.json()

    gone = ada("DELETE", address)
    assert (gone.status_code, gone.content) == (204, b"")
    refused(ada("GET", address), 404, "not_found")
    refused(ada("DELETE", address), 404, "not_found")
    refused(ada("PATCH", address, {"done": True}), 404, "not_found")


def test_a_patch_leaves_alone_what_it_does_not_name(ada: Caller) -> None:
    todo = ada.makes(title="Read", description="A book", due="2026-01-02", done=True)
    address = f"/api/todos/{todo['id']}"
    assert ada("PATCH", address, {"title": "Write"}).json() == {**todo, "title": "Write"}
    assert ada("PATCH", address, {}).json() == {**todo, "title": "Write"}


def test_the_list_can_be_narrowed(ada: Caller) -> None:
    one, two = ada.makes(title="One"), ada.makes(title="Two", done=True)
    assert ada("GET", "/api/todos").json()["todos"] == [one, two]
    assert ada("GET", "/api/todos?done=true").json()["todos"] == [two]
    assert ada("GET", "/api/todos?done=false").json()["todos"] == [one]


def test_billing_is_the_same_tomorrow_and_anothers_is_another(issuer: SampleIssuer) -> None:
    ada, mallory = (Caller(issuer, sub=name, scope="read:billing") for name in ("ada", "mallory"))
    mine = ada("GET", "/api/billing").json()
    assert mine == ada("GET", "/api/billing").json()
    assert mine["owner"] == "ada"
    assert mine["next_invoice"] > timezone.localdate().isoformat() >= mine["invoices"][0]["issued"]
    assert mine["card"] != mallory("GET", "/api/billing").json()["card"]


# -- whose todos -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "body"), [("GET", None), ("PATCH", {"title": "Mine now"}), ("DELETE", None)])
def test_somebody_elses_todo_reads_like_none(method: str, body: Any, ada: Caller, mallory: Caller) -> None:
    todo = ada.makes()
    foreign = mallory(method, f"/api/todos/{todo['id']}", body)
    assert foreign.content == mallory(method, UNKNOWN, body).content
    refused(foreign, 404, "not_found")
    assert ada("GET", f"/api/todos/{todo['id']}").json() == todo


def test_everybody_sees_their_own(ada: Caller, mallory: Caller) -> None:
    ada.makes(title="Ada's")
    mallory.makes(title="Mallory's")
    assert [todo["title"] for todo in ada("GET", "/api/todos").json()["todos"]] == ["Ada's"]
    assert [todo["title"] for todo in mallory("GET", "/api/todos").json()["todos"]] == ["Mallory's"]


@pytest.mark.threat("T22")
def test_equal_subjects_of_two_issuers_are_two_people(ada: Caller, settings: Any) -> None:
    todo = ada.makes()
    settings.TODOS = {**settings.TODOS, "ISSUER": "https://elsewhere.example"}
    namesake = Caller(ada.issuer, sub="ada", iss="https://elsewhere.example")
    assert namesake("GET", "/api/todos").json() == {"todos": []}
    refused(namesake("GET", f"/api/todos/{todo['id']}"), 404, "not_found")
    assert Owner.objects.count() == 2


def test_the_owner_is_whom_the_token_names_whatever_the_body_says(ada: Caller, nothing_changes: None) -> None:
    for field, value in (("owner", "mallory"), ("id", str(uuid.uuid4())), ("created", "2020-01-01T00:00:00Z")):
        description = refused(ada("POST", "/api/todos", {"title": "x", field: value}), 400, "invalid_request")
        assert field in description["error_description"]


def test_a_new_owner_finds_samples_once(ada: Caller, mallory: Caller, settings: Any) -> None:
    settings.TODOS = {**settings.TODOS, "SAMPLE_ROWS": True}
    found = ada("GET", "/api/todos").json()["todos"]
    assert len(found) == 3
    for todo in found:
        ada("DELETE", f"/api/todos/{todo['id']}")
    assert ada("GET", "/api/todos").json()["todos"] == []
    assert len(mallory("GET", "/api/todos").json()["todos"]) == 3


def test_without_samples_a_new_owner_finds_nothing(ada: Caller) -> None:
    assert ada("GET", "/api/todos").json() == {"todos": []}


# -- who may -----------------------------------------------------------------------------------------------------------


OPERATIONS = [
    ("GET", "/api/todos", None, "read:todos"),
    ("POST", "/api/todos", {"title": "x"}, "write:todos"),
    ("GET", UNKNOWN, None, "read:todos"),
    ("PATCH", UNKNOWN, {"title": "x"}, "write:todos"),
    ("DELETE", UNKNOWN, None, "write:todos"),
    ("GET", "/api/billing", None, "read:billing"),
]


@pytest.mark.parametrize(("method", "path", "body", "scope"), OPERATIONS)
def test_each_operation_needs_its_scope(
    method: str, path: str, body: Any, scope: str, issuer: SampleIssuer, nothing_changes: None
) -> None:
    others = {"read:todos", "write:todos", "read:billing"} - {scope}
    response = Caller(issuer, sub="ada", scope=" ".join(others))(method, path, body)
    refused(response, 403, "insufficient_scope")
    assert response["WWW-Authenticate"] == (
        'Bearer realm="todos", error="insufficient_scope", '
        f'error_description="The token lacks a scope that this needs.", scope="{scope}"'
    )


@pytest.mark.parametrize(("method", "path", "body", "scope"), [*OPERATIONS, ("GET", "/api/me", None, "")])
def test_each_operation_needs_a_token(method: str, path: str, body: Any, scope: str, client: Client) -> None:
    response = client.generic(method, path, json.dumps(body), content_type=JSON)
    refused(response, 401, "unauthorized")
    assert response["WWW-Authenticate"] == 'Bearer realm="todos"'


def test_a_signed_in_browser_opens_nothing(client: Client, django_user_model: Any) -> None:
    """Cookies are not looked at, so a forged form has nothing to ride on; and so no form token is asked for either."""
    client.force_login(django_user_model.objects.create_superuser("root"))
    refused(client.get("/api/todos"), 401, "unauthorized")


def test_no_form_token_is_asked_for(issuer: SampleIssuer) -> None:
    caller = Caller(issuer)
    caller.client = Client(enforce_csrf_checks=True)
    assert caller("POST", "/api/todos", {"title": "x"}).status_code == 201
    refused(caller("POST", "/api/nothing", {}), 404, "not_found")
    refused(caller("POST", "/api/openapi.json", {}), 405, "method_not_allowed")


# -- bad input ---------------------------------------------------------------------------------------------------------


BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "spaces": b"  ",
    "cut short": b'{"title": "x"',
    "two documents": b'{"title": "x"}{"title": "y"}',
    "no JSON": b"title=x",
    "a list": b'[{"title": "x"}]',
    "a string": b'"x"',
    "null": b"null",
    "not UTF-8": b'{"title": "\xff"}',
    "UTF-16": '{"title": "x"}'.encode("utf-16"),
    "a byte-order mark": b'\xef\xbb\xbf{"title": "x"}',
    "a name twice": b'{"title": "x", "title": "y"}',
    "a name twice, deeper": b'{"title": {"a": 1, "a": 2}}',
    "NaN": b'{"title": NaN}',
    "infinity": b'{"title": "x", "done": -Infinity}',
    "a huge float": b'{"title": "x", "done": 1e999}',
    "a huge number": b'{"title": "x", "done": ' + b"9" * 5000 + b"}",
    "deep": b'{"title": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep objects": b'{"title": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}",
    "title is absent": b"{}",
    "title is null": b'{"title": null}',
    "title is a number": b'{"title": 7}',
    "title is a list": b'{"title": ["x"]}',
    "title is empty": b'{"title": ""}',
    "title is space": '{"title": " \u2003\u00a0"}'.encode(),
    "title holds NUL": b'{"title": "x\\u0000y"}',
    "title holds a line": b'{"title": "x\\ny"}',
    "title is half a character": b'{"title": "\\ud800"}',
    "title is long": json.dumps({"title": "x" * 201}).encode(),
    "description is null": b'{"title": "x", "description": null}',
    "description is long": json.dumps({"title": "x", "description": "x" * 4001}).encode(),
    "description holds NUL": b'{"title": "x", "description": "\\u0000"}',
    "due is a number": b'{"title": "x", "due": 0}',
    "due is a word": b'{"title": "x", "due": "tomorrow"}',
    "due is a moment": b'{"title": "x", "due": "2026-11-20T10:00:00Z"}',
    "due is another calendar's": b'{"title": "x", "due": "2026-W47-5"}',
    "due is packed": b'{"title": "x", "due": "20261120"}',
    "due was never": b'{"title": "x", "due": "2026-02-30"}',
    "due is in year 0": b'{"title": "x", "due": "0000-01-01"}',
    "due in other digits": '{"title": "x", "due": "٢٠٢٦-11-20"}'.encode(),
    "done is a string": b'{"title": "x", "done": "true"}',
    "done is a number": b'{"title": "x", "done": 1}',
    "done is null": b'{"title": "x", "done": null}',
    "an unknown field": b'{"title": "x", "dueDate": "2026-11-20"}',
    "an unknown field with half a character": b'{"title": "x", "\\ud800": 1}',
}


@pytest.mark.parametrize("kind", BAD_BODIES)
def test_it_refuses_a_new_todo_whose_body_is(kind: str, ada: Caller, nothing_changes: None) -> None:
    response = ada("POST", "/api/todos", BAD_BODIES[kind])
    assert len(refused(response, 400, "invalid_request")["error_description"]) > 10


@pytest.mark.parametrize("kind", sorted(BAD_BODIES.keys() - {"title is absent"}))
def test_it_refuses_changes_whose_body_is(kind: str, ada: Caller, nothing_changes: None) -> None:
    address = f"/api/todos/{Todo.objects.get().pk}"
    refused(ada("PATCH", address, BAD_BODIES[kind]), 400, "invalid_request")


def test_a_refusal_names_every_wrong_field(ada: Caller) -> None:
    response = ada("POST", "/api/todos", {"title": "", "due": "soon", "done": 1})
    sentence = refused(response, 400, "invalid_request")["error_description"]
    assert all(part in sentence for part in ("title: ", "due: ", "must be a date such as 2026-11-20", "done: "))


def test_it_takes_json_only(ada: Caller, nothing_changes: None) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x"):
        response = ada("POST", "/api/todos", b'{"title": "x"}', content_type=content_type)
        refused(response, 415, "invalid_request")


def test_it_refuses_a_body_that_is_too_large(ada: Caller, nothing_changes: None, settings: Any) -> None:
    body = json.dumps({"title": "x" * settings.DATA_UPLOAD_MAX_MEMORY_SIZE}).encode()
    refused(ada("POST", "/api/todos", body), 413, "invalid_request")
    refused(ada("PATCH", f"/api/todos/{Todo.objects.get().pk}", body), 413, "invalid_request")


@pytest.mark.parametrize(
    "query",
    [
        "done=",
        "done=maybe",
        "done=1",
        "done=True",
        "done=true&done=false",
        "done=%00",
        "done=%ff",
        "done=null",
        "dnoe=true",
    ],
)
def test_it_refuses_a_filter_that_is_neither_true_nor_false(query: str, ada: Caller, nothing_changes: None) -> None:
    refused(ada("GET", f"/api/todos?{query}"), 400, "invalid_request")


def test_it_refuses_endless_parameters(ada: Caller, settings: Any) -> None:
    query = "&".join(f"a{n}=1" for n in range((settings.DATA_UPLOAD_MAX_NUMBER_FIELDS or 1000) + 1))
    refused(ada("GET", f"/api/todos?{query}"), 400, "invalid_request")


@pytest.mark.parametrize(
    "path",
    [
        "/api",
        "/api/",
        "/api/todos/",
        "/api/todos/7",
        "/api/todos/%00",
        "/api/todos/%FF%FE",
        "/api/todos/..%2fme",
        "/api/todos/a%0Ab",
        "/api/todos/{" + str(uuid.UUID(int=7)) + "}",
        f"{UNKNOWN}/",
        "/api/health/",
        "/api/docs",
        "/api//todos",
        "/api/" + "x" * 5000,
    ],
)
def test_what_is_not_there_is_said_in_json(path: str, ada: Caller) -> None:
    for method in ("GET", "POST", "DELETE"):
        refused(ada(method, path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/api/todos", "GET, HEAD, POST"),
        ("PUT", UNKNOWN, "DELETE, GET, HEAD, PATCH"),
        ("POST", "/api/me", "GET, HEAD"),
        ("TRACE", "/api/billing", "GET, HEAD"),
        ("OPTIONS", "/api/todos", "GET, HEAD, POST"),
        ("POST", "/api/openapi.json", "GET, HEAD"),
        ("BREW", "/api/health", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_said_in_json(method: str, path: str, allow: str, ada: Caller) -> None:
    response = ada(method, path)
    refused(response, 405, "method_not_allowed")
    assert response["Allow"] == allow


def test_head_answers_like_get(client: Client) -> None:
    assert client.head("/api/health").status_code == 200


def test_nothing_is_kept_by_a_cache(ada: Caller) -> None:
    assert ada("GET", "/api/todos")["Cache-Control"] == "no-store"
    assert ada("GET", UNKNOWN)["Cache-Control"] == "no-store"


# -- when something is broken ------------------------------------------------------------------------------------------


def breaks(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def test_a_database_that_is_away_is_said_so(ada: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todos.api.owner_for", breaks(OperationalError("host=db password=hunter2")))
    response = ada("GET", "/api/todos")
    assert "hunter2" not in str(refused(response, 503, "temporarily_unavailable"))
    assert int(response["Retry-After"]) > 0


def test_the_unforeseen_is_told_in_json_by_the_process_around_it(ada: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todos.api.owner_for", breaks(RuntimeError("a detail")))
    assert "a detail" not in refused(ada("GET", "/api/todos"), 500, "server_error")["error_description"]


@pytest.mark.urls("todos.urls")
def test_the_unforeseen_has_a_number_and_no_detail(
    ada: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("todos.api.owner_for", breaks(RuntimeError("a detail")))
    with caplog.at_level(logging.ERROR):
        sentence = refused(ada("GET", "/api/todos"), 500, "server_error")["error_description"]
    assert "a detail" not in sentence
    number = sentence.removesuffix(".").rsplit(" ", 1)[1]
    assert number in caplog.text
    assert "a detail" in caplog.text


# -- the document ------------------------------------------------------------------------------------------------------


def test_the_openapi_document_tells_the_truth_about_tokens(client: Client) -> None:
    document = client.get("/api/openapi.json").json()
    assert document["components"]["securitySchemes"] == {
        "Bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    }
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    todo = "/api/todos/{todo_id}"
    assert {key for key, operation in operations.items() if operation.get("security") == [{"Bearer": []}]} == {
        ("GET", "/api/me"),
        ("GET", "/api/todos"),
        ("POST", "/api/todos"),
        ("GET", todo),
        ("PATCH", todo),
        ("DELETE", todo),
        ("GET", "/api/billing"),
    }
    assert set(operations) - {("GET", "/api/health")} == {k for k, o in operations.items() if "security" in o}


def test_dates_round_trip_around_today(ada: Caller) -> None:
    for days in (-1, 0, 1):
        due = (timezone.localdate() + timedelta(days=days)).isoformat()
        assert ada.makes(due=due)["due"] == due
