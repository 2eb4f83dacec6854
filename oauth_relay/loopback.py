"""What counts as this very machine. Imported before Django is configured: it stands on nothing."""

import re

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str | None) -> bool:
    """Whether `host` (a name or address, without port or brackets) is this machine and nothing else."""
    return host in LOOPBACK_NAMES or bool(host and re.fullmatch(r"127(\.\d{1,3}){3}", host))
