"""A person's permission for a client, its records, and its end."""

import uuid

from django.conf import settings
from django.db import models


class Grant(models.Model):
    """The anchor (T11): one person's, or service's, permission for one client.

    Consents, codes, tokens and MCP sessions hang from it. Whoever issues, rotates, replays or withdraws locks this row
    first and reads it again; withdrawing is one update here, not a sweep.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="grants")
    client = models.ForeignKey(
        settings.OAUTH2_PROVIDER_APPLICATION_MODEL, on_delete=models.CASCADE, related_name="grants"
    )
    created = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    last_tool = models.CharField(max_length=128, blank=True)
    suspended_at = models.DateTimeField(null=True, blank=True, help_text="Refresh waits until the person signs in.")
    withdrawn_at = models.DateTimeField(null=True, blank=True)
    withdrawn_by = models.CharField(max_length=32, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["user", "client"],
                condition=models.Q(withdrawn_at__isnull=True),
                name="one_live_grant_per_user_and_client",
            )
        ]

    def __str__(self) -> str:
        return f"Grant {self.pk}"

    @property
    def is_live(self) -> bool:
        return self.withdrawn_at is None


class Consent(models.Model):
    """What a person said yes to, as it was shown. A record: never changed, only withdrawn."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    grant = models.ForeignKey(Grant, on_delete=models.CASCADE, related_name="consents")
    client_digest = models.CharField(max_length=64)
    redirect_uri = models.TextField()
    resource = models.JSONField(default=list)
    scope = models.TextField(blank=True)
    created = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    withdrawn_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"Consent {self.pk}"


class Withdrawal(models.Model):
    """One line of the log that every process reads twice a second (T12). The id is the sequence."""

    class Kind(models.TextChoices):
        GRANT = "grant"
        FAMILY = "family"
        CLIENT = "client"
        USER = "user"

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=16, choices=Kind.choices)
    reference = models.CharField(max_length=64)
    at = models.DateTimeField(auto_now_add=True, db_index=True)

    def __str__(self) -> str:
        return f"{self.kind} {self.reference}"
