"""The cron source on a clock that the test turns: every tick once, in order, whatever befalls clock and process."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from headrace.protocols import Diagnoses, Finding
from headrace.sources.cron import CronSource
from headrace.sources.cron.crontab import SECOND, Crontab
from headrace.sources.cron.ledger import RANGES, Ledger
from headrace.sources.cron.schedule import Interval, rfc3339
from headrace.testing import FakeClock, MemoryCapture, RecordingLog, SimulatedCrash, make_context
from headrace.testing.leaks import cancelled

HOUR = 3600.0
DAY = 24 * HOUR
START = datetime(2026, 3, 1, tzinfo=UTC).timestamp()


class Bench:
    """One schedule over many runs; the journal's content survives each."""

    def __init__(self, tmp_path: Path, now: float = START, **options: Any) -> None:
        self.path = tmp_path
        self.options = options
        self.clock = FakeClock(now)
        self.capture = MemoryCapture()
        self.log = RecordingLog()

    @asynccontextmanager
    async def running(self, crash: SimulatedCrash | None = None) -> AsyncIterator[None]:
        self.capture = self.capture.survivor(crash=crash)
        context = make_context(self.path, name="nightly", clock=self.clock, log=self.log)
        settings = CronSource(type="cron", **self.options)
        async with settings.open(context) as source, asyncio.TaskGroup() as group:
            task = group.create_task(source.run(self.capture))
            await self.idle()
            yield
            await cancelled(task)
        self.clock._sleepers.clear()

    async def idle(self) -> None:
        """Until the source sleeps, or has met its simulated crash."""
        for _ in range(100_000):
            if self.clock._sleepers or self.capture.crashed.is_set():
                return
            await asyncio.sleep(0)
        raise AssertionError("the source does not come to rest")

    async def advance(self, seconds: float) -> None:
        self.clock.advance(max(0.0, seconds))
        if seconds < 0:  # FakeClock only wakes; a clock that is set back does not
            self.clock._now += seconds
            self.clock.advance(0.0)
        await self.wake()

    async def wake(self) -> None:
        """A source looks at the clock at least every ten seconds; here at once, however the clock was set."""
        for _, _, sleeper in self.clock._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)
        self.clock._sleepers.clear()
        await self.idle()

    @property
    def nominal(self) -> list[str]:
        return [event.data["nominal"] for event in self.capture.events]

    @property
    def skipped(self) -> list[int]:
        return [event.data["skipped"] for event in self.capture.events]


def expected(schedule: str, zone: str, start: float, end: float) -> list[str]:
    found: list[str] = []
    for tick in Crontab(schedule, ZoneInfo(zone)).after(int(start * SECOND)):
        if tick > end * SECOND:
            return found
        found.append(rfc3339(tick))
    return found


def test_the_envelope(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, schedule="30 2 * * *", timezone="Europe/Paris", payload={"report": "sales"})
        async with bench.running():
            await bench.advance(DAY)
        [event] = bench.capture.events
        assert event.id == "nightly/2026-03-01T01:30:00Z"
        assert event.time == "2026-03-01T01:30:00Z"
        assert (event.source, event.subject, event.partitionkey) == ("headrace:nightly", "nightly", "nightly")
        assert event.data == {
            "schedule": "nightly",
            "nominal": "2026-03-01T01:30:00Z",
            "skipped": 0,
            "payload": {"report": "sales"},
        }

    asyncio.run(run())


@pytest.mark.parametrize("zone", ["Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"])
def test_simulated_years_with_kills_and_stops(tmp_path: Path, zone: str) -> None:
    """Four years; the process dies at random, before or after an append is durable, and stands still for weeks."""

    async def run() -> None:
        chance = random.Random(zone)
        bench = Bench(tmp_path, schedule="*/30 2 * * *", timezone=zone, catch_up_limit=100_000)
        end = START + 4 * 365.25 * DAY
        async with bench.running():
            pass
        while bench.clock.time() < end:
            crash = SimulatedCrash(chance.randint(1, 6), chance.choice(["before", "after"]))
            async with bench.running(chance.choice([None, crash])):
                for _ in range(chance.randint(1, 30)):
                    if bench.capture.crashed.is_set():
                        break
                    await bench.advance(chance.uniform(0, 2 * DAY))
            bench.clock.advance(chance.choice([0.0, HOUR, 5 * DAY, 40 * DAY]))
        async with bench.running():
            assert bench.nominal == expected("*/30 2 * * *", zone, START, bench.clock.time())
        assert max(Counter(event.id for event in bench.capture.events).values()) == 1
        sequence = [event.sequence or "" for event in bench.capture.events]
        assert sequence == sorted(set(sequence))

    asyncio.run(run())


def test_clock_jumps_of_hours_both_ways(tmp_path: Path) -> None:
    """No tick comes twice; every instant that the clock passed has its tick in the end."""

    async def run() -> None:
        chance = random.Random(7)
        bench = Bench(tmp_path, schedule="*/15 * * * *")
        furthest = START
        async with bench.running():
            for _ in range(400):
                await bench.advance(chance.choice([chance.uniform(0, HOUR), HOUR, -3 * HOUR, 4 * HOUR]))
                furthest = max(furthest, bench.clock.time())
        assert bench.nominal == expected("*/15 * * * *", "UTC", START, furthest)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("catch_up", "hours", "skipped"),
    [("all", [1, 2, 3, 4, 5, 6, 7], [0] * 7), ("latest", [1, 6, 7], [0, 4, 0]), ("none", [1, 7], [0, 5])],
)
def test_catch_up_after_a_stop(tmp_path: Path, catch_up: str, hours: list[int], skipped: list[int]) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, schedule="0 * * * *", catch_up=catch_up)
        async with bench.running():
            await bench.advance(HOUR)
            await bench.advance(0.5 * HOUR)
        bench.clock.advance(5 * HOUR)
        async with bench.running():
            await bench.advance(0.5 * HOUR)
        assert bench.nominal == [f"2026-03-01T{hour:02}:00:00Z" for hour in hours]
        assert bench.skipped == skipped

    asyncio.run(run())


@pytest.mark.parametrize("catch_up", ["all", "latest", "none"])
def test_stops_under_each_catch_up_account_for_every_tick(tmp_path: Path, catch_up: str) -> None:
    """Told of or counted as skipped: no tick is neither, none is both, through kills at any append."""

    async def run() -> None:
        chance = random.Random(catch_up)
        bench = Bench(tmp_path, schedule="*/10 * * * *", catch_up=catch_up, catch_up_limit=5)
        async with bench.running():
            pass
        for _ in range(60):
            crash = SimulatedCrash(chance.randint(1, 4), chance.choice(["before", "after"]))
            async with bench.running(chance.choice([None, crash])):
                for _ in range(chance.randint(0, 8)):
                    if not bench.capture.crashed.is_set():
                        await bench.advance(600.0)
            bench.clock.advance(chance.choice([0.0, 300.0, 600.0, DAY]))
        async with bench.running():
            await bench.advance(600.0)
            all_ticks = expected("*/10 * * * *", "UTC", START, bench.clock.time())
        assert bench.nominal == sorted(set(bench.nominal))
        assert len(bench.nominal) + sum(bench.skipped) == len(all_ticks)
        assert set(bench.nominal) <= set(all_ticks)

    asyncio.run(run())


def test_a_stop_of_years_is_no_flood(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, schedule="* * * * * *", catch_up_limit=1_200)
        async with bench.running():
            pass
        bench.clock.advance(3 * 365 * DAY)
        async with bench.running():
            pass
        limit = 1_200 + 60  # what is younger than `grace` is not missed
        assert len(bench.capture.events) == limit
        assert bench.skipped[0] == 3 * 365 * 86_400 - limit
        assert sum(bench.skipped[1:]) == 0
        assert bench.capture.appends < 10

    asyncio.run(run())


def test_a_clock_years_ahead_does_not_block_what_comes_before(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, schedule="0 3 * * *", catch_up="latest")
        async with bench.running():
            await bench.advance(9 * 365 * DAY)  # the battery is empty
            [wrong] = bench.nominal
            await bench.advance(-9 * 365 * DAY)
            for _ in range(10):
                await bench.advance(DAY)
        assert bench.nominal == [wrong, *expected("0 3 * * *", "UTC", START, START + 10 * DAY)]
        assert any("set back" in event for _, event, _ in bench.log.records)
        async with bench.running():
            await bench.advance(20 * 365 * DAY)
        assert max(Counter(bench.nominal).values()) == 1

    asyncio.run(run())


def test_a_changed_definition_starts_at_the_change(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, schedule="0 * * * *")
        async with bench.running():
            await bench.advance(1.5 * HOUR)
        bench.clock.advance(5 * HOUR)
        bench.options = {"schedule": "15 * * * *"}
        async with bench.running():
            await bench.advance(HOUR)
        assert bench.nominal == ["2026-03-01T01:00:00Z", "2026-03-01T07:15:00Z"]
        bench.clock.advance(2 * HOUR)
        bench.options |= {"payload": 1, "jitter": "1s", "catch_up": "latest"}  # these do not move the ticks
        async with bench.running():
            await bench.advance(1.0)
        assert bench.nominal[2:] == ["2026-03-01T09:15:00Z"]

    asyncio.run(run())


def test_ids_taken_by_a_former_definition_are_not_given_again(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, schedule="0 * * * *")
        async with bench.running():
            await bench.advance(5 * HOUR)
            await bench.advance(-4.5 * HOUR)
        bench.options = {"schedule": "*/30 * * * *"}
        async with bench.running():
            await bench.advance(6 * HOUR)
        assert max(Counter(event.id for event in bench.capture.events).values()) == 1
        assert bench.nominal[5:] == ["2026-03-01T05:30:00Z", "2026-03-01T06:00:00Z", "2026-03-01T06:30:00Z"]

    asyncio.run(run())


def test_jitter_neither_skips_nor_reorders(tmp_path: Path) -> None:
    async def run() -> None:
        chance = random.Random(3)
        bench = Bench(tmp_path, every="1m", jitter="10m")
        seen: list[tuple[str, float]] = []
        for _ in range(5):
            async with bench.running():
                for _ in range(60):
                    await bench.advance(chance.uniform(0, 100))
                    seen += [(tick, bench.clock.time()) for tick in bench.nominal[len(seen) :]]
        ticks = [tick for tick, _ in seen]
        assert ticks == expected("* * * * *", "UTC", START, datetime.fromisoformat(ticks[-1]).timestamp())
        late = [at - datetime.fromisoformat(tick).timestamp() for tick, at in seen]
        assert min(late) >= 0
        assert 300 < max(late) <= 700

    asyncio.run(run())


def test_every_and_at(tmp_path: Path) -> None:
    async def run() -> None:
        bench = Bench(tmp_path, every="15m", start=datetime(2026, 3, 1, 0, 5, tzinfo=UTC))
        async with bench.running():
            await bench.advance(HOUR)
        assert [text[11:16] for text in bench.nominal] == ["00:05", "00:20", "00:35", "00:50"]
        (tmp_path / "at").mkdir()
        bench = Bench(
            tmp_path / "at", at=["2026-02-01T00:00:00Z", "2026-03-01T03:00:00+01:00", "2026-03-02T00:00:00.5Z"]
        )
        async with bench.running():
            await bench.advance(3 * DAY)
        assert bench.nominal == ["2026-03-01T02:00:00Z", "2026-03-02T00:00:00.500000Z"]

    asyncio.run(run())


def test_the_ledger_stays_small() -> None:
    schedule, ledger = Interval(1, 0), Ledger("d", 0)
    for _ in range(1_000):
        ledger.skip(schedule, ledger.mark + 5, 0)
        ledger.tell(next(ledger.pending(schedule)))
    assert len(ledger.told) == RANGES
    assert len(ledger.row()) < 4_000


def test_what_was_skipped_and_is_ahead_again_is_not_counted() -> None:
    schedule, ledger = Interval(10, 0), Ledger("d", 0)
    assert ledger.skip(schedule, 100, 0) == 10
    assert ledger.turned_back(55, schedule)
    assert ledger.skipped == 5
    assert next(ledger.pending(schedule)) == 60


def test_diagnose(tmp_path: Path) -> None:
    async def run() -> list[Finding]:
        clock = FakeClock(START)
        found = []
        for options in ({"schedule": "0 5 * * *"}, {"at": ["2020-01-01T00:00:00Z"]}):
            settings = CronSource(type="cron", **options)
            async with settings.open(make_context(tmp_path, clock=clock)) as source:
                assert isinstance(source, Diagnoses)
                found += [finding async for finding in source.diagnose()]
        return found

    fine, over = asyncio.run(run())
    assert (fine.level, fine.what) == ("ok", "the next tick is at 2026-03-01T05:00:00Z")
    assert (over.level, bool(over.remedy)) == ("warning", True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give one of schedule, every and at"),
        ({"schedule": "* * * * *", "every": "5m"}, "not schedule and every"),
        ({"schedule": "0 0 30 2 *"}, "bad day-of-month"),
        ({"schedule": "0 0 31 2,4 *"}, "bad day-of-month"),
        ({"schedule": "* * *"}, "needs five fields"),
        ({"schedule": "@reboot"}, "is no time"),
        ({"schedule": "@daily", "timezone": "Europe/Pariss"}, 'did you mean "Europe/Paris"'),
        ({"every": "5m", "timezone": "Europe/Paris"}, 'goes with "schedule" only'),
        ({"schedule": "@daily", "start": "2026-01-01T00:00:00Z"}, 'goes with "every" only'),
        ({"at": []}, "at least 1"),
        ({"at": ["2026-01-01T00:00:00"]}, "timezone"),
        ({"every": "0s"}, "greater than or equal to 1"),
        ({"every": "5m", "payload": object()}, "must be what JSON can hold"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CronSource(type="cron", **options)
    assert words in str(caught.value)
