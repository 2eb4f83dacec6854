"""One authorization while it is under way, from the client's request to the person's answer."""

import uuid

from django.conf import settings
from django.db import models
from django.utils import timezone

NO_SECRETS = {"staged_tokens": None, "upstream_secrets": None, "identity_to_link": None}
"""What is forgotten of a transaction that came to nothing."""


class LoginTransactionQuerySet(models.QuerySet["LoginTransaction"]):
    def erase_expired_secrets(self) -> int:
        """Forget what the provider sent, and our secrets towards it, wherever the person never came back (T4)."""
        expired = self.filter(expires_at__lte=timezone.now())
        held = expired.exclude(staged_tokens=None, upstream_secrets=None, identity_to_link=None)
        return held.update(**NO_SECRETS)


class LoginTransaction(models.Model):
    """A person in front of our pages, on behalf of a client or on a visit of their own.

    The request is frozen here as it was checked and shown. Two tabs are two rows, so they never mix. The row belongs
    to one browser: `browser_digest` is the SHA-256 of a cookie only that browser holds (T3).
    """

    class Outcome(models.TextChoices):
        ALLOWED = "allowed"
        DENIED = "denied"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(db_index=True)
    browser_digest = models.CharField(max_length=64)

    # What the client asked (nothing: the person came by themselves and goes on to `next_page`).
    client = models.ForeignKey(
        settings.OAUTH2_PROVIDER_APPLICATION_MODEL, null=True, on_delete=models.CASCADE, related_name="+"
    )
    client_digest = models.CharField(max_length=64, blank=True)
    redirect_uri = models.TextField(blank=True)
    state = models.TextField(blank=True)
    scope = models.TextField(blank=True)
    resource = models.JSONField(default=list)
    code_challenge = models.CharField(max_length=128, blank=True)
    prompt = models.CharField(max_length=64, blank=True)
    login_hint = models.CharField(max_length=255, blank=True)
    next_page = models.CharField(max_length=64, blank=True)
    link_provider = models.CharField(max_length=64, blank=True, help_text="Where the person wants one more way in.")

    # Who it is about; set when the person is known.
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="+")
    signed_in_at = models.DateTimeField(null=True)

    # The journey to the identity provider: written by the person's POST, spent by the callback (T3, T8).
    provider = models.CharField(max_length=64, blank=True)
    forward_decided_at = models.DateTimeField(null=True)
    upstream_state_digest = models.CharField(max_length=64, null=True, unique=True)
    upstream_state_expires_at = models.DateTimeField(null=True)
    upstream_state_spent_at = models.DateTimeField(null=True)
    upstream_secrets = models.BinaryField(null=True, help_text="Nonce and PKCE verifier, sealed.")
    identity_to_link = models.BinaryField(
        null=True, help_text="Whom that provider then named, sealed until it is kept."
    )
    staged_tokens = models.BinaryField(
        null=True, help_text="The provider's tokens until the person consents, sealed (T4)."
    )

    answered_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=16, blank=True, choices=Outcome.choices)

    objects = LoginTransactionQuerySet.as_manager()

    def __str__(self) -> str:
        return f"Login transaction {self.pk}"

    @property
    def is_open(self) -> bool:
        return self.answered_at is None and timezone.now() < self.expires_at

    @property
    def scopes(self) -> list[str]:
        return self.scope.split()
