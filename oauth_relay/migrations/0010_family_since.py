from typing import Any

from django.db import migrations, models


def begin_with_the_first_token(apps: Any, schema_editor: Any) -> None:
    """A family that is there already began with the oldest of its tokens."""
    RefreshToken = apps.get_model("oauth_relay", "RefreshToken")
    oldest = RefreshToken.objects.filter(token_family=models.OuterRef("token_family")).order_by("created")
    RefreshToken.objects.exclude(token_family=None).update(family_since=models.Subquery(oldest.values("created")[:1]))


class Migration(migrations.Migration):
    """By itself: rewriting every row must not hold the lock of the change before it."""

    dependencies = [("oauth_relay", "0009_client_lifetimes")]

    operations = [migrations.RunPython(begin_with_the_first_token, migrations.RunPython.noop)]
