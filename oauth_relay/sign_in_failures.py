"""Failed passwords, and nothing else, are delayed: for the account, with growing waits, in every process alike.

The name is kept as its SHA-256: people type passwords into the wrong field.
"""

from datetime import timedelta

from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone

from oauth_relay.digests import digest_of
from oauth_relay.models import SignInFailure

FREE_FAILURES = 5
LONGEST_DELAY = 900
REMEMBERED = timedelta(hours=1)


def _digest(username: str) -> str:
    return digest_of(username.casefold())


def seconds_to_wait(username: str) -> int:
    """How long this account name must still wait, after more than `FREE_FAILURES` failures. Whole seconds."""
    now = timezone.now()
    row = SignInFailure.objects.filter(pk=_digest(username), last_at__gt=now - REMEMBERED).first()
    if row is None or row.count <= FREE_FAILURES:
        return 0
    delay = min(2 ** (row.count - FREE_FAILURES), LONGEST_DELAY)
    return max(0, round((row.last_at - now).total_seconds() + delay))


def note_failure(username: str) -> None:
    """Count one more. What is older than an hour is forgotten, whoever's it is: the table stays small."""
    now, rows = timezone.now(), SignInFailure.objects.filter(pk=_digest(username))
    SignInFailure.objects.filter(last_at__lte=now - REMEMBERED).delete()
    if rows.update(count=F("count") + 1, last_at=now):
        return
    try:
        with transaction.atomic():
            SignInFailure.objects.create(pk=_digest(username), last_at=now)
    except IntegrityError:  # another process was first
        rows.update(count=F("count") + 1, last_at=now)


def forget_failures(username: str) -> None:
    SignInFailure.objects.filter(pk=_digest(username)).delete()
