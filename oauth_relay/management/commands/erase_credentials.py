"""`manage.py erase_credentials USERNAME`: forget what the providers gave for one person."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from oauth_relay.erasures import erase_credentials
from oauth_relay.models import User


class Command(BaseCommand):
    help = (
        "Erase the provider's tokens of one person from the vault, and revoke them at the provider where it offers that. "
        "Their clients stay connected; what needs such a token asks for a sign-in."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username", help="the person's user name, as the admin shows it")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["username"]).first()
        if user is None:
            raise CommandError(f"There is nobody with the user name {options['username']!r}. The admin lists them.")
        count = erase_credentials(user, "operator")
        what = "1 credential was" if count == 1 else f"{count} credentials were"
        self.stdout.write(f"{what} erased. {user.username} signs in at the provider again before the next call.")
