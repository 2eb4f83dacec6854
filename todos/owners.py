"""Who owns what: the row of a person, made at their first visit."""

from django.conf import settings
from django.db import transaction

from todos.bearer import Principal
from todos.models import Owner, Todo
from todos.sample_rows import sample_rows


def owner_for(principal: Principal) -> Owner:
    """The owner whom a proved token names; two issuers' equal subjects are two owners (T22)."""
    known = Owner.objects.filter(issuer=principal.issuer, subject=principal.subject).first()
    return known or _new_owner(principal)


def _new_owner(principal: Principal) -> Owner:
    """Of several first requests at once, one makes the row and its samples; the others find both."""
    with transaction.atomic():
        owner, made = Owner.objects.get_or_create(issuer=principal.issuer, subject=principal.subject)
        if made and settings.TODOS["SAMPLE_ROWS"]:
            Todo.objects.bulk_create(sample_rows(owner))
    return owner
