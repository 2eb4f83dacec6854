"""A hasher for secrets that CAIR itself made."""

import hashlib
from typing import Any

from django.contrib.auth.hashers import BasePasswordHasher
from django.utils.crypto import constant_time_compare


class RandomSecretHasher(BasePasswordHasher):
    """One SHA-256: enough for 128 random characters, where a password hasher would cost 230 ms a request.

    Never for passwords: it is listed after Django's own, which therefore stays the one for people.
    """

    algorithm = "random_secret"

    def salt(self) -> str:
        return "-"

    def encode(self, password: str, salt: str) -> str:
        return f"{self.algorithm}${hashlib.sha256(password.encode()).hexdigest()}"

    def decode(self, encoded: str) -> dict[str, str]:
        algorithm, _, digest = encoded.partition("$")
        return {"algorithm": algorithm, "hash": digest, "salt": "-"}

    def verify(self, password: str, encoded: str) -> bool:
        return constant_time_compare(encoded, self.encode(password, "-"))

    def safe_summary(self, encoded: str) -> dict[Any, Any]:
        return {"algorithm": self.algorithm}

    def must_update(self, encoded: str) -> bool:
        return False

    def harden_runtime(self, password: str, encoded: str) -> None:
        """Nothing to harden: there are no rounds."""
