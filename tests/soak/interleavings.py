"""The kinds of interleaving: what is done at once at which processes, and what T13 says must be true afterwards."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.soak.fleet import Answer, Fleet, digest_of, some
from tests.soak.households import Device, Household


class Violation(AssertionError):
    """The rule of T13 did not hold."""


def hold(is_so: bool, what: str, *seen: object) -> None:
    if not is_so:
        raise Violation(f"{what} {[str(one) for one in seen]}")


@dataclass(frozen=True)
class Scene:
    """One interleaving: where it happens, to whom, and the choices that its number and the seed decide."""

    fleet: Fleet
    household: Household
    device: Device
    choice: random.Random
    kind: str

    def at(self, count: int) -> list[int]:
        return some(self.fleet.alive, self.choice, count)

    async def refresh(self, raw_token: str, at: int, **changes: str) -> Answer:
        return await self.fleet.refresh(self.kind, self.device, raw_token, at, **changes)

    async def at_once(self, *calls: Callable[[int], Awaitable[Answer]]) -> list[Answer]:
        """The calls, started in a random order, each at a process of its own."""
        order = list(range(len(calls)))
        self.choice.shuffle(order)
        places = self.at(len(calls))
        answers = await asyncio.gather(*(calls[number](places[number]) for number in order))
        return [answer for _, answer in sorted(zip(order, answers, strict=True), key=lambda pair: pair[0])]

    def refreshing(self, raw_token: str, **changes: str) -> Callable[[int], Awaitable[Answer]]:
        return lambda at: self.refresh(raw_token, at, **changes)

    async def rotate(self) -> None:
        """An honest client refreshes and goes on with what it got."""
        answer = await self.refresh(self.device.newest, *self.at(1))
        hold(answer.is_good, "an honest client was lost", answer)
        self.device.is_given(answer.body)

    # -- what must be true ---------------------------------------------------------------------------------------------

    async def is_kept(self) -> None:
        living = await self.fleet.living_tokens(self.device)
        hold(living == [digest_of(self.device.newest)], "not exactly one living successor", len(living))

    async def has_ended(self) -> None:
        """Nothing of the family lives, and no token of it yields another, wherever it is shown."""
        self.device.has_ended = True
        living = await self.fleet.living_tokens(self.device)
        hold(not living, "a family lives on after its end", len(living))
        await self.yields_nothing(self.device)

    async def yields_nothing(self, device: Device) -> None:
        for raw_token in device.raw_tokens[-2:]:
            answer = await self.fleet.refresh(self.kind, device, raw_token, *self.at(1))
            hold(answer.status == 400, "a dead grant yielded a token", answer)


# -- clients that keep to the rule -------------------------------------------------------------------------------------


async def refreshes(scene: Scene) -> None:
    await scene.rotate()
    await scene.is_kept()


async def refreshes_at_many_processes_at_once(scene: Scene) -> None:
    count = scene.choice.randint(2, 5)
    answers = await scene.at_once(*[scene.refreshing(scene.device.newest)] * count)
    hold(all(answer.is_good for answer in answers), "a parallel refresh was refused", *answers)
    hold(len({answer.body for answer in answers}) == 1, "parallel refreshes were answered differently")
    scene.device.is_given(answers[0].body)
    await scene.is_kept()


async def tries_again(scene: Scene) -> None:
    """The answer was lost, or the pair has just come into use; perhaps it asks at several processes."""
    await scene.rotate()
    device = scene.device
    if scene.choice.random() < 0.5:
        await scene.fleet.set_first_use(device.newest, scene.choice.uniform(0, 10))
    answers = await scene.at_once(*[scene.refreshing(device.raw_tokens[-2])] * scene.choice.randint(1, 3))
    hold(all(answer.is_good for answer in answers), "an honest retry was refused", *answers)
    hold({answer.body for answer in answers} == {device.answer}, "a retry was answered differently")
    await scene.is_kept()


async def asks_for_other_things(scene: Scene) -> None:
    """An error that changes nothing: another scope, another place, another client."""
    device = scene.device
    await scene.rotate()
    other = scene.choice.choice([f"{device.client_id}x", "unknown"])
    calls = [
        scene.refreshing(device.raw_tokens[-2], scope="read:todos"),
        scene.refreshing(device.raw_tokens[-2], resource="https://other.example"),
        scene.refreshing(device.newest, scope="read:billing"),
        scene.refreshing(device.newest, client_id=other),
    ]
    for answer in await scene.at_once(*calls):
        hold(answer.status in (400, 401), "what goes beyond was given", answer)
    await scene.is_kept()


async def refreshes_on_both_devices_at_once(scene: Scene) -> None:
    """Two families under the lock of one grant."""
    living = scene.household.living
    calls = [lambda at, d=d: scene.fleet.refresh(scene.kind, d, d.newest, at) for d in living]
    for device, answer in zip(living, await scene.at_once(*calls), strict=True):
        hold(answer.is_good, "a device was lost by another", answer)
        device.is_given(answer.body)
    await scene.is_kept()


async def tries_again_and_goes_on_at_once(scene: Scene) -> None:
    """Either the retry comes first, and all is well; or it comes after the successor was spent, and is a thief's."""
    await scene.rotate()
    device = scene.device
    retried, rotated = await scene.at_once(scene.refreshing(device.raw_tokens[-2]), scene.refreshing(device.newest))
    if retried.is_good:
        hold(retried.body == device.answer, "a retry was answered differently")
        hold(rotated.is_good, "an honest client was lost", rotated)
        device.is_given(rotated.body)
        await scene.is_kept()
    else:
        if rotated.is_good:
            device.is_given(rotated.body)
        await scene.has_ended()


# -- and such as do not ------------------------------------------------------------------------------------------------


async def a_thief_comes_late(scene: Scene) -> None:
    await scene.rotate()
    device = scene.device
    await scene.fleet.set_first_use(device.newest, scene.choice.uniform(30.5, 3600))
    answer = await scene.refresh(device.raw_tokens[-2], *scene.at(1))
    hold(answer.status == 400, "a thief was served", answer)
    await scene.has_ended()


async def a_thief_has_an_older_token(scene: Scene) -> None:
    await scene.rotate()
    await scene.rotate()
    device = scene.device
    answer = await scene.refresh(scene.choice.choice(device.raw_tokens[:-2]), *scene.at(1))
    hold(answer.status == 400, "a thief was served", answer)
    await scene.has_ended()


async def a_thief_and_the_client_come_at_once(scene: Scene) -> None:
    """Whoever is first: the family ends, and the thief gets nothing. What the client got is worth nothing either."""
    await scene.rotate()
    await scene.rotate()
    device = scene.device
    stolen = scene.choice.choice(device.raw_tokens[:-2])
    if scene.choice.random() < 0.5:
        stolen = device.raw_tokens[-2]
        await scene.fleet.set_first_use(device.newest, 31)
    thief, *honest = await scene.at_once(
        scene.refreshing(stolen), *[scene.refreshing(device.newest)] * scene.choice.randint(1, 3)
    )
    hold(thief.status == 400, "a thief was served", thief)
    good = {answer.body for answer in honest if answer.is_good}
    hold(len(good) <= 1, "parallel refreshes were answered differently")
    for body in good:
        device.is_given(body)
    await scene.has_ended()


# -- ends --------------------------------------------------------------------------------------------------------------


async def the_person_withdraws_meanwhile(scene: Scene) -> None:
    """All that was given before it, on either device, is over; and nothing is given after it."""
    household, living = scene.household, scene.household.living
    calls = [lambda at: scene.fleet.withdraw(scene.kind, household, at)]
    for device in living:
        again = lambda at, d=device: scene.fleet.refresh(scene.kind, d, d.newest, at)  # noqa: E731
        calls += [again] * scene.choice.randint(1, 2)
    withdrawn, *_ = await scene.at_once(*calls)
    hold(withdrawn.status in (302, 303), "the withdrawal was not taken", withdrawn)
    household.ends()
    for device in living:
        await scene.yields_nothing(device)


async def the_client_revokes_meanwhile(scene: Scene) -> None:
    """RFC 7009, by the newest refresh token, while a copy of the client refreshes with it."""
    device = scene.device
    revoked, refreshed = await scene.at_once(
        lambda at: scene.fleet.revoke(scene.kind, device, device.newest, at), scene.refreshing(device.newest)
    )
    hold(revoked.status == 200, "the revocation was not taken", revoked)
    if refreshed.is_good:
        device.is_given(refreshed.body)
    await scene.has_ended()


KINDS: dict[Callable[[Scene], Awaitable[None]], int] = {
    refreshes: 14,
    refreshes_at_many_processes_at_once: 18,
    tries_again: 14,
    asks_for_other_things: 4,
    refreshes_on_both_devices_at_once: 10,
    tries_again_and_goes_on_at_once: 6,
    a_thief_comes_late: 7,
    a_thief_has_an_older_token: 6,
    a_thief_and_the_client_come_at_once: 9,
    the_person_withdraws_meanwhile: 8,
    the_client_revokes_meanwhile: 4,
}
"""How often each is taken, out of the sum."""
