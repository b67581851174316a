"""What the operator does with a consumer's cursor: `seek` and `replay`. Each is one change, between two runs."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from headrace.delivery.consumer import Consumer
from headrace.delivery.cursor import REPLAY, Cursor, Replay, ShardCursor
from headrace.delivery.replay import replay_of
from headrace.errors import Permanent
from headrace.failpoints import reach
from headrace.protocols import Change, Position, Row


async def seek(consumer: Consumer, to: Mapping[str, Position]) -> Mapping[str, Position]:
    """Go on from there, as near as the journal has it; returns where that is. What is parked stays parked."""
    async with consumer.between_runs() as cursor:
        await _movable(consumer, cursor, "moved")
        journal, shards = consumer.journal, dict(cursor.shards)
        for shard, position in to.items():
            consumer.hold(shard, position)
            at = min(max(position, await journal.oldest(shard)), journal.head(shard))
            shards[shard] = ShardCursor(at)
        await _write(consumer, msgspec.structs.replace(cursor, shards=shards))
        return {shard: at.low for shard, at in shards.items()}


async def replay(consumer: Consumer, first: Mapping[str, Position], end: Mapping[str, Position]) -> int:
    """Send what was delivered of `first` up to `end` (excluded) again; returns how many positions that are.

    Durable on return: a restart goes on with it.
    """
    async with consumer.between_runs() as cursor:
        await _movable(consumer, cursor, "replayed")
        replays: dict[str, Replay] = {}
        for shard, settled in cursor.shards.items():
            consumer.hold(shard, min(first[shard], settled.low))
            start = max(first[shard], await consumer.journal.oldest(shard))
            if made := replay_of(settled, start, end[shard]):
                replays[shard] = made
        await _write(consumer, msgspec.structs.replace(cursor, replays=replays))
        return sum(last - start + 1 for made in replays.values() for start, last in made.ranges)


async def cancel_replay(consumer: Consumer) -> None:
    """Send no more of it: what it has parked is forgotten, as it was settled before. Raises `Permanent`."""
    async with consumer.between_runs() as cursor:
        if not cursor.replays:
            raise Permanent(f"consumer {consumer.name} has no replay")
        parked = [(shard, at) async for shard, at, _ in consumer.records.parked() if shard.endswith(REPLAY)]
        rows = [consumer.records.parked_row(shard, at, None) for shard, at in parked]
        await _write(consumer, msgspec.structs.replace(cursor, replays={}), rows)


async def _movable(consumer: Consumer, cursor: Cursor, what: str) -> None:
    name = consumer.name
    if cursor.replays:
        hint = f"wait until it is done, or `headrace replay {name} --cancel`"
        raise Permanent(f"consumer {name} is in a replay", hint=hint)
    if consumer.control.detached:
        raise Permanent(f"consumer {name} is detached", hint=f"`headrace resume {name}` first")
    if await consumer.stores_cursor(cursor.state):
        hint = "empty or change the target instead"
        raise Permanent(f"consumer {name} cannot be {what}: its target stores the cursor with its data", hint=hint)


async def _write(consumer: Consumer, cursor: Cursor, rows: list[Row] | None = None) -> None:
    reach("delivery.before-move")
    await consumer.journal.submit(Change(rows=[*(rows or ()), consumer.records.cursor_row(cursor)]))
    reach("delivery.after-move")
    consumer.moved(cursor)
