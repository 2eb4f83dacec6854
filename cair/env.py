"""Where a setting comes from: the environment, `NAME_FILE`, `.env`, `.dev.vars`, in this order.

Nothing here raises on a wrong value. A reader answers with a harmless default and remembers the problem, so that
settings always import and `cair.checks` can name everything that is wrong at once.
"""

import base64
import binascii
import difflib
import ipaddress
import os
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

import environ

T = TypeVar("T")
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})
MASTER_KEY_BYTES = 32
_BROWSERS_OWN_SCHEMES = frozenset(
    {"http", "https", "javascript", "data", "file", "blob", "about", "view-source", "ws", "wss"}
)


@dataclass(frozen=True)
class Problem:
    """One wrong variable: its name, what is wrong with it, and the repair."""

    variable: str
    message: str
    hint: str


def _read_file(path: Path) -> dict[str, str]:
    """`NAME=value` lines of a dotenv file; an absent file is an empty one."""

    class DotEnv(environ.Env):
        ENVIRON: dict[str, str] = {}

    if path.is_file():
        DotEnv.read_env(path, overwrite=True)
    return DotEnv.ENVIRON


@dataclass
class Environment:
    """The variables of one process, with the problems met while reading them."""

    process: Mapping[str, str]
    dotenv: Mapping[str, str]
    dev_vars: Mapping[str, str]
    problems: list[Problem] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, base: Path, process: Mapping[str, str] | None = None) -> "Environment":
        """The environment of a process started in `base`.

        Where the environment itself says production, no file of the working directory is read: a copied `.env` must
        not turn a production server into something weaker (T2). `CAIR_ENV_FILE` names one that shall be read.
        """
        process = os.environ if process is None else process
        told = process.get("CAIR_ENV_FILE", "")
        if told:
            return cls(process, _read_file(Path(told)), {})
        if process.get("CAIR_ENV", "") == "production":
            return cls(process, {}, {})
        return cls(process, _read_file(base / ".env"), _read_file(base / ".dev.vars"))

    # -- where it runs ---------------------------------------------------------------------------------------------

    def deployment(self) -> str:
        """`development` or `production`; production unless something says otherwise.

        `NODE_ENV` is everybody's variable: it counts only from `.dev.vars`, the file of the Cloudflare demo (T2).
        """
        named = self.text("CAIR_ENV")
        if not named:
            return "development" if self.dev_vars.get("NODE_ENV") == "development" else "production"
        if named not in ("development", "production"):
            self.wrong("CAIR_ENV", f"is {named!r}", "Set it to development or production.")
            return "production"
        return named

    # -- readers ---------------------------------------------------------------------------------------------------

    def wrong(self, variable: str, message: str, hint: str) -> None:
        self.problems.append(Problem(variable, message, hint))

    def text(self, name: str, default: str = "") -> str:
        """The value of `name`, stripped; of the file that `NAME_FILE` names, if only that is set."""
        self.asked |= {name, f"{name}_FILE"}
        for source in (self.process, self.dotenv, self.dev_vars):
            if name in source:
                return source[name].strip()
            # CAIR_ENV_FILE is a name of its own: the file to read all the others from.
            if name != "CAIR_ENV" and (path := source.get(f"{name}_FILE", "").strip()):
                try:
                    return Path(path).read_text().strip()
                except OSError as error:
                    self.wrong(
                        f"{name}_FILE", f"names {path}, which cannot be read ({error.strerror})", "Mend the path."
                    )
                    return default
        return default

    def likely_slips(self) -> list[tuple[str, str]]:
        """Names in the files that nobody has asked for, each with the known name it nearly is."""
        unknown = sorted({*self.dotenv, *self.dev_vars} - self.asked)
        found = [(name, difflib.get_close_matches(name, self.asked, n=1, cutoff=0.8)) for name in unknown]
        return [(name, near[0]) for name, near in found if near]

    def words(self, name: str, default: str = "") -> list[str]:
        """A list whose items are separated by commas or white space."""
        return re.split(r"[,\s]+", value) if (value := self.text(name, default)) else []

    def pairs(self, name: str) -> tuple[tuple[str, str], ...]:
        """`name=value` items, separated by commas only: names of groups have spaces in them."""
        items = [item.strip() for item in self.text(name).split(",") if item.strip()]
        found = [(left.strip(), right.strip()) for left, _, right in (item.partition("=") for item in items)]
        if not all(left and right for left, right in found):
            self.wrong(name, "has an item that is not name=value", "Write it as name=value,name=value.")
        return tuple(pair for pair in found if all(pair))

    def _parsed(self, name: str, default: T, parse: Callable[[str], T], hint: str) -> T:
        value = self.text(name)
        if not value:
            return default
        try:
            return parse(value)
        except ValueError:
            # An address may hold a password; words and numbers do not.
            self.wrong(name, "cannot be read" if ":" in value else f"is {value[:80]!r}", hint)
            return default

    def boolean(self, name: str, default: bool) -> bool:
        def parse(value: str) -> bool:
            if value.lower() not in _TRUE | _FALSE:
                raise ValueError
            return value.lower() in _TRUE

        return self._parsed(name, default, parse, "Set it to true or false.")

    def integer(self, name: str, default: int, least: int = 0, most: int = 2**31) -> int:
        def parse(value: str) -> int:
            if not least <= int(value) <= most:
                raise ValueError
            return int(value)

        return self._parsed(name, default, parse, f"Set it to a whole number from {least} to {most}.")

    def choice(self, name: str, default: str, allowed: Collection[str]) -> str:
        def parse(value: str) -> str:
            if value.upper() not in allowed:
                raise ValueError
            return value.upper()

        return self._parsed(name, default, parse, f"Set it to one of {', '.join(allowed)}.")

    def base_url(self, name: str, default: str) -> str:
        """An http or https address with or without a path, without a slash at its end."""

        def parse(value: str) -> str:
            if not is_base_url(urlsplit(value)):
                raise ValueError
            return value.rstrip("/")

        return self._parsed(name, default, parse, "Set it to an address such as https://api.example.com.")

    def origin(self, name: str, default: str) -> str:
        """A base URL without a path: issuer, resources and redirects are built from it."""

        def parse(value: str) -> str:
            parts = urlsplit(value)
            if not is_base_url(parts) or parts.path.strip("/"):
                raise ValueError
            return value.rstrip("/")

        return self._parsed(name, default, parse, "Set it to scheme and host, such as https://cair.example.com.")

    def redis(self, name: str) -> str:
        def parse(value: str) -> str:
            if urlsplit(value).scheme not in ("redis", "rediss", "unix"):
                raise ValueError
            return value

        return self._parsed(name, "", parse, "Set it to redis://host:6379/0, or leave it out.")

    def networks(self, name: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """Addresses and networks, such as 127.0.0.1 and 10.0.0.0/8."""
        found = []
        for word in self.words(name):
            try:
                found.append(ipaddress.ip_network(word))
            except ValueError:
                self.wrong(name, f"names {word[:80]!r}", "Name addresses or networks, such as 127.0.0.1,10.0.0.0/8.")
        return tuple(found)

    def schemes(self, name: str, default: str) -> tuple[str, ...]:
        """URI schemes of apps on people's devices; never one that a browser itself runs or reads."""
        found = tuple(word.rstrip(":").lower() for word in self.words(name, default))
        wrong = [s for s in found if not re.fullmatch(r"[a-z][a-z0-9+.-]*", s) or s in _BROWSERS_OWN_SCHEMES]
        if wrong:
            self.wrong(name, f"names {', '.join(wrong)}", "Name schemes of applications only, such as cursor,vscode.")
        return tuple(scheme for scheme in found if scheme not in wrong)

    def database(self, default: Path) -> dict:
        """`DATABASE_URL` as Django's dictionary; SQLite at `default` if absent or unreadable."""
        url = self.text("DATABASE_URL") or f"sqlite:///{default}"
        if not re.match(r"(sqlite|postgres|postgresql|psql)://.", url):
            self.wrong(
                "DATABASE_URL",
                "is neither sqlite:////absolute/path nor postgres://user:password@host:5432/name",
                "Mend it, or leave it out in development.",
            )
            url = f"sqlite:///{default}"
        try:
            return environ.Env.db_url_config(url)
        except (ValueError, environ.ImproperlyConfigured):
            self.wrong("DATABASE_URL", "cannot be read", "Quote special characters of the password as %XX.")
            return environ.Env.db_url_config(f"sqlite:///{default}")

    def master_keys(self) -> list[bytes]:
        """`CAIR_MASTER_KEYS`: the first wraps, all open (T20)."""
        keys = []
        for number, word in enumerate(self.words("CAIR_MASTER_KEYS"), start=1):
            try:
                key = base64.b64decode(word, validate=True)
            except (binascii.Error, ValueError):
                key = b""
            if len(key) != MASTER_KEY_BYTES:
                self.wrong(
                    "CAIR_MASTER_KEYS",
                    f"key number {number} is not the base64 of {MASTER_KEY_BYTES} bytes",
                    "Make one with: openssl rand -base64 32",
                )
                return []
            keys.append(key)
        return keys


def is_base_url(parts: SplitResult) -> bool:
    """Whether `parts` name a place: http or https, a host, a sane port, nothing that a base must not have."""
    try:
        _ = parts.port
    except ValueError:
        return False
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain


GENERATED = "generated-on-first-start-"
"""What a generated secret begins with: production refuses it by this mark."""


def development_secrets(path: Path) -> dict[str, str]:
    """The secrets of a development checkout, made on the first start into `path` (mode 0600, git-ignored).

    Several servers may start at once from one checkout: whoever links the file first has made it, all read that one.
    """
    if not path.exists():
        master_key = base64.b64encode(secrets.token_bytes(MASTER_KEY_BYTES)).decode()
        lines = f"COOKIE_ENCRYPTION_KEY={GENERATED}{secrets.token_urlsafe(48)}\nCAIR_MASTER_KEYS={master_key}\n"
        draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        draft.touch(mode=0o600, exist_ok=False)
        draft.write_text(f"# Made by CAIR for development. Never commit it, never use it in production.\n{lines}")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return _read_file(path)
