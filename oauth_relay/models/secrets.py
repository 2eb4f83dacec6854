"""Keys, and the provider's tokens that they seal. Nothing in these tables can be used without a master key."""

import uuid

from django.conf import settings
from django.db import models


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

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["user", "provider", "audience"], name="one_credential_per_user_provider_and_audience"
            )
        ]

    def __str__(self) -> str:
        return f"Credential {self.pk}"
