"""The state of one shard on its way to one consumer: what is open, ready, parked and complete. No I/O, no clock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from headrace.delivery.cursor import (
    DeadLetter,
    Failure,
    Parked,
    ShardCursor,
    encode,
    parse_row_key,
    ranges_between,
    row_key,
)
from headrace.delivery.order import STRICT_KEY, Item, Order
from headrace.delivery.run import Piece, Run
from headrace.event import key_hash, source_seed
from headrace.journal.block import Block, Special
from headrace.protocols import Position

WINDOW_EVENTS: Final = 2_048  # events read and neither complete nor parked
WINDOW_BYTES: Final = 8 << 20
PARKED_EVENTS: Final = 10_000  # beyond it nothing more is read, so that parking is bounded too


class _Keys(msgspec.Struct):
    partitionkey: str | None = None
    previouskey: str | None = None
    barrier: str | None = None


_keys_of = msgspec.json.Decoder(_Keys).decode


class Flow:
    """The events of one shard that one consumer has not settled yet.

    They enter in the order of the journal by `admit`, are taken by `take`, and settled by exactly one of `delivered`,
    `put_back`, `park` and `bury`. `rows` and `dead` are what the next commit has to write.
    """

    def __init__(self, shard: str, ordering: str, cursor: ShardCursor, parked: Mapping[Position, Parked]) -> None:
        self.shard = shard
        self.order = Order()
        self.read = cursor.low
        self.rows: dict[bytes, bytes | None] = {}
        self.dead: dict[bytes, bytes] = {}
        self.parked = 0
        self._ordering = ordering
        self._window: dict[Position, Item] = {}
        self._window_bytes = 0
        self._ready: deque[Item] = deque()
        self._due: list[tuple[float, Position, Item]] = []
        self._done = deque(cursor.done)
        self._stored = dict(sorted(parked.items()))
        self._resume_end = max([last + 1 for _, last in cursor.done] + [position + 1 for position in parked], default=0)
        self._taken: set[Position] = set()
        self._run: Run | None = None
        self.runs: deque[Run] = deque()
        self._admit_stored(cursor.low)

    # Entering.

    @property
    def has_room(self) -> bool:
        """Whether more may be read."""
        return (
            len(self._window) < WINDOW_EVENTS and self._window_bytes < WINDOW_BYTES and self.parked < self._parked_limit
        )

    @property
    def _parked_limit(self) -> int:
        return 1 if self._ordering == "strict" else PARKED_EVENTS

    def admit(self, block: Block, index: int) -> None:
        """One event from the journal; what the last run completed or parked already is known by its position."""
        if not self.settled_before(block.first + index):
            self._enter(self.item(block, index))

    def settled_before(self, position: Position) -> bool:
        """Whether the event was settled before the restart."""
        return position < self._resume_end and self._known(position)

    def item(self, block: Block, index: int) -> Item:
        source = block.kinds[block.kind_of[index]].source
        key, special = self._ordered(block.keys[index], block.special.get(index))
        return Item(block.first + index, block.line(index), source, key, special)

    def _ordered(self, key: int, special: Special | None) -> tuple[int, Special | None]:
        if self._ordering == "key":
            return key, special
        return (STRICT_KEY if self._ordering == "strict" else 0), None

    def _enter(self, item: Item) -> None:
        ready = self.order.admit(item)
        if item.parked:
            self._store(item)
            self.parked += 1
            return
        self._window[item.position] = item
        self._window_bytes += len(item.line or b"")
        if ready:
            self._ready.append(item)

    def _known(self, position: Position) -> bool:
        # Parked events take their place in the order when their position is reached.
        self._admit_stored(position + 1)
        while self._done and self._done[0][1] < position:
            self._done.popleft()
        return position in self.order or bool(self._done and self._done[0][0] <= position)

    def _admit_stored(self, before: Position) -> None:
        while self._stored and (position := next(iter(self._stored))) < before:
            self.restore(position, self._stored.pop(position))

    def restore(self, position: Position, parked: Parked) -> None:
        """A parked event, from its row: after a restart, or redriven."""
        keys, seed = _keys_of(parked.line), source_seed(parked.source)
        special = Special(key_hash(seed, keys.previouskey), keys.barrier) if keys.previouskey or keys.barrier else None
        key, special = self._ordered(key_hash(seed, keys.partitionkey), special)
        item = Item(position, parked.line, parked.source, key, special)
        item.failure = parked.failure if parked.failure.attempts else None
        item.retry_at, item.held, item.parked = parked.retry_at, parked.held, True
        self.parked += 1
        if self.order.admit(item):
            self._schedule(item)
        item.key_texts()
        item.line = None

    # Leaving.

    def take(self, limit: int, now: float) -> list[Item]:
        """Up to `limit` events to deliver now; one that failed before comes alone."""
        if self._due and self._due[0][0] <= now:
            items = [heapq.heappop(self._due)[2]]
        else:
            items = [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
        self._taken.update(item.position for item in items)
        return items

    @property
    def has_ready(self) -> bool:
        return bool(self._ready or self.runs)

    @property
    def next_due(self) -> float | None:
        return self._due[0][0] if self._due else None

    def delivered(self, item: Item) -> None:
        if item.parked:
            self.rows[row_key(self.shard, item.position)] = None
        self._finish(item)

    def put_back(self, item: Item) -> None:
        """Not tried after all: it is the next one again."""
        self._taken.discard(item.position)
        if item.parked:
            self._schedule(item)
        else:
            self._ready.appendleft(item)

    def park(self, item: Item, failure: Failure, retry_at: float, *, held: bool = False) -> None:
        """The event failed: it and all that waits for it are stored, so that the others can go on."""
        self._taken.discard(item.position)
        item.failure, item.retry_at, item.held = failure, retry_at, held
        for one in (item, *self.order.behind(item)):
            self._leave_window(one)
        self._store(item)
        self._schedule(item)

    def bury(self, item: Item, failure: Failure) -> None:
        """The event is given up: it becomes a dead letter, and its key goes on."""
        key = row_key(self.shard, item.position)
        self.dead[key] = encode(DeadLetter(item.line or b"", item.source, failure))
        self.delivered(item)

    def take_rows(self) -> tuple[list[Position], dict[bytes, bytes | None], dict[bytes, bytes]]:
        """What the next commit writes: the positions parked now, their rows, and the dead letters."""
        rows, dead = self.rows, self.dead
        self.rows, self.dead = {}, {}
        return [parse_row_key(key)[1] for key, value in rows.items() if value is not None], rows, dead

    def stored(self, positions: Sequence[Position]) -> None:
        """The rows of these parked events are durable, so their lines need no memory."""
        for position in positions:
            item = self.order.get(position)
            if item and item.parked and position not in self._taken:
                item.key_texts()
                item.line = None

    def _leave_window(self, item: Item) -> None:
        if self._window.pop(item.position, None):
            self._window_bytes -= len(item.line or b"")
        if not item.parked:
            item.parked = True
            self.parked += 1
            self._store(item)

    def _store(self, item: Item) -> None:
        if item.line is None:
            return
        parked = Parked(item.line, item.source, item.failure or Failure(), item.retry_at, item.held)
        self.rows[row_key(self.shard, item.position)] = encode(parked)

    def _finish(self, item: Item) -> None:
        self._taken.discard(item.position)
        if item.parked:
            self.parked -= 1
        elif self._window.pop(item.position, None):
            self._window_bytes -= len(item.line or b"")
        for freed in self.order.complete(item):
            if freed.parked:
                self._schedule(freed)
            else:
                self._ready.append(freed)

    def _schedule(self, item: Item) -> None:
        if not item.held:
            heapq.heappush(self._due, (item.retry_at, item.position, item))

    def admit_again(self, position: Position, parked: Parked) -> None:
        """A redriven event; one that is held here goes on in its place."""
        item = self.order.get(position)
        if item is None:
            return self.restore(position, parked)
        item.failure, item.held, item.retry_at = None, False, 0.0
        return self._schedule(item)

    def discard(self, position: Position) -> None:
        """A held event is given up: its key goes on."""
        item = self.order.get(position)
        if item and item.held:
            self._finish(item)

    # In bulk: whole runs of events, delivered one run at a time.

    def resuming(self, position: Position) -> bool:
        """Whether something at or behind the position was settled before the restart."""
        return position < self._resume_end

    def enqueue(self, run: Run) -> None:
        """A run to deliver; the cursor does not pass it until it ends."""
        self.runs.append(run)
        self.read = max(self.read, run.end)

    def take_run(self) -> Run | None:
        if self._run or not self.runs:
            return None
        self._run = self.runs.popleft()
        return self._run

    def end_run(self) -> None:
        self._run = None

    def without_parked(self, run: Run) -> Run:
        """The run without the events that must wait behind a parked one; these are parked as well."""
        if not len(self.order):
            return run
        kept: list[Piece] = []
        for block, indices in run.pieces:
            free = [index for index in indices if not self._parks(block, index)]
            if free:
                kept.append(Piece(block, free))
        return Run(kept, run.end)

    def _parks(self, block: Block, index: int) -> bool:
        key, special = self._ordered(block.keys[index], block.special.get(index))
        if not self.order.concerns(key, special):
            return False
        item = self.item(block, index)
        if not self.order.admit(item):
            self._keep(item)
            return True
        self.order.complete(item)
        return False

    def enter(self, block: Block, index: int) -> Item:
        """An event of the run as an item of its own, parked: it failed, or waits for one that did."""
        item = self.item(block, index)
        self.order.admit(item)
        self._keep(item)
        return item

    def _keep(self, item: Item) -> None:
        item.parked = True
        self.parked += 1
        self._store(item)

    # Progress.

    def pending(self) -> Iterator[Position]:
        return iter(self._window)

    def cursor(self) -> ShardCursor:
        """Where a restart has to go on: everything else is complete or parked."""
        if run := self._run or (self.runs[0] if self.runs else None):
            return ShardCursor(run.first)
        pending = sorted(self._window)
        low = pending[0] if pending else self.read
        ahead = [done for done in self._done if done[0] >= self.read]
        return ShardCursor(low, (*ranges_between(pending, low, self.read), *ahead))
