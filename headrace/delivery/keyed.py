"""The flow of events one by one, so that keys run in parallel."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from headrace.delivery.cursor import ShardCursor, ranges_between
from headrace.delivery.flow import WINDOW_BYTES, Flow
from headrace.delivery.order import Item
from headrace.journal.block import Block
from headrace.protocols import Position

WINDOW_EVENTS: Final = 2_048  # events read and neither complete nor parked


class KeyedFlow(Flow):
    """Events enter by `admit`, in the order of the journal, and stay in a window until they are settled."""

    def __init__(self, shard: str, ordering: str, cursor: ShardCursor) -> None:
        super().__init__(shard, ordering, cursor)
        self._window: dict[Position, Item] = {}  # sorted, because events enter in order
        self._window_bytes = 0
        self._ready: deque[Item] = deque()

    @property
    def has_room(self) -> bool:
        return len(self._window) < WINDOW_EVENTS and self._window_bytes < WINDOW_BYTES and super().has_room

    @property
    def has_ready(self) -> bool:
        return bool(self._ready)

    def admit(self, block: Block, indices: Sequence[int]) -> None:
        """Some events of a block. `read` goes on with each, so the cursor passes none that has not entered."""
        for index in indices:
            position = block.first + index
            if not self.settled_before(position):
                self._admit_recalled(position)
                self._enter(self.item(block, index))
            self.read = position + 1

    def _enter(self, item: Item) -> None:
        ready = self.order.admit(item)
        self._stop_at_gate(item)
        if item.parked:
            self._wait_parked(item)
            return
        self._window[item.position] = item
        self._window_bytes += len(item.line or b"")
        if ready:
            self._ready.append(item)

    def _wait_parked(self, item: Item) -> None:
        self.parked += 1
        self._keep(item)

    def advance(self, position: Position) -> None:
        self.read = max(self.read, position)
        self._admit_recalled(self.read)

    def take(self, limit: int, now: float) -> list[Item] | None:
        if self._due and (due := self._take_due(now)) is not None:
            return [due]
        ready = self._ready
        if not ready:
            return None
        if limit == 1:
            return [ready.popleft()]
        items = [ready.popleft() for _ in range(min(limit, len(ready)))]
        items.sort(key=lambda item: item.position)
        return items

    def put_back(self, items: Sequence[Item]) -> None:
        """These were taken and not tried after all: they are the next ones again."""
        self._ready.extendleft(reversed(items))

    def _left(self, item: Item) -> None:
        del self._window[item.position]
        self._window_bytes -= len(item.line or b"")

    def _freed(self, item: Item) -> None:
        self._ready.append(item)

    def cursor(self) -> ShardCursor:
        pending = list(self._window)
        low = pending[0] if pending else self.read
        ahead = [(max(first, self.read), last) for first, last in self._done if last >= self.read]
        return ShardCursor(low, (*ranges_between(pending, low, self.read), *ahead))
