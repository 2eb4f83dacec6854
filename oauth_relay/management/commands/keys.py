"""`manage.py keys`: which keys there are, in what state, and how old. No key is ever shown."""

import json
from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from oauth_relay import key_rotation, keys, master_key_rotation, vault_rotation
from oauth_relay.models import DataKey, FormerSecret, SigningKey, Wrapping


class Command(BaseCommand):
    help = "Show signing keys, data keys, wrappings and master keys: states and ages. Changes nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object instead")

    def handle(self, *args: Any, **options: Any) -> None:
        status = {
            "signing_keys": [_signing_key(row) for row in _signing_keys()],
            "data_keys": [_data_key(row) for row in DataKey.objects.order_by("created")],
            "master_keys": _master_keys(),
            "former_client_secrets": [_former_secret(row) for row in _former_secrets()],
        }
        if options["json"]:
            self.stdout.write(json.dumps(status, indent=2))
        else:
            self._in_words(status)

    def _in_words(self, status: dict[str, list[dict[str, Any]]]) -> None:
        for kind, rows in status.items():
            self.stdout.write(f"\n{kind.replace('_', ' ')}")
            for row in rows or [{"none": ""}]:
                shown = [f"{name.replace('_', ' ')} {_said(value)}".strip() for name, value in row.items()]
                self.stdout.write(f"  {'  '.join(shown)}")
        self.stdout.write("")


def _signing_keys() -> Any:
    return SigningKey.objects.filter(purpose=keys.API_TOKEN).order_by("created")


def _signing_key(row: SigningKey) -> dict[str, Any]:
    shown = {
        "id": str(row.pk),
        "state": row.state,
        "age_days": _days(row.created),
        "since": row.state_since.isoformat(),
    }
    if row.state == SigningKey.State.NEXT:
        shown["current_after"] = (row.state_since + key_rotation.PUBLISHED_BEFORE).isoformat()
    if row.state == SigningKey.State.RETIRED:
        shown["gone_after"] = (row.state_since + key_rotation.PUBLISHED_AFTER).isoformat()
    return shown


def _data_key(row: DataKey) -> dict[str, Any]:
    """A data key, how much is sealed under it, and which master keys wrap it."""
    return {
        "id": str(row.pk),
        "state": "retired" if row.retired_at else "sealing",
        "age_days": _days(row.created),
        "records": {column.name: column.under([row]).count() for column in vault_rotation.SEALED_COLUMNS},
        "wrapped_by": sorted(row.wrappings.values_list("master_key_id", flat=True)),
    }


def _master_keys() -> list[dict[str, Any]]:
    """Each id that is configured or wraps something; the first configured one wraps what is new."""
    configured = master_key_rotation.configured_ids()
    wrapping = sorted(set(Wrapping.objects.values_list("master_key_id", flat=True)) - set(configured))
    return [
        {
            "id": key_id,
            "configured": key_id in configured,
            "first": key_id in configured[:1],
            "data_keys": Wrapping.objects.filter(master_key_id=key_id).count(),
        }
        for key_id in [*dict.fromkeys(configured), *wrapping]
    ]


def _former_secrets() -> Any:
    return FormerSecret.objects.good().select_related("client").order_by("good_until")


def _former_secret(row: FormerSecret) -> dict[str, Any]:
    return {"client_id": row.client.client_id, "good_until": row.good_until.isoformat()}


def _days(since: datetime) -> int:
    return (timezone.now() - since).days


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items() if count) or "none"
    return ", ".join(value) if isinstance(value, list) else str(value)
