"""`check --deploy` with the settings of a production server, as an operator would run it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRODUCTION = {
    "CAIR_ENV": "production",
    "PUBLIC_URL": "https://cair.example.com",
    "COOKIE_ENCRYPTION_KEY": "Zb1yX7q0hT3uVn5kLw9sRj2mCd8fGa6pEi4oUyHtKxQvNzBr1aS5dF7gH9jK2lQ4",
    "CAIR_MASTER_KEYS": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        environment = {**PRODUCTION, "PATH": os.environ["PATH"], "DATABASE_URL": f"sqlite:///{folder}/check.sqlite3"}
        command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
        sys.exit(subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=120).returncode)
