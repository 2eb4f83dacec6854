"""Where settings come from, and what a wrong one does."""

import base64
import stat
from pathlib import Path

import pytest

from cair.env import GENERATED, Environment, development_secrets


def environment(tmp_path: Path, process: dict[str, str] | None = None, **files: str) -> Environment:
    for name, content in files.items():
        (tmp_path / f".{name.replace('_', '.')}").write_text(content)
    return Environment.read(tmp_path, process or {})


def test_the_environment_comes_before_dotenv_before_dev_vars(tmp_path: Path) -> None:
    env = environment(tmp_path, {"A": "1"}, env="A=2\nB=2\n", dev_vars="A=3\nB=3\nC=3\n")
    assert [env.text(name) for name in "ABC"] == ["1", "2", "3"]


def test_a_value_can_lie_in_a_file_that_its_name_points_to(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush\n")
    env = environment(tmp_path, {"AUTH0_CLIENT_SECRET_FILE": str(tmp_path / "secret")})
    assert env.text("AUTH0_CLIENT_SECRET") == "hush"


def test_a_file_that_cannot_be_read_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    env = environment(tmp_path, {"AUTH0_CLIENT_SECRET_FILE": str(tmp_path / "absent")})
    assert env.text("AUTH0_CLIENT_SECRET") == ""
    assert [problem.variable for problem in env.problems] == ["AUTH0_CLIENT_SECRET_FILE"]


def test_the_seeds_dev_vars_are_read_as_they_are(tmp_path: Path) -> None:
    seed = (
        "AUTH0_DOMAIN=yourdomain.us.auth0.com\nAUTH0_SCOPE=openid email profile offline_access read:todos\n"
        "NODE_ENV=development\nAPI_BASE_URL=http://localhost:8789\n"
    )
    env = environment(tmp_path, dev_vars=seed)
    assert env.text("AUTH0_SCOPE") == "openid email profile offline_access read:todos"
    assert env.deployment() == "development"


@pytest.mark.threat("T2")
@pytest.mark.parametrize(
    ("process", "files", "expected"),
    [
        ({}, {}, "production"),
        ({"NODE_ENV": "development"}, {}, "production"),
        ({}, {"env": "NODE_ENV=development\n"}, "production"),
        ({}, {"dev_vars": "NODE_ENV=development\n"}, "development"),
        ({}, {"env": "CAIR_ENV=production\n", "dev_vars": "NODE_ENV=development\n"}, "production"),
        ({"CAIR_ENV": "production"}, {"env": "CAIR_ENV=development\n"}, "production"),
        ({"CAIR_ENV": "staging"}, {}, "production"),
        ({}, {"env": "CAIR_ENV=development\n"}, "development"),
    ],
)
def test_only_a_clear_word_makes_a_development_server(
    tmp_path: Path, process: dict[str, str], files: dict[str, str], expected: str
) -> None:
    assert environment(tmp_path, process, **files).deployment() == expected


@pytest.mark.threat("T2")
def test_a_production_environment_reads_no_file_unless_told(tmp_path: Path) -> None:
    env = environment(tmp_path, {"CAIR_ENV": "production"}, env="PUBLIC_URL=http://evil\n")
    assert env.text("PUBLIC_URL") == ""
    told = environment(tmp_path, {"CAIR_ENV": "production", "CAIR_ENV_FILE": str(tmp_path / ".env")})
    assert told.text("PUBLIC_URL") == "http://evil"


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("PORT", "abc", lambda env: env.integer("PORT", 8788, 1, 65535)),
        ("PORT", "99999", lambda env: env.integer("PORT", 8788, 1, 65535)),
        ("OWN_ACCOUNTS", "maybe", lambda env: env.boolean("OWN_ACCOUNTS", True)),
        ("PUBLIC_URL", "cair.example.com", lambda env: env.origin("PUBLIC_URL", "http://localhost")),
        ("PUBLIC_URL", "https://a:b@c", lambda env: env.origin("PUBLIC_URL", "http://localhost")),
        ("PUBLIC_URL", "https://c:port", lambda env: env.origin("PUBLIC_URL", "http://localhost")),
        ("DATABASE_URL", "mysql://x/y", lambda env: env.database(Path("/tmp/x"))),
        ("CAIR_MASTER_KEYS", "short", lambda env: env.master_keys()),
        ("CAIR_MASTER_KEYS", base64.b64encode(b"x" * 31).decode(), lambda env: env.master_keys()),
    ],
)
def test_a_wrong_value_is_remembered_with_its_name_and_repair(
    tmp_path: Path, name: str, value: str, read: object
) -> None:
    env = environment(tmp_path, {name: value})
    read(env)  # type: ignore[operator]
    assert [problem.variable for problem in env.problems] == [name]
    assert env.problems[0].hint


def test_all_master_keys_are_read_in_order(tmp_path: Path) -> None:
    keys = [bytes([number]) * 32 for number in (1, 2)]
    env = environment(tmp_path, {"CAIR_MASTER_KEYS": ",".join(base64.b64encode(key).decode() for key in keys)})
    assert env.master_keys() == keys


@pytest.mark.threat("T26")
def test_generated_secrets_are_private_and_stay_the_same(tmp_path: Path) -> None:
    path = tmp_path / ".secrets"
    first = development_secrets(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first["COOKIE_ENCRYPTION_KEY"].startswith(GENERATED)
    assert development_secrets(path) == first
    assert list(tmp_path.iterdir()) == [path]
