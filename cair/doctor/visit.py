"""One visit of the doctor: what several checks need to know, looked at once."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.executor import MigrationExecutor

from cair.doctor.findings import NotLookedAt, quoted
from cair.doctor.network import Network, NoAnswer

MIGRATE = "Run: python manage.py prepare (`make run` does it at each start)."


class Visit:
    """The set-up as it is now. `api_path` is a path of the API that wants a token and changes nothing."""

    def __init__(self, api_path: str) -> None:
        self.api_path = api_path
        self.network = Network()

    # -- the database --------------------------------------------------------------------------------------------------

    @cached_property
    def database_trouble(self) -> str:
        """Why the database cannot be used; empty if it can."""
        if (path := sqlite_path()) and not path.exists():
            return "does not exist yet"  # connecting would make it
        try:
            with direct_connection() as direct, direct.cursor() as cursor:
                cursor.execute("SELECT 1")
        except DatabaseError as error:
            return f"cannot be used: {quoted(_without_password(str(error)))}"
        return ""

    def need_database(self) -> None:
        """Raise NotLookedAt unless the database answers."""
        if self.database_trouble:
            raise NotLookedAt("the database does not answer", "Mend the database first.")

    @cached_property
    def missing_migrations(self) -> list[str]:
        """Migrations that are in the code and not in the database, in their order."""
        self.need_database()
        executor = MigrationExecutor(connection)
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
        return [f"{migration.app_label}.{migration.name}" for migration, _ in plan]

    def need_tables(self) -> None:
        """Raise NotLookedAt unless the database has the tables that the code expects."""
        if self.missing_migrations:
            raise NotLookedAt("the database is not migrated", MIGRATE)

    # -- the running server --------------------------------------------------------------------------------------------

    def is_cair_at(self, origin: str) -> bool:
        """Whether a CAIR server says that it is alive at `origin`."""
        try:
            answer = self.network.get(f"{origin}/health")
        except NoAnswer:
            return False
        return answer.status == 200 and answer.json_object().get("status") == "ok"

    def need_server(self) -> None:
        """Raise NotLookedAt unless a server answers at PUBLIC_URL."""
        if not self.is_cair_at(settings.PUBLIC_URL):
            raise NotLookedAt("no CAIR server answers at PUBLIC_URL", "Start the server, or mend PUBLIC_URL, first.")


def sqlite_path() -> Path | None:
    """The file of the database; None if it is no file."""
    name = str(connection.settings_dict["NAME"])
    if connection.vendor != "sqlite" or ":memory:" in name or name.startswith("file:"):
        return None
    return Path(name)


def is_readable_by_others(path: Path) -> bool:
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


@contextmanager
def direct_connection() -> Iterator[BaseDatabaseWrapper]:
    """A connection beside the pool, which would ask for ten seconds before it says that it has none, and not why."""
    direct: Any = connection.copy()
    direct.settings_dict["OPTIONS"].pop("pool", None)
    try:
        yield direct
    finally:
        direct.close()


def _without_password(text: str) -> str:
    password = str(connection.settings_dict.get("PASSWORD") or "")
    return text.replace(password, "…") if password else text
