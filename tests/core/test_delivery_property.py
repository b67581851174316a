"""Random events, sinks, failures and crashes: nothing is lost, order holds, only the uncommitted comes again."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field
from itertools import combinations, count
from pathlib import Path
from typing import Any

import pytest

from headrace.delivery.consumer import Consumer
from headrace.errors import Permanent, Transient
from headrace.event import Event
from headrace.protocols import Batch, ConsumerJournal, Verdict
from headrace.settings import BatchSize
from tests.core.delivery_rig import (
    ENGINES,
    QUICK,
    BulkSettings,
    TargetSettings,
    a_consumer,
    a_journal,
    append,
    crashed,
    parked_rows,
    until_settled,
)

KEYS = ("a/1", "a/2", "b/1", "b/2", None)
BARRIERS = ("a/", "b/", "")
SOURCES = ("rows", "more", "other")

SEEDS = int(os.environ.get("HEADRACE_TEST_SEEDS", "12"))


@dataclass
class Delivery:
    """One event in one delivery; `ended` is None where it was not acknowledged."""

    event: int
    began: int
    ended: int | None = None


@dataclass
class World:
    """The events, the sink's moods, and all that was delivered in all lives."""

    chance: random.Random
    events: dict[int, Event]
    poison: set[int]
    complete: set[int] = field(default_factory=set)
    log: list[Delivery] = field(default_factory=list)
    ticks: count[int] = field(default_factory=count)
    calm: bool = False

    async def deliver(self, batch: Batch) -> Verdict:
        entries = [Delivery(int(event.id), next(self.ticks)) for event in batch.events]
        assert list(batch.positions) == sorted(batch.positions)
        again = [entry.event for entry in entries if entry.event in self.complete]
        assert not again, f"committed, and delivered again: {again}"
        self.log += entries
        for _ in range(self.chance.choice((0, 0, 1, 3, 20))):
            await asyncio.sleep(0)
        return self.answer(batch, entries)

    def answer(self, batch: Batch, entries: list[Delivery]) -> Verdict:
        bad = next((i for i, entry in enumerate(entries) if self.fails(entry.event)), None)
        mood = self.chance.random()
        if mood < 0.1 and not self.calm:
            raise Transient("away")
        if bad is None or (mood > 0.9 and not self.calm and self.poison.isdisjoint(it.event for it in entries)):
            self.end(entries)
            return Verdict(state=b"%d" % next(self.ticks))
        if mood < 0.5:
            raise self.chance.choice((Permanent("no"), RuntimeError("a bug"), asyncio.CancelledError(), SystemExit(3)))
        self.end(entries[:bad])
        return Verdict(failed={batch.positions[bad]: "no"}, skipped=batch.positions[bad + 1 :])

    def fails(self, event: int) -> bool:
        return event in self.poison or (not self.calm and self.chance.random() < 0.05)

    def end(self, entries: list[Delivery]) -> None:
        for entry in entries:
            entry.ended = next(self.ticks)


class Sink:
    """The world as the consumer sees it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.opened = 0

    async def deliver(self, batch: Batch) -> Verdict:
        return await self.world.deliver(batch)


def made_events(chance: random.Random, size: int) -> dict[int, Event]:
    events = {}
    for number in range(size):
        key, source = chance.choice(KEYS), chance.choice(SOURCES)
        extra: dict[str, Any] = {}
        if chance.random() < 0.12:
            extra["previouskey"] = chance.choice(KEYS)
        elif chance.random() < 0.06:
            key, extra["barrier"] = None, chance.choice(BARRIERS)
        events[number] = Event(id=str(number), source=source, type="made", partitionkey=key, **extra)
    return events


def related(first: Event, second: Event, ordering: str) -> bool:
    """Whether the second must wait for the first."""
    if first.source != second.source or ordering == "none":
        return False
    keys, others = texts(first), texts(second)
    shared = {first.partitionkey, first.previouskey} & {second.partitionkey, second.previouskey} - {None}
    under = any(key.startswith(second.barrier) for key in keys) if second.barrier is not None else False
    behind = any(key.startswith(first.barrier) for key in others) if first.barrier is not None else False
    return ordering == "strict" or bool(shared) or under or behind


def texts(event: Event) -> list[str]:
    return [key for key in (event.partitionkey, event.previouskey, event.barrier) if key is not None]


async def live(world: World, settings: TargetSettings, journal: ConsumerJournal, tmp_path: Path) -> None:
    """One life that ends by a crash, or in the middle of a stop."""
    consumer = a_consumer(journal, settings, tmp_path)
    await consumer.prepare()
    world.complete = await complete(world, consumer, journal)
    task = asyncio.create_task(consumer.run())
    if world.chance.random() < 0.5:
        await asyncio.sleep(world.chance.random() * 0.02)
    for _ in range(world.chance.randint(0, 200)):
        await asyncio.sleep(0)
    if world.chance.random() < 0.3:
        await consumer.stop(world.chance.choice((0.0, 0.001, 1.0)))
    await crashed(task)


async def complete(world: World, consumer: Consumer, journal: ConsumerJournal) -> set[int]:
    """The events that the stored cursor has behind it."""
    cursor = await consumer.records.cursor()
    assert cursor is not None
    parked = {(shard, position) async for shard, position, _ in consumer.records.parked()}
    found = set()
    for shard, at in cursor.shards.items():
        page = await journal.read(shard, 0, lambda _: True)
        places = [(block.first + i, block.line(i)) for block in page.blocks for i in range(block.count)]
        for position, line in places:
            done = position < at.low or any(first <= position <= last for first, last in at.done)
            if done and (shard, position) not in parked:
                found.add(int(Event.parse(line).id))
    return found


async def feed(world: World, journal: ConsumerJournal) -> None:
    for source in SOURCES:
        mine = [event for event in world.events.values() if event.source == source]
        while mine:
            size = world.chance.randint(1, 15)
            await append(journal, mine[:size], source)
            mine = mine[size:]


async def scenario(seed: int, engine: str, settings: TargetSettings, world: World, tmp_path: Path) -> None:
    async with asyncio.timeout(30), a_journal(engine, tmp_path) as journal:
        await feed(world, journal)
        for _ in range(world.chance.randint(1, 4)):
            await live(world, settings, journal, tmp_path)
        world.calm = True
        consumer = a_consumer(journal, settings, tmp_path)
        await consumer.prepare()
        world.complete = await complete(world, consumer, journal)
        task = asyncio.create_task(consumer.run())
        await until_settled(consumer, journal)
        await consumer.stop(1.0)
        await task
        dead = {int(Event.parse(letter.line).id) for letter in (await dead_letters(consumer))}
        assert not await parked_rows(consumer)
    check(world, dead, settings)


async def dead_letters(consumer: Consumer) -> list[Any]:
    return [letter async for _, _, letter, _ in consumer.given_up.all()]


def check(world: World, dead: set[int], settings: TargetSettings) -> None:
    acknowledged = [entry for entry in world.log if entry.ended is not None]
    delivered = {entry.event for entry in acknowledged}
    assert delivered | dead == set(world.events), "lost"
    assert world.poison <= dead
    begins: dict[int, int] = {}
    for entry in world.log:
        begins.setdefault(entry.event, entry.began)
    firsts: dict[int, int] = {}
    lasts: dict[int, int] = {}
    for entry in sorted(acknowledged, key=lambda it: it.ended or 0):
        firsts.setdefault(entry.event, entry.ended or 0)
        lasts[entry.event] = entry.ended or 0
    for first, second in combinations(sorted(world.events), 2):
        if related(world.events[first], world.events[second], settings.ordering) and not {first, second} & dead:
            # A sink that takes a batch sees all of it at once, so only the ends are in order there.
            began = firsts[second] if settings.bulk else begins[second]
            assert firsts[first] < began, f"{second} did not wait for {first}"
            assert lasts[first] < lasts[second], f"{first} came again behind {second}"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ordering", ["key", "strict", "none"])
@pytest.mark.parametrize("bulk", [False, True])
def test_random_lives(tmp_path: Path, engine: str, ordering: str, bulk: bool) -> None:
    for seed in range(SEEDS if engine == "memory" else max(3, SEEDS // 4)):
        chance = random.Random(f"{seed} {ordering} {bulk}")
        events = made_events(chance, chance.choice((5, 40, 120)))
        world = World(chance, events, {number for number in events if chance.random() < 0.03})
        kind = BulkSettings if bulk else TargetSettings
        settings = kind(
            target=Sink(world),
            ordering=ordering,
            retry=QUICK,
            batch=BatchSize(size=chance.choice((1, 3, 50))),
            concurrency=chance.randint(1, 8),
        )
        (tmp_path / str(seed)).mkdir()
        try:
            asyncio.run(scenario(seed, engine, settings, world, tmp_path / str(seed)))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
