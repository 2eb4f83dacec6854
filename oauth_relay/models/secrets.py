"""Keys, and the provider's tokens that they seal. Nothing in these tables can be used without a master key."""

import uuid
from datetime import timedelta

from django.conf import settings
from django.db import models
from django.db.models.functions import Now
from django.utils import timezone

FAILURE_KEPT = timedelta(seconds=5)
REJECTION_PATIENCE = timedelta(minutes=5)
"""How long a token made because an API refused the last one is not replaced for being refused by it too (T10)."""

LOST = "lost"


class DataKey(models.Model):
    """A key that seals records. It exists only wrapped: see `Wrapping`."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created = models.DateTimeField(auto_now_add=True)
    retired_at = models.DateTimeField(null=True, blank=True, help_text="Opens, but seals no more.")

    def __str__(self) -> str:
        return f"Data key {self.pk}"


class Wrapping(models.Model):
    """One data key under one master key (T20): rewrapping adds a row, it never replaces one."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    data_key = models.ForeignKey(DataKey, on_delete=models.CASCADE, related_name="wrappings")
    master_key_id = models.CharField(max_length=16)
    wrapped = models.BinaryField()
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["data_key", "master_key_id"], name="one_wrapping_per_data_and_master_key")
        ]

    def __str__(self) -> str:
        return f"Wrapping of {self.data_key_id} under {self.master_key_id}"


class SigningKey(models.Model):
    """Signs the API tokens that CAIR issues itself (T22). The public half is published at /.well-known/jwks.json."""

    class State(models.TextChoices):
        NEXT = "next"
        CURRENT = "current"
        RETIRED = "retired"
        GONE = "gone"
        COMPROMISED = "compromised"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    purpose = models.CharField(max_length=32, default="api-token")
    algorithm = models.CharField(max_length=8)
    public_jwk = models.JSONField()
    private_key = models.BinaryField(help_text="PKCS#8, sealed.")
    state = models.CharField(max_length=16, choices=State.choices)
    created = models.DateTimeField(auto_now_add=True)
    state_since = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["purpose"], condition=models.Q(state="current"), name="one_current_signing_key_per_purpose"
            )
        ]

    def __str__(self) -> str:
        return f"Signing key {self.pk}"


def from_now(delta: timedelta) -> models.ExpressionWrapper:
    """A moment on the database's clock: every deadline of a lease is on that one (T14)."""
    return models.ExpressionWrapper(Now() + models.Value(delta), output_field=models.DateTimeField())


def _lease_is_lost() -> models.Q:
    """A call was sent, nobody recorded its end, it was tried again, and that too was lost."""
    return models.Q(lease_holder__isnull=False, lease_until__lte=Now(), lease_sent_at__isnull=False, failure=LOST)


def _holds(condition: models.Q) -> models.Case:
    yes, no = models.Value(True), models.Value(False)
    return models.Case(models.When(condition, then=yes), default=no, output_field=models.BooleanField())


class UpstreamCredentialQuerySet(models.QuerySet["UpstreamCredential"]):
    def with_clock(self) -> "UpstreamCredentialQuerySet":
        """Each row with what only the database's clock can say."""
        renewed = models.Q(lease_holder=None, lease_sent_at__gt=from_now(-REJECTION_PATIENCE))
        return self.annotate(
            is_leased=_holds(models.Q(lease_holder__isnull=False, lease_until__gt=Now())),
            lease_is_lost=_holds(_lease_is_lost()),
            has_just_failed=_holds(models.Q(failed_at__gt=from_now(-FAILURE_KEPT))),
            was_just_renewed=_holds(renewed),
        )

    def lost(self) -> "UpstreamCredentialQuerySet":
        """Those whose refresh token may have been spent twice, with nothing to show for it."""
        return self.filter(_lease_is_lost())


class UpstreamCredential(models.Model):
    """A person's tokens at one provider for one audience, sealed. One row, whichever client uses it."""

    class State(models.TextChoices):
        GOOD = "good"
        REFRESHING = "refreshing"
        SIGN_IN_NEEDED = "sign_in_needed"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="upstream_credentials")
    provider = models.CharField(max_length=64)
    audience = models.CharField(max_length=255)
    issuer = models.CharField(max_length=255)
    subject = models.CharField(max_length=255)
    scope = models.TextField(blank=True, help_text="What the provider granted.")
    tokens = models.BinaryField(help_text="Access and refresh token, sealed.")
    expires_at = models.DateTimeField(null=True, help_text="Of the access token.")
    version = models.PositiveIntegerField(default=1)
    state = models.CharField(max_length=16, choices=State.choices, default=State.GOOD)
    lease_holder = models.UUIDField(null=True)
    lease_until = models.DateTimeField(null=True)
    lease_sent_at = models.DateTimeField(null=True)
    failed_at = models.DateTimeField(null=True)
    failure = models.CharField(max_length=64, blank=True)
    created = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True)
    proved_at = models.DateTimeField(
        default=timezone.now, db_default=Now(), help_text="When the provider last stood by it."
    )

    # Only on rows that were read `with_clock`.
    is_leased: bool
    lease_is_lost: bool
    has_just_failed: bool
    was_just_renewed: bool

    objects = UpstreamCredentialQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["user", "provider", "audience"], name="one_credential_per_user_provider_and_audience"
            )
        ]

    def __str__(self) -> str:
        return f"Credential {self.pk}"
