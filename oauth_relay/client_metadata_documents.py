"""Clients whose id is the address of their own description (draft-ietf-oauth-client-id-metadata-document, MCP 2025-11-25).

The document at the client_id is the registration. Nothing of it is written before a person says yes (T24): until then it
is in this process's memory, and on the transaction that shows it. Reading it safely is `outbound_documents`.
"""

import logging
import shlex
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.db.transaction import atomic
from django.utils import timezone
from oauth2_provider.generators import generate_client_secret

from oauth_relay import audit, client_metadata
from oauth_relay.client_metadata import InvalidMetadata
from oauth_relay.models import Client, LoginTransaction
from oauth_relay.outbound_documents import (
    Document,
    Documents,
    DocumentUnavailable,
    InvalidDocument,
    check_address,
    is_own_machine,
)

logger = logging.getLogger(__name__)

LONGEST_ID = 255
AUTH_METHODS = ("none", "private_key_jwt")
LONGEST_OUTAGE = timedelta(days=7)
"""How long a known client goes on by the copy we have, while its document cannot be read."""


class ClientNotApproved(Exception):
    """The operator's policy has no room for this client. The message may be shown."""


# -- who may come ------------------------------------------------------------------------------------------------------


def is_document_address(client_id: str) -> bool:
    """Whether a client_id can only be the address of a document, good or bad."""
    return client_id.lower().startswith(("https://", "http://"))


def check_client_id(client_id: str) -> None:
    """> Client identifier URLs MUST have an "https" scheme, MUST contain a path component, MUST NOT contain single-dot or
    > double-dot path segments, MUST NOT contain a fragment component and MUST NOT contain a username or password.

    Raises InvalidDocument. A query, which SHOULD NOT be there, would give one document any number of names.
    """
    if len(client_id) > LONGEST_ID:
        raise InvalidDocument(f"A client_id can have at most {LONGEST_ID} characters.")
    parts = check_address(client_id)
    if "?" in client_id:
        raise InvalidDocument("A client_id must not have a query.")
    if parts.path in ("", "/"):
        raise InvalidDocument("A client_id must have a path.")
    if any(unquote(segment) in (".", "..") for segment in parts.path.split("/")):
        raise InvalidDocument("A client_id must not have the path segments “.” and “..”.")


def _check_policy(client_id: str, row: Client | None) -> None:
    """Raises ClientNotApproved."""
    policy, host = settings.CLIENT_METADATA_DOCUMENTS, urlsplit(client_id).hostname or ""
    if policy == "off":
        raise ClientNotApproved("This server does not take clients by the address of their description.")
    if is_listed(host, settings.CLIENT_HOSTS_DENIED):
        raise ClientNotApproved(f"The operator of this server does not admit applications of {host}.")
    is_approved = is_listed(host, settings.CLIENT_HOSTS_ALLOWED) or (row is not None and row.approved_at is not None)
    if policy != "open" and not is_approved:
        # For the operator alone. An address may hold what a shell would obey.
        logger.info("to admit it: manage.py create_client --document %s", shlex.quote(client_id))
        raise ClientNotApproved(f"An operator of this server must approve applications of {host} first.")


def is_listed(host: str, listed: Collection[str]) -> bool:
    """`example.com` is that host; `.example.com` is the domain with all hosts below it."""
    return any(host == entry.lstrip(".") or (entry.startswith(".") and host.endswith(entry)) for entry in listed)


def is_admitted(client: Client) -> bool:
    """Whether a client that is known may go on, as far as the operator's policy for documents goes."""
    if client.registration_source != Client.RegistrationSource.CIMD:
        return True
    try:
        _check_policy(client.client_id, client)
    except ClientNotApproved as refused:
        logger.info("client %s: %s", client.client_id, refused)
        return False
    return True


# -- what a document must say ------------------------------------------------------------------------------------------


def checked_metadata(client_id: str, unverified: Mapping[str, Any]) -> dict[str, Any]:
    """What of a document is kept. Raises InvalidDocument.

    > The client metadata document MUST contain a client_id property whose value MUST match the URL of the document using
    > simple string comparison.
    """
    if unverified.get("client_id") != client_id:
        raise InvalidDocument("Its client_id is not exactly the address that it was read from.")
    if any(name in unverified for name in ("client_secret", "client_secret_expires_at")):
        raise InvalidDocument("It must not hold a client_secret.")
    method = unverified.get("token_endpoint_auth_method", "none")
    if method not in AUTH_METHODS:
        raise InvalidDocument("Its token_endpoint_auth_method must be none or private_key_jwt.")
    try:
        return _kept(unverified, method)
    except InvalidMetadata as wrong:
        raise InvalidDocument(wrong.description) from wrong


def _kept(unverified: Mapping[str, Any], method: str) -> dict[str, Any]:
    """By the rules for everybody, and by two of its own: it has a name, and one that signs has keys."""
    client_metadata.check_holds(unverified, "grant_types", "authorization_code")
    client_metadata.check_holds(unverified, "response_types", "code")
    name = client_metadata.checked_name("client_name", unverified.get("client_name"))
    keys = client_metadata.checked_keys(unverified) if method == "private_key_jwt" else {}
    if not name:
        raise InvalidMetadata("It must have a client_name.")
    if method == "private_key_jwt" and not keys:
        raise InvalidMetadata("With private_key_jwt it must have jwks or jwks_uri.")
    return {
        "client_name": name,
        **{
            field: unverified[field]
            for field in client_metadata.LINKS
            if client_metadata.is_link(unverified.get(field))
        },
        "redirect_uris": client_metadata.checked_redirect_uris(unverified.get("redirect_uris")),
        "token_endpoint_auth_method": method,
        "grant_types": list(client_metadata.GRANT_TYPES),
        "response_types": ["code"],
        **keys,
    }


# -- from the document to the client -----------------------------------------------------------------------------------

_documents = Documents(checked_metadata)


def find_client(client_id: str, asker: str = "") -> Client:
    """The client whose id is this address: its row, brought up to date, or one that is not written yet.

    Raises ClientNotApproved, InvalidDocument, DocumentUnavailable.
    """
    row = Client.objects.filter(client_id=client_id).first()
    if row is not None and row.registration_source != Client.RegistrationSource.CIMD:
        return row  # an operator gave it this name, and answers for it
    check_client_id(client_id)
    _check_policy(client_id, row)
    if row is not None:
        return brought_up_to_date(row)
    is_vouched_for = is_listed(urlsplit(client_id).hostname or "", settings.CLIENT_HOSTS_ALLOWED)
    return _client_described_by(client_id, _documents.read(client_id, known=is_vouched_for, asker=asker))


def find_remembered(client_id: str) -> Client | None:
    """A client that `find_client` found just now, and that has no row; never a fetch."""
    document = _documents.find(client_id)
    if document is None or Client.objects.filter(client_id=client_id).exists():
        return None  # a row that is there is blocked, or it would have been found
    return _client_described_by(client_id, document)


def _client_described_by(client_id: str, document: Document) -> Client:
    return client_of({"client_id": client_id, "metadata": document.content, "good_until": document.good_until})


def client_of(frozen: Mapping[str, Any]) -> Client:
    """The client that `frozen_of` froze; not written. One that signs has a secret that nobody knows, and no use for it."""
    signs = frozen["metadata"]["token_endpoint_auth_method"] == "private_key_jwt"
    return Client(
        client_id=frozen["client_id"],
        authorization_grant_type=Client.GRANT_AUTHORIZATION_CODE,
        registration_source=Client.RegistrationSource.CIMD,
        client_secret=generate_client_secret() if signs else "",
        hash_client_secret=signs,
        **_fields(frozen["metadata"], frozen["good_until"]),
    )


def _fields(metadata: Mapping[str, Any], good_until: float) -> dict[str, Any]:
    """What a document decides of a row."""
    signs = metadata["token_endpoint_auth_method"] == "private_key_jwt"
    return {
        **client_metadata.columns(metadata),
        "client_type": Client.CLIENT_CONFIDENTIAL if signs else Client.CLIENT_PUBLIC,
        "cimd_expires_at": datetime.fromtimestamp(good_until, UTC),
    }


def frozen_of(client: Client) -> dict[str, Any]:
    """A client without a row as a transaction keeps it: what was shown is what will be written."""
    assert client.cimd_expires_at is not None
    good_until = client.cimd_expires_at.timestamp()
    return {"client_id": client.client_id, "metadata": client.metadata, "good_until": good_until}


def keep(transaction: LoginTransaction) -> None:
    """Write the row of a client that somebody consents to for the first time (T24). Within that very transaction.

    If another person was first, theirs is the row; whether it is what this person was shown, the caller compares (T31).
    """
    if transaction.client_row_id is not None or transaction.client_document is None:
        return
    transaction.client_row = _written(transaction.client_document)
    transaction.save(update_fields=["client_row"])


def _written(frozen: Mapping[str, Any]) -> Client:
    """The row of this client: the one that is there, or a new one. To be called within a transaction."""
    described = client_of(frozen)
    names = ("authorization_grant_type", "registration_source", "client_secret", "hash_client_secret")
    defaults = {name: getattr(described, name) for name in names}
    fields = _fields(described.metadata, frozen["good_until"])
    row, is_new = Client.objects.get_or_create(client_id=described.client_id, defaults={**defaults, **fields})
    if is_new:
        audit.record_within(client_metadata.registered("client.registered", row, by="document"))
    return row


def vouch(client_id: str) -> Client:
    """Write the row of a client before anybody has consented, or mark the one that is there: an operator answers for it.

    Raises ClientNotApproved where the policy has no room even so, InvalidDocument, DocumentUnavailable.
    """
    check_client_id(client_id)
    _check_policy(client_id, Client(approved_at=timezone.now()))
    row = Client.objects.filter(client_id=client_id).first()
    if row is not None and row.registration_source != Client.RegistrationSource.CIMD:
        raise ClientNotApproved("Another client has this id; it was not made from the document.")
    described = row or _client_described_by(client_id, _documents.read(client_id, known=True))
    with atomic():
        row = row or _written(frozen_of(described))
        if Client.objects.filter(pk=row.pk, approved_at=None).update(approved_at=timezone.now()):
            audit.record_within(audit.Event("client.approved_by_operator", client_id=client_id))
    return Client.objects.get(pk=row.pk)


# -- and when it changes -----------------------------------------------------------------------------------------------


def brought_up_to_date(client: Client, since: float = 0.0) -> Client:
    """A known client as its document describes it now, read again if it is due or was not read since `since`.

    Raises InvalidDocument where it describes none any more; DocumentUnavailable only where the outage has lasted. A host
    that is away for an hour must not cost its people their connections.
    """
    if client.registration_source != Client.RegistrationSource.CIMD:
        return client
    due = client.cimd_expires_at or client.created
    if not since and timezone.now() < due:
        return client
    try:
        # Never older than the row: another process may have seen a newer one than this one remembers.
        since = max(since, due.timestamp() if due <= timezone.now() else 0.0)
        document = _documents.read(client.client_id, known=True, since=since)
    except DocumentUnavailable as error:
        if timezone.now() > due + LONGEST_OUTAGE:
            raise
        logger.warning("client %s goes on by an old copy: %s", client.client_id, error)
        return client
    return _follow(client, document)


def bring_up_to_date(client_id: str) -> None:
    """What a client says at /token is judged by what its document says now, visited or not (T31).

    Raises as `brought_up_to_date`. An id that is first seen, or that is refused anyway, fetches nothing (T24).
    """
    if not is_document_address(client_id) or not client_id.isprintable() or len(client_id) > LONGEST_ID:
        return
    row = Client.objects.filter(client_id=client_id).first()
    if row is not None and row.is_usable(None) and is_admitted(row):
        brought_up_to_date(row)


def _follow(client: Client, document: Document) -> Client:
    """Write what the document says now; of two processes one writes, and both answer with what is written."""
    changed = document.content != client.metadata
    fields = _fields(document.content, document.good_until)
    with atomic():
        unmoved = Client.objects.filter(pk=client.pk, cimd_expires_at=client.cimd_expires_at)
        if unmoved.update(**fields, updated=timezone.now()) and changed:
            audit.record_within(audit.Event("client.changed_itself", client_id=client.client_id))
    return Client.objects.filter(pk=client.pk).first() or _client_described_by(client.client_id, document)


def verified_host(client: Client) -> str | None:
    """The host that publishes the description of this client: whoever wrote it holds a certificate for that name."""
    if client.registration_source != Client.RegistrationSource.CIMD:
        return None
    parts = urlsplit(client.client_id)
    return None if is_own_machine(parts) else parts.netloc
