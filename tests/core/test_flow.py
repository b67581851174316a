"""Cursors of the flows: they pass nothing that is not settled, and a restart continues exactly there."""

from __future__ import annotations

import random
from typing import cast
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.delivery.bulk import BulkFlow
from headrace.delivery.cursor import (
    Control,
    Cursor,
    DeadLetter,
    Failure,
    Parked,
    Replay,
    ShardCursor,
    decode,
    encode,
    parse_row_key,
    ranges_between,
    row_key,
)
from headrace.delivery.keyed import KeyedFlow
from headrace.delivery.order import Item
from headrace.delivery.run import Piece, Run, runs_of
from headrace.errors import JournalFailed
from headrace.event import source_seed
from headrace.journal.block import Block, Lines, seal
from tests.core.delivery_rig import an_event


def a_block(first: int, count: int, keys: int = 3) -> Block:
    events = [an_event(n, str(n % keys)) for n in range(first, first + count)]
    sealed = seal("rows", Lines.of(events, source_seed("rows")))
    return Block(sealed.head(first, 1.0, 1.0), sealed.index, sealed.body)


@given(seed=st.integers(0, 1 << 32))
def test_a_restart_continues_exactly_at_the_cursor(seed: int) -> None:
    chance = random.Random(seed)
    block = a_block(0, 40)
    cursor, stored, settled = ShardCursor(0), dict[int, Parked](), set[int]()
    for _ in range(6):
        flow = KeyedFlow("0", "key", cursor)
        for position, parked in sorted(stored.items()):
            flow.recall(position, parked)
        flow.advance(flow.read)
        busy: list[Item] = []
        for _ in range(chance.randint(0, 60)):
            mood = chance.random()
            if mood < 0.3 and flow.read < 40:
                flow.admit(block, range(flow.read, min(40, flow.read + 5)))
            elif mood < 0.6:
                busy += flow.take(chance.randint(1, 3), 1e12) or []
            elif busy:
                _settle(chance, flow, busy.pop(chance.randrange(len(busy))), block, settled)
        positions, rows, _ = flow.take_rows()
        for key, value in rows.items():
            position = parse_row_key(key)[1]
            if value is None:
                stored.pop(position, None)
            else:
                stored[position] = decode(value, Parked)
        flow.stored(positions)
        cursor = flow.cursor()
        behind = {p for p in range(40) if p < cursor.low or any(a <= p <= b for a, b in cursor.done)}
        assert behind - stored.keys() == settled, "the cursor passes what is settled or parked, and only that"


def _settle(chance: random.Random, flow: KeyedFlow, item: Item, block: Block, settled: set[int]) -> None:
    item.line = block.line(item.position)
    mood = chance.random()
    if mood < 0.25:
        flow.park(item, Failure(1, 1.0, 1.0, "no"), 1.0)
        return
    assert item.position not in settled, "settled twice"
    settled.add(item.position)
    if mood < 0.35:
        flow.bury(item, Failure(3, 1.0, 1.0, "no"))
    else:
        flow.delivered(item)


def test_a_bulk_cursor_follows_the_run_from_its_front() -> None:
    flow, block = BulkFlow("0", "key", ShardCursor(0)), a_block(0, 30)
    for run in runs_of([Piece(block, range(30))], 10, 35):
        flow.enqueue(run)
    flow.advance(35)
    assert flow.cursor() == ShardCursor(0)
    assert isinstance(flow.take(1, 0.0), Run)
    flow.passed(4)
    assert flow.cursor() == ShardCursor(4)
    flow.passed(10)
    flow.end_run()
    assert flow.cursor() == ShardCursor(10)
    for _ in range(2):
        flow.take(1, 0.0)
        flow.end_run()
    assert flow.cursor() == ShardCursor(35)


def test_done_ranges_beyond_what_was_read_are_kept() -> None:
    flow = KeyedFlow("0", "none", ShardCursor(0, ((5, 20), (25, 29))))
    flow.admit(a_block(0, 40), range(10))
    assert flow.cursor() == ShardCursor(0, ((5, 9), (10, 20), (25, 29)))
    bulk = BulkFlow("0", "none", ShardCursor(0, ((5, 20), (25, 29))))
    fresh = bulk.fresh(Piece(a_block(0, 40), range(40)))
    assert list(fresh.indices) == [*range(5), *range(21, 25), *range(30, 40)]
    bulk.advance(10)
    assert bulk.cursor() == ShardCursor(10, ((5, 20), (25, 29)))


def test_ranges_between() -> None:
    assert list(ranges_between([3, 4, 9], 3, 12)) == [(5, 8), (10, 11)]
    assert list(ranges_between([], 3, 3)) == []


def test_run_splits_and_cuts() -> None:
    blocks = [a_block(0, 7), a_block(7, 5)]
    pieces = [Piece(blocks[0], range(1, 7)), Piece(blocks[1], [0, 2, 4])]
    (run,) = runs_of(pieces, 100, 20)
    assert list(run.positions) == [1, 2, 3, 4, 5, 6, 7, 9, 11]
    assert run.data == b"".join(block.line(index) for block, index in run.events())
    before, after = run.split()
    assert (list(before.positions), before.end) == ([1, 2, 3, 4], 5)
    assert (list(after.positions), after.end) == ([5, 6, 7, 9, 11], 20)
    cut = list(runs_of(pieces, 4, 20))
    assert [position for each in cut for position in each.positions] == list(run.positions)
    assert [each.end for each in cut] == [each.first for each in cut[1:]] + [20]


RECORDS: list[Cursor | Parked | DeadLetter | Control] = [
    Cursor({"0": ShardCursor(7, ((9, 12), (14, 14)))}, b"state"),
    Cursor({"0": ShardCursor(7)}, replays={"0": Replay(ShardCursor(3, ((5, 5),)), ((2, 4), (6, 6)))}),
    Parked(b"line\n", "rows", Failure(2, 1.5, 2.5, "why ä"), 3.5, held=True),
    DeadLetter(b"line\n", "rows", Failure(8, 1.0, 2.0, "no")),
    Control("paused", (("0", 1, 2, "gone"),), detached=True),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda it: type(it).__name__)
def test_records_round_trip_and_damage_is_found(record: Cursor | Parked | DeadLetter | Control) -> None:
    data, kind = encode(record), cast("type[Cursor]", type(record))
    assert decode(data, kind) == record
    for place in range(len(data)):
        damaged = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        with pytest.raises(JournalFailed):
            decode(damaged, kind)
    for length in range(len(data)):
        with pytest.raises(JournalFailed):
            decode(data[:length], kind)


def test_the_stored_format_does_not_change() -> None:
    """Written by version 0.1: it must be read for ever."""
    cursor = encode(RECORDS[0])
    before_replays = bytes.fromhex("9381a13092079292090c920e0ec405737461746501")
    assert decode(crc32(before_replays).to_bytes(4, "little") + before_replays, Cursor) == RECORDS[0]
    assert cursor[4:] == b"\x94" + before_replays[1:] + b"\x80"
    assert row_key("0", 258).hex() == "30000000000000000102"
