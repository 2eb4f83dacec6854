"""What CAIR stands on: its environment, the database, Redis, mail, and the clock."""

import smtplib
import time
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import redis as redis_library
from django.conf import settings
from django.core import checks
from django.core.mail import get_connection
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from cair.doctor.findings import Finding, failure, good, quoted, warning
from cair.doctor.network import SECONDS, Answer, NoAnswer
from cair.doctor.visit import MIGRATE, Visit, direct_connection, is_readable_by_others, sqlite_path

MOST_DRIFT = 30.0
"""Seconds. ID tokens are read with as much leeway (`upstream_identities.CLOCK_LEEWAY`): beyond it, sign-in fails."""


def environment(visit: Visit) -> Iterator[Finding]:
    """Every system check that a starting server makes (`cair.asgi`), with what it only warns of."""
    messages = checks.run_checks(
        include_deployment_checks=not settings.DEVELOPMENT,
        databases=None if visit.database_trouble else ["default"],
    )
    wrong = [message for message in messages if not message.is_silenced()]
    for message in wrong:
        make = failure if message.is_serious() else warning
        yield make("environment", f"{message.id}: {quoted(message.msg)}", quoted(message.hint or "See its id."))
    if not wrong:
        yield good("environment", f"CAIR_ENV is {settings.CAIR_ENV}; every system check passes")


# -- the database ------------------------------------------------------------------------------------------------------


def database(visit: Visit) -> Iterator[Finding]:
    """Which database it is, that it answers, and that a file is its owner's alone (T26)."""
    where = _whereabouts()
    if visit.database_trouble:
        repair = MIGRATE if visit.database_trouble.startswith("does not exist") else _repair_of_database()
        yield failure("database", f"{where} {visit.database_trouble}", repair)
        return
    if (path := sqlite_path()) and is_readable_by_others(path):
        yield warning("database", f"{where}: others on this machine can read it", f"Run: chmod 600 {path}*")
    else:
        yield good("database", f"{where}, {_version()}")


def _whereabouts() -> str:
    found = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"the SQLite file {found['NAME']}"
    return f"the {connection.display_name} database {found['NAME']} at {found['HOST'] or 'localhost'}:{found['PORT'] or 5432}"


def _repair_of_database() -> str:
    if connection.vendor == "sqlite":
        return "Check DATABASE_URL, and that the folder is there and yours to write."
    return "Is the server running, and are host, port, user, password and name in DATABASE_URL right?"


def _version() -> str:
    with direct_connection() as direct:
        direct.ensure_connection()
        return "version " + ".".join(str(part) for part in direct.get_database_version())


def migrations(visit: Visit) -> Iterator[Finding]:
    """The code's tables and the database's are of one version."""
    if missing := visit.missing_migrations:
        which = f"{missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else missing[0]
        yield failure("migrations", f"not applied: {which}", MIGRATE)
    elif unknown := _from_newer_code():
        repair = "Run the version of CAIR that this database belongs to, or restore a backup from before it."
        yield failure("migrations", f"the database has {unknown[0]}, which this code does not know", repair)
    else:
        yield good("migrations", "all applied")


def _from_newer_code() -> list[str]:
    """Migrations of our apps that were applied by a CAIR newer than this."""
    loader = MigrationLoader(connection)
    ours = {name for name in loader.migrated_apps if name in ("oauth_relay", "todos")}
    applied = set(loader.applied_migrations) - set(loader.disk_migrations)
    return sorted(f"{app}.{name}" for app, name in applied if app in ours)


# -- Redis and mail ----------------------------------------------------------------------------------------------------


def redis(visit: Visit) -> Iterator[Finding]:
    """Without Redis one process serves everything; with one configured, it has to be there (DESIGN §8)."""
    if not settings.REDIS_URL:
        found = "not configured: one process can serve, several cannot share HTTP+SSE streams"
        yield warning("redis", found, "Set REDIS_URL as soon as more than one process serves; else leave it.")
        return
    host = _host_of(settings.REDIS_URL)
    try:
        client = redis_library.Redis.from_url(
            settings.REDIS_URL, socket_timeout=SECONDS, socket_connect_timeout=SECONDS, retry=None
        )
        with client:
            client.ping()
    except (redis_library.RedisError, ValueError, OSError) as error:
        repair = "Is it running, and are host, port, user and password in REDIS_URL right?"
        yield failure("redis", f"{host} cannot be used ({error.__class__.__name__})", repair)
        return
    yield good("redis", f"{host} answers")


def _host_of(url: str) -> str:
    """Host and port of an address that may hold a password."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or "the address in REDIS_URL"


def mail(visit: Visit) -> Iterator[Finding]:
    """People with own accounts reset their passwords by mail; where a provider signs them in, nobody needs it."""
    if not settings.is_overridden("EMAIL_HOST"):  # type: ignore[misc]
        if settings.OWN_ACCOUNTS:
            found = "not configured: nobody can reset a password by mail"
            yield warning("mail", found, "An operator can set passwords in /admin/; else leave it.")
        else:
            yield good("mail", "not configured, and not needed: the identity provider looks after passwords")
        return
    host = f"{settings.EMAIL_HOST}:{settings.EMAIL_PORT}"
    try:
        with get_connection(timeout=SECONDS):
            pass
    except (OSError, smtplib.SMTPException) as error:
        repair = "Check EMAIL_HOST, EMAIL_PORT, user, password and TLS."
        yield failure("mail", f"{host} does not take mail from here ({error.__class__.__name__})", repair)
        return
    yield good("mail", f"{host} takes mail from here")


# -- the clock ---------------------------------------------------------------------------------------------------------


def clock(visit: Visit) -> Iterator[Finding]:
    """Tokens are refused, or live on, where two clocks differ. Compared with the database's and each provider's."""
    drifts = dict(_drifts(visit))
    wrong = {name: drift for name, drift in drifts.items() if abs(drift) > MOST_DRIFT}
    for name, drift in wrong.items():
        found = f"this machine is {abs(drift):.0f} s {'ahead of' if drift > 0 else 'behind'} {name}"
        yield failure("clock", found, "Let both set their clocks by NTP; here: timedatectl set-ntp true")
    if not wrong:
        compared = " and ".join(drifts)
        yield good("clock", f"agrees with {compared}" if compared else "nothing else to compare it with")


def _drifts(visit: Visit) -> Iterator[tuple[str, float]]:
    """How many seconds this machine is ahead of others. A SQLite file has no clock of its own."""
    if connection.vendor != "sqlite" and not visit.database_trouble:
        yield "the database", _drift_of_database()
    for name, configuration in settings.UPSTREAM_PROVIDERS.items():
        try:
            answer = visit.network.get(configuration.get("discovery", ""))
        except NoAnswer:
            continue
        if (drift := _drift_of(answer)) is not None:
            yield name, drift


def _drift_of_database() -> float:
    with direct_connection() as direct, direct.cursor() as cursor:
        direct.ensure_connection()
        before = time.time()
        cursor.execute("SELECT CURRENT_TIMESTAMP")
        row = cursor.fetchone()
        after = time.time()
    assert row is not None and isinstance(row[0], datetime)
    return (before + after) / 2 - row[0].timestamp()


def _drift_of(answer: Answer) -> float | None:
    """From `Date`, RFC 9110 §6.6.1. A cache in between keeps the date and counts the seconds since in `Age`."""
    try:
        theirs = parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
        age = float(answer.headers.get("Age", "0"))
    except (ValueError, TypeError):
        return None
    return (answer.asked_at + answer.answered_at) / 2 - (theirs + age)
