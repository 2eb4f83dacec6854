"""What the authorization server remembers, one module per subject. docs/stored-data.md says how each secret is kept."""

from oauth_relay.models.admission import AdmissionPin
from oauth_relay.models.audit import AuditEvent
from oauth_relay.models.clients import Client, FormerSecret
from oauth_relay.models.grants import Challenge, Consent, Grant, Withdrawal
from oauth_relay.models.people import Identity, Session, SignInFailure, SpentLogoutToken, User
from oauth_relay.models.secrets import DataKey, SigningKey, UpstreamCredential, Wrapping
from oauth_relay.models.tokens import AccessToken, AuthorizationCode, DeviceCode, IDToken, RefreshToken
from oauth_relay.models.transactions import LoginTransaction

__all__ = [
    "AccessToken",
    "AdmissionPin",
    "AuditEvent",
    "AuthorizationCode",
    "Challenge",
    "Client",
    "Consent",
    "DataKey",
    "DeviceCode",
    "FormerSecret",
    "Grant",
    "IDToken",
    "Identity",
    "LoginTransaction",
    "RefreshToken",
    "Session",
    "SignInFailure",
    "SigningKey",
    "SpentLogoutToken",
    "UpstreamCredential",
    "User",
    "Withdrawal",
    "Wrapping",
]
