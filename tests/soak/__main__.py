"""`make soak`: COUNT interleavings (10 000) at PROCESSES processes (4), chosen by SEED (random, and printed)."""

import asyncio
import os
import random
import sys

from tests.servers import database
from tests.soak.fleet import Fleet
from tests.soak.run import Report, Soak


def tell(line: str) -> None:
    print(line, flush=True)


async def soak(fleet: Fleet, seed: int, count: int) -> Report:
    async with fleet:
        return await Soak(fleet, seed, count, tell).run()


def main() -> int:
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
    count = int(os.environ.get("COUNT") or 10_000)
    processes = int(os.environ.get("PROCESSES") or 4)
    tell(f"SEED={seed} COUNT={count} PROCESSES={processes}")
    with database("postgres") as url:
        report = asyncio.run(soak(Fleet(url, processes), seed, count))
    for line in report.lines():
        tell(line)
    return 1 if report.violations or report.total < count else 0


if __name__ == "__main__":
    sys.exit(main())
