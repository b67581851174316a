"""A replay: ranges of the journal that are sent again beside the live flow, marked `headracereplay`.

It is a flow of its own with a cursor of its own, committed together with the consumer's. What is parked of it has rows
under the shard's name with `+replay` behind it; its dead letters are the shard's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from headrace.delivery.cursor import REPLAY, Parked, Replay, ShardCursor
from headrace.delivery.gate import Gate
from headrace.delivery.keyed import KeyedFlow
from headrace.delivery.order import Item
from headrace.event import Event
from headrace.journal.block import Block
from headrace.protocols import Position


class ReplayFlow(KeyedFlow):
    """The events of one shard to be replayed, and the gate that their keys' live events wait at.

    `pending` are the positions that the live flow has parked: they were never settled, and come there.
    """

    def __init__(self, shard: str, ordering: str, replay: Replay, pending: frozenset[Position]) -> None:
        super().__init__(shard + REPLAY, ordering, replay.at)
        self.gate = Gate()
        self._ranges = replay.ranges
        self._firsts = [first for first, _ in replay.ranges]
        self._pending = pending

    @property
    def journal_shard(self) -> str:
        return self.shard.removesuffix(REPLAY)

    @property
    def end(self) -> Position:
        """Behind the last position to replay."""
        return self._ranges[-1][1] + 1

    @property
    def left(self) -> int:
        """How many events are still to be delivered."""
        return self.gate.left

    @property
    def finished(self) -> bool:
        """Whether nothing of it is left."""
        return self.read >= self.end and not (self._window or self.parked or self._recalled)

    def stored_form(self) -> Replay:
        """What a restart has to go on from."""
        return Replay(self.cursor(), self._ranges)

    def includes(self, position: Position) -> bool:
        at = bisect_right(self._firsts, position) - 1
        return at >= 0 and position <= self._ranges[at][1] and position not in self._pending

    def recall(self, position: Position, parked: Parked) -> None:
        super().recall(position, parked)
        self.gate.add_item(self._recalled[position])

    def expect(self, block: Block, indices: Sequence[int]) -> None:
        """Close the gate for events that will be replayed. To be called in order, before anything is admitted."""
        for index in indices:
            if not self.settled_before(block.first + index):
                self.gate.add(*self.ordered(block.keys[index], block.special.get(index)))

    def expected(self) -> None:
        """All of it was announced: reading may begin."""
        self._passed_done = 0

    def item(self, block: Block, index: int) -> Item:
        item = super().item(block, index)
        item.line = marked(item.line or b"")
        return item

    def _finish(self, item: Item) -> None:
        super()._finish(item)
        self.gate.settled(item)


def marked(line: bytes) -> bytes:
    """The event with `headracereplay`, a CloudEvents extension attribute."""
    event = Event.parse(line)
    return msgspec.structs.replace(event, extensions={**event.extensions, "headracereplay": True}).line()


def included(flow: ReplayFlow, block: Block, indices: Sequence[int]) -> list[int]:
    """Those of a block's events that are to be replayed."""
    return [index for index in indices if flow.includes(block.first + index)]


def replay_of(settled: ShardCursor, first: Position, end: Position) -> Replay | None:
    """What of `first` up to `end` (excluded) was settled; None where nothing was. The rest comes anyway."""
    ranges = []
    for one, other in ((0, settled.low - 1), *settled.done):
        start, last = max(one, first), min(other, end - 1)
        if start <= last:
            ranges.append((start, last))
    return Replay(ShardCursor(ranges[0][0]), tuple(ranges)) if ranges else None
