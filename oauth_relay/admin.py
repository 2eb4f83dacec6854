"""What an operator may see: everything but secrets. Read-only for now; people are the exception.

The library registers its models with the classes that settings name; ours are added here.
"""

from typing import Any

from django.contrib import admin
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.admin import UserAdmin
from django.core.exceptions import ValidationError
from django.db import models
from django.http import HttpRequest

from oauth_relay import audit
from oauth_relay.models import (
    AccessToken,
    AdmissionPin,
    AuditEvent,
    Consent,
    Grant,
    Identity,
    RefreshToken,
    SigningKey,
    UpstreamCredential,
    User,
)
from oauth_relay.sign_in_failures import forget_failures, note_failure, seconds_to_wait

SECRET_FIELDS = (
    "token", "token_checksum", "code", "code_challenge", "client_secret", "registration_token_digest", "replay_answer",
    "tokens", "private_key",
)  # fmt: skip


class OperatorSignInForm(AdminAuthenticationForm):
    """The admin's own form, with the same growing wait after wrong passwords as everybody's."""

    def clean(self) -> dict[str, Any]:
        username = self.cleaned_data.get("username") or ""
        if wait := seconds_to_wait(username):
            raise ValidationError(f"Too many failed attempts for this account. Try again in {wait} seconds.")
        try:
            cleaned = super().clean()
        except ValidationError:
            note_failure(username)
            audit.record_within(audit.Event("operator.sign_in_failed", "wrong_password"))
            raise
        forget_failures(username)
        audit.record_within(audit.Event("operator.signed_in", pseudonym=self.get_user().pseudonym))
        return cleaned


admin.site.login_form = OperatorSignInForm


class ReadOnlyAdmin(admin.ModelAdmin):
    """Shows rows, changes none, and leaves out every column that holds a secret or what a secret hashes to."""

    view_on_site = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return [f.name for f in self.model._meta.fields if f.name not in SECRET_FIELDS]

    def get_exclude(self, request: HttpRequest, obj: models.Model | None = None) -> tuple[str, ...]:
        return SECRET_FIELDS


class ClientAdmin(ReadOnlyAdmin):
    list_display = ("name", "client_id", "registration_source", "created", "last_used_at", "approved_at", "blocked_at")
    list_filter = ("registration_source", "client_type")
    search_fields = ("name", "client_id", "redirect_uris")
    ordering = ("-created",)


class AuthorizationCodeAdmin(ReadOnlyAdmin):
    list_display = ("id", "application", "user", "created", "expires", "used_at")
    ordering = ("-created",)


class AccessTokenAdmin(ReadOnlyAdmin):
    list_display = ("id", "application", "user", "scope", "created", "expires", "lives")

    @admin.display(boolean=True)
    def lives(self, token: AccessToken) -> bool:
        return not token.is_expired() and token.grant is not None and token.grant.is_open

    ordering = ("-created",)


class RefreshTokenAdmin(ReadOnlyAdmin):
    list_display = ("id", "application", "user", "scope", "created", "expires_at", "revoked", "replays", "lives")

    @admin.display(boolean=True)
    def lives(self, token: RefreshToken) -> bool:
        return token.revoked is None and token.grant is not None and token.grant.is_open

    ordering = ("-created",)


class IDTokenAdmin(ReadOnlyAdmin):
    """CAIR issues no ID tokens to clients; the library registers the table all the same."""

    def has_module_permission(self, request: HttpRequest) -> bool:
        return False


@admin.register(Grant)
class GrantAdmin(ReadOnlyAdmin):
    list_display = ("id", "user", "client", "created", "last_used_at", "suspended_at", "withdrawn_at", "withdrawn_by")
    list_filter = ("withdrawn_by",)
    ordering = ("-created",)


@admin.register(Consent)
class ConsentAdmin(ReadOnlyAdmin):
    list_display = ("id", "grant", "scope", "redirect_uri", "created", "expires_at", "withdrawn_at")
    ordering = ("-created",)


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    list_display = ("at", "event", "outcome", "pseudonym", "client_id", "detail", "trace_id")
    list_filter = ("event", "outcome")
    search_fields = ("pseudonym", "client_id", "grant_id", "trace_id")
    date_hierarchy = "at"


@admin.register(UpstreamCredential)
class UpstreamCredentialAdmin(ReadOnlyAdmin):
    list_display = ("id", "user", "provider", "audience", "state", "version", "expires_at", "last_used_at")


@admin.register(SigningKey)
class SigningKeyAdmin(ReadOnlyAdmin):
    list_display = ("id", "purpose", "algorithm", "state", "state_since")


@admin.register(AdmissionPin)
class AdmissionPinAdmin(ReadOnlyAdmin):
    """Whom an entry of an allow-list means. Deleting the row lets the entry mean the next who comes under its name."""

    list_display = ("entry", "issuer", "subject", "created")
    search_fields = ("entry", "subject")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return admin.ModelAdmin.has_delete_permission(self, request, obj)


class IdentityInline(admin.TabularInline):
    model = Identity
    extra = 0
    can_delete = False
    fields = readonly_fields = ("provider", "issuer", "subject", "last_login")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(User)
class PersonAdmin(UserAdmin):
    """People with own accounts are made here. Switching one off ends all they had connected, within a second.

    Nobody is deleted here: what they did stays in the audit, and their rows with it.
    """

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    list_display = ("username", "email", "is_active", "is_staff", "last_login")
    readonly_fields = ("subject", "pseudonym", "is_demo", "last_login", "date_joined")
    inlines = [IdentityInline]
