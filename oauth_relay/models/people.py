"""The people who consent, and how they are known elsewhere."""

import uuid
from datetime import datetime
from typing import Any

from django.contrib.auth.models import AbstractUser, UserManager
from django.contrib.sessions.base_session import AbstractBaseSession, BaseSessionManager
from django.db import IntegrityError, models, transaction
from django.db.models.signals import pre_delete
from django.dispatch import receiver
from django.utils import timezone

from oauth_relay.digests import digest_of


def new_subject() -> str:
    return str(uuid.uuid4())


class UserQuerySet(models.QuerySet["User"]):
    """Whichever way a person is switched off, the withdrawal is written with it (T11)."""

    def update(self, **kwargs: Any) -> int:
        if "is_active" not in kwargs:
            return super().update(**kwargs)
        with transaction.atomic(using=self.db):
            touched = list(self.values_list("pk", flat=True))
            changed = super().update(**kwargs)
            for user in self.model.objects.filter(pk__in=touched, is_active=False):
                user.end()
        return changed


class Users(UserManager.from_queryset(UserQuerySet)):  # type: ignore[misc]
    """Django's manager of people, on the queryset above."""

    use_in_migrations = False


class User(AbstractUser):
    """A person. `subject` is what clients and APIs may know; it is made with the account and never used again."""

    subject = models.CharField(max_length=255, unique=True, default=new_subject, editable=False)
    pseudonym = models.UUIDField(unique=True, default=uuid.uuid4, editable=False, help_text="The person in the audit.")
    is_demo = models.BooleanField(default=False, editable=False)

    objects = Users()  # type: ignore[misc]

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="demo_user_is_never_staff",
                condition=models.Q(is_demo=False) | models.Q(is_staff=False, is_superuser=False),
            )
        ]

    def save(self, *args: Any, **kwargs: Any) -> None:
        with transaction.atomic():
            super().save(*args, **kwargs)
            if not self.is_active:
                self.end()

    def get_session_auth_hash(self) -> str:
        """A session ends when the password changes; not when SECRET_KEY does.

        Django would key this with SECRET_KEY, and under a fallback replace the session in mid-request: of two tabs at
        once, one would find its session gone, and the answer to it would sign the person out of both. The session's
        own row is signed, so nothing is lost.
        """
        return digest_of(f"session of {self.password}")

    def newest_identity(self) -> "Identity | None":
        """By which this person signed in last; one that was added and never used comes after all others."""
        return self.identities.order_by(models.F("last_login").desc(nulls_last=True)).first()

    def end(self) -> None:
        """Nothing of this person goes on: every process is told, sessions and what the vault holds are erased."""
        from oauth_relay.erasures import erase_credentials
        from oauth_relay.models.grants import Withdrawal

        Withdrawal.objects.create(kind=Withdrawal.Kind.USER, reference=str(self.pk))
        self.sessions.all().delete()
        erase_credentials(self, "person_ended")


@receiver(pre_delete, sender=User)
def _write_withdrawal_of_deleted_user(sender: type[User], instance: User, **kwargs: Any) -> None:
    """A deleted row takes its tokens with it; processes that remember them must still be told."""
    instance.end()


class Identity(models.Model):
    """One person as one issuer knows them. The pair (issuer, subject) decides, never an e-mail address."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="identities")
    provider = models.CharField(max_length=64)
    issuer = models.CharField(max_length=255)
    subject = models.CharField(max_length=255)
    claims = models.JSONField(default=dict, help_text="Name and e-mail as the issuer last said them.")
    created = models.DateTimeField(auto_now_add=True)
    last_login = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "identities"
        constraints = [models.UniqueConstraint(fields=["issuer", "subject"], name="one_person_per_issuer_and_subject")]

    def __str__(self) -> str:
        return f"{self.subject} at {self.issuer}"


class Session(AbstractBaseSession):
    """A browser's session. The key is the SHA-256 of what the cookie holds: a copy of the table opens nothing (T18)."""

    session_key = models.CharField(max_length=64, primary_key=True)
    # Whose it is and how it was opened, beside what is sealed in it: a provider ends sessions by person or by its own id.
    # No constraint: a session that is saved while its person is deleted must not fail.
    user = models.ForeignKey(User, null=True, db_constraint=False, on_delete=models.CASCADE, related_name="sessions")
    provider = models.CharField(max_length=64, blank=True)
    upstream_sid = models.CharField(max_length=255, blank=True)

    objects = BaseSessionManager()  # type: ignore[misc]

    @classmethod
    def get_session_store_class(cls) -> type:
        from oauth_relay.sessions import SessionStore

        return SessionStore


class SpentLogoutTokenQuerySet(models.QuerySet["SpentLogoutToken"]):
    def spend(self, digest: str, until: datetime) -> bool:
        """Whether this is its first time; from then on it is spent. Of two at once one is told so."""
        self.filter(until__lt=timezone.now()).delete()
        try:
            with transaction.atomic():
                self.create(digest=digest, until=until)
        except IntegrityError:
            return False
        return True


class SpentLogoutToken(models.Model):
    """A logout token that was obeyed, as the SHA-256 of issuer and `jti`: it counts once (T37).

    Or a session that its person ended here, as that of provider, subject and `sid`: the provider's word of it is an echo.
    Or the assertion by which a client proved itself, as that of client and `jti` (RFC 7523 §3).
    """

    digest = models.CharField(max_length=64, primary_key=True)
    until = models.DateTimeField(db_index=True)

    objects = SpentLogoutTokenQuerySet.as_manager()

    def __str__(self) -> str:
        return f"Spent until {self.until}"


class SignInFailure(models.Model):
    """Wrong passwords for one account name, which is here as its SHA-256 only: it may be nobody's, or a password."""

    name_digest = models.CharField(max_length=64, primary_key=True)
    count = models.PositiveIntegerField(default=1)
    last_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"{self.count} failures"
