"""Sending a client's person to sign in or to allow more: seldom, and never in circles (T10, T33).

To the provider, once a day, because an API refuses every token of the person, or because a tool needs an upstream scope
that the provider has not given. To our own consent page, because a tool needs a scope that the token lacks: three times
an hour, and not for a day after the person refused. Otherwise the tool says so in its answer.
"""

import uuid
from collections.abc import Collection
from datetime import timedelta

from django.db import IntegrityError
from django.db.transaction import atomic, set_rollback
from django.utils import timezone

from oauth_relay.models import Challenge, Client, Grant, UpstreamCredential, User

AGAIN_AFTER = timedelta(hours=24)
WIDENED_WITHIN = timedelta(minutes=10)
"""How long the person's next sign-in at the provider is for the scope that a tool lacked."""

STEP_UPS_WITHIN = timedelta(hours=1)
STEP_UPS = tuple(f"step-up {number} of the hour" for number in (1, 2, 3))
"""A challenge takes one of these; each is free again an hour later. So there are never more, whoever asks at once."""
RESTARTS_WITHIN = timedelta(minutes=1)
"""For how long a client that only refreshes is told to authorize anew: it refreshes right after the challenge."""

_WIDENING = "upstream scope "
_REFUSED = "refused scope "
_RESTART = "restart "


def may_challenge(grant_id: uuid.UUID, reason: str) -> bool:
    """Whether this grant's client may be sent to sign in because of `reason`; it may not, for a day, if it was."""
    return _claim(grant_id, reason[:255], AGAIN_AFTER)


def _claim(grant_id: uuid.UUID, reason: str, again_after: timedelta) -> bool:
    """Whether `reason` was free, or is again; of several who ask at once, one is told so."""
    now = timezone.now()
    try:
        with atomic():
            Challenge.objects.create(grant_id=grant_id, reason=reason, at=now)
            return True
    except IntegrityError:
        again = Challenge.objects.filter(grant_id=grant_id, reason=reason, at__lt=now - again_after)
        return bool(again.update(at=now))


# -- a scope that the token lacks (T33) --------------------------------------------------------------------------------


def may_step_up(grant_id: uuid.UUID, family: uuid.UUID | None, scopes: Collection[str]) -> bool:
    """Whether this grant's client may now be sent to ask the person for `scopes`; if so, this is counted as done."""
    now = timezone.now()
    taken = dict(
        Challenge.objects.filter(grant_id=grant_id, at__gt=now - AGAIN_AFTER).values_list("reason", "at"),
    )
    if taken.keys() & _refusals(scopes):
        return False
    free = [name for name in STEP_UPS if name not in taken or taken[name] < now - STEP_UPS_WITHIN]
    if not any(_claim(grant_id, name, STEP_UPS_WITHIN) for name in free):
        return False
    if family and Grant.objects.filter(pk=grant_id, client__restart_on_step_up=True).exists():
        _forget_restarts(grant_id)
        _note(grant_id, {f"{_RESTART}{family}"})
    return True


def note_refusal(user: User, client: Client, scopes: Collection[str]) -> None:
    """The person refused a request for `scopes`: for a day, this client is not sent to ask for any of them again.

    What its tokens hold already is noted too, which harms nobody: a challenge is about what a token lacks.
    """
    grant = Grant.objects.open().filter(user=user, client__client_id=client.client_id).first()
    if grant is not None:
        _note(grant.pk, _refusals(scopes))


def forget_refusal(grant: Grant, scopes: Collection[str]) -> None:
    """The person allowed `scopes` after all."""
    Challenge.objects.filter(grant=grant, reason__in=_refusals(scopes)).delete()


def must_restart(grant_id: uuid.UUID, family: uuid.UUID) -> bool:
    """Whether these tokens were just told that they lack a scope, and their client only moves when refreshing fails."""
    just_now = timezone.now() - RESTARTS_WITHIN
    return Challenge.objects.filter(grant_id=grant_id, reason=f"{_RESTART}{family}", at__gt=just_now).exists()


def _forget_restarts(grant_id: uuid.UUID) -> None:
    """Each names a family, and families come and go: what has run out is in nobody's way, and would stay for ever."""
    over = timezone.now() - RESTARTS_WITHIN
    Challenge.objects.filter(grant_id=grant_id, reason__startswith=_RESTART, at__lt=over).delete()


def _refusals(scopes: Collection[str]) -> set[str]:
    return {f"{_REFUSED}{scope}"[:255] for scope in scopes}


def _note(grant_id: uuid.UUID, reasons: Collection[str]) -> None:
    """Write each reason down with the time; in one order, so that two who do the same wait for each other."""
    rows = [Challenge(grant_id=grant_id, reason=reason, at=timezone.now()) for reason in sorted(reasons)]
    Challenge.objects.bulk_create(rows, update_conflicts=True, unique_fields=["grant", "reason"], update_fields=["at"])


# -- an upstream scope that the provider has not given (T10) -----------------------------------------------------------


def reason_to_widen(upstream_scope: str) -> str:
    return f"{_WIDENING}{upstream_scope}"


def may_widen(grant_id: uuid.UUID, family: uuid.UUID | None, upstream_scope: str) -> bool:
    """Whether the person may be asked, this once a day, for an upstream scope; it counts as one of the three of the hour.

    Both or neither: who is not asked because of the hour has not had their day's question, and the other way round.
    """
    with atomic():
        if may_challenge(grant_id, reason_to_widen(upstream_scope)) and may_step_up(grant_id, family, ()):
            return True
        set_rollback(True)
    return False


def wanted_upstream_scopes(user: User) -> list[str]:
    """The upstream scopes for whose sake a client of this person was just sent here, as far as they are still lacking."""
    asked = Challenge.objects.filter(
        grant__user=user, grant__withdrawn_at=None, reason__startswith=_WIDENING, at__gt=timezone.now() - WIDENED_WITHIN
    )
    held = {scope for row in UpstreamCredential.objects.filter(user=user) for scope in row.scope.split()}
    wanted = [reason.removeprefix(_WIDENING) for reason in asked.order_by("reason").values_list("reason", flat=True)]
    return [scope for scope in dict.fromkeys(wanted) if scope not in held]
