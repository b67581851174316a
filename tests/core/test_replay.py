"""`seek` and `replay`: where a consumer goes on, and what it gets again beside the live flow."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace.delivery import moves
from headrace.delivery.consumer import Consumer
from headrace.delivery.cursor import Cursor, ShardCursor
from headrace.delivery.replay import replay_of
from headrace.errors import Permanent
from headrace.event import Event
from headrace.protocols import Batch, ConsumerJournal, Verdict
from headrace.settings import BatchSize, Retry
from headrace.testing.leaks import eventually
from tests.core.delivery_rig import (
    ENGINES,
    QUICK,
    BulkSettings,
    Target,
    TargetSettings,
    a_consumer,
    a_journal,
    an_event,
    append,
    cursor_of,
    failing,
    parked_rows,
    running,
    until,
    until_settled,
)

KINDS = (TargetSettings, BulkSettings)


def events_of(numbers: Sequence[int], keys: int = 3) -> list[Event]:
    return [an_event(number, f"key/{number % keys}") for number in numbers]


def everywhere(journal: ConsumerJournal, position: int) -> dict[str, int]:
    return dict.fromkeys(journal.shards, position)


def heads(journal: ConsumerJournal) -> dict[str, int]:
    return {shard: journal.head(shard) for shard in journal.shards}


async def over(consumer: Consumer) -> bool:
    return not (await cursor_of(consumer)).replays


async def replayed(consumer: Consumer, journal: ConsumerJournal, first: int = 0) -> int:
    return await moves.replay(consumer, everywhere(journal, first), heads(journal))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_seek_goes_back_and_forth(tmp_path: Path, engine: str, kind: type[TargetSettings]) -> None:
    async def scenario() -> None:
        target = Target()
        async with a_journal(engine, tmp_path) as journal:
            await append(journal, events_of(range(20)))
            consumer = a_consumer(journal, kind(target=target), tmp_path)
            async with running(consumer):
                await until_settled(consumer, journal)
                await moves.seek(consumer, everywhere(journal, 0))
                await eventually(lambda: len(target.ids) == 40, "all of it again")
                await until_settled(consumer, journal)
                await consumer.pause("")
                await append(journal, events_of(range(20, 30)))
                await moves.seek(consumer, heads(journal))
                await consumer.resume()
                await append(journal, events_of(range(30, 33)))
                await eventually(lambda: len(target.ids) == 43, "the last three")
        assert sorted(target.ids, key=int)[-3:] == ["30", "31", "32"]
        assert not any("headracereplay" in event.extensions for event in target.events)

    asyncio.run(scenario())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_sends_again_marked_and_live_events_wait_for_their_key(
    tmp_path: Path, engine: str, kind: type[TargetSettings]
) -> None:
    open_again = asyncio.Event()

    async def answer(batch: Batch) -> Verdict | None:
        if any(event.partitionkey == "key/0" and "headracereplay" in event.extensions for event in batch.events):
            await open_again.wait()
        return None

    async def scenario() -> None:
        target = Target()
        settings = kind(target=target, concurrency=4, batch=BatchSize(size=1))
        async with a_journal(engine, tmp_path) as journal:
            await append(journal, events_of(range(30)))
            consumer = a_consumer(journal, settings, tmp_path)
            async with running(consumer):
                await until_settled(consumer, journal)
                target.answer = answer
                assert await replayed(consumer, journal) == 30
                await append(journal, events_of(range(30, 36)))
                if kind is TargetSettings:
                    await eventually(lambda: {"31", "32", "34", "35"} <= set(target.ids), "other keys go on")
                    assert not {"30", "33"} & set(target.ids), "this key waits"
                    assert consumer.status().replaying
                open_again.set()
                await until(lambda: over(consumer), "replayed")
                await until_settled(consumer, journal)
                assert consumer.status().replaying == 0
        marked = [event.id for event in target.events if event.extensions.get("headracereplay") is True]
        assert sorted(marked, key=int) == [str(number) for number in range(30)]
        for key in range(3):
            mine = [int(event.id) for event in target.events[30:] if event.partitionkey == f"key/{key}"]
            assert mine == list(range(key, 36, 3)), "replayed ones first, each key in order"

    asyncio.run(scenario())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_replay_is_parked_and_dead_lettered_like_any_other(
    tmp_path: Path, engine: str, kind: type[TargetSettings]
) -> None:
    async def scenario() -> None:
        target = Target()
        async with a_journal(engine, tmp_path) as journal:
            await append(journal, events_of(range(10), keys=2))
            consumer = a_consumer(journal, kind(target=target, retry=QUICK), tmp_path)
            async with running(consumer):
                await until_settled(consumer, journal)
                target.answer = failing("4", times=3)
                await replayed(consumer, journal)
                await until(lambda: over(consumer), "replayed")
                (shard, position), letter = await one_dead(consumer)
                assert b'"headracereplay":true' in letter
                await consumer.given_up.redrive(shard, position)
                await eventually(lambda: len(target.ids) == 20, "redriven")
                await until_settled(consumer, journal)
        assert target.events[-1].extensions == {"headracereplay": True, "headraceredrive": True}

    asyncio.run(scenario())


async def one_dead(consumer: Consumer) -> tuple[tuple[str, int], bytes]:
    ((shard, position, letter),) = [each async for each in consumer.records.dead()]
    return (shard, position), letter.line


@pytest.mark.parametrize("engine", ENGINES)
def test_a_held_event_of_a_replay_holds_its_key_until_the_operator_acts(tmp_path: Path, engine: str) -> None:
    async def scenario() -> None:
        target = Target()
        settings = TargetSettings(target=target, on_failure="hold-key", retry=Retry(attempts=1))
        async with a_journal(engine, tmp_path) as journal:
            await append(journal, events_of(range(6), keys=2))
            consumer = a_consumer(journal, settings, tmp_path)
            async with running(consumer):
                await until_settled(consumer, journal)
                target.answer = failing("2")
                await replayed(consumer, journal)
                await until(lambda: parked_rows(consumer), "held")
                await append(journal, events_of([6, 7], keys=2))
                await eventually(lambda: "7" in target.ids, "the other key goes on")
                assert "6" not in target.ids
            consumer = a_consumer(journal, settings, tmp_path)
            async with running(consumer):
                target.answer = None
                held = [it async for it in consumer.given_up.all()]
                ((shard, position, _, is_held),) = held
                assert is_held
                assert shard.endswith("+replay")
                assert "6" not in target.ids, "also across a restart"
                await consumer.given_up.redrive(shard, position)
                await until(lambda: over(consumer), "replayed")
                await until_settled(consumer, journal)
        again = [event.id for event in target.events[6:] if event.partitionkey == "key/0"]
        assert again == ["0", "2", "4", "6"]
        live = [event.id for event in target.events if "headracereplay" not in event.extensions]
        assert len(set(live)) == len(live), "only what is marked came again"

    asyncio.run(scenario())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_crashes_in_a_replay_lose_none_of_it(
    tmp_path: Path, engine: str, kind: type[TargetSettings], seed: int
) -> None:
    chance = random.Random(seed)

    async def moody(batch: Batch) -> Verdict | None:
        await asyncio.sleep(0)
        if chance.random() < 0.2:
            at = chance.randrange(len(batch))
            return Verdict(failed={batch.positions[at]: "no"}, skipped=batch.positions[at + 1 :])
        return None

    async def scenario() -> None:
        target = Target(moody)
        retry = Retry.model_validate({"initial": "1ms", "max": "2ms", "attempts": 1_000})
        settings = kind(target=target, retry=retry, concurrency=3, batch=BatchSize(size=chance.choice((1, 4, 30))))
        async with a_journal(engine, tmp_path) as journal:
            await append(journal, events_of(range(200), keys=7), block=20)
            consumer = a_consumer(journal, settings, tmp_path)
            async with running(consumer, crash=True):
                await until_settled(consumer, journal)
                await replayed(consumer, journal, first=3)
            await append(journal, events_of(range(200, 260), keys=7), block=20)
            for _ in range(6):
                consumer = a_consumer(journal, settings, tmp_path)
                async with running(consumer, crash=True):
                    await asyncio.sleep(chance.random() * 0.02)
            consumer = a_consumer(journal, settings, tmp_path)
            async with running(consumer):
                await until(lambda: over(consumer), "replayed")
                await until_settled(consumer, journal)
        check(target, kind)

    asyncio.run(scenario())


def check(target: Target, kind: type[TargetSettings]) -> None:
    marked = {int(event.id) for event in target.events if "headracereplay" in event.extensions}
    assert marked >= set(range(9, 200)), "lost"
    assert {int(event.id) for event in target.events} == set(range(260))
    last: dict[str, int] = {}
    seen: set[str] = set()
    for index, event in enumerate(target.events):
        if "headracereplay" in event.extensions and event.id not in seen:  # a crash may repeat what is not committed
            seen.add(event.id)
            last[str(event.partitionkey)] = index
    firsts = {e.partitionkey: i for i, e in reversed(list(enumerate(target.events))) if int(e.id) >= 200}
    if kind is TargetSettings:
        for key, index in firsts.items():
            assert last[str(key)] < index, f"a live event of {key} did not wait"


def test_what_is_not_delivered_yet_is_no_part_of_a_replay() -> None:
    settled = ShardCursor(10, ((12, 14), (20, 25)))
    made = replay_of(settled, 5, 22)
    assert made
    assert made.ranges == ((5, 9), (12, 14), (20, 21))
    assert made.at.low == 5
    assert replay_of(settled, 15, 20) is None


def test_a_second_replay_and_a_seek_are_refused_until_it_is_over_or_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        target = Target()
        async with a_journal("sqlite", tmp_path) as journal:
            await append(journal, events_of(range(10)))
            consumer = a_consumer(journal, TargetSettings(target=target), tmp_path)
            async with running(consumer):
                await until_settled(consumer, journal)
                await consumer.pause("")
                await replayed(consumer, journal)
                with pytest.raises(Permanent, match="in a replay"):
                    await replayed(consumer, journal)
                with pytest.raises(Permanent, match="in a replay"):
                    await moves.seek(consumer, heads(journal))
                await moves.cancel_replay(consumer)
                with pytest.raises(Permanent, match="has no replay"):
                    await moves.cancel_replay(consumer)
                await consumer.resume()
                await append(journal, events_of([10]))
                await eventually(lambda: "10" in target.ids, "goes on")
        assert len(target.ids) == 11

    asyncio.run(scenario())


class Storing(Target):
    """Keeps its cursor itself."""

    async def position(self) -> Cursor | None:
        return None


@pytest.mark.parametrize("opened", [False, True])
def test_a_target_that_stores_the_cursor_is_not_moved(tmp_path: Path, opened: bool) -> None:
    async def scenario() -> None:
        async with a_journal("sqlite", tmp_path) as journal:
            await append(journal, events_of(range(10)))
            consumer = a_consumer(journal, BulkSettings(target=Storing()), tmp_path)
            await consumer.prepare()
            if opened:
                async with running(consumer):
                    await until_settled(consumer, journal)
            with pytest.raises(Permanent, match="stores the cursor"):
                await replayed(consumer, journal)
            with pytest.raises(Permanent, match="stores the cursor"):
                await moves.seek(consumer, heads(journal))

    asyncio.run(scenario())
