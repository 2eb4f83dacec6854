"""A wrong environment is named whole, with the repair, before anything is served."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.check_deploy import PRODUCTION
from tests.servers import ROOT

DEVELOPMENT = {"CAIR_ENV": "development", "CAIR_ENV_FILE": "/dev/null"}


def start(environment: dict[str, str], tmp_path: Path) -> str:
    """What importing the application prints under `environment`, and `started` if it would serve."""
    full = {"PATH": "/usr/bin:/bin", "DATABASE_URL": f"sqlite:///{tmp_path}/x.sqlite3", **environment}
    command = [sys.executable, "-c", "import cair.asgi; print('started')"]
    done = subprocess.run(command, cwd=ROOT, env=full, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_a_sound_production_environment_starts(tmp_path: Path) -> None:
    assert "started" in start(PRODUCTION, tmp_path)


@pytest.mark.threat("T2")
def test_an_empty_environment_is_production_and_names_everything_it_lacks(tmp_path: Path) -> None:
    printed = start({"CAIR_ENV_FILE": "/dev/null"}, tmp_path)
    assert "started" not in printed
    for name in ("PUBLIC_URL", "COOKIE_ENCRYPTION_KEY", "CAIR_MASTER_KEYS"):
        assert f"{name} is missing" in printed
    assert "openssl rand" in printed


@pytest.mark.threat("T2")
@pytest.mark.pain("P11")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"PUBLIC_URL": "http://cair.example.com"}, "PUBLIC_URL is plain http"),
        ({"CAIR_DEBUG": "true"}, "CAIR_DEBUG is on"),
        ({"COOKIE_ENCRYPTION_KEY": "short"}, "COOKIE_ENCRYPTION_KEY is missing, short"),
        ({"COOKIE_ENCRYPTION_KEY": "generated-on-first-start-" + "xY3" * 20}, "made for development"),
        ({"API_BASE_URL": "http://api.example.com"}, "API_BASE_URL is plain http"),
        ({"AUTH0_DOMAIN": "example.eu.auth0.com"}, "AUTH0_CLIENT_SECRET is missing"),
        (
            {"AUTH0_DOMAIN": "http://localhost:1", "AUTH0_CLIENT_ID": "a", "AUTH0_CLIENT_SECRET": "b"},
            "is not a host name",
        ),
        ({"AUTH0_DOMAIN": "https://[", "AUTH0_CLIENT_ID": "a", "AUTH0_CLIENT_SECRET": "b"}, "is not a host name"),
        ({"PORT": "none"}, "PORT is 'none'"),
        ({"LOG_LEVEL": "verbose"}, "LOG_LEVEL is 'verbose'"),
        ({"PUBLIC_URL": "https://cair.example.com/base"}, "PUBLIC_URL cannot be read"),
        ({"PUBLIC_URL": "https://["}, "PUBLIC_URL cannot be read"),
        ({"API_BASE_URL": "https://["}, "API_BASE_URL cannot be read"),
        ({"REDIS_URL": "http://:hush@x"}, "REDIS_URL cannot be read"),
        ({"CUSTOM_REDIRECT_SCHEMES": "cursor,javascript"}, "CUSTOM_REDIRECT_SCHEMES names javascript"),
        ({"CUSTOM_REDIRECT_SCHEMES": "Cur_sor:"}, "CUSTOM_REDIRECT_SCHEMES names cur_sor"),
        ({"REGISTRATION": "maybe"}, "REGISTRATION is 'maybe'"),
        ({"REGISTRATION_LIMIT": "0"}, "REGISTRATION_LIMIT is 0 while everybody"),
        ({"UNUSED_CLIENTS_PER_NETWORK": "0"}, "UNUSED_CLIENTS_PER_NETWORK is 0 while everybody"),
        ({"REGISTRATION": "token"}, "REGISTRATION_TOKENS is missing"),
        ({"REGISTRATION": "token", "REGISTRATION_TOKENS": "secret"}, "holds one that could be guessed"),
        ({"TRUSTED_PROXIES": "the-proxy"}, "TRUSTED_PROXIES names 'the-proxy'"),
    ],
)
def test_production_starts_with_nothing_weak(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    printed = start({**PRODUCTION, **changed}, tmp_path)
    assert "started" not in printed
    assert said in printed


def test_every_wrong_variable_is_named_at_once(tmp_path: Path) -> None:
    wrong = {
        "PORT": "x",
        "OWN_ACCOUNTS": "perhaps",
        "DATABASE_POOL": "1e3",
        "CAIR_MASTER_KEYS": "?",
        "AUTH0_CLIENT_ID": "a",
    }
    printed = start({**DEVELOPMENT, **wrong, "DATABASE_URL": "oracle://x"}, tmp_path)
    assert "started" not in printed
    for name in ("PORT", "OWN_ACCOUNTS", "CAIR_MASTER_KEYS", "DATABASE_URL", "AUTH0_DOMAIN"):
        assert name in printed


def test_a_slip_in_cair_env_is_named_alone(tmp_path: Path) -> None:
    printed = start({"CAIR_ENV": "developement", "CAIR_ENV_FILE": "/dev/null"}, tmp_path)
    assert "CAIR_ENV is 'developement'" in printed
    assert "PUBLIC_URL" not in printed


def test_development_speaks_no_https(tmp_path: Path) -> None:
    printed = start({**DEVELOPMENT, "PUBLIC_URL": "https://localhost:8788"}, tmp_path)
    assert "started" not in printed
    assert "http only" in printed


def test_a_name_that_is_nearly_one_of_ours_is_asked_about(tmp_path: Path) -> None:
    file = tmp_path / "settings.env"
    file.write_text("CAIR_ENV=development\nPUBLC_URL=http://localhost:1\nEDITOR=vi\n")
    environment = {
        "PATH": "/usr/bin:/bin",
        "CAIR_ENV_FILE": str(file),
        "DATABASE_URL": f"sqlite:///{tmp_path}/x.sqlite3",
    }
    command = [sys.executable, "manage.py", "check"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "PUBLC_URL is not a name CAIR knows" in done.stderr
    assert "Did you mean PUBLIC_URL?" in done.stderr
    assert "EDITOR" not in done.stderr


@pytest.mark.threat("T2")
def test_development_never_starts_off_loopback(tmp_path: Path) -> None:
    printed = start({**DEVELOPMENT, "PUBLIC_URL": "https://cair.example.com"}, tmp_path)
    assert "started" not in printed
    assert "CAIR_ENV=production" in printed


def test_a_second_production_process_on_one_sqlite_file_is_refused(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "DATABASE_URL": f"sqlite:///{tmp_path}/x.sqlite3", **PRODUCTION}
    hold = "import cair.asgi; print('started', flush=True); input()"
    first = subprocess.Popen(
        [sys.executable, "-c", hold],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout is not None
        assert "started" in first.stdout.readline()
        assert "another process serves from this SQLite file" in start(PRODUCTION, tmp_path)
    finally:
        first.communicate("\n", timeout=20)
    assert "started" in start(PRODUCTION, tmp_path)
