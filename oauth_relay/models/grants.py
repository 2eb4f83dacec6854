"""A person's permission for a client, its records, and its end."""

import uuid
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models.signals import pre_delete
from django.dispatch import receiver
from django.utils import timezone


class GrantQuerySet(models.QuerySet["Grant"]):
    def open(self) -> "GrantQuerySet":
        """Not withdrawn."""
        return self.filter(withdrawn_at=None)

    def live(self) -> "GrantQuerySet":
        """Open, and so are the person and the client it connects."""
        someone = models.Q(user=None) | models.Q(user__is_active=True)
        return self.open().filter(someone, client__blocked_at=None)


class ConsentQuerySet(models.QuerySet["Consent"]):
    def alive(self) -> "ConsentQuerySet":
        """Neither withdrawn nor run out, on a grant that is open."""
        return self.filter(withdrawn_at=None, expires_at__gt=timezone.now(), grant__withdrawn_at=None)


class Grant(models.Model):
    """The anchor (T11): one person's, or service's, permission for one client.

    Consents, codes, tokens and MCP sessions hang from it. Whoever issues, rotates, replays or withdraws locks this row
    first and reads it again; withdrawing is one update here, not a sweep.

    Lock order: login transaction, grants (by their id), upstream credentials, then tokens and codes. Nobody locks a client's
    row while holding a grant's, nor the other way round: it is read again, without a lock. A person's row is locked only
    where identities change, and without its key, so that a code can be written at the same time.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="grants")
    client = models.ForeignKey(
        settings.OAUTH2_PROVIDER_APPLICATION_MODEL, on_delete=models.CASCADE, related_name="grants"
    )
    created = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    last_tool = models.CharField(
        max_length=128, blank=True, default="", db_default="", help_text="The tool that was called last."
    )
    last_address = models.CharField(
        max_length=64, blank=True, default="", db_default="", help_text="Network address, as CLIENT_ADDRESSES keeps it."
    )
    suspended_at = models.DateTimeField(null=True, blank=True, help_text="Refresh waits until the person signs in.")
    withdrawn_at = models.DateTimeField(null=True, blank=True)
    withdrawn_by = models.CharField(max_length=32, blank=True)

    objects = GrantQuerySet.as_manager()

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
    def is_open(self) -> bool:
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

    objects = ConsentQuerySet.as_manager()

    def __str__(self) -> str:
        return f"Consent {self.pk}"


class Challenge(models.Model):
    """A client was sent to its person because of `reason`, and it did not help, or may not have (T10).

    Too soon a second time is a sentence in the tool's answer: otherwise person and client would go round in circles, or
    an injected model would ask until the person gives in (T33). `challenges` says which reasons there are.
    """

    id = models.BigAutoField(primary_key=True)
    grant = models.ForeignKey(Grant, on_delete=models.CASCADE, related_name="challenges")
    reason = models.CharField(max_length=255)
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["grant", "reason"], name="one_challenge_per_grant_and_reason"),
        ]

    def __str__(self) -> str:
        return f"Challenge of {self.grant_id}: {self.reason}"


class Withdrawal(models.Model):
    """One line of the log that every process reads twice a second (T12). The id is the sequence."""

    class Kind(models.TextChoices):
        GRANT = "grant"
        NARROWED = "narrowed", "a grant that lost scopes"
        FAMILY = "family"
        CLIENT = "client"
        USER = "user"
        CREDENTIAL = "credential", "a person's tokens at the providers"

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=16, choices=Kind.choices)
    reference = models.CharField(max_length=64)
    at = models.DateTimeField(auto_now_add=True, db_index=True)

    def __str__(self) -> str:
        return f"{self.kind} {self.reference}"


@receiver(pre_delete, sender=settings.OAUTH2_PROVIDER_APPLICATION_MODEL)
def _write_withdrawal_of_deleted_client(sender: type[models.Model], instance: models.Model, **kwargs: Any) -> None:
    """A deleted row takes its tokens with it; processes that remember them must still be told."""
    Withdrawal.objects.create(kind=Withdrawal.Kind.CLIENT, reference=str(instance.pk))
