"""GitHub: OAuth 2.0 without OpenID Connect. Who the person is, its API says.

RFC 6749 §4.1 with its habits: errors of the token endpoint come with status 200, scopes with commas between them. The
person is the numeric id: a login can be renamed, and then taken by somebody else (T25).
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from oauth_relay.identity_providers import (
    BearerCredentials,
    Provider,
    ProviderRefused,
    ProviderUnavailable,
    TokenAnswer,
    call,
    plain_code,
    token_answer,
)

# What RFC 6749 §5.2 calls them. The first two say that what was sent is over, and nothing about us.
_STANDARD_ERRORS = {
    "bad_refresh_token": "invalid_grant",
    "bad_verification_code": "invalid_grant",
    "incorrect_client_credentials": "invalid_client",
}


class GitHub(Provider):
    """Bends `Provider`: fixed endpoints, the API in the place of the ID token."""

    has_id_tokens = False

    def __init__(self, name: str, configuration: Mapping[str, str]) -> None:
        super().__init__(name, configuration)
        self._origin = configuration["origin"]
        self._api = configuration["api"]

    def metadata(self) -> dict[str, Any]:
        """What a discovery document would say."""
        return {
            "issuer": self._origin,
            "authorization_endpoint": f"{self._origin}/login/oauth/authorize",
            "token_endpoint": f"{self._origin}/login/oauth/access_token",
        }

    def authentication_request(
        self,
        *,
        redirect_uri: str,
        state: str,
        nonce: str,
        code_challenge: str,
        prompt: Sequence[str] = (),
        login_hint: str = "",
        scope: str = "",
    ) -> dict[str, str]:
        """RFC 6749 §4.1.1 and RFC 7636. No nonce, as there is no ID token; of the prompts it knows one."""
        optional = {
            "login": login_hint if "@" not in login_hint else "",
            "prompt": "select_account" if {"select_account", "login"} & set(prompt) else "",
        }
        return {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": redirect_uri,
            "scope": scope or self.scope,
            "state": state,
            "code_challenge": code_challenge,
            "code_challenge_method": "S256",
            **{name: value for name, value in optional.items() if value},
        }

    # -- tokens --------------------------------------------------------------------------------------------------------

    def _ask_for_tokens(self, form: dict[str, str]) -> TokenAnswer:
        """Id and secret go in the form; what went wrong stands in a 200."""
        form = {**form, "client_id": self.client_id, "client_secret": self._client_secret}
        asked_at = time.time()
        status, found = call("POST", str(self.metadata()["token_endpoint"]), form=form)
        if (status == 200 or 400 <= status < 500) and status != 429 and isinstance(found.get("error"), str):
            code = plain_code(found["error"])
            raise ProviderRefused(_STANDARD_ERRORS.get(code, code))
        if status != 200:
            raise ProviderUnavailable(f"{self.name}: the token endpoint answered with status {status}")
        scope = found.get("scope")
        return token_answer(
            {**found, "scope": scope.replace(",", " ") if isinstance(scope, str) else None, "id_token": None}, asked_at
        )

    # -- the person ----------------------------------------------------------------------------------------------------

    def claims_of(self, access_token: str) -> dict[str, Any]:
        """GitHub on the token's owner, in OpenID Connect's words. Raises ProviderRefused, ProviderUnavailable."""
        user = self._read("/user", access_token, dict)
        number, login = user.get("id"), user.get("login")
        if isinstance(number, bool) or not isinstance(number, int) or not isinstance(login, str) or not login:
            raise ProviderUnavailable(f"{self.name}: the API named nobody")
        claims = {
            "iss": self._origin,
            "sub": str(number),
            "preferred_username": login,
            "name": user.get("name") or login,
        }
        email = self._verified_primary_email(access_token)
        return {**claims, "email": email, "email_verified": True} if email else claims

    def _verified_primary_email(self, access_token: str) -> str | None:
        """The address in the profile is whatever its owner typed: only this list says what was verified."""
        try:
            listed = self._read("/user/emails?per_page=100", access_token, list)
        except ProviderRefused:  # the person did not grant user:email
            return None
        for entry in listed:
            if isinstance(entry, dict) and entry.get("primary") is True and entry.get("verified") is True:
                return entry["email"] if isinstance(entry.get("email"), str) else None
        return None

    def _read(self, path: str, access_token: str, shape: type[dict] | type[list]) -> Any:
        """One page of the API. A revoked token is refused with 401; 403 and 429 may also mean "too often"."""
        status, found = call("GET", f"{self._api}{path}", auth=BearerCredentials(access_token), shape=shape)
        if status == 200:
            return found
        if status in (401, 404) or (status == 403 and "rate limit" not in str(found.get("message", "")).lower()):
            raise ProviderRefused("invalid_token" if status == 401 else "insufficient_scope")
        raise ProviderUnavailable(f"{self.name}: the API answered with status {status}")
