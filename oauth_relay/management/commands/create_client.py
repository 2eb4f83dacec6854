"""`manage.py create_client NAME REDIRECT_URI …`: register a client that an operator vouches for (RFC 6749 §2)."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from oauth_relay import client_metadata, client_metadata_documents
from oauth_relay.client_metadata import InvalidMetadata
from oauth_relay.client_metadata_documents import ClientNotApproved
from oauth_relay.models import Client
from oauth_relay.outbound_documents import DocumentUnavailable, InvalidDocument


class Command(BaseCommand):
    help = (
        "Register a client by hand and print its id, and its secret if it has one: once, it is stored hashed. "
        "With --document, admit the client that is described at that address."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", default="", help="what people see on the consent page")
        parser.add_argument("redirect_uri", nargs="*", help="where its answers may go; a resource server may have none")
        proof = parser.add_mutually_exclusive_group()
        proof.add_argument(
            "--confidential", action="store_true", help="give it a secret; without, it is public and has PKCE alone"
        )
        proof.add_argument(
            "--jwks-uri", metavar="URL", help="it signs (private_key_jwt), with a key of the set at this address"
        )
        proof.add_argument(
            "--document", metavar="URL", help="its description, which is its client_id too; says all the rest itself"
        )
        parser.add_argument(
            "--trusted",
            action="store_true",
            help="do not ask people again for what they allowed it before (https redirect URIs only)",
        )
        parser.add_argument(
            "--resource-server",
            action="store_true",
            help="it may ask at /introspect what a token is worth; needs --confidential",
        )
        parser.add_argument(
            "--json", action="store_true", help="print the client information response (RFC 7591 §3.2.1)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        client, raw_secret = self._described(options) if options["document"] else self._registered(options)
        self._tell(client, raw_secret, options["json"])

    def _described(self, options: dict[str, Any]) -> tuple[Client, str]:
        """It can be done twice: the client is the same."""
        if options["name"] or options["trusted"] or options["resource_server"]:
            raise CommandError("With --document only --json can be given: the rest is in the document.")
        try:
            client = client_metadata_documents.vouch(options["document"])
        except (ClientNotApproved, InvalidDocument) as wrong:
            raise CommandError(str(wrong)) from wrong
        except DocumentUnavailable as wrong:
            raise CommandError(f"The document cannot be read now: {wrong}.") from wrong
        if client.blocked_at is not None:
            self.stderr.write("It is approved and still blocked: unblock it in the admin.")
        return client, ""

    def _registered(self, options: dict[str, Any]) -> tuple[Client, str]:
        if options["resource_server"] and not options["confidential"]:
            raise CommandError("A resource server proves itself by a secret: add --confidential.")
        if not options["name"] or not (options["redirect_uri"] or options["resource_server"]):
            raise CommandError("Give a name and at least one redirect URI, or --document.")
        try:
            metadata = _metadata(options)
        except InvalidMetadata as wrong:
            raise CommandError(wrong.description) from None
        if options["trusted"] and not any(uri.startswith("https:") for uri in options["redirect_uri"]):
            raise CommandError(
                "--trusted has no effect without an https redirect URI: others are always asked for (T9)."
            )
        if dropped := set(options["redirect_uri"]) - set(metadata["redirect_uris"]):
            raise CommandError(f"This redirect URI cannot be registered: {', '.join(sorted(dropped))}.")
        return client_metadata.register_by_operator(
            metadata, skip_authorization=options["trusted"], is_resource_server=options["resource_server"]
        )

    def _tell(self, client: Client, raw_secret: str, as_json: bool) -> None:
        if as_json:
            secret = {"client_secret": raw_secret, "client_secret_expires_at": 0} if raw_secret else {}
            self.stdout.write(json.dumps({**client.metadata, "client_id": client.client_id, **secret}))
            return
        self.stdout.write(f"client_id      {client.client_id}")
        if raw_secret:
            self.stdout.write(f"client_secret  {raw_secret}")
            self.stderr.write("The secret is shown this once. `manage.py rotate_client_secret` makes another.")


def _metadata(options: dict[str, Any]) -> dict[str, Any]:
    method = "client_secret_basic" if options["confidential"] else "none"
    uris = options["redirect_uri"]
    return {
        "client_name": client_metadata.checked_name("The name", options["name"]),
        **client_metadata.checked_keys({"jwks_uri": options["jwks_uri"]}),
        "redirect_uris": client_metadata.checked_redirect_uris(uris) if uris else [],
        "token_endpoint_auth_method": "private_key_jwt" if options["jwks_uri"] else method,
        "grant_types": list(client_metadata.GRANT_TYPES) if uris else [],
        "response_types": ["code"] if uris else [],
    }
