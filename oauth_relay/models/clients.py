"""The MCP clients: programs that ask for a person's permission (RFC 6749 §1.1)."""

import hashlib
import json
import uuid
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.contrib.auth.hashers import check_password
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils import timezone
from oauth2_provider.models import AbstractApplication, ApplicationManager

from oauth_relay import redirect_uris

# Not shorter than an access token is good; not so long that a date could not hold it.
_LIFETIME = [MinValueValidator(timedelta(minutes=10)), MaxValueValidator(timedelta(days=3650))]


class Client(AbstractApplication):
    """One registered client. Every registration is a row of its own, with its own credentials (T6)."""

    metadata = models.JSONField(
        default=dict, blank=True, help_text="What it said of itself at registration (RFC 7591)."
    )
    registered_from = models.CharField(max_length=64, blank=True, help_text="Network it registered from.")
    registration_token_digest = models.CharField(max_length=64, blank=True, editable=False)
    approved_at = models.DateTimeField(null=True, blank=True, help_text="When an operator vouched for it.")
    blocked_at = models.DateTimeField(null=True, blank=True, help_text="Since when it may do nothing.")
    last_used_at = models.DateTimeField(null=True, blank=True)
    is_resource_server = models.BooleanField(
        default=False,
        db_default=False,
        help_text="May ask at /introspect what a token is worth (RFC 7662). Needs a secret.",
    )
    restart_on_step_up = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Is made to authorize anew when a tool needs more, for clients that only refresh: they lose their tokens.",
    )
    refresh_idle_lifetime = models.DurationField(
        null=True,
        blank=True,
        validators=_LIFETIME,
        help_text="How long a refresh token is good without use (7 00:00:00 is a week). Empty: as the server has it.",
    )
    refresh_absolute_lifetime = models.DurationField(
        null=True,
        blank=True,
        validators=_LIFETIME,
        help_text="How long refreshing goes on without a new sign-in. Empty: as the server has it.",
    )

    objects = ApplicationManager()

    class Meta(AbstractApplication.Meta):
        swappable = "OAUTH2_PROVIDER_APPLICATION_MODEL"

    def natural_key(self) -> tuple[str]:
        return (self.client_id,)

    @property
    def display_name(self) -> str:
        return self.name or "An unnamed client"

    @property
    def is_operator_made(self) -> bool:
        return self.registration_source == self.RegistrationSource.MANUAL or self.approved_at is not None

    def digest(self) -> str:
        """SHA-256 over what a person was shown of this client; another value means another client to consent to."""
        shown = {
            "name": self.name,
            "redirect_uris": sorted(self.redirect_uris.split()),
            "auth_method": self.metadata.get("token_endpoint_auth_method"),
            "uris": {key: self.metadata.get(key) for key in ("client_uri", "logo_uri", "policy_uri", "tos_uri")},
        }
        if jwks_uri := self.metadata.get("jwks_uri"):
            # Who holds its keys, not which: they rotate. Absent where there is none, so that older digests stay good.
            shown["jwks_host"] = redirect_uris.host_of(str(jwks_uri)).lower()
        return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()

    # -- joints of the library's model ---------------------------------------------------------------------------------

    def is_usable(self, request: Any) -> bool:
        return self.blocked_at is None

    def get_allowed_schemes(self) -> Iterable[str]:
        return redirect_uris.allowed_schemes()

    def allows_grant_type(self, *grant_types: str) -> bool:
        return self.GRANT_AUTHORIZATION_CODE in grant_types and super().allows_grant_type(*grant_types)

    def redirect_uri_allowed(self, uri: str) -> bool:
        return redirect_uris.is_allowed(uri) and super().redirect_uri_allowed(uri)


class FormerSecretQuerySet(models.QuerySet["FormerSecret"]):
    def good(self) -> "FormerSecretQuerySet":
        return self.filter(good_until__gt=timezone.now())


class FormerSecret(models.Model):
    """A client secret that was rotated out and is still good for a while, as its hash.

    A table, not a column of the client: a client has none for most of its life, may have several for a day, and what
    is written here touches no row that a sign-in or a refresh waits for.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    client = models.ForeignKey(Client, on_delete=models.CASCADE, related_name="former_secrets")
    secret = models.CharField(max_length=255, editable=False, help_text="Hashed, as the client's own.")
    rotated_at = models.DateTimeField(auto_now_add=True)
    good_until = models.DateTimeField()

    objects = FormerSecretQuerySet.as_manager()

    def __str__(self) -> str:
        return f"Former secret {self.pk}"

    def fits(self, raw_secret: str) -> bool:
        return check_password(raw_secret, self.secret)
