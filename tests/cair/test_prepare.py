"""What the first start leaves behind, and that the second keeps it."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT, database, free_port, serve


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the code with nothing of a first start in it, and the environment of this one."""
    for name in ("cair", "oauth_relay", "mcp_gateway", "todos", "templates"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("manage.py", "Makefile", "requirements.txt"):
        shutil.copy2(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.threat("T26")
def test_what_the_first_start_writes_is_private(checkout: Path) -> None:
    subprocess.run(["make", ".env"], cwd=checkout, check=True, timeout=20)
    environment = {"PATH": os.environ["PATH"], "HOME": str(checkout)}
    command = [sys.executable, "manage.py", "prepare"]
    subprocess.run(command, cwd=checkout, env=environment, check=True, timeout=60)
    modes = {name: stat.S_IMODE((checkout / name).stat().st_mode) for name in (".env", ".secrets", "cair.sqlite3")}
    assert modes == {".env": 0o600, ".secrets": 0o600, "cair.sqlite3": 0o600}
    assert "CAIR_ENV=development" in (checkout / ".env").read_text()


@pytest.mark.threat("T26")
def test_a_database_that_others_could_read_is_made_private(tmp_path: Path) -> None:
    from django.conf import settings
    from django.test import override_settings

    from cair.management.commands.prepare import Command

    path = tmp_path / "cair.sqlite3"
    for name in (path, path.with_name("cair.sqlite3-wal")):
        name.touch(mode=0o644)
    databases = {"default": {**settings.DATABASES["default"], "NAME": str(path)}}
    with override_settings(DATABASES=databases):
        Command()._keep_database_private()
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_a_second_start_keeps_people_and_keys() -> None:
    port = str(free_port())
    with database("sqlite") as url:
        ask = "from oauth_relay.models import User, SigningKey; print(User.objects.get().subject, SigningKey.objects.get().pk)"
        with serve(url, {"PORT": port}) as server:
            first = server.shell(ask)
        with serve(url, {"PORT": port}) as server:
            assert server.shell(ask) == first


def test_the_banner_says_where_everything_is() -> None:
    with database("sqlite") as url, serve(url) as server:
        banner = "".join(server.log)
    for words in (server.mcp, server.sse, "demo / demo", "claude mcp add", "Cursor", "VS Code", "inspector"):
        assert words in banner


def test_a_taken_port_is_said_with_another_one() -> None:
    with database("sqlite") as url, serve(url) as server:
        with (
            pytest.raises(AssertionError, match="PORT=") as failure,
            serve(url, {"PORT": server.environment["PORT"]}) as second,
        ):
            second.process.wait(20)
            second.wait_until_ready()
    assert "cannot be used" in str(failure.value)


def test_make_help_lists_every_target() -> None:
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True).stdout
    for target in ("run", "test", "check", "demo", "todos-api"):
        assert f"make {target}" in printed
