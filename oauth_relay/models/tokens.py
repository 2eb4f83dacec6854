"""The library's token models, hashed at rest and hung on the grant.

The library calls an authorization code a grant; here a grant is the person's permission, and a code is called a code.
"""

from django.db import models
from django.db.models.functions import Now
from oauth2_provider.models import (
    AbstractAccessToken,
    AbstractDeviceGrant,
    AbstractGrant,
    AbstractIDToken,
    AbstractRefreshToken,
)


class AuthorizationCode(AbstractGrant):
    """RFC 6749 §4.1.2. `code` holds the SHA-256 of the code (T18)."""

    grant = models.ForeignKey("oauth_relay.Grant", on_delete=models.CASCADE, related_name="codes")
    family = models.UUIDField(help_text="The token family that this code begins.")
    used_at = models.DateTimeField(null=True)

    class Meta(AbstractGrant.Meta):
        swappable = "OAUTH2_PROVIDER_GRANT_MODEL"

    def __str__(self) -> str:
        return f"Authorization code {self.pk}"


class AccessToken(AbstractAccessToken):
    """An opaque bearer token; only its SHA-256 is stored."""

    grant = models.ForeignKey("oauth_relay.Grant", null=True, on_delete=models.CASCADE, related_name="access_tokens")
    family = models.UUIDField(null=True, db_index=True)

    class Meta(AbstractAccessToken.Meta):
        swappable = "OAUTH2_PROVIDER_ACCESS_TOKEN_MODEL"

    def __str__(self) -> str:
        return f"Access token {self.pk}"


class RefreshToken(AbstractRefreshToken):
    """A one-time refresh token; only its SHA-256 is stored. `revoked` is when it was rotated or withdrawn."""

    grant = models.ForeignKey("oauth_relay.Grant", null=True, on_delete=models.CASCADE, related_name="refresh_tokens")
    predecessor = models.OneToOneField("self", null=True, on_delete=models.SET_NULL, related_name="successor")
    scope = models.TextField(blank=True)
    expires_at = models.DateTimeField()
    first_used_at = models.DateTimeField(null=True, help_text="When it, or the access token beside it, was first used.")
    replay_answer = models.BinaryField(
        null=True, help_text="The answer to repeat, sealed under the token itself (T13)."
    )
    replays = models.PositiveSmallIntegerField(default=0)
    # The default is the database's: a node of the version before may still be issuing.
    family_since = models.DateTimeField(db_default=Now(), help_text="When the code was redeemed that began the family.")

    class Meta(AbstractRefreshToken.Meta):
        swappable = "OAUTH2_PROVIDER_REFRESH_TOKEN_MODEL"

    def __str__(self) -> str:
        return f"Refresh token {self.pk}"


class IDToken(AbstractIDToken):
    """Unused: CAIR is no OpenID provider. Swapped because the library's models only migrate together."""

    class Meta(AbstractIDToken.Meta):
        swappable = "OAUTH2_PROVIDER_ID_TOKEN_MODEL"


class DeviceCode(AbstractDeviceGrant):
    """Unused so far. The library's column is too short for a client id that is a URL."""

    client_id = models.CharField(max_length=255, db_index=True)

    class Meta(AbstractDeviceGrant.Meta):
        swappable = "OAUTH2_PROVIDER_DEVICE_GRANT_MODEL"

    def __str__(self) -> str:
        return f"Device code {self.pk}"
