"""/register: dynamic client registration (RFC 7591), and a registered client's own record (RFC 7592).

Deprecated by MCP 2026-07-28 in favour of client id metadata documents, and what most clients do today. Deletable when
they have moved on: nothing else imports this file but the URL table.
"""

import json
import re
import secrets
from typing import Any

from django.conf import settings
from django.contrib.auth.hashers import check_password
from django.core.exceptions import RequestDataTooBig
from django.db import transaction as database
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.http.request import UnreadablePostError
from django.utils.crypto import constant_time_compare
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from oauth_relay import audit, client_metadata, registration_policy, withdrawals
from oauth_relay.client_metadata import InvalidMetadata
from oauth_relay.digests import digest_of
from oauth_relay.models import Client
from oauth_relay.pages import oauth_error
from oauth_relay.registration_policy import RegistrationRefused

LARGEST_METADATA = 16 * 1024
LONGEST_CONTACT = 200
AUTH_METHODS = ("none", "client_secret_post", "client_secret_basic")
TEXTS = ("software_id", "software_version", "scope")
_LANGUAGE = re.compile(r"[a-z_]+(#[A-Za-z0-9-]{2,35})?")


def read_metadata(request: HttpRequest) -> dict[str, Any]:
    """The JSON object in the body. Raises InvalidMetadata."""
    try:
        if len(request.body) > LARGEST_METADATA:
            raise InvalidMetadata("The metadata is larger than 16 KiB.")
        metadata = json.loads(request.body)
    except (RequestDataTooBig, UnreadablePostError):
        raise InvalidMetadata("The metadata is larger than 16 KiB.") from None
    except (ValueError, RecursionError):
        raise InvalidMetadata("The body must be one JSON object.") from None
    if not isinstance(metadata, dict):
        raise InvalidMetadata("The body must be one JSON object.")
    return metadata


def checked_metadata(unverified: dict[str, Any]) -> dict[str, Any]:
    """What of a client's metadata is kept and echoed, with this server's choices filled in (RFC 7591 §2).

    > The authorization server MAY reject or replace any of the client's requested metadata values (§3.2.1).
    """
    method = unverified.get("token_endpoint_auth_method", "client_secret_basic")
    if method not in AUTH_METHODS:
        raise InvalidMetadata(f"token_endpoint_auth_method must be one of {AUTH_METHODS}.")
    client_metadata.check_holds(unverified, "grant_types", "authorization_code")
    kept: dict[str, Any] = {
        **_texts(unverified),
        **client_metadata.checked_keys(unverified),
        "redirect_uris": client_metadata.checked_redirect_uris(unverified.get("redirect_uris")),
        "token_endpoint_auth_method": method,
        "grant_types": list(client_metadata.GRANT_TYPES),
        "response_types": ["code"],
    }
    if unverified.get("application_type") in ("web", "native"):
        kept["application_type"] = unverified["application_type"]
    if contacts := [c for c in _strings(unverified, "contacts") if len(c) <= LONGEST_CONTACT and c.isprintable()][:5]:
        kept["contacts"] = contacts
    return kept


def _texts(unverified: dict[str, Any]) -> dict[str, str]:
    """Texts and links, also in the languages that were given: `client_name#de` (RFC 7591 §2.2)."""
    texts = {}
    for field, value in unverified.items():
        plain = field.partition("#")[0]
        if not _LANGUAGE.fullmatch(field) or value is None:
            continue
        if plain == "client_name":
            texts[field] = client_metadata.checked_name(field, value)
        elif plain in TEXTS:
            texts[field] = client_metadata.checked_text(field, value)
        elif plain in client_metadata.LINKS and client_metadata.is_link(value):
            texts[field] = value
    return texts


def _strings(unverified: dict[str, Any], name: str) -> list[str]:
    values = unverified.get(name, [])
    if not isinstance(values, list) or not all(isinstance(value, str) and "\0" not in value for value in values):
        raise InvalidMetadata(f"{name} must be a list of texts.")
    return values


# -- writing and answering ---------------------------------------------------------------------------------------------


def register(metadata: dict[str, Any], network: str) -> tuple[Client, str, str]:
    """A new client, always a row of its own (T6). Returns it with its raw secret (or none) and registration token."""
    raw_token = secrets.token_urlsafe(32)
    with database.atomic():
        client, raw_secret = client_metadata.create(
            metadata,
            registration_source=Client.RegistrationSource.DCR,
            registration_token_digest=digest_of(raw_token),
            registered_from=network,
        )
        audit.record_within(client_metadata.registered("client.registered", client))
    return client, raw_secret, raw_token


def find_registered_client(client_id: str, raw_token: str) -> Client | None:
    """The client that registered itself under `client_id`, if `raw_token` is its registration access token."""
    if not client_id.isprintable():
        return None
    client = Client.objects.filter(client_id=client_id, registration_source=Client.RegistrationSource.DCR).first()
    digest = digest_of(raw_token)
    return client if client and constant_time_compare(client.registration_token_digest, digest) else None


def information(client: Client, raw_token: str, raw_secret: str = "") -> dict[str, Any]:
    """The client information response (RFC 7591 §3.2.1), with where to manage it (RFC 7592 §3)."""
    answer = {
        **client.metadata,
        "client_id": client.client_id,
        "client_id_issued_at": int(client.created.timestamp()),
        "registration_client_uri": f"{settings.PUBLIC_URL}/register/{client.client_id}",
        "registration_access_token": raw_token,
    }
    if raw_secret:
        answer |= {"client_secret": raw_secret, "client_secret_expires_at": 0}
    return answer


def _is_own_secret(raw_secret: Any, client: Client) -> bool:
    """> If the client includes the "client_secret" …, the value of this field MUST match (RFC 7592 §2.2)."""
    if raw_secret is None:
        return True
    return (
        isinstance(raw_secret, str) and bool(client.client_secret) and check_password(raw_secret, client.client_secret)
    )


def _answer(body: dict[str, Any], status: int) -> HttpResponse:
    response = JsonResponse(body, status=status)
    response["Cache-Control"], response["Pragma"] = "no-store", "no-cache"
    return response


class _JsonView(View):
    def http_method_not_allowed(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        allowed = ", ".join(name.upper() for name in self.http_method_names)
        return oauth_error("invalid_request", f"Use one of: {allowed}.", 405, {"Allow": allowed})


@method_decorator(csrf_exempt, name="dispatch")
class RegistrationView(_JsonView):
    """POST /register (RFC 7591 §3)."""

    http_method_names = ["post"]

    def post(self, request: HttpRequest) -> HttpResponse:
        network = registration_policy.network_of(request.META.get("REMOTE_ADDR", ""))
        try:
            registration_policy.check_may_register(request.headers.get("Authorization", ""), network)
            metadata = checked_metadata(read_metadata(request))
        except RegistrationRefused as refused:
            return oauth_error(refused.error, refused.description, refused.status, refused.headers)
        except InvalidMetadata as wrong:
            return oauth_error(wrong.error, wrong.description)
        registration_policy.make_room(network)
        client, raw_secret, raw_token = register(metadata, network)
        return _answer(information(client, raw_token, raw_secret), 201)


@method_decorator(csrf_exempt, name="dispatch")
class RegisteredClientView(_JsonView):
    """GET, PUT, DELETE /register/<id> with the registration access token (RFC 7592 §2)."""

    http_method_names = ["get", "put", "delete"]

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Unknown, not yours, and gone read the same."""
        scheme, _, raw_token = request.headers.get("Authorization", "").partition(" ")
        client = find_registered_client(kwargs["client_id"], raw_token.strip())
        if scheme.lower() != "bearer" or client is None:
            headers = {"WWW-Authenticate": 'Bearer error="invalid_token"' if raw_token else "Bearer"}
            return oauth_error("invalid_token", "The registration access token is not valid.", 401, headers)
        self.client, self.raw_token = client, raw_token.strip()
        return super().dispatch(request, *args, **kwargs)

    def get(self, request: HttpRequest, client_id: str) -> HttpResponse:
        return _answer(information(self.client, self.raw_token), 200)

    def put(self, request: HttpRequest, client_id: str) -> HttpResponse:
        """A full replacement. The way a client authenticates, its id and its secret stay what they are."""
        try:
            unverified = read_metadata(request)
            if unverified.get("client_id") != client_id:
                raise InvalidMetadata("client_id must be the registered one.")
            metadata = checked_metadata(unverified)
            if metadata["token_endpoint_auth_method"] != self.client.metadata["token_endpoint_auth_method"]:
                raise InvalidMetadata("token_endpoint_auth_method cannot be changed.")
            if not _is_own_secret(unverified.get("client_secret"), self.client):
                raise InvalidMetadata("client_secret cannot be chosen.")
        except InvalidMetadata as wrong:
            return oauth_error(wrong.error, wrong.description)
        with database.atomic():
            for name, value in client_metadata.columns(metadata).items():
                setattr(self.client, name, value)
            self.client.save(update_fields=["name", "redirect_uris", "metadata", "updated"])
            audit.record_within(audit.Event("client.changed_itself", client_id=client_id))
        return _answer(information(self.client, self.raw_token), 200)

    def delete(self, request: HttpRequest, client_id: str) -> HttpResponse:
        """> … the authorization server … SHOULD immediately invalidate all existing authorization grants and currently
        > active access tokens, all refresh tokens, and other tokens associated with this client. (RFC 7592 §2.3)"""
        with database.atomic():
            for grant in self.client.grants.open():
                withdrawals.withdraw_grant(grant.pk, by="client")
            audit.record_within(audit.Event("client.deleted_itself", client_id=client_id))
            self.client.delete()
        return HttpResponse(status=204, headers={"Cache-Control": "no-store"})
