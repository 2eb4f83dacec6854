"""Several processes, each with several threads, doing the same thing at the same moment on one real database.

The in-process test database cannot stand in: SQLite in memory locks tables instead of letting writers wait.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tests.servers import ROOT, server_environment

STARTS_WITHIN = 60.0

_RUNNER = """
import json, sys, threading
import django
django.setup()
from django.db import connections
{code}
results, failures = [], []
start = threading.Barrier({threads} + 1)
def one():
    start.wait(30)
    try:
        results.append(act())
    except Exception as error:
        failures.append(repr(error))
    finally:
        connections.close_all()
threads = [threading.Thread(target=one) for _ in range({threads})]
for thread in threads:
    thread.start()
print("READY", flush=True)
sys.stdin.readline()
start.wait(30)
for thread in threads:
    thread.join(60)
print(json.dumps([results, failures]), flush=True)
"""


def environment(database_url: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process on this database, with the settings of a development server."""
    return {**server_environment(8788, database_url, extra), "DJANGO_SETTINGS_MODULE": "cair.settings"}


def migrate(environment: Mapping[str, str]) -> None:
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity=0"],
        cwd=ROOT, env=dict(environment), check=True, timeout=STARTS_WITHIN, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def run(environment: Mapping[str, str], code: str) -> str:
    """What one process prints that runs `code` in this environment."""
    program = f"import django\ndjango.setup()\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=dict(environment), capture_output=True, text=True, timeout=STARTS_WITHIN, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def race(environment: Mapping[str, str], code: str, *, processes: int = 2, threads: int = 3) -> list[Any]:
    """What `act()`, defined by `code`, gave in every thread of every process, all let loose at once."""
    program = _RUNNER.format(code=code, threads=threads)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=dict(environment),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(processes)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "READY\n", racer.communicate(timeout=5)[1]
        return [result for ended in _let_loose(racers) for result in ended]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait(5)


def _let_loose(racers: list["subprocess.Popen[str]"]) -> list[list[Any]]:
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    ended = []
    for racer in racers:
        out, err = racer.communicate(timeout=STARTS_WITHIN)
        assert out, err
        results, failures = json.loads(out.splitlines()[-1])
        assert failures == [], (failures, err)
        ended.append(results)
    return ended
