"""`manage.py prepare`: everything a server needs before its first request, safe to run at every start."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand

from oauth_relay import keys
from oauth_relay.models import LoginTransaction


class Command(BaseCommand):
    help = "Migrate the database, make missing keys, and make or remove the demo user."

    def handle(self, *args: Any, **options: Any) -> None:
        self._keep_database_private()
        call_command("migrate", interactive=False, verbosity=0)
        keys.jwks()  # makes the first signing key, and with it the first data key
        LoginTransaction.objects.erase_expired_secrets()
        self._demo_user()

    def _keep_database_private(self) -> None:
        """A file that others on this machine cannot read (T26); its WAL takes the same mode."""
        name = settings.DATABASES["default"]["NAME"]
        if settings.SQLITE and name and ":memory:" not in str(name) and not str(name).startswith("file:"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch(mode=0o600, exist_ok=True)
            for file in (Path(name), *Path(name).parent.glob(f"{Path(name).name}-*")):
                file.chmod(0o600)  # whoever opened it first may have left it readable

    def _demo_user(self) -> None:
        """There while, and only while, this is a development server without an identity provider (T1)."""
        people = get_user_model().objects
        if not settings.DEMO_USER:
            people.filter(is_demo=True).delete()
            return
        if people.filter(username="demo").exists():
            return
        demo = people.model(
            username="demo", first_name="Demo", last_name="User", email="demo@example.com", is_demo=True
        )
        demo.set_password("demo")
        demo.save()
