"""What an operator may see: everything but secrets. Read-only, but for people and what a client is let do.

The library registers its models with the classes that settings name; ours are added here.
"""

from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.admin import UserAdmin
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import QuerySet
from django.db.transaction import atomic
from django.http import HttpRequest
from django.utils import timezone

from oauth_relay import audit, withdrawals
from oauth_relay.models import (
    AccessToken,
    AdmissionPin,
    AuditEvent,
    Client,
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
    """What a client said of itself is its own; what an operator lets it do can be changed here."""

    POLICIES = ("is_resource_server", "restart_on_step_up", "refresh_idle_lifetime", "refresh_absolute_lifetime")
    list_display = ("name", "approved_at", "blocked_at", "client_id", "registration_source", "created", "last_used_at")
    list_filter = ("registration_source", "client_type")
    search_fields = ("name", "client_id", "redirect_uris")
    ordering = ("-created",)
    actions = ("approve", "block", "unblock")

    @admin.action(permissions=["change"], description="Approve: an operator answers for these clients")
    def approve(self, request: HttpRequest, chosen: QuerySet[Client]) -> None:
        self._act(request, chosen.filter(approved_at=None), "approved", _approve)

    @admin.action(permissions=["change"], description="Block: nothing they hold is accepted from now on")
    def block(self, request: HttpRequest, chosen: QuerySet[Client]) -> None:
        self._act(request, chosen.filter(blocked_at=None), "blocked", withdrawals.block_client)

    @admin.action(permissions=["change"], description="Unblock: what they still hold is accepted again")
    def unblock(self, request: HttpRequest, chosen: QuerySet[Client]) -> None:
        self._act(request, chosen.exclude(blocked_at=None), "unblocked", _unblock)

    def _act(self, request: HttpRequest, chosen: QuerySet[Client], done: str, act: Callable[[Client], None]) -> None:
        """Once for each, looked at again under its lock: of two operators, or two tabs, one has done it."""
        count = 0
        for key in list(chosen.order_by("pk").values_list("pk", flat=True)):
            with atomic():
                client = chosen.model.objects.select_for_update(no_key=True).filter(pk=key).first()
                if client is None or not chosen.filter(pk=key).exists():
                    continue
                act(client)
                audit.record_within(_by_operator(f"client.{done}_by_operator", request, client))
                count += 1
        self.message_user(request, f"{count} {'client' if count == 1 else 'clients'} {done}.")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return admin.ModelAdmin.has_change_permission(self, request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return [name for name in self.get_fields(request, obj) if name not in self.POLICIES]

    def save_model(self, request: HttpRequest, obj: Client, form: Any, change: bool) -> None:
        """Those columns only: a whole save would hash an empty secret, and undo what happened since the page was drawn."""
        changed = {name: getattr(obj, name) for name in form.changed_data if name in self.POLICIES}
        with atomic():
            Client.objects.filter(pk=obj.pk).update(**changed)
            audit.record_within(_by_operator("client.policy_changed", request, obj, **changed))


def _approve(client: Client) -> None:
    Client.objects.filter(pk=client.pk).update(approved_at=timezone.now())


def _unblock(client: Client) -> None:
    Client.objects.filter(pk=client.pk).update(blocked_at=None)


def _by_operator(event: str, request: HttpRequest, client: Client, **detail: Any) -> audit.Event:
    operator = request.user.pseudonym if isinstance(request.user, User) else None
    return audit.Event(event, pseudonym=operator, client_id=client.client_id, detail=detail)


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
