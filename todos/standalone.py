"""Settings of the Todos API as a process of its own, `python -m todos`. It knows an issuer and an audience, not CAIR.

From the environment, or from `.dev.vars` as the Cloudflare demo had it:

- TODOS_ISSUER: whose tokens are accepted; its own discovery document says where its keys are (http://localhost:8788)
- TODOS_DISCOVERY: where that document is, if not at the usual place under the issuer
- AUTH0_DOMAIN: instead of both, an Auth0 tenant
- AUTH0_AUDIENCE: what the tokens must be for (urn:todos-api)
- TODOS_SAMPLE_ROWS: whether a new owner finds a few todos (true, if the issuer is on this machine)

From the environment only, because `.dev.vars` is CAIR's file too:

- PORT: where to listen on 127.0.0.1 (8789; 0 for any free one)
- DATABASE_URL: sqlite:////absolute/path or postgres://… (todos.sqlite3 in this checkout)

A wrong value does not stop this file: `todos.__main__` names all PROBLEMS at once.
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

from todos.bearer import is_loopback

BASE_DIR = Path(__file__).resolve().parent.parent
PROBLEMS: list[str] = []


class _DevVars(environ.Env):
    """The file's variables, kept apart from the environment: nobody else shall find them there."""

    ENVIRON: dict[str, str] = {}


if (BASE_DIR / ".dev.vars").is_file():
    _DevVars.read_env(BASE_DIR / ".dev.vars", overwrite=True)


def _text(name: str, default: str = "") -> str:
    return (os.environ.get(name) or _DevVars.ENVIRON.get(name) or default).strip()


def _port() -> int:
    value = os.environ.get("PORT") or "8789"
    if value.isdecimal() and int(value) <= 65535:
        return int(value)
    PROBLEMS.append(f"PORT is {value!r}: set it to a number up to 65535.")
    return 0


def _database() -> dict:
    default = f"sqlite:///{BASE_DIR / 'todos.sqlite3'}"
    try:
        database = environ.Env.db_url_config(os.environ.get("DATABASE_URL") or default)
    except (ValueError, ImproperlyConfigured):
        database = {"ENGINE": ""}
    if not database["ENGINE"].endswith(("sqlite3", "postgresql")):
        PROBLEMS.append("DATABASE_URL is neither sqlite:////absolute/path nor postgres://user:password@host:5432/name.")
        database = environ.Env.db_url_config(default)
    return database


def _address(name: str, default: str = "") -> str:
    """A variable that holds an address from which keys may be fetched."""
    value = _text(name, default)
    try:
        parts = urlsplit(value)
        fit = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))
        fit = fit and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fit = False
    if value and not fit:
        PROBLEMS.append(f"{name} is {value!r}: set it to an https:// address, or an http:// one on this machine.")
    return value


def _issuer() -> tuple[str, str]:
    """The issuer's name, if it must be a certain one, and its discovery document."""
    issuer, discovery = _address("TODOS_ISSUER"), _address("TODOS_DISCOVERY")
    if discovery:
        return issuer, discovery
    domain = _text("AUTH0_DOMAIN")
    if not issuer and domain:
        issuer = domain if "://" in domain else f"https://{domain}"
    issuer = issuer or "http://localhost:8788"
    # The document has the last word on the issuer's spelling: Auth0's name, for one, ends in a slash.
    return "", f"{issuer.rstrip('/')}/.well-known/openid-configuration"


def _sample_rows(discovery: str) -> bool:
    value = _text("TODOS_SAMPLE_ROWS").lower()
    if value in ("true", "1", "yes", "on"):
        return True
    if value not in ("", "false", "0", "no", "off"):
        PROBLEMS.append(f"TODOS_SAMPLE_ROWS is {value!r}: set it to true or false.")
    try:
        return not value and is_loopback(urlsplit(discovery).hostname)
    except ValueError:
        return False


PORT = _port()
ISSUER, DISCOVERY = _issuer()
TODOS = {
    "AUDIENCE": _text("AUTH0_AUDIENCE", "urn:todos-api"),
    "ISSUER": ISSUER,
    "DISCOVERY": DISCOVERY,
    "JWKS_URL": "",
    "JWKS_HOST": "",
    "SAMPLE_ROWS": _sample_rows(DISCOVERY),
}

INSTALLED_APPS = ["todos.apps.TodosConfig"]
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware"]
ROOT_URLCONF = "todos.urls"
APPEND_SLASH = False
ALLOWED_HOSTS = ["*"]  # no answer holds an address, and nothing is decided by Host
DATA_UPLOAD_MAX_MEMORY_SIZE = 256 * 1024
SECRET_KEY = os.urandom(32).hex()  # nothing is signed here

DATABASES = {"default": _database()}
DATABASES["default"]["CONN_MAX_AGE"] = 0
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;",
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

USE_TZ = True
TIME_ZONE = "UTC"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname:<7} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {"daphne": {"level": "WARNING"}},
}
