"""The run: workers that take one interleaving after the other, and a reaper that kills processes under their hands."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.soak.fleet import Answer, Fleet, some
from tests.soak.households import Device, Household, Neighbourhood
from tests.soak.interleavings import KINDS, Scene, Violation, hold

WORKERS = 12
CRASHED = "a_process_crashes"
DEVICES_PER_CRASH = 40
SENT_WITHIN = 10.0


@dataclass
class Report:
    """What was done, and what did not hold."""

    seed: int
    done: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    kept_at_the_end: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return sum(self.done.values())

    def lines(self) -> list[str]:
        rows = [f"  {count:>6}  {kind.replace('_', ' ')}" for kind, count in self.done.most_common()]
        tail = [
            f"{self.total} interleavings in {self.seconds:.0f} s, seed {self.seed}; {self.kills} processes killed, "
            f"{sum(self.broken.values())} requests cut short; {self.kept_at_the_end} clients alive at the end, all kept",
            f"violations: {len(self.violations)}",
        ]
        return [*rows, *tail, *self.violations[:20]]


class Soak:
    """`count` interleavings on `fleet`. Which they are follows from the seed; what meets whom in time does not."""

    def __init__(self, fleet: Fleet, seed: int, count: int, tell: Callable[[str], None] = lambda line: None) -> None:
        self.fleet, self.count, self.tell = fleet, count, tell
        self.report = Report(seed, broken=fleet.broken)
        self.crashes = max(1, count // 400)
        self.devices_per_crash = min(DEVICES_PER_CRASH, max(4, count // 20))
        self.by_hand = count - self.crashes * self.devices_per_crash
        self.people = Neighbourhood(fleet.servers[0])
        self.homes: list[Household] = []
        self.workers_done = 0

    async def run(self) -> Report:
        started = time.monotonic()
        await asyncio.gather(self._reap(), *(self._work(number) for number in range(WORKERS)))
        await self._find_everybody_kept()
        await self._count_rows()
        self.report.seconds = time.monotonic() - started
        return self.report

    # -- one interleaving after the other ------------------------------------------------------------------------------

    async def _work(self, worker: int) -> None:
        homes: list[Household] = []
        for number in range(worker, self.by_hand, WORKERS):
            choice = random.Random(f"{self.report.seed}/{number}")
            await self._one(choice, homes, number)
        self.homes += homes
        self.workers_done += 1

    async def _one(self, choice: random.Random, homes: list[Household], number: int) -> None:
        home = await self._somebody(choice, homes)
        kind = choice.choices(list(KINDS), list(KINDS.values()))[0]
        scene = Scene(self.fleet, home, choice.choice(home.living), choice, kind.__name__)
        try:
            await kind(scene)
        except Violation as violation:
            self._violated(f"{number} {kind.__name__}: {violation}")
            home.ends()
        self._is_done(kind.__name__)

    async def _somebody(self, choice: random.Random, homes: list[Household]) -> Household:
        """One of this worker's few households: an old acquaintance with a history, or somebody new."""
        homes[:] = [home for home in homes if home.living]
        while len(homes) < 3:
            homes.append(await self._move_in(choice))
        return choice.choice(homes)

    async def _move_in(self, choice: random.Random) -> Household:
        """Next household, its codes redeemed. A crash may cost an answer, and a code is good once: then the next one."""
        while True:
            home = await self.people.next()
            for device in home.devices:
                await self._redeem(device, choice)
            if home.living:
                return home

    async def _redeem(self, device: Device, choice: random.Random) -> None:
        broken = self.fleet.broken["redeem"]
        answer = await self.fleet.redeem(device, choice.choice(self.fleet.alive))
        if answer.is_good:
            device.is_given(answer.body)
            return
        device.has_ended = True
        if self.fleet.broken["redeem"] == broken:
            self._violated(f"a code was refused: {answer}")

    # -- processes that are killed in mid-request ----------------------------------------------------------------------

    async def _reap(self) -> None:
        """Kill one process after the other while all of them are busy. Never the last: somebody must answer."""
        choice = random.Random(f"{self.report.seed}/crash")
        homes: list[Household] = []
        for number in range(self.crashes):
            await self._reached(self.by_hand * (number + 1) // (self.crashes + 1))
            try:
                await self._crash(choice, homes)
            except Violation as violation:
                self._violated(f"crash {number}: {violation}")
        self.homes += homes

    async def _reached(self, count: int) -> None:
        while self.report.total - self.report.done[CRASHED] < count and self.workers_done < WORKERS:
            await asyncio.sleep(0.02)

    async def _crash(self, choice: random.Random, homes: list[Household]) -> None:
        """Many clients refresh at one process, which dies when the first of them has, or soon. All try again elsewhere.

        The last comes when the process has stopped already: whatever the moment, one request at least is cut short.
        """
        homes[:] = [home for home in homes if home.living]
        while len(homes) * 2 < self.devices_per_crash:
            homes.append(await self._move_in(choice))
        devices = [device for home in homes for device in home.living][: self.devices_per_crash]
        doomed = choice.choice(self.fleet.alive)
        *others, last = devices
        calls = [asyncio.create_task(self.fleet.refresh(CRASHED, one, one.newest, doomed)) for one in others]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=choice.choice([0.01, 0.03, 0.1, 0.3]))
        self.fleet.pause(doomed)
        sent = asyncio.Event()
        calls.append(asyncio.create_task(self.fleet.refresh(CRASHED, last, last.newest, doomed, sent=sent)))
        async with asyncio.timeout(SENT_WITHIN):
            await sent.wait()
        self.fleet.kill(doomed)
        self.report.kills += 1
        again = asyncio.create_task(self.fleet.restart(doomed))
        for home_device, answer in zip(devices, await asyncio.gather(*calls), strict=True):
            await self._judge_after_crash(home_device, answer, choice)
        await again

    async def _judge_after_crash(self, device: Device, answer: Answer, choice: random.Random) -> None:
        scene = Scene(self.fleet, Household("", "", [device]), device, choice, CRASHED)
        try:
            hold(answer.is_good, "an honest client was lost in a crash", answer)
            device.is_given(answer.body)
            again = await self.fleet.refresh(CRASHED, device, device.raw_tokens[-2], choice.choice(self.fleet.alive))
            hold(again == answer, "after a crash a retry was answered differently", again)
            await scene.is_kept()
        except Violation as violation:
            device.has_ended = True
            self._violated(f"{CRASHED}: {violation}")
        self._is_done(CRASHED)

    # -- the end -------------------------------------------------------------------------------------------------------

    async def _find_everybody_kept(self) -> None:
        """Nobody who kept to the rule is lost at the end, whatever happened next door."""
        choice = random.Random(f"{self.report.seed}/end")
        devices = [device for home in self.homes for device in home.living]
        places = some(self.fleet.alive, choice, len(devices))
        for device, at in zip(devices, places, strict=True):
            answer = await self.fleet.refresh("the_end", device, device.newest, at)
            if not answer.is_good:
                self._violated(f"lost at the end: {answer}")
        self.report.kept_at_the_end = len(devices)

    async def _count_rows(self) -> None:
        for what in ("families with two living tokens", "tokens with two successors"):
            if count := await self.fleet.total(what):
                self._violated(f"{count} {what}")

    def _violated(self, what: str) -> None:
        self.report.violations.append(what)
        self.tell(f"VIOLATION {what}")

    def _is_done(self, kind: str) -> None:
        self.report.done[kind] += 1
        if self.report.total % max(1, self.count // 20) == 0:
            self.tell(
                f"{self.report.total} of {self.count}, {self.report.kills} killed, {len(self.report.violations)} violations"
            )
