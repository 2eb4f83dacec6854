"""The OpenAPI document and the API agree: schemathesis makes requests from the one and looks at the answers of the other.

What it invents is checked against the real process: no 500, no undocumented status, no answer of another shape, no
wrong value accepted, no right one refused, no operation open without a token.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import hypothesis
import pytest
import schemathesis

from tests.todos.issuer import SampleIssuer
from tests.todos.process import ask, lonely_copy, running
from todos.api import api


@pytest.fixture(scope="module")
def trusted() -> Iterator[SampleIssuer]:
    sample = SampleIssuer()
    yield sample
    sample.close()


@pytest.fixture(scope="module")
def api_url(tmp_path_factory: pytest.TempPathFactory, trusted: SampleIssuer) -> Iterator[str]:
    folder = lonely_copy(tmp_path_factory.mktemp("openapi"))
    with running(folder, TODOS_ISSUER=trusted.url) as process:
        yield process.url()
        assert "unforeseen error" not in process.log


schema = schemathesis.openapi.from_dict(api.get_openapi_schema())


@schema.parametrize()
@hypothesis.settings(
    max_examples=60,
    deadline=timedelta(seconds=5),
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_every_operation_keeps_its_word(case: Any, api_url: str, trusted: SampleIssuer) -> None:
    raw_token = trusted.token(scope="read:todos write:todos read:billing")
    case.call_and_validate(base_url=api_url, headers={"Authorization": f"Bearer {raw_token}"}, timeout=5)


def test_a_todo_made_as_documented_can_be_read_as_documented(api_url: str, trusted: SampleIssuer) -> None:
    """The invented ids above are nobody's: the answers to a real one are checked here."""
    headers = {"Authorization": f"Bearer {trusted.token(sub='real')}"}
    made = ask("POST", f"{api_url}/api/todos", headers=headers, json={"title": "Real", "due": "2026-11-20"})
    schema["/api/todos"]["POST"].validate_response(made)
    one = f"{api_url}/api/todos/{made.json()['id']}"
    address = "/api/todos/{todo_id}"
    schema[address]["GET"].validate_response(ask("GET", one, headers=headers))
    schema[address]["PATCH"].validate_response(ask("PATCH", one, headers=headers, json={"done": True}))
    schema[address]["DELETE"].validate_response(ask("DELETE", one, headers=headers))
    schema["/api/todos"]["GET"].validate_response(ask("GET", f"{api_url}/api/todos", headers=headers))
