"""The log of a whole walk tells the operator what happened, and holds nothing that opens a door."""

from urllib.parse import parse_qs, urlsplit

from tests.servers import Server
from tests.walk import OAuthClient, Person


def test_no_code_token_state_or_cookie_reaches_the_log(server: Server) -> None:
    person, client = Person(server.url), OAuthClient(server.url).register()
    url = client.authorization_url()
    answer = person.allow(url)
    client.tokens = first = client.redeem(answer["code"]).json()
    client.tokens = second = client.refresh(first["refresh_token"]).json()
    assert client.todos() is not None
    client.refresh("not a token")
    plain_requests = [client.http.get(f"{server.url}/callback?code=the-providers-code&state=the-state", timeout=5)]
    assert [response.status_code for response in plain_requests] == [400]
    client.revoke(second["refresh_token"])
    secrets = [
        answer["code"], first["access_token"], first["refresh_token"], second["access_token"], second["refresh_token"],
        client.registration["registration_access_token"], client.state, client.verifier, "the-providers-code",
        *parse_qs(urlsplit(url).query)["code_challenge"],
    ]  # fmt: skip
    log = server.log_with(" /revoke ")
    for path in ("/authorize", "/token", "/callback", "/mcp", "/revoke"):
        assert f" {path} " in log
    for secret in secrets:
        assert secret not in log


def test_each_line_of_a_request_bears_the_trace_id_of_its_answer(server: Server) -> None:
    response = OAuthClient(server.url).http.get(f"{server.url}/nowhere", timeout=5)
    trace = response.headers["X-Trace-Id"]
    assert f"GET /nowhere 404 [{trace}]" in server.log_with(trace)
    assert trace in response.text
