"""A consumer's guarantees one by one, over both journals."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headrace.delivery.consumer import Consumer
from headrace.delivery.cursor import Cursor, Parked, ShardCursor
from headrace.delivery.records import known_consumers
from headrace.errors import Fatal, JournalFailed, Permanent, Transient
from headrace.event import Event
from headrace.journal.block import Block, CorruptBlock, Kind
from headrace.journal.memory import MemoryJournal
from headrace.protocols import Batch, Change, ConsumerJournal, Page, Position, Row, Verdict
from headrace.settings import BatchSize, Retry
from headrace.testing import FakeClock, RecordingLog
from headrace.testing.leaks import eventually
from tests.core.delivery_rig import (
    ENGINES,
    QUICK,
    BulkSettings,
    Target,
    TargetSettings,
    a_consumer,
    a_journal,
    advance,
    an_event,
    append,
    crashed,
    cursor_of,
    dead_rows,
    failing,
    parked_rows,
    running,
    until,
    until_settled,
)

KINDS = (TargetSettings, BulkSettings)
Test = Callable[[ConsumerJournal], Awaitable[None]]
LONG = Retry.model_validate({"initial": "1h", "max": "1h", "attempts": 3, "max_age": "100000d"})
both_engines = pytest.mark.parametrize("engine", ENGINES)
both_kinds = pytest.mark.parametrize("kind", KINDS)


def run(engine: str, tmp_path: Path, test: Test) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), a_journal(engine, tmp_path) as journal:
            await test(journal)

    asyncio.run(main())


async def held(consumer: Consumer) -> list[Parked]:
    return [row for row in (await parked_rows(consumer)).values() if row.held]


async def parked_attempts(consumer: Consumer, attempts: list[int]) -> bool:
    return [row.failure.attempts for row in (await parked_rows(consumer)).values()] == attempts


def delivered(target: Target, batches: int) -> bool:
    return len(target.batches) == batches


async def begin(consumer: Consumer) -> None:
    await consumer.prepare()
    await consumer.resume()
    await consumer.run()


async def only_dead(consumer: Consumer) -> tuple[str, Position]:
    ((shard, position, _, _),) = [letter async for letter in consumer.given_up.all()]
    return shard, position


@both_engines
@both_kinds
def test_delivers_all_in_order_and_again_nothing_after_a_stop(
    tmp_path: Path, engine: str, kind: type[TargetSettings]
) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Target()
        settings = kind(target=target)
        consumer = a_consumer(journal, settings, tmp_path)
        for start in (0, 300):
            consumer = a_consumer(journal, settings, tmp_path)
            await append(journal, [an_event(number, "one") for number in range(start, start + 300)])
            async with running(consumer):
                await until_settled(consumer, journal)
        assert target.ids == [str(number) for number in range(600)]
        assert consumer.status().delivered == 300
        assert consumer.status().lag == 0

    run(engine, tmp_path, test)


@both_engines
@both_kinds
@pytest.mark.parametrize("mode", ["named", "raised"])
def test_a_culprit_is_dead_lettered_alone(tmp_path: Path, engine: str, kind: type[TargetSettings], mode: str) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Target(failing("17", error=Permanent("bad") if mode == "raised" else None))
        consumer = a_consumer(journal, kind(target=target, batch=BatchSize(size=40)), tmp_path)
        await append(journal, [an_event(number, str(number)) for number in range(100)])
        async with running(consumer):
            await until_settled(consumer, journal)
        ((_, letter),) = (await dead_rows(consumer)).items()
        assert Event.parse(letter.line).id == "17"
        assert letter.failure.attempts == QUICK.attempts
        assert letter.failure.error == ("bad" if mode == "raised" else "no 17")
        assert sorted(target.ids, key=int) == [str(number) for number in range(100) if number != 17]

    run(engine, tmp_path, test)


@both_engines
@both_kinds
def test_a_failing_key_waits_and_the_others_go_on(tmp_path: Path, engine: str, kind: type[TargetSettings]) -> None:
    async def test(journal: ConsumerJournal) -> None:
        clock = FakeClock()
        target = Target(failing("0", times=1))
        consumer = a_consumer(journal, kind(target=target, retry=LONG), tmp_path, clock)
        await append(journal, [an_event(number, "ab"[number % 2]) for number in range(20)])
        async with running(consumer):
            await eventually(lambda: len(target.ids) == 10, "b goes on")
            assert target.ids == [str(number) for number in range(1, 20, 2)]
            await advance(clock, lambda: len(target.ids) == 20, step=600)
            await until_settled(consumer, journal)
        assert target.ids[10:] == [str(number) for number in range(0, 20, 2)]

    run(engine, tmp_path, test)


@both_engines
@both_kinds
def test_attempts_survive_a_crash(tmp_path: Path, engine: str, kind: type[TargetSettings]) -> None:
    async def test(journal: ConsumerJournal) -> None:
        clock, target = FakeClock(), Target(failing("0"))
        settings = kind(target=target, retry=LONG)
        await append(journal, [an_event(0)])
        for attempts in (1, 2):
            consumer = a_consumer(journal, settings, tmp_path, clock)
            async with running(consumer, crash=True):
                await advance(clock, partial(delivered, target, attempts), step=600)
                await until(partial(parked_attempts, consumer, [attempts]), f"{attempts} stored")
        consumer = a_consumer(journal, settings, tmp_path, clock)
        async with running(consumer):
            await advance(clock, lambda: consumer.counts.dead == 1, step=600)
        assert [batch.attempt for batch in target.batches] == [1, 2, 3]

    run(engine, tmp_path, test)


@both_engines
@both_kinds
def test_hold_key_waits_for_the_operator_also_across_a_restart(
    tmp_path: Path, engine: str, kind: type[TargetSettings]
) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Target(failing("0", times=3))
        settings = kind(target=target, on_failure="hold-key")
        await append(journal, [an_event(number) for number in range(5)] + [an_event(9, "other")])
        consumer = a_consumer(journal, settings, tmp_path)
        async with running(consumer):
            await eventually(lambda: consumer.counts.failed == 3 and "9" in target.ids, "held")
        consumer = a_consumer(journal, settings, tmp_path)
        async with running(consumer):
            await append(journal, [an_event(5), an_event(10, "other")])
            await eventually(lambda: "10" in target.ids, "the other key goes on")
            assert target.ids == ["9", "10"]
            shard, position = await only_dead(consumer)
            await consumer.given_up.redrive(shard, position)
            await until_settled(consumer, journal)
            with pytest.raises(Permanent, match="no dead letter"):
                await consumer.given_up.redrive(shard, position)
        assert target.ids[2:] == ["0", "1", "2", "3", "4", "5"]
        assert [event.extensions for event in target.events[2:4]] == [{"headraceredrive": True}, {}]

    run(engine, tmp_path, test)


@both_engines
@pytest.mark.parametrize("while_running", [True, False])
def test_a_held_event_is_discarded_and_its_key_goes_on(tmp_path: Path, engine: str, while_running: bool) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Target(failing("0"))
        settings = TargetSettings(target=target, on_failure="hold-key")
        await append(journal, [an_event(number) for number in range(4)])
        consumer = a_consumer(journal, settings, tmp_path)
        async with running(consumer):
            await until(lambda: held(consumer), "held")
            place = await only_dead(consumer)
            waiting = next(position for position in await parked_rows(consumer) if position != place[1])
            with pytest.raises(Permanent, match="no dead letter"):
                await consumer.given_up.discard(place[0], waiting)
            if while_running:
                await consumer.given_up.discard(*place)
                await until_settled(consumer, journal)
        if not while_running:
            await consumer.given_up.discard(*place)
            consumer = a_consumer(journal, settings, tmp_path)
            async with running(consumer):
                await until_settled(consumer, journal)
        assert target.ids == ["1", "2", "3"]

    run(engine, tmp_path, test)


@both_engines
@both_kinds
def test_dead_letters_are_redriven_while_running_and_while_paused(
    tmp_path: Path, engine: str, kind: type[TargetSettings]
) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Target(failing("1", "2", times=3))
        consumer = a_consumer(journal, kind(target=target), tmp_path)
        await append(journal, [an_event(number, str(number)) for number in range(4)])
        async with running(consumer):
            await until_settled(consumer, journal)
            first, second = [(shard, position) async for shard, position, _, _ in consumer.given_up.all()]
            await consumer.given_up.redrive(*first)
            await until_settled(consumer, journal)
            await consumer.pause("for a while")
            await eventually(lambda: consumer.status().state == "paused", "paused")
            await consumer.given_up.redrive(*second)
            await consumer.resume()
            await until_settled(consumer, journal)
        assert target.ids == ["0", "3", "1", "2"]
        assert not await dead_rows(consumer)

    run(engine, tmp_path, test)


@both_engines
def test_pause_on_failure_keeps_the_event_first_also_across_a_restart(tmp_path: Path, engine: str) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Target(failing("0", times=3))
        settings = TargetSettings(target=target, on_failure="pause")
        await append(journal, [an_event(number) for number in range(3)])
        consumer = a_consumer(journal, settings, tmp_path)
        async with running(consumer):
            await eventually(lambda: consumer.status().state == "paused", "paused")
            assert "failed 3 times: no 0" in consumer.status().why
        consumer = a_consumer(journal, settings, tmp_path)
        async with running(consumer):
            assert consumer.status().state == "paused"
            await consumer.resume()
            await until_settled(consumer, journal)
        assert target.ids == ["0", "1", "2"]
        assert target.opened == 2

    run(engine, tmp_path, test)


@both_engines
def test_pause_lets_what_is_in_flight_end(tmp_path: Path, engine: str) -> None:
    async def test(journal: ConsumerJournal) -> None:
        gate = asyncio.Event()

        async def answer(_batch: Batch) -> None:
            await gate.wait()

        target = Target(answer)
        consumer = a_consumer(journal, TargetSettings(target=target), tmp_path)
        await append(journal, [an_event(number) for number in range(3)])
        async with running(consumer):
            await eventually(lambda: len(target.batches) == 1, "in flight")
            await consumer.pause("")
            gate.set()
            await eventually(lambda: len(target.ids) == 1, "it ended")
            await asyncio.sleep(0)
            assert consumer.status().why == "paused by the operator"
            await consumer.resume()
            await until_settled(consumer, journal)
        assert target.ids == ["0", "1", "2"]

    run(engine, tmp_path, test)


def away(error: Transient, away_for: Callable[[], bool]) -> Any:
    async def answer(_batch: Batch) -> None:
        if away_for():
            raise error

    return answer


@both_kinds
def test_an_outage_of_ten_minutes_spends_no_attempt_and_one_probes(tmp_path: Path, kind: type[TargetSettings]) -> None:
    async def test(journal: ConsumerJournal) -> None:
        clock = FakeClock()
        end = clock.time() + 600
        target = Target(away(Transient("no route"), lambda: clock.time() < end))
        consumer = a_consumer(journal, kind(target=target, concurrency=8, retry=Retry()), tmp_path, clock)
        await append(journal, [an_event(number, str(number)) for number in range(50)])
        async with running(consumer):
            await eventually(lambda: consumer.status().state == "target away", "away")
            met = len(target.batches)
            assert met <= 8
            assert consumer.status().why == "no route"
            await advance(clock, lambda: len(target.ids) == 50)
            await until_settled(consumer, journal)
        assert len(target.batches) < met + 60 + 50
        assert consumer.counts.failed == consumer.counts.dead == 0

    run("memory", tmp_path, test)


def test_an_outage_beyond_max_age_is_given_up(tmp_path: Path) -> None:
    async def test(journal: ConsumerJournal) -> None:
        clock = FakeClock()
        target = Target(away(Transient("no route"), lambda: True))
        consumer = a_consumer(journal, TargetSettings(target=target, retry=Retry()), tmp_path, clock)
        await append(journal, [an_event(0)])
        async with running(consumer):
            await advance(clock, lambda: consumer.counts.dead == 1, step=60.0)
            assert clock.time() - 1_700_000_000 > 86_400
            await until_settled(consumer, journal)
        (letter,) = (await dead_rows(consumer)).values()
        assert "no route" in letter.failure.error

    run("memory", tmp_path, test)


def test_retry_after_is_honoured(tmp_path: Path) -> None:
    async def test(journal: ConsumerJournal) -> None:
        clock = FakeClock()
        target = Target(away(Transient("busy", retry_after=3600), lambda: len(target.batches) < 2))
        consumer = a_consumer(journal, TargetSettings(target=target), tmp_path, clock)
        await append(journal, [an_event(0)])
        async with running(consumer):
            await advance(clock, lambda: len(target.ids) == 1)
        assert clock.time() >= 1_700_000_000 + 3600

    run("memory", tmp_path, test)


@both_kinds
def test_a_stop_does_not_wait_for_an_absent_target(tmp_path: Path, kind: type[TargetSettings]) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Target(away(Transient("gone"), lambda: True))
        consumer = a_consumer(journal, kind(target=target, concurrency=4, retry=LONG), tmp_path, FakeClock())
        await append(journal, [an_event(number, str(number)) for number in range(9)])
        async with running(consumer) as task:
            await eventually(lambda: consumer.status().state == "target away", "away")
            await consumer.stop(1000)
            await task
        assert (await cursor_of(consumer)).shards[next(iter(journal.shards))].low == 0

    run("sqlite", tmp_path, test)


@both_engines
def test_a_stop_gives_up_after_its_grace_and_delivers_again(tmp_path: Path, engine: str) -> None:
    async def test(journal: ConsumerJournal) -> None:
        async def forever(_batch: Batch) -> None:
            await asyncio.Event().wait()

        target = Target(forever)
        settings = TargetSettings(target=target)
        await append(journal, [an_event(0)])
        consumer = a_consumer(journal, settings, tmp_path)
        async with running(consumer) as task:
            await eventually(lambda: bool(target.batches), "in flight")
            await consumer.stop(0.01)
            await task
        target.answer = None
        consumer = a_consumer(journal, settings, tmp_path)
        async with running(consumer):
            await until_settled(consumer, journal)
        assert target.ids == ["0"]

    run(engine, tmp_path, test)


ODD: Sequence[Any] = (
    ValueError("\udcff undecodable"),
    asyncio.CancelledError(),
    SystemExit(1),
    ExceptionGroup("several", [Permanent("inner")]),
    TimeoutError("its own"),
    RuntimeError("x" * 100_000),
)


@both_kinds
@pytest.mark.parametrize("odd", ODD, ids=lambda it: type(it).__name__)
def test_a_sink_that_raises_anything_fails_the_event_only(
    tmp_path: Path, kind: type[TargetSettings], odd: BaseException
) -> None:
    async def test(journal: ConsumerJournal) -> None:
        async def answer(batch: Batch) -> None:
            if any(event.id == "1" for event in batch.events):
                raise odd

        target = Target(answer)
        consumer = a_consumer(journal, kind(target=target), tmp_path)
        await append(journal, [an_event(number, str(number)) for number in range(4)])
        async with running(consumer):
            await until_settled(consumer, journal)
        assert sorted(target.ids) == ["0", "2", "3"]
        (letter,) = (await dead_rows(consumer)).values()
        assert len(letter.failure.error) < 10_000

    run("sqlite", tmp_path, test)


WRONG: Sequence[Any] = (
    None,
    "delivered",
    Verdict(failed={99_999: "who?"}),
    Verdict(state="text"),  # type: ignore[arg-type]
    Verdict(events=[(0, None)]),  # type: ignore[list-item]
    Verdict(events=[(0, Event(id="", source="", type="t", data=object()))]),
)


@both_kinds
@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_a_wrong_verdict_reaches_no_journal(tmp_path: Path, kind: type[TargetSettings], wrong: Any) -> None:
    class Odd(Target):
        async def deliver(self, batch: Batch) -> Verdict:
            self.batches.append(batch)
            return wrong  # type: ignore[no-any-return]

    async def test(journal: ConsumerJournal) -> None:
        consumer = a_consumer(journal, kind(target=Odd()), tmp_path)
        await append(journal, [an_event(0)])
        async with running(consumer):
            await until_settled(consumer, journal)
        assert len(await dead_rows(consumer)) == 1

    run("sqlite", tmp_path, test)


def test_a_sink_that_tries_nothing_is_away(tmp_path: Path) -> None:
    async def test(journal: ConsumerJournal) -> None:
        async def answer(batch: Batch) -> Verdict:
            return Verdict(skipped=batch.positions if len(target.batches) < 3 else ())

        target = Target(answer)
        consumer = a_consumer(journal, BulkSettings(target=target), tmp_path)
        await append(journal, [an_event(number) for number in range(3)])
        async with running(consumer):
            await until_settled(consumer, journal)
        assert target.ids == ["0", "1", "2"]
        assert consumer.counts.failed == 0

    run("memory", tmp_path, test)


@both_kinds
def test_a_delivery_that_overruns_is_a_failure(tmp_path: Path, kind: type[TargetSettings]) -> None:
    async def test(journal: ConsumerJournal) -> None:
        async def forever(batch: Batch) -> None:
            if "0" in {event.id for event in batch.events}:
                await asyncio.Event().wait()

        target = Target(forever)
        settings = kind.model_validate({"target": target, "timeout": "20ms", "retry": QUICK})
        consumer = a_consumer(journal, settings, tmp_path)
        await append(journal, [an_event(0, "a"), an_event(1, "b")])
        async with running(consumer):
            await until_settled(consumer, journal)
        (letter,) = (await dead_rows(consumer)).values()
        assert letter.failure.error == "timed out after 0.02 s"
        assert target.ids == ["1"]

    run("memory", tmp_path, test)


class Flushing(Target):
    """A sink whose flush fails at first, or hangs."""

    def __init__(self, *, hang: bool = False) -> None:
        super().__init__(failing("1"))
        self.flushes = 0
        self.hang = hang

    async def flush(self) -> None:
        self.flushes += 1
        if self.flushes == 1:
            if self.hang:
                await asyncio.Event().wait()
            raise Transient("no disk")


def test_a_commit_cancelled_in_its_flush_loses_no_row(tmp_path: Path) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Flushing(hang=True)
        consumer = a_consumer(journal, TargetSettings(target=target, retry=LONG), tmp_path)
        await append(journal, [an_event(0), an_event(1), an_event(2, "b")])
        async with running(consumer):
            await eventually(lambda: target.flushes == 1 and "2" in target.ids, "committing")
        assert [row.failure.attempts for row in (await parked_rows(consumer)).values()] == [1]
        assert target.ids == ["0", "2"]

    run("sqlite", tmp_path, test)


def test_a_flush_that_fails_ends_the_run_and_nothing_is_lost(tmp_path: Path) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Flushing()
        consumer = a_consumer(journal, TargetSettings(target=target), tmp_path)
        await append(journal, [an_event(number) for number in range(3)])
        await consumer.prepare()
        with pytest.raises(ExceptionGroup) as raised:
            await consumer.run()
        assert raised.group_contains(Transient, match="no disk")
        async with running(consumer):
            await until_settled(consumer, journal)
        assert list(dict.fromkeys(target.ids)) == ["0", "2"]

    run("sqlite", tmp_path, test)


@both_kinds
def test_what_was_settled_before_a_failure_is_not_delivered_again(tmp_path: Path, kind: type[TargetSettings]) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Target(failing("5", times=1, error=Fatal("broken")))
        consumer = a_consumer(journal, kind(target=target, batch=BatchSize(size=1)), tmp_path)
        await append(journal, [an_event(number) for number in range(10)])
        await consumer.prepare()
        with pytest.raises(ExceptionGroup) as raised:
            await consumer.run()
        assert raised.group_contains(Fatal, match="broken")
        async with running(consumer):
            await until_settled(consumer, journal)
        assert target.ids == [str(number) for number in range(10)]

    run("sqlite", tmp_path, test)


@both_engines
def test_returned_events_enter_with_the_cursor_and_keep_their_ids(tmp_path: Path, engine: str) -> None:
    async def test(journal: ConsumerJournal) -> None:
        async def answer(batch: Batch) -> Verdict:
            children = [
                (position, Event(id="", source="", type=f"t.{event.id}.{n}", partitionkey=event.id))
                for position, event in zip(batch.positions, batch.events, strict=True)
                for n in range(2)
                if not event.id.startswith("0")
            ]
            return Verdict(events=children)

        target = Target(answer)
        settings = BulkSettings(target=target, on=("rows",), batch=BatchSize(size=1000))
        consumer = a_consumer(journal, settings, tmp_path)
        await append(journal, [an_event(number) for number in range(400)], block=500)
        async with running(consumer):
            await until_settled(consumer, journal)
        seen = Target()
        follower = a_consumer(journal, BulkSettings(target=seen, on=("target",)), tmp_path)
        follower.records.consumer = "follower"
        async with running(follower):
            await until_settled(follower, journal)
        assert seen.ids == [f"{n}/target/{i}" for n in range(1, 400) for i in range(2)]
        assert {event.source for event in seen.events} == {"headrace:target"}

    run(engine, tmp_path, test)


@both_engines
def test_start_positions(tmp_path: Path, engine: str) -> None:
    async def test(journal: ConsumerJournal) -> None:
        await append(journal, [an_event(0)])
        future = datetime.fromtimestamp(32_503_680_000, UTC)
        past = datetime.fromtimestamp(1_000_000_000, UTC)
        wanted: dict[Any, list[str]] = {"earliest": ["0", "1"], "latest": ["1"], future: ["1"], past: ["0", "1"]}
        consumers = {}
        for number, start in enumerate(wanted):
            consumer = a_consumer(journal, TargetSettings(target=Target(), start=start), tmp_path)
            consumer.name = consumer.records.consumer = f"c{number}"
            await consumer.prepare()
            consumers[start] = consumer
        await append(journal, [an_event(1)])
        for start, consumer in consumers.items():
            async with running(consumer):
                await until_settled(consumer, journal)
            assert consumer.settings.target.ids == wanted[start], start  # type: ignore[attr-defined]
        assert await known_consumers(journal) == [f"c{number}" for number in range(len(wanted))]

    run(engine, tmp_path, test)


class Broken(MemoryJournal):
    """One block is damaged until it is skipped; or the oldest blocks are gone."""

    def __init__(self) -> None:
        super().__init__(shards=1)
        self.bad: Position | None = None
        self.gone = 0

    async def read(self, shard: str, start: Position, wanted: Callable[[Sequence[Kind]], bool]) -> Page:
        page = await super().read(shard, start, wanted)
        good: list[Block] = []
        for block in page.blocks:
            if self.bad is not None and block.first <= self.bad < block.end:
                if not good:
                    raise CorruptBlock(block.first, "its checksum fails")
                return Page(good, block.first)
            good.append(block)
        return page

    async def oldest(self, shard: str) -> Position:
        return self.gone


@both_kinds
def test_a_damaged_block_stops_only_who_reaches_it_until_it_is_skipped(
    tmp_path: Path, kind: type[TargetSettings]
) -> None:
    async def test() -> None:
        journal, clock, log, target = Broken(), FakeClock(), RecordingLog(), Target()
        consumer = a_consumer(journal, kind(target=target), tmp_path, clock, log)
        await append(journal, [an_event(number) for number in range(30)], block=10)
        journal.bad = 15
        async with running(consumer):
            await eventually(lambda: "damaged" in consumer.status().why, "told")
            await advance(clock, lambda: clock.time() > 1_700_000_060)
            assert len(target.ids) == 10
            assert [event for _, event, _ in log.records] == ["damaged block"]
            journal.bad = None
            await advance(clock, lambda: len(target.ids) == 30)
            assert not consumer.status().why

    asyncio.run(test())


@both_kinds
def test_a_gap_is_recorded_and_passed(tmp_path: Path, kind: type[TargetSettings]) -> None:
    async def test() -> None:
        journal, target, log = Broken(), Target(), RecordingLog()
        consumer = a_consumer(journal, kind(target=target), tmp_path, log=log)
        await append(journal, [an_event(number) for number in range(30)], block=10)
        await consumer.prepare()
        journal.gone = 20
        for _ in range(2):
            consumer = a_consumer(journal, kind(target=target), tmp_path, log=log)
            async with running(consumer):
                await until_settled(consumer, journal)
        assert target.ids == [str(number) for number in range(20, 30)]
        assert [gap[:3] for gap in consumer.control.gaps] == [("0", 0, 19)]
        assert consumer.status().gaps == 1

    asyncio.run(test())


def test_a_detached_consumer_holds_nothing_until_it_is_resumed(tmp_path: Path) -> None:
    async def test() -> None:
        journal, target = MemoryJournal(), Target()
        settings = TargetSettings(target=target)
        consumer = a_consumer(journal, settings, tmp_path)
        await append(journal, [an_event(0)])
        async with running(consumer):
            await until_settled(consumer, journal)
            assert journal.holds
            await consumer.detach("the journal is full")
            await eventually(lambda: consumer._slots is None, "its last commit is done")
            assert not journal.holds
            await consumer.pause("still")
            assert consumer.control.detached
        consumer = a_consumer(journal, settings, tmp_path)
        async with running(consumer):
            assert not journal.holds
            await consumer.resume()
            await append(journal, [an_event(1)])
            await until_settled(consumer, journal)
            assert journal.holds
        assert target.ids == ["0", "1"]

    asyncio.run(test())


@pytest.mark.parametrize("space", ["cursor", "control", "parked:target"])
def test_damage_in_what_is_stored_fails_the_journal(tmp_path: Path, space: str) -> None:
    async def test(journal: ConsumerJournal) -> None:
        consumer = a_consumer(journal, TargetSettings(target=Target(failing("0")), retry=LONG), tmp_path)
        await append(journal, [an_event(0)])
        async with running(consumer):
            await until(lambda: parked_rows(consumer), "parked")
        await consumer.pause("")
        ((key, value),) = await journal.store.scan(space, b"", None, 2)
        await journal.submit(Change(rows=[Row(space, key, value[:-1] + bytes([value[-1] ^ 1]))]))
        consumer = a_consumer(journal, TargetSettings(target=Target()), tmp_path)
        with pytest.raises(JournalFailed, match="is damaged"):
            await begin(consumer)

    run("sqlite", tmp_path, test)


class Keeping(Target):
    """A sink that stores its cursor with its lines, and dies between that and the verdict."""

    def __init__(self) -> None:
        super().__init__()
        self.shards: dict[str, ShardCursor] = {}
        self.bad = {"3"}

    async def position(self) -> Cursor | None:
        return Cursor(self.shards) if self.shards else None

    async def deliver(self, batch: Batch) -> Verdict:
        assert batch.cursor is not None
        if self.bad & {event.id for event in batch.events}:
            raise Permanent("not this one")
        self.lines += batch.lines
        self.shards |= batch.cursor.shards
        await asyncio.sleep(0)
        return Verdict()


@both_engines
def test_a_sink_that_stores_its_cursor_gets_each_event_once(tmp_path: Path, engine: str) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Keeping()
        settings = BulkSettings(target=target, batch=BatchSize(size=4))
        await append(journal, [an_event(number, str(number)) for number in range(40)], "rows", 10)
        await append(journal, [an_event(number, str(number)) for number in range(40, 80)], "more", 10)
        for turns in range(0, 120, 3):
            consumer = a_consumer(journal, settings, tmp_path)
            await consumer.prepare()
            task = asyncio.create_task(consumer.run())
            for _ in range(turns):
                await asyncio.sleep(0)
            await crashed(task)
        consumer = a_consumer(journal, settings, tmp_path)
        async with running(consumer):
            await until_settled(consumer, journal)
        assert sorted(target.ids, key=int) == [str(number) for number in range(80) if number != 3]
        assert len(await dead_rows(consumer)) == 1

    run(engine, tmp_path, test)


def test_a_target_beyond_the_journal_is_refused(tmp_path: Path) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Keeping()
        target.shards = {"0": ShardCursor(1_000)}
        consumer = a_consumer(journal, BulkSettings(target=target), tmp_path)
        await consumer.prepare()
        with pytest.raises(Fatal, match="beyond the journal's end"):
            await consumer.run()

    run("sqlite", tmp_path, test)


@both_kinds
def test_parking_is_bounded_and_others_go_on_while_there_is_room(tmp_path: Path, kind: type[TargetSettings]) -> None:
    """100,000 events behind a failing one: 10,000 are parked, the rest waits in the journal, none is dropped."""

    async def test(journal: ConsumerJournal) -> None:
        clock, target = FakeClock(), Target(failing("0", times=1))
        consumer = a_consumer(journal, kind(target=target, retry=LONG, batch=BatchSize(size=500)), tmp_path, clock)
        events = [an_event(number, "free" if number % 100 == 50 else "poison") for number in range(20_000)]
        await append(journal, events, block=500)
        async with running(consumer):
            await eventually(lambda: consumer.status().parked >= 10_000, "full", 30)
            before = len(target.ids)
            assert before >= 90
            (flow,) = consumer._flows.values()
            assert consumer.status().parked <= 11_000
            await eventually(lambda: sum(item.line is not None for item in flow.order._open.values()) < 600, "stored")
            await advance(clock, lambda: "0" in target.ids, step=3600)
            await eventually(lambda: len(target.ids) == 20_000, "all", 60)
        poison = [event.id for event in target.events if event.partitionkey == "poison"]
        assert poison == sorted(poison, key=int)
        assert len(poison) == 19_800

    async def main() -> None:
        await test(MemoryJournal(shards=1))

    asyncio.run(main())


def test_reload_goes_on_where_the_old_one_stopped(tmp_path: Path) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Target()
        await append(journal, [an_event(number, str(number % 7)) for number in range(500)])
        for kind, ordering in ((TargetSettings, "key"), (BulkSettings, "none"), (TargetSettings, "strict")) * 4:
            consumer = a_consumer(journal, kind(target=target, ordering=ordering, concurrency=3), tmp_path)
            async with running(consumer):
                before = len(target.ids)
                await eventually(lambda before=before: len(target.ids) > before or len(target.ids) >= 500, "some")  # type: ignore[misc]
        async with running(consumer := a_consumer(journal, TargetSettings(target=target), tmp_path)):
            await until_settled(consumer, journal)
        assert sorted(target.ids, key=int) == [str(number) for number in range(500)]

    run("sqlite", tmp_path, test)


@both_engines
@pytest.mark.parametrize("kind", [TargetSettings, BulkSettings])
def test_above_its_dead_letter_limit_a_consumer_pauses(tmp_path: Path, engine: str, kind: type[TargetSettings]) -> None:
    async def test(journal: ConsumerJournal) -> None:
        target = Target(failing(*map(str, range(10))))
        settings = kind(target=target, dead_letter_limit=3, retry=Retry(attempts=1), batch=BatchSize(size=1))
        consumer = a_consumer(journal, settings, tmp_path)
        await append(journal, [an_event(number, str(number)) for number in range(10)])
        async with running(consumer):
            await eventually(lambda: consumer.status().state == "paused", "paused")
            assert "dead_letter_limit is 3" in consumer.status().why
        assert len(await dead_rows(consumer)) == 4, "nothing is lost at the limit"
        consumer = a_consumer(journal, settings, tmp_path)
        async with running(consumer):
            assert consumer.status().state == "paused", "also across a restart"
            target.answer = None
            for shard, position, _, _ in [letter async for letter in consumer.given_up.all()]:
                await consumer.given_up.redrive(shard, position)
            assert consumer.counts.kept == 0
            await consumer.resume()
            await until_settled(consumer, journal)
        assert sorted(target.ids) == [str(number) for number in range(10)]

    run(engine, tmp_path, test)


@both_engines
@pytest.mark.parametrize("kind", [TargetSettings, BulkSettings])
def test_who_returns_events_round_and_round_becomes_a_dead_letter(
    tmp_path: Path, engine: str, kind: type[TargetSettings]
) -> None:
    async def test(journal: ConsumerJournal) -> None:
        async def answer(batch: Batch) -> Verdict:
            return Verdict(events=[(at, event) for at, event in zip(batch.positions, batch.events, strict=True)])

        target = Target(answer)
        consumer = a_consumer(journal, kind(target=target), tmp_path)
        await append(journal, [an_event(1)])
        async with running(consumer):
            await until(lambda: dead_rows(consumer), "given up")
            await until_settled(consumer, journal)
            assert len(target.batches) == 17, "the event and 16 of its line"
            ((_, letter),) = (await dead_rows(consumer)).items()
            assert Event.parse(letter.line).extensions == {"headracehops": 16}
            assert "more than 16 times" in letter.failure.error
            assert letter.failure.attempts == 1
            await consumer.given_up.redrive(*await only_dead(consumer))
            await until(lambda: given_up_again(consumer, letter.line), "once more around")
        assert len(target.batches) == 34
        assert [event.extensions.get("headraceredrive") for event in target.events[16:]] == [None, True] + [None] * 16

    run(engine, tmp_path, test)


async def given_up_again(consumer: Consumer, line: bytes) -> bool:
    return [letter.line for letter in (await dead_rows(consumer)).values()] not in ([], [line])
