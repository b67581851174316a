"""A part that fails is started again with back-off, or stopped, or ends the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from headrace.errors import Fatal, JournalFailed, Permanent, Transient
from headrace.supervisor import LAST_BACKOFF, STEADY, Supervised
from headrace.tasks import among, cause
from headrace.testing import FakeClock, RecordingLog
from headrace.testing.leaks import eventually


class Part:
    """Fails as told, one entry per run; ends by itself where there are no more."""

    def __init__(self, clock: FakeClock, *failures: BaseException, lasting: float = 0.0) -> None:
        self.failures = list(failures)
        self.clock = clock
        self.lasting = lasting
        self.runs = 0
        self.times: list[float] = []

    async def run(self) -> None:
        self.runs += 1
        self.times.append(self.clock.time())
        if self.lasting:
            await self.clock.sleep(self.lasting)
        if self.failures:
            raise self.failures.pop(0)


def supervised(*failures: BaseException, lasting: float = 0.0) -> tuple[Supervised, Part, FakeClock, RecordingLog]:
    clock, log = FakeClock(), RecordingLog()
    part = Part(clock, *failures, lasting=lasting)
    return Supervised("part", part.run, clock, log), part, clock, log


async def to_the_end(it: Supervised, clock: FakeClock, step: float = 0.25) -> None:
    task = asyncio.create_task(it.keep_running())
    while not task.done():
        clock.advance(step)
        await asyncio.sleep(0)
    await task


def test_backs_off_up_to_a_limit_and_starts_over_when_steady() -> None:
    it, part, clock, _ = supervised(*[Transient("away")] * 9)
    asyncio.run(to_the_end(it, clock))
    waits = [round(b - a) for a, b in zip(part.times, part.times[1:], strict=False)]
    assert waits == [0, 1, 2, 4, 8, 16, 30, 30, 30] or waits[1:] == [1, 2, 4, 8, 16, 30, 30, 30]
    assert it.state == "stopped"
    assert it.restarts == 9

    it, part, clock, _ = supervised(*[Transient("away")] * 3, lasting=STEADY + 1)
    asyncio.run(to_the_end(it, clock))
    assert {round(b - a - STEADY - 1) for a, b in zip(part.times, part.times[1:], strict=False)} <= {0, 1}


def test_backs_off_for_ever_without_overflow() -> None:
    it, part, clock, _ = supervised(*[Transient("away")] * 2_000)
    asyncio.run(to_the_end(it, clock, LAST_BACKOFF))
    assert part.runs == 2_001


def test_the_other_sides_wish_is_honoured() -> None:
    it, part, clock, _ = supervised(Transient("busy", retry_after=90))
    asyncio.run(to_the_end(it, clock))
    assert part.times[1] - part.times[0] >= 90


@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: ExceptionGroup("g", [ValueError("a"), it])])
def test_fatal_stops_for_good(wrap: Callable[[Exception], Exception]) -> None:
    it, part, clock, log = supervised(wrap(Fatal("slot lost", hint="make it again")))
    asyncio.run(to_the_end(it, clock))
    assert (it.state, it.why, part.runs) == ("failed", "slot lost (make it again)", 1)
    assert [event for _, event, _ in log.records] == ["stopped until you act"]


@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: ExceptionGroup("g", [Transient("b"), it])])
def test_a_failed_journal_is_raised(wrap: Callable[[Exception], Exception]) -> None:
    it, part, clock, _ = supervised(wrap(JournalFailed("fsync")))
    with pytest.raises(JournalFailed):
        asyncio.run(to_the_end(it, clock))
    assert part.runs == 1


@pytest.mark.parametrize("error", [ValueError("bug"), Permanent("odd"), asyncio.CancelledError()])
def test_the_unexpected_is_logged_and_tried_again(error: BaseException) -> None:
    it, part, clock, log = supervised(error)
    asyncio.run(to_the_end(it, clock))
    assert part.runs == 2
    assert [(level, event) for level, event, _ in log.records] == [("error", "failed unexpectedly; will try again")]


def test_cancel_ends_it_while_running_and_while_waiting() -> None:
    async def main(run: Callable[[], Awaitable[None]], state: str) -> None:
        async with asyncio.TaskGroup() as group:
            it = Supervised("part", run, FakeClock(), RecordingLog())
            it.start(group)
            await eventually(lambda: it.state == state, state)
            await it.cancel()
            assert it.state == "stopped"
            assert it.task is not None
            assert it.task.cancelled()

    async def forever() -> None:
        await asyncio.Event().wait()

    async def failing() -> None:
        raise Transient("away")

    asyncio.run(main(forever, "running"))
    asyncio.run(main(failing, "waiting"))


def test_among_and_cause_look_into_groups() -> None:
    group = ExceptionGroup("a", [ExceptionGroup("b", [ValueError("first")]), Fatal("second")])
    assert str(cause(group)) == "first"
    assert str(among(group, Fatal)) == "second"
    assert among(group, KeyError) is None
