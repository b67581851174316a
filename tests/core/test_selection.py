"""`on` and `where` in delivery: who gets what, what is decoded, and who pays for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace.delivery.selection import Selection, Selections
from headrace.event import Event, source_seed
from headrace.journal.block import Block, Lines, seal
from headrace.pattern import Pattern
from headrace.settings import BatchSize
from headrace.testing import FakeClock
from headrace.testing.leaks import eventually
from tests.core.delivery_rig import (
    ENGINES,
    BulkSettings,
    Target,
    TargetSettings,
    a_consumer,
    a_journal,
    advance,
    an_event,
    append,
    cursor_of,
    running,
    until_settled,
)

KINDS = (TargetSettings, BulkSettings)


def a_block(events: Sequence[Event], source: str = "rows") -> Block:
    sealed = seal(source, Lines.of(list(events), source_seed(source)))
    return Block(sealed.head(100, 0, 0), sealed.index, sealed.body)


def sized(count: int) -> list[Event]:
    return [an_event(number, data={"size": number}) for number in range(count)]


LARGE: Mapping[str, Any] = {"data": {"size": [{"numeric": [">=", 7]}]}}


def test_where_chooses_behind_on() -> None:
    block = a_block(sized(10))
    pattern = Pattern(LARGE)
    assert list(Selection(["rows"], pattern).indices(block, 0)) == [7, 8, 9]
    assert list(Selection(["rows"], pattern).indices(block, 8)) == [8, 9]
    assert not Selection(["rows.other"], pattern).indices(block, 0)
    assert Selection(["rows"]).indices(block, 4) == range(4, 10)


def test_lines_of_a_block_without_a_wanted_kind_are_never_decoded() -> None:
    sealed = seal("rows", Lines.of(sized(10), source_seed("rows")))
    block = Block(sealed.head(100, 0, 0), b"damaged", b"damaged")
    selection = Selections().of(["rows.other"], LARGE)
    assert not selection.wants(block.kinds)
    assert not selection.indices(block, 0), "neither lines nor index were looked at"


def test_consumers_that_ask_for_the_same_pay_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Block] = []
    indices = Pattern.indices

    def counted(self: Pattern, block: Block, wanted: Sequence[int]) -> list[int]:
        asked.append(block)
        return indices(self, block, wanted)

    monkeypatch.setattr(Pattern, "indices", counted)
    selections = Selections()
    same = [selections.of(["rows"], dict(LARGE)) for _ in range(3)]
    block = a_block(sized(10))
    assert [list(each.indices(block, 0)) for each in same] == [[7, 8, 9]] * 3
    assert len(asked) == 1
    assert selections.of(None, LARGE) is not same[0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_only_matching_events_are_delivered_and_the_cursor_passes_the_others(
    tmp_path: Path, engine: str, kind: type[TargetSettings]
) -> None:
    async def scenario() -> None:
        target = Target()
        settings = kind(target=target, where=LARGE)
        async with a_journal(engine, tmp_path) as journal:
            await append(journal, [*sized(10), *sized(5)], block=4)
            consumer = a_consumer(journal, settings, tmp_path)
            async with running(consumer):
                await until_settled(consumer, journal)
                await append(journal, sized(9), block=4)
                await eventually(lambda: len(target.ids) == 5, "the later ones")
                await until_settled(consumer, journal)
            lows = (await cursor_of(consumer)).shards
            assert all(lows[shard].low == journal.head(shard) for shard in journal.shards)
        assert sorted(target.ids) == ["7", "7", "8", "8", "9"]

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_batch_wait_gathers_until_the_time_or_the_size(tmp_path: Path, kind: type[TargetSettings]) -> None:
    async def scenario() -> None:
        target, clock = Target(), FakeClock()
        batch = BatchSize.model_validate({"size": 10, "wait": "5s"})
        settings = kind(target=target, batch=batch, ordering="none")
        async with a_journal("sqlite", tmp_path) as journal:
            consumer = a_consumer(journal, settings, tmp_path, clock)
            async with running(consumer):
                began = clock.time()
                await append(journal, [an_event(number, None) for number in range(3)], block=1)
                await advance(clock, lambda: bool(target.batches), step=0.5)
                assert [len(each) for each in target.batches] == [3], "all that came within the time"
                assert clock.time() - began >= 5
                before = clock.time()
                await append(journal, [an_event(number, None) for number in range(10)], block=1)
                await eventually(lambda: len(target.batches) == 2, "a full batch waits for nothing")
                assert len(target.batches[1]) == 10
                assert clock.time() == before

    asyncio.run(scenario())
