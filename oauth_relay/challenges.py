"""Sending a client's person to the provider for something that may not help: once a day, and never in circles (T10).

Two reasons there are. An API refuses every token of the person; or a tool needs an upstream scope that the provider has not
given. After the one time, the tool says so in its answer.
"""

import uuid
from datetime import timedelta

from django.db import IntegrityError
from django.db.transaction import atomic
from django.utils import timezone

from oauth_relay.models import Challenge, UpstreamCredential, User

AGAIN_AFTER = timedelta(hours=24)
WIDENED_WITHIN = timedelta(minutes=10)
"""How long the person's next sign-in at the provider is for the scope that a tool lacked."""

_WIDENING = "upstream scope "


def reason_to_widen(upstream_scope: str) -> str:
    return f"{_WIDENING}{upstream_scope}"


def may_challenge(grant_id: uuid.UUID, reason: str) -> bool:
    """Whether this grant's client may be sent to sign in because of `reason`; it may not, for a day, if it was."""
    now, reason = timezone.now(), reason[:255]
    try:
        with atomic():
            Challenge.objects.create(grant_id=grant_id, reason=reason, at=now)
            return True
    except IntegrityError:
        again = Challenge.objects.filter(grant_id=grant_id, reason=reason, at__lt=now - AGAIN_AFTER)
        return bool(again.update(at=now))


def wanted_upstream_scopes(user: User) -> list[str]:
    """The upstream scopes for whose sake a client of this person was just sent here, as far as they are still lacking."""
    asked = Challenge.objects.filter(
        grant__user=user, grant__withdrawn_at=None, reason__startswith=_WIDENING, at__gt=timezone.now() - WIDENED_WITHIN
    )
    held = {scope for row in UpstreamCredential.objects.filter(user=user) for scope in row.scope.split()}
    wanted = [reason.removeprefix(_WIDENING) for reason in asked.order_by("reason").values_list("reason", flat=True)]
    return [scope for scope in dict.fromkeys(wanted) if scope not in held]
