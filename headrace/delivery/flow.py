"""What one consumer has not settled of one shard, and above all what is parked of it. No I/O, no clock."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from headrace.delivery.cursor import (
    DeadLetter,
    Failure,
    Parked,
    ShardCursor,
    encode,
    parse_row_key,
    row_key,
)
from headrace.delivery.gate import Gate
from headrace.delivery.order import STRICT_KEY, Item, Order
from headrace.delivery.run import Run
from headrace.event import key_hash, source_seed
from headrace.journal.block import Block, Special
from headrace.protocols import Position

WINDOW_BYTES: Final = 8 << 20  # of lines in memory: read and not settled, or parked and not stored yet
PARKED_EVENTS: Final = 10_000  # beyond it nothing more is read, so that parking is bounded too


class _Keys(msgspec.Struct):
    partitionkey: str | None = None
    previouskey: str | None = None
    barrier: str | None = None


_keys_of = msgspec.json.Decoder(_Keys).decode


class Flow:
    """The events of one shard on their way to one consumer; `KeyedFlow` and `BulkFlow` say how they come in.

    An event that `take` gave is settled by exactly one of `delivered`, `park` and `bury`. `rows` and `dead` are what
    the next commit has to write. Until then no cursor passes the event.
    """

    def __init__(self, shard: str, ordering: str, cursor: ShardCursor) -> None:
        self.shard = shard
        self.order = Order()
        self.read = cursor.low
        self.parked = 0
        self.rows: dict[bytes, bytes | None] = {}
        self.dead: dict[bytes, bytes] = {}
        self._row_bytes = 0
        self._ordering = ordering
        self._due: list[tuple[float, Position]] = []
        self._done = list(cursor.done)
        self._passed_done = 0
        self._recalled: dict[Position, Item] = {}
        self._parked_before: set[Position] = set()
        self._resume_end = self._done[-1][1] + 1 if self._done else cursor.low
        self._gate: Gate | None = None

    @property
    def journal_shard(self) -> str:
        """The shard to read from."""
        return self.shard

    # What a subclass answers.

    @property
    def has_room(self) -> bool:
        """Whether more may be read."""
        return self.parked < self._parked_limit and self._row_bytes < WINDOW_BYTES

    def take(self, limit: int, now: float) -> list[Item] | Run | None:
        """What to deliver next: up to `limit` events of which none waits for another. One that failed comes alone."""
        raise NotImplementedError

    def cursor(self) -> ShardCursor:
        """Where a restart has to go on: everything else is complete or parked."""
        raise NotImplementedError

    def advance(self, position: Position) -> None:
        """Everything before `position` has been read."""
        raise NotImplementedError

    def _left(self, item: Item) -> None:
        """The event is not parked, and leaves."""

    def _freed(self, item: Item) -> None:
        """The event is not parked, and waits for nothing any more."""

    # Events of an earlier run.

    @property
    def recalled(self) -> int:
        """How many parked events of an earlier run have not been reached yet."""
        return len(self._recalled)

    def recall(self, position: Position, parked: Parked) -> None:
        """A stored parked event, before anything is read; in order. It takes its place when reading reaches it."""
        self._recalled[position] = self._restored(position, parked)
        self._parked_before.add(position)
        self._resume_end = max(self._resume_end, position + 1)

    def recalled_positions(self) -> Iterable[Position]:
        """Those that an earlier run has parked."""
        return self._recalled

    def settled_before(self, position: Position) -> bool:
        """Whether an earlier run settled or parked the event. To be asked in the order of the journal."""
        if position >= self._resume_end:
            return False
        while self._passed_done < len(self._done) and self._done[self._passed_done][1] < position:
            self._passed_done += 1
        done = self._passed_done < len(self._done) and self._done[self._passed_done][0] <= position
        return done or position in self._parked_before

    def _admit_recalled(self, before: Position) -> None:
        while self._recalled and (position := next(iter(self._recalled))) < before:
            self._restore(self._recalled.pop(position))

    def _recalled_before(self, position: Position) -> bool:
        return bool(self._recalled) and next(iter(self._recalled)) < position

    def _restored(self, position: Position, parked: Parked) -> Item:
        keys, seed = _keys_of(parked.line), source_seed(parked.source)
        plain = keys.previouskey is None and keys.barrier is None
        special = None if plain else Special(key_hash(seed, keys.previouskey), keys.barrier)
        key, special = self.ordered(key_hash(seed, keys.partitionkey), special)
        item = Item(position, parked.line, parked.source, key, special)
        item.failure = parked.failure if parked.failure.attempts else None
        item.retry_at, item.held, item.parked = parked.retry_at, parked.held, True
        item.key_texts()
        item.line = None
        return item

    def _restore(self, item: Item) -> None:
        self.parked += 1
        self.order.admit(item)
        self._stop_at_gate(item)
        self._schedule(item)

    # Waiting for a replay.

    def wait_for(self, gate: Gate) -> None:
        """Events of keys that are being replayed wait, parked. To be called before anything enters."""
        self._gate = gate
        gate.release = self._pass_gate

    @property
    def gated(self) -> bool:
        return self._gate is not None and self._gate.left > 0

    def _stop_at_gate(self, item: Item) -> bool:
        """Whether an event that has just entered the order must wait, which makes it a parked one."""
        if self._gate is None or not self._gate.stops(item):
            return False
        item.waits += 1
        item.parked = True
        return True

    def _pass_gate(self, item: Item) -> None:
        item.waits -= 1
        self._schedule(item)

    # Entering.

    @property
    def _parked_limit(self) -> int:
        return 1 if self._ordering == "strict" else PARKED_EVENTS

    def ordered(self, key: int, special: Special | None) -> tuple[int, Special | None]:
        """What orders the event here, after `ordering`."""
        if self._ordering == "key":
            return key, special
        return (STRICT_KEY if self._ordering == "strict" else 0), None

    def item(self, block: Block, index: int) -> Item:
        """The event with what orders it."""
        source = block.kinds[block.kind_of[index]].source
        key, special = self.ordered(block.keys[index], block.special.get(index))
        return Item(block.first + index, block.line(index), source, key, special)

    # Settling.

    def delivered(self, item: Item) -> None:
        if item.parked:
            self.rows[row_key(self.shard, item.position)] = None
        self._finish(item)

    def park(self, item: Item, failure: Failure, retry_at: float, *, held: bool = False) -> None:
        """The event failed: it and all that waits for it are stored, so that the others can go on."""
        item.failure, item.retry_at, item.held, item.busy = failure, retry_at, held, False
        self._keep(item)
        for one in self.order.behind(item):
            if not one.parked:
                self._keep(one)
        self._schedule(item)

    def bury(self, item: Item, failure: Failure) -> None:
        """The event is given up: it becomes a dead letter, and its key goes on."""
        self.dead[row_key(self.journal_shard, item.position)] = encode(
            DeadLetter(item.line or b"", item.source, failure)
        )
        self._row_bytes += len(item.line or b"")
        self.delivered(item)

    def _keep(self, item: Item) -> None:
        if not item.parked:
            self._left(item)
            item.parked = True
            self.parked += 1
        if item.line is not None:
            parked = Parked(item.line, item.source, item.failure or Failure(), item.retry_at, item.held)
            self.rows[row_key(self.shard, item.position)] = encode(parked)
            self._row_bytes += len(item.line)

    def _finish(self, item: Item) -> None:
        if item.parked:
            self.parked -= 1
        else:
            self._left(item)
        for freed in self.order.complete(item):
            if freed.parked:
                self._schedule(freed)
            else:
                self._freed(freed)

    # Trying again.

    @property
    def next_due(self) -> float | None:
        return self._due[0][0] if self._due else None

    def _schedule(self, item: Item) -> None:
        if not (item.held or item.waits):
            heapq.heappush(self._due, (item.retry_at, item.position))

    def _take_due(self, now: float) -> Item | None:
        while self._due and self._due[0][0] <= now:
            at, position = heapq.heappop(self._due)
            item = self.order.get(position)
            if item and not (item.busy or item.held or item.waits) and item.retry_at == at:
                item.busy = True
                return item
        return None

    # Storing.

    def take_rows(self) -> tuple[list[Position], dict[bytes, bytes | None], dict[bytes, bytes]]:
        """What the next commit writes: the positions parked now, their rows, and the dead letters."""
        rows, dead = self.rows, self.dead
        self.rows, self.dead, self._row_bytes = {}, {}, 0
        return [parse_row_key(key)[1] for key, value in rows.items() if value is not None], rows, dead

    def stored(self, positions: Sequence[Position]) -> None:
        """The rows of these parked events are durable, so their lines need no memory."""
        for position in positions:
            item = self.order.get(position)
            if item and item.parked and not item.busy:
                item.key_texts()
                item.line = None

    # What the operator decides.

    def admit_again(self, position: Position, parked: Parked) -> None:
        """A redriven event, stored as `parked`; one that is held here goes on in its place."""
        if position in self._recalled:
            self._recalled[position] = self._restored(position, parked)
        elif (item := self.order.get(position)) is None:
            item = self._restored(position, parked)
            item.rank = max(position, self.read)
            self._restore(item)
        else:
            item.key_texts()
            item.line, item.failure, item.held, item.retry_at = None, None, False, 0.0
            self._schedule(item)

    def discard(self, position: Position) -> None:
        """A held event is given up: its key goes on."""
        if self._recalled.pop(position, None):
            return
        item = self.order.get(position)
        if item and item.held:
            self._finish(item)
