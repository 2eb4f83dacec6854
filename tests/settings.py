"""The settings of in-process tests: a development server's, in an environment that is always the same.

Tests that start a server give that process an environment of its own: see tests/servers.py.
"""

import os
import tempfile

_ALLOWED = tuple("PATH HOME LANG TMPDIR CI PYTEST COVERAGE VIRTUAL_ENV PYTHON MYPY PLAYWRIGHT CAIR_SCREENSHOTS".split())
_TEST_DATABASE = os.environ.get("TEST_DATABASE_URL", "")
for name in list(os.environ):
    if not name.startswith(_ALLOWED):
        del os.environ[name]
os.environ.update(CAIR_ENV="development", CAIR_ENV_FILE=os.devnull, DJANGO_SETTINGS_MODULE="tests.settings")
if _TEST_DATABASE:
    os.environ["DATABASE_URL"] = _TEST_DATABASE

from cair.settings import *  # noqa: E402, F403

if SQLITE:  # noqa: F405
    # A file, not memory: a shared in-memory database fails at once where a file makes writers wait their turn.
    DATABASES["default"]["TEST"] = {"NAME": f"{tempfile.gettempdir()}/cair-tests-{os.getpid()}.sqlite3"}  # noqa: F405
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher", "oauth_relay.hashers.RandomSecretHasher"]
