"""What a newcomer finds, so that the first `list_todos` has something to show."""

from datetime import timedelta

from django.utils import timezone

from todos.models import Owner, Todo


def sample_rows(owner: Owner) -> list[Todo]:
    """A few unsaved todos for `owner`, due around today."""
    today = timezone.localdate()
    return [
        Todo(owner=owner, title="Water the plants", due=today + timedelta(days=1)),
        Todo(
            owner=owner,
            title="Renew the library card",
            description="Bring an identity card and the old library card.",
            due=today + timedelta(days=7),
        ),
        Todo(owner=owner, title="Connect an AI client", done=True),
    ]
