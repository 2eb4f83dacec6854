"""One authorization while it is under way, from the client's request to the person's answer."""

import uuid
from datetime import timedelta

from django.conf import settings
from django.db import models
from django.utils import timezone

from oauth_relay.models.clients import Client

KEPT_FOR = timedelta(days=1)
MOST_AT_ONCE = 100
NO_SECRETS = {"staged_tokens": None, "upstream_secrets": None, "identity_to_link": None}
"""What is forgotten of a transaction that came to nothing."""


class LoginTransactionQuerySet(models.QuerySet["LoginTransaction"]):
    def erase_expired_secrets(self) -> int:
        """Forget what the provider sent, and our secrets towards it, wherever the person never came back (T4).

        A day later the row itself goes, some at a time: anybody can make one by opening an address.
        """
        now = timezone.now()
        held = self.filter(expires_at__lte=now).exclude(
            staged_tokens=None, upstream_secrets=None, identity_to_link=None
        )
        erased = held.update(**NO_SECRETS)
        old = self.filter(expires_at__lte=now - KEPT_FOR).order_by("expires_at").values_list("pk", flat=True)
        self.filter(pk__in=list(old[:MOST_AT_ONCE])).delete()
        return erased


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
    client_row = models.ForeignKey(
        settings.OAUTH2_PROVIDER_APPLICATION_MODEL,
        null=True,
        on_delete=models.CASCADE,
        related_name="+",
        db_column="client_id",
    )
    client_document = models.JSONField(
        null=True, help_text="Who asks, while nobody has consented and no row is written."
    )
    client_digest = models.CharField(max_length=64, blank=True)
    redirect_uri = models.TextField(blank=True)
    state = models.TextField(blank=True)
    scope = models.TextField(blank=True)
    kept_scope = models.TextField(
        blank=True, default="", db_default="", help_text="What the client had, offered with what is new."
    )
    resource = models.JSONField(default=list)
    code_challenge = models.CharField(max_length=128, blank=True)
    prompt = models.CharField(max_length=64, blank=True)
    login_hint = models.CharField(max_length=255, blank=True)
    next_page = models.CharField(max_length=64, blank=True)
    link_provider = models.CharField(
        max_length=64, blank=True, default="", db_default="", help_text="Where the person wants one more way in."
    )

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
    def client(self) -> Client | None:
        """Who asks: a row, or what the document at the client's address said when it was shown (T24, T31)."""
        from oauth_relay.client_metadata_documents import client_of

        if self.client_row is None and self.client_document is not None:
            return client_of(self.client_document)
        return self.client_row

    @client.setter
    def client(self, client: Client | None) -> None:
        from oauth_relay.client_metadata_documents import frozen_of

        if client is not None and client.pk is None:
            self.client_row, self.client_document = None, frozen_of(client)
        else:
            self.client_row, self.client_document = client, None

    @property
    def is_open(self) -> bool:
        return self.answered_at is None and timezone.now() < self.expires_at

    @property
    def scopes(self) -> list[str]:
        return [*self.scope.split(), *self.kept_scope.split()]
