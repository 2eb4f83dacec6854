"""GitHub: OAuth 2.0 without OpenID Connect. Who the person is, its API says.

RFC 6749 §4.1 with its habits: errors of the token endpoint come with status 200, scopes with commas between them. The
person is the numeric id: a login can be renamed, and then taken by somebody else (T25).
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from requests.auth import HTTPBasicAuth

from oauth_relay.identity_providers import (
    Answer,
    BearerCredentials,
    Provider,
    ProviderRefused,
    ProviderUnavailable,
    TokenAnswer,
    call,
    fetch,
    plain_code,
    token_answer,
)

logger = logging.getLogger(__name__)

ORGANISATIONS_SCOPE = "read:org"
MOST_PAGES = 10
"""Of a person's organisations, a hundred on each."""

# What RFC 6749 §5.2 calls them. The first two say that what was sent is over, and nothing about us.
_STANDARD_ERRORS = {
    "bad_refresh_token": "invalid_grant",
    "bad_verification_code": "invalid_grant",
    "incorrect_client_credentials": "invalid_client",
}


class GitHub(Provider):
    """Bends `Provider`: fixed endpoints, the API in the place of the ID token."""

    has_id_tokens = False
    vouches_for_access_tokens = True

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

    def check_access_token(self, access_token: str) -> None:
        """`GET /user`: an OAuth app's token has no end and no refresh token, and is over when GitHub says so."""
        answer = self._ask(f"{self._api}/user", access_token)
        if answer.status == 200:
            return
        message = str(answer.json().get("message", "")).lower()
        if answer.status == 401 or (answer.status == 403 and "suspended" in message):
            raise ProviderRefused("invalid_grant")
        raise ProviderUnavailable(f"{self.name}: the API answered with status {answer.status}")

    def revoke(self, access_token: str, refresh_token: str | None) -> bool:
        """Not RFC 7009: the access token is deleted, by whoever has the application's secret."""
        answer = fetch(
            "DELETE",
            f"{self._api}/applications/{quote(self.client_id, safe='')}/token",
            auth=HTTPBasicAuth(self.client_id, self._client_secret),
            document={"access_token": access_token},
        )
        if answer.status in (204, 404, 422):  # the last two: there is no such token, which is what was wanted
            return True
        raise ProviderUnavailable(f"{self.name}: the API answered with status {answer.status} to a revocation")

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
        if email := self._verified_primary_email(access_token):
            claims |= {"email": email, "email_verified": True}
        if ORGANISATIONS_SCOPE in self.scope.split():
            claims["organisations"] = self._organisations(access_token, login)
        return claims

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

    def _organisations(self, access_token: str, login: str) -> list[dict[str, Any]]:
        """Number and login of each organisation this person is a member of, openly or not."""
        try:
            return [
                {"id": entry["id"], "login": entry["login"]}
                for entry in self._listed("/user/orgs?per_page=100", access_token)
                if isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("login"), str)
            ]
        except ProviderRefused:
            logger.warning(
                "%s: the organisations of %r cannot be read, %s was not granted", self.name, login, ORGANISATIONS_SCOPE
            )
            return []

    def _listed(self, path: str, access_token: str) -> Iterator[Any]:
        """The entries of a list, page after page. The token follows no link that leads away from the API."""
        url = f"{self._api}{path}"
        for _ in range(MOST_PAGES):
            answer = self._ask(url, access_token)
            yield from self._content_of(answer, list)
            if answer.next_page is None:
                return
            if urlsplit(answer.next_page)[:2] != urlsplit(self._api)[:2]:
                logger.warning("%s: the next page of a list is elsewhere, and is not asked for", self.name)
                return
            url = answer.next_page
        logger.warning("%s: a list has more than %d pages, the rest is not read", self.name, MOST_PAGES)

    def _read(self, path: str, access_token: str, shape: type[dict] | type[list]) -> Any:
        """One page of the API."""
        return self._content_of(self._ask(f"{self._api}{path}", access_token), shape)

    def _ask(self, url: str, access_token: str) -> Answer:
        return fetch("GET", url, auth=BearerCredentials(access_token))

    def _content_of(self, answer: Answer, shape: type[dict] | type[list]) -> Any:
        """What a page says. A revoked token is refused with 401; 403 and 429 may also mean "too often"."""
        status, found = answer.status, answer.json(shape)
        if status == 200:
            return found
        if status in (401, 404) or (status == 403 and "rate limit" not in str(found.get("message", "")).lower()):
            raise ProviderRefused("invalid_token" if status == 401 else "insufficient_scope")
        raise ProviderUnavailable(f"{self.name}: the API answered with status {status}")
