"""Consumers at the journal's head, told together: nobody misses anything, and nobody is woken for nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace.delivery import heads as heads_module
from headrace.delivery.heads import Heads
from headrace.delivery.selection import Selections
from headrace.event import Event
from headrace.protocols import ConsumerJournal
from headrace.testing.leaks import eventually
from tests.core.delivery_rig import (
    ENGINES,
    BulkSettings,
    Target,
    TargetSettings,
    a_consumer,
    a_journal,
    an_event,
    append,
    running,
    until_settled,
)
from tests.core.test_selection import a_block

WHERES: Sequence[Mapping[str, Any] | None] = (
    None,
    {"subject": ["s1"]},
    {"subject": ["s2", "s3"]},
    {"subject": ["s3"], "data": {"size": [{"numeric": ["<", 10]}]}},
    {"subject": [{"wildcard": "s*4"}]},
    {"data": {"size": [7, 8]}},
    {"data": {"size": [{"numeric": [">=", 18]}]}},
    {"data": {"size": [None]}},
    {"subject": ["nothing"]},
    {"data": {"other": [{"exists": False}], "size": [{"anything-but": [0, 1]}]}},
)


def events_of(numbers: Sequence[int]) -> list[Event]:
    return [an_event(n, key=str(n % 3), subject=f"s{n % 6}", data={"size": n % 20}) for n in numbers]


@asynccontextmanager
async def told_together(journal: ConsumerJournal) -> AsyncIterator[Heads]:
    heads = Heads(journal)
    task = asyncio.create_task(heads.run())
    await asyncio.sleep(0)
    try:
        yield heads
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stopped", [False, True])
def test_each_gets_what_it_would_get_alone(tmp_path: Path, engine: str, stopped: bool) -> None:
    """Blocks of many sizes at many moments, while consumers wait, read and lag; also when the watch ends on the way."""
    rng = random.Random(7)
    events = events_of(range(1_200))

    async def scenario() -> list[Target]:
        targets = [Target() for _ in WHERES]
        async with a_journal(engine, tmp_path) as journal, AsyncExitStack() as stack:
            heads = await stack.enter_async_context(told_together(journal)) if not stopped else None
            ending = AsyncExitStack()
            heads = heads or await ending.enter_async_context(told_together(journal))
            consumers = []
            for number, (where, target) in enumerate(zip(WHERES, targets, strict=True)):
                options = {} if where is None else {"where": where}
                settings = (TargetSettings, BulkSettings)[number % 2](target=target, **options)
                consumers.append(a_consumer(journal, settings, tmp_path, heads=heads, name=f"c{number}"))
                await stack.enter_async_context(running(consumers[-1]))
            sent = 0
            while sent < len(events):
                if stopped and sent > 500:
                    await ending.aclose()
                size = rng.choice((1, 1, 3, 40))
                await append(journal, events[sent : sent + size], source=rng.choice(("rows", "other")), block=20)
                sent += size
                for _ in range(rng.choice((0, 1, 5, 30))):
                    await asyncio.sleep(0)
            for consumer in consumers:
                await until_settled(consumer, journal)
            await ending.aclose()
        return targets

    targets = asyncio.run(scenario())
    for where, target in zip(WHERES, targets, strict=True):
        selection = Selections().of(None, where)
        block = a_block(events)
        assert sorted(target.ids, key=int) == [events[index].id for index in selection.indices(block, 0)], where


def test_who_wants_nothing_of_a_block_does_not_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads_module, "LATEST", 3_600.0)

    async def scenario() -> None:
        target, other = Target(), Target()
        async with a_journal("memory", tmp_path) as journal, told_together(journal) as heads:
            wants = a_consumer(journal, TargetSettings(target=target, where={"subject": ["s1"]}), tmp_path, heads=heads)
            misses = a_consumer(
                journal, TargetSettings(target=other, where={"subject": ["none"]}), tmp_path, heads=heads, name="misses"
            )
            async with running(wants), running(misses):
                await eventually(lambda: target.opened + other.opened == 2, "both run")
                for number in range(20):
                    await append(journal, events_of([number]))
                await eventually(lambda: target.ids == ["1", "7", "13", "19"], "its events")
                await eventually(lambda: wants.status().lag == 0, "it has settled")
                assert misses.status().lag == 20, "it has not even looked"

    asyncio.run(scenario())


def test_the_cursor_of_who_wants_nothing_comes_after(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with a_journal("sqlite", tmp_path) as journal, told_together(journal) as heads:
            settings = TargetSettings(target=Target(), where={"subject": ["none"]})
            consumer = a_consumer(journal, settings, tmp_path, heads=heads)
            async with running(consumer):
                await append(journal, events_of(range(50)))
                await until_settled(consumer, journal)

    asyncio.run(scenario())


def test_far_behind_each_reads_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads_module, "BEHIND", 10)

    async def scenario() -> None:
        target = Target()
        async with a_journal("memory", tmp_path) as journal, told_together(journal) as heads:
            settings = TargetSettings(target=target, where={"subject": ["s1"]})
            consumer = a_consumer(journal, settings, tmp_path, heads=heads)
            async with running(consumer):
                await eventually(lambda: target.opened == 1, "it runs")
                await append(journal, events_of(range(60)), block=60)
                await eventually(lambda: len(target.ids) == 10, "all ten")

    asyncio.run(scenario())
