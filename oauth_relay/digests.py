"""How what is only ever compared is stored: as a digest, so that a copy of the table opens nothing (T18)."""

import hashlib


def digest_of(raw: str) -> str:
    """SHA-256 (hex). Enough for what is random; what a person chose needs a hasher."""
    return hashlib.sha256(raw.encode()).hexdigest()
