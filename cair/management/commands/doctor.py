"""`manage.py doctor`: explains a broken set-up. docs/operations.md says what each line means."""

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from cair.doctor.examination import examine
from cair.doctor.findings import Finding, Status
from cair.doctor.terminal import Terminal
from cair.doctor.visit import Visit


class Command(BaseCommand):
    help = "Look at everything a server needs, and name the repair of what is wrong. Changes nothing."
    # It runs them itself, and tells of every one: a wrong value must not keep the rest from being looked at.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object instead")
        parser.add_argument(
            "--api-path",
            default="/api/me",
            help="a path of the API that wants a token and changes nothing (%(default)s)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["api_path"].startswith("/"):
            raise CommandError("--api-path must begin with a slash.")
        visit = Visit(options["api_path"])
        findings = self._as_json(visit) if options["json"] else self._in_words(visit, options)
        if any(finding.status == Status.FAILURE for finding in findings):
            sys.exit(1)

    def _as_json(self, visit: Visit) -> list[Finding]:
        findings = list(examine(visit))
        is_ok = all(finding.status != Status.FAILURE for finding in findings)
        self.stdout.write(json.dumps({"ok": is_ok, "checks": [f.as_json() for f in findings]}, indent=2))
        return findings

    def _in_words(self, visit: Visit, options: dict[str, Any]) -> list[Finding]:
        terminal = Terminal(self.stdout, is_tty=self.stdout.isatty(), may_colour=not options["no_color"])
        self.stdout.write(f"\nCAIR at {settings.PUBLIC_URL}, {settings.CAIR_ENV}\n\n")
        findings = []
        for finding in examine(visit):
            terminal.tell(finding)
            findings.append(finding)
        terminal.sum_up(findings)
        return findings
