"""What a client says of itself is judged by the same rules at every door."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from oauth_relay import client_metadata_documents, registration
from oauth_relay.client_metadata import InvalidMetadata
from oauth_relay.outbound_documents import InvalidDocument

ID = "https://app.example.com/client.json"
GOOD = {"client_name": "App", "redirect_uris": ["https://app.example.com/cb"], "token_endpoint_auth_method": "none"}
KEY = {"kty": "RSA", "kid": "1", "n": "sXch", "e": "AQAB"}


def registered(said: dict[str, Any]) -> dict[str, Any]:
    return registration.checked_metadata(json.loads(json.dumps(said)))


def described(said: dict[str, Any]) -> dict[str, Any]:
    """With keys a document's client signs: nobody else's are kept."""
    signs = {"token_endpoint_auth_method": "private_key_jwt"} if {"jwks", "jwks_uri"} & said.keys() else {}
    return client_metadata_documents.checked_metadata(ID, json.loads(json.dumps({**said, **signs, "client_id": ID})))


at_every_door = pytest.mark.parametrize("door", [registered, described])
Door = Callable[[dict[str, Any]], dict[str, Any]]


@at_every_door
@pytest.mark.parametrize(
    "changes",
    [
        *({"jwks": {"keys": [{**KEY, part: "secret"}]}} for part in ("d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv")),
        {"jwks": {"keys": [{"kty": "oct"}]}}, {"jwks": {"keys": [KEY] * 11}}, {"jwks": {"keys": []}}, {"jwks": [KEY]},
        {"jwks": {"keys": [KEY]}, "jwks_uri": "https://app.example.com/keys"}, {"jwks_uri": "https://127.0.0.1/keys"},
        {"jwks_uri": "https://u:p@app.example.com/keys"}, {"jwks_uri": "https://app.example.com/" + "k" * 2000},
        {"redirect_uris": []}, {"redirect_uris": ["http://evil.example/"]}, {"redirect_uris": None},
        {"redirect_uris": [f"https://app.example.com/{n}" for n in range(31)]}, {"redirect_uris": [GOOD]},
        {"client_name": "x" * 201}, {"client_name": 1}, {"client_name": "a\0b"}, {"grant_types": ["password"]},
        {"grant_types": [["authorization_code"], "authorization_code"]},
    ],
)  # fmt: skip
def test_what_one_door_refuses_every_door_refuses(door: Door, changes: dict[str, Any]) -> None:
    door(GOOD)
    with pytest.raises((InvalidMetadata, InvalidDocument)) as refused:
        door({**GOOD, **changes})
    if door is registered:
        assert isinstance(refused.value, InvalidMetadata)
        is_about_redirects = "redirect_uris" in changes
        assert refused.value.error == ("invalid_redirect_uri" if is_about_redirects else "invalid_client_metadata")
    else:
        assert isinstance(refused.value, InvalidDocument)


@at_every_door
@pytest.mark.parametrize(
    ("field", "said", "kept"),
    [
        ("client_name", " \u202eA\u2066pp\n ", "App"),
        ("client_uri", "https://app.example.com/", "https://app.example.com/"),
        ("client_uri", "http://localhost.evil.example/", None), ("tos_uri", "javascript:alert(1)", None),
        ("policy_uri", "https://app.example.com/\u202e", None), ("logo_uri", 1, None), ("client_uri", None, None),
        ("jwks", {"keys": [{**KEY, "x5c": ["x"], "kid": "\u202e"}]}, {"keys": [{"kty": "RSA", "n": "sXch", "e": "AQAB"}]}),
        ("redirect_uris", ["http://evil.example/", *GOOD["redirect_uris"] * 2], GOOD["redirect_uris"]),
        ("redirect_uris", [f"https://a.example/{n}" for n in range(30)], [f"https://a.example/{n}" for n in range(30)]),
    ],
)  # fmt: skip
def test_what_is_kept_is_the_same_at_every_door(door: Door, field: str, said: Any, kept: Any) -> None:
    assert door({**GOOD, field: said}).get(field) == kept
