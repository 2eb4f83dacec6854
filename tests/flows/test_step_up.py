"""A tool needs more than was given: asked for once in a while, not after a no, and nothing is lost by it (T33)."""

from collections.abc import Iterator
from typing import Any

import pytest
from mcp.client.auth import OAuthFlowError

from tests.flows.test_python_client import SignIn, structured
from tests.flows.test_typescript_client import TypeScript, start
from tests.servers import Server
from tests.walk import OAuthClient, Person, challenge_of, result_of

EVERYTHING = {"read:todos", "write:todos", "read:billing"}


@pytest.fixture
def person(server: Server) -> Person:
    return Person(server.url)


@pytest.fixture
def client(server: Server, person: Person) -> OAuthClient:
    return OAuthClient(server.url, name="Step-up flow").connect(person)


def refused_sentence(response: Any) -> str:
    """What the model reads where nobody is asked; fails where anything ran, or somebody is asked."""
    assert response.status_code == 200, response.text
    result = result_of(response)
    assert result["isError"] is True and "structuredContent" not in result
    return str(result["content"][0]["text"])


# -- by hand -----------------------------------------------------------------------------------------------------------


@pytest.mark.threat("T33")
def test_after_three_challenges_the_model_is_told_to_go_on_without(server: Server, client: OAuthClient) -> None:
    for _ in range(3):
        refused = client.call("list_billing")
        assert (refused.status_code, challenge_of(refused)["scope"]) == (403, "read:billing")
    sentence = refused_sentence(client.call("list_billing"))
    assert "read:billing" in sentence and f"{server.url}/connections" in sentence
    assert client.todos() is not None
    outcomes = server.shell(
        "from oauth_relay.models import AuditEvent, Grant\n"
        f"rows = AuditEvent.objects.filter(client_id='{client.client_id}', detail__tool='list_billing')\n"
        "print(*rows.order_by('at').values_list('outcome', flat=True))"
    )
    assert outcomes.split() == ["insufficient_scope"] * 3 + ["step_up_withheld"]


@pytest.mark.threat("T33")
def test_who_has_refused_is_not_asked_again(client: OAuthClient, person: Person) -> None:
    wanted = challenge_of(client.call("list_billing"))["scope"]
    answer = person.answer(person.consent_page(client.authorization_url(scope=wanted)), "deny")
    assert answer["error"] == "access_denied"
    assert "refused" in refused_sentence(client.call("list_billing"))
    assert client.todos() is not None
    assert client.refresh(client.tokens["refresh_token"]).status_code == 200


@pytest.mark.threat("T33")
def test_whoever_wants_it_after_all_connects_anew(client: OAuthClient, person: Person) -> None:
    """As the sentence says: disconnect, connect again; the tool then asks as if for the first time."""
    person.answer(person.consent_page(client.authorization_url(scope="read:billing")), "deny")
    refused_sentence(client.call("list_billing"))
    person.withdraw("Step-up flow")
    client.connect(person)
    assert client.call("list_billing").status_code == 403


def test_a_client_that_asks_for_the_new_alone_gets_a_token_for_both(client: OAuthClient, person: Person) -> None:
    wanted = challenge_of(client.call("list_billing"))["scope"]
    assert wanted == "read:billing"
    page = person.consent_page(client.authorization_url(scope=wanted))
    assert page.text.count("Allowed before") == 2
    client.tokens = client.redeem(person.answer(page, "allow")["code"]).json()
    assert set(client.tokens["scope"].split()) == EVERYTHING
    assert client.call("list_billing").status_code == 200
    made = client.call("create_todo", title="Still allowed")
    assert made.status_code == 200 and not result_of(made).get("isError")


# -- the official clients ----------------------------------------------------------------------------------------------


async def test_the_python_client_keeps_what_it_had(server: Server) -> None:
    sign_in = SignIn(server)
    async with sign_in.connected() as client:
        await structured(client, "list_billing")
        await structured(client, "create_todo", title="Before and after")
    assert len(sign_in.opened) == 2
    assert sign_in.memory.tokens is not None and set((sign_in.memory.tokens.scope or "").split()) >= EVERYTHING


@pytest.mark.threat("T33")
async def test_the_python_client_hands_the_sentence_to_the_model(server: Server) -> None:
    sign_in = SignIn(server)
    with pytest.raises(BaseExceptionGroup) as refused:
        async with sign_in.connected() as client:
            sign_in.button = "deny"
            await client.call_tool("list_billing", {})
    assert refused.group_contains(OAuthFlowError, match="No authorization code")
    async with sign_in.connected() as client:
        result = await client.call_tool("list_billing", {})
    assert result.is_error and "refused" in str(result.content)
    assert len(sign_in.opened) == 2, "the person was asked again"


@pytest.fixture(params=["legacy", "auto"])
def newer(server: Server, request: pytest.FixtureRequest) -> Iterator[TypeScript]:
    with start(server, "2", request.param) as program:
        client = TypeScript(server, program)
        client.order("connect")
        yield client


@pytest.mark.node
def test_the_newer_typescript_client_keeps_what_it_had(newer: TypeScript) -> None:
    newer.call("list_billing")
    newer.call("create_todo", title="Before and after")
    assert len(newer.opened) == 2
    scopes = [message["tokens"] for message in newer.told if "tokens" in message]
    assert set(scopes[-1].split()) >= EVERYTHING


@pytest.mark.node
@pytest.mark.threat("T33")
def test_the_newer_typescript_client_hands_the_sentence_to_the_model(newer: TypeScript) -> None:
    newer.button = "deny"
    assert "access_denied" in newer.order("call", name="list_billing", arguments={})["message"]
    result = newer.order("call", name="list_billing", arguments={})["result"]
    assert result["isError"] and "refused" in str(result["content"])
    assert len(newer.opened) == 2, "the person was asked again"


@pytest.mark.node
def test_the_older_typescript_client_refreshes_and_then_gives_up(server: Server) -> None:
    """Two challenges a call; nobody is asked, nothing is lost. docs/standards.md says what an operator can do."""
    with start(server, "1", "legacy") as program:
        client = TypeScript(server, program)
        client.order("connect")
        gave_up = client.order("call", name="list_billing", arguments={})
        assert "403" in gave_up["message"], gave_up
        assert len([message for message in client.told if "tokens" in message]) == 2
        client.order("call", name="list_billing", arguments={})
        result = client.order("call", name="list_billing", arguments={})["result"]
        assert result["isError"] and "read:billing" in str(result["content"])
        assert client.call("list_todos") is not None
        assert len(client.opened) == 1


# -- a client that only refreshes, made to authorize anew ---------------------------------------------------------------


def restarting(server: Server, client_id: str) -> None:
    server.shell(
        "from oauth_relay.models import Client\n"
        f"Client.objects.filter(client_id='{client_id}').update(restart_on_step_up=True)"
    )


@pytest.mark.pain("P33")
@pytest.mark.node
def test_the_older_typescript_client_asks_where_an_operator_says_so(server: Server) -> None:
    with start(server, "1", "legacy") as program:
        client = TypeScript(server, program)
        client.order("connect")
        restarting(server, next(message["registered"] for message in client.told if "registered" in message))
        assert client.call("list_billing") is not None
        assert {"forgot": "tokens"} in client.told
        assert client.opened[1]["scope"] == "read:billing"
        assert client.call("create_todo", title="Still allowed")["title"] == "Still allowed"
        assert len(client.opened) == 2


def test_only_the_tokens_that_were_challenged_wait_and_only_a_minute(
    server: Server, client: OAuthClient, person: Person
) -> None:
    restarting(server, client.client_id)
    other_device = client.redeem(person.allow(client.authorization_url())["code"]).json()
    assert client.call("list_billing").status_code == 403
    refused = client.refresh(client.tokens["refresh_token"])
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
    assert client.refresh(other_device["refresh_token"]).status_code == 200
    assert client.todos() is not None
    server.shell(
        "from datetime import timedelta\n"
        "from django.utils import timezone\n"
        "from oauth_relay.models import Challenge\n"
        "Challenge.objects.filter(reason__startswith='restart ').update(at=timezone.now() - timedelta(minutes=2))"
    )
    assert client.refresh(client.tokens["refresh_token"]).status_code == 200
