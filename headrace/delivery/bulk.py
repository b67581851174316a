"""The flow of whole runs of events, delivered one at a time in the order of the journal."""

from __future__ import annotations

from collections import deque
from typing import Final

from headrace.delivery.cursor import ShardCursor
from headrace.delivery.flow import Flow
from headrace.delivery.order import Item
from headrace.delivery.run import Piece, Run
from headrace.journal.block import Block
from headrace.protocols import Position

QUEUED_RUNS: Final = 2


class BulkFlow(Flow):
    """Only parked events are in the order. A run is settled from its front, and `passed` says how far."""

    def __init__(self, shard: str, ordering: str, cursor: ShardCursor) -> None:
        super().__init__(shard, ordering, cursor)
        self._runs: deque[Run] = deque()
        self._at: Position | None = None  # how far the run in delivery is settled

    @property
    def has_room(self) -> bool:
        return len(self._runs) < QUEUED_RUNS and super().has_room

    def fresh(self, piece: Piece) -> Piece:
        """Without what an earlier run settled."""
        block, indices = piece
        if block.first >= self._resume_end:
            return piece
        return Piece(block, [index for index in indices if not self.settled_before(block.first + index)])

    def enqueue(self, run: Run) -> None:
        self._runs.append(run)
        self.read = max(self.read, run.end)

    def advance(self, position: Position) -> None:
        self.read = max(self.read, position)
        if self._at is None and not self._runs:
            self._admit_recalled(self.read)

    def take(self, limit: int, now: float) -> list[Item] | Run | None:
        if (due := self._take_due(now)) is not None:
            return [due]
        if not self._runs:
            return None
        run = self._runs.popleft()
        self._at = run.first
        return run

    def passed(self, position: Position) -> None:
        """Everything before `position` is settled."""
        if self._at is not None:
            self._at = max(self._at, position)

    def end_run(self) -> None:
        self._at = None
        self._admit_recalled(self._low)

    def without_parked(self, run: Run) -> Run:
        """The run without the events that must wait behind a parked one; these are parked as well."""
        if not (len(self.order) or self._recalled_before(run.end) or self.gated):
            return run
        kept: list[Piece] = []
        for block, indices in run.pieces:
            free = [index for index in indices if not self._parks(block, index)]
            if free:
                kept.append(Piece(block, free))
        return Run(kept, run.end)

    def _parks(self, block: Block, index: int) -> bool:
        self._admit_recalled(block.first + index)
        key, special = self.ordered(block.keys[index], block.special.get(index))
        shut = self._gate is not None and self._gate.shut(key, special)
        if not (shut or self.order.concerns(key, special)):
            return False
        item = self.item(block, index)
        waits = shut or self.order.must_wait(item)
        if waits:
            self._park_entered(item)
            self._stop_at_gate(item)
        return waits

    def enter(self, block: Block, index: int) -> Item:
        """An event of the run as an item of its own, parked: it failed."""
        item = self.item(block, index)
        self._park_entered(item)
        return item

    def _park_entered(self, item: Item) -> None:
        # What is behind it in the run may be parked already: it takes its place before that.
        self.order.insert(item)
        item.parked = True
        self.parked += 1
        self._keep(item)

    @property
    def _low(self) -> Position:
        if self._at is not None:
            return self._at
        return self._runs[0].first if self._runs else self.read

    def cursor(self) -> ShardCursor:
        low = self._low
        return ShardCursor(low, tuple(done for done in self._done if done[1] >= low))
