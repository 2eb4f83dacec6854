"""The keys of API tokens, and the document that publishes them (RFC 7517, RFC 9068, T22)."""

import uuid
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from django.db import transaction
from django.test import Client as Browser
from django.utils import timezone

from oauth_relay import keys, vault
from oauth_relay.models import SigningKey
from tests import servers
from tests.oauth_relay import racing

CLAIMS = {"iss": "https://cair.example", "sub": "ada", "aud": "urn:todos-api"}
State = SigningKey.State


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    vault.forget_keys()
    keys.forget_signer()
    yield
    vault.forget_keys()
    keys.forget_signer()


def another_key(state: State, purpose: str = keys.API_TOKEN) -> str:
    """A further row in some state; its public half is all that matters here."""
    row = SigningKey.objects.create(
        purpose=purpose, algorithm="RS256", public_jwk={}, private_key=b"", state=state, state_since=timezone.now()
    )
    row.public_jwk = {"kty": "RSA", "kid": str(row.pk)}
    row.save()
    return str(row.pk)


@pytest.mark.threat("T22")
@pytest.mark.django_db
def test_its_tokens_are_checked_with_the_published_document(client: Browser) -> None:
    raw_token = keys.sign_api_token(CLAIMS)
    response = client.get("/.well-known/jwks.json")
    published = jwt.PyJWKSet.from_dict(response.json())
    header = jwt.get_unverified_header(raw_token)
    assert (header["typ"], header["alg"]) == ("at+jwt", "RS256")
    claims = jwt.decode(raw_token, published[header["kid"]], algorithms=["RS256"], audience="urn:todos-api")
    assert claims == CLAIMS
    assert "max-age=300" in response["Cache-Control"]


@pytest.mark.django_db
def test_it_publishes_no_private_half(client: Browser) -> None:
    (key,) = client.get("/.well-known/jwks.json").json()["keys"]
    assert set(key) == {"kty", "n", "e", "use", "alg", "kid"}
    assert (key["use"], key["alg"]) == ("sig", "RS256")


@pytest.mark.django_db
def test_it_publishes_what_is_next_current_or_retired_and_nothing_else() -> None:
    keys.sign_api_token(CLAIMS)
    current = str(SigningKey.objects.get().pk)
    shown = {current, another_key(State.NEXT), another_key(State.RETIRED)}
    another_key(State.GONE)
    another_key(State.COMPROMISED)
    another_key(State.NEXT, purpose="audit")
    assert {key["kid"] for key in keys.jwks()["keys"]} == shown


@pytest.mark.django_db
def test_it_has_no_key_where_a_provider_makes_all_tokens(settings: Any) -> None:
    settings.UPSTREAM_APIS = {"todos": {"token_source": "auth0", "audience": "urn:todos-api"}}
    assert keys.jwks() == {"keys": []}
    assert not SigningKey.objects.exists()


@pytest.mark.django_db
def test_its_private_half_lies_sealed_to_its_own_row() -> None:
    keys.sign_api_token(CLAIMS)
    row = SigningKey.objects.get()
    assert keys._open_private_key(row).key_size == 2048
    row.pk = uuid.uuid4()
    with pytest.raises(vault.VaultError):
        keys._open_private_key(row)


@pytest.mark.django_db
def test_it_signs_with_nothing_that_is_not_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MEMORY_LIFETIME", 0.0)
    first = jwt.get_unverified_header(keys.sign_api_token(CLAIMS))["kid"]
    SigningKey.objects.update(state=State.COMPROMISED)
    second = jwt.get_unverified_header(keys.sign_api_token(CLAIMS))["kid"]
    assert first != second
    assert [key["kid"] for key in keys.jwks()["keys"]] == [second]


@pytest.mark.django_db(transaction=True)
def test_it_signs_from_memory_without_a_query(django_assert_num_queries: Any) -> None:
    keys.sign_api_token(CLAIMS)
    with django_assert_num_queries(0):
        keys.sign_api_token(CLAIMS)


@pytest.mark.django_db(transaction=True)
def test_it_forgets_a_key_whose_making_was_rolled_back() -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        keys.sign_api_token(CLAIMS)
        raise ZeroDivisionError
    kid = jwt.get_unverified_header(keys.sign_api_token(CLAIMS))["kid"]
    assert [key["kid"] for key in keys.jwks()["keys"]] == [kid]


SIGN_AND_CHECK = """
import jwt
from oauth_relay import keys
def act():
    raw_token = keys.sign_api_token({"sub": "ada"})
    published = jwt.PyJWKSet.from_dict(keys.jwks())
    kid = jwt.get_unverified_header(raw_token)["kid"]
    assert jwt.decode(raw_token, published[kid], algorithms=["RS256"]) == {"sub": "ada"}
    return kid
"""


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_processes_that_sign_at_once_end_with_one_key(kind: str) -> None:
    with servers.database(kind) as url:
        environment = racing.environment(url)
        racing.migrate(environment)
        used = racing.race(environment, SIGN_AND_CHECK)
    assert len(used) == 6
    assert len(set(used)) == 1
