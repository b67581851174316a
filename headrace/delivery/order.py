"""Which events may be delivered now: one at a time per key, and barriers.

Every open event waits for the last open one of each of its keys, so what is open forms a graph, and completing an
event frees those that waited for it alone. None waits for one of a higher rank, so there is no circle. No I/O here.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from headrace.delivery.cursor import Failure
from headrace.journal.block import Special
from headrace.protocols import Position

STRICT_KEY = 1  # the one key of all events under `ordering = "strict"`


class _Key(msgspec.Struct):
    partitionkey: str | None = None
    previouskey: str | None = None


_key_of = msgspec.json.Decoder(_Key).decode


class Item:
    """An event on its way to one consumer. `line` is None once it is parked and stored.

    `busy` says that a parked event is being delivered, so that its line is needed. `rank` is its place in the order:
    its position, or, where it is redriven, that of the next event to be read then.
    """

    __slots__ = (
        "barrier",
        "busy",
        "dependents",
        "failure",
        "held",
        "key",
        "line",
        "parked",
        "position",
        "previous",
        "rank",
        "retry_at",
        "source",
        "texts",
        "waits",
    )

    def __init__(self, position: Position, line: bytes, source: str, key: int, special: Special | None) -> None:
        self.position = self.rank = position
        self.line: bytes | None = line
        self.source = source
        self.key = key
        self.previous = special.previous if special else 0
        self.barrier = special.barrier if special else None
        self.failure: Failure | None = None
        self.retry_at = 0.0
        self.held = False
        self.parked = False
        self.busy = False
        self.waits = 0
        self.dependents: list[Item] | None = None
        self.texts: tuple[str, ...] | None = None

    def hashes(self) -> Iterator[int]:
        if self.key:
            yield self.key
        if self.previous and self.previous != self.key:
            yield self.previous

    def related(self, other: Item) -> bool:
        """Whether one of the two must wait for the other."""
        if not set(self.hashes()).isdisjoint(other.hashes()):
            return True
        under = self.barrier is not None and other.under(self.source, self.barrier)
        return under or (other.barrier is not None and self.under(other.source, other.barrier))

    def under(self, source: str, prefix: str) -> bool:
        """Whether a barrier of this source with this prefix concerns the event."""
        return self.source == source and any(text.startswith(prefix) for text in self.key_texts())

    def key_texts(self) -> tuple[str, ...]:
        """The keys themselves; must be asked for once before `line` is given up."""
        if self.texts is None:
            found = _key_of(self.line or b"{}")
            keys = (found.partitionkey, found.previouskey, self.barrier)
            self.texts = tuple(key for key in keys if key is not None)
        return self.texts


class Order:
    """The graph of one shard's open events."""

    def __init__(self) -> None:
        self._last: dict[int, Item] = {}
        self._open: dict[Position, Item] = {}
        self._barriers: list[Item] = []
        self._top = -1  # no open event has a higher rank

    def __len__(self) -> int:
        return len(self._open)

    def get(self, position: Position) -> Item | None:
        return self._open.get(position)

    def admit(self, item: Item) -> bool:
        """Add an event behind all that are open; whether it need not wait for another.

        It is parked where any event that it waits for is: its turn may be far away.
        """
        for key in item.hashes():
            if (last := self._last.get(key)) is not None:
                self._wait(item, last)
            self._last[key] = item
        for barrier in self._barriers:
            if item.under(barrier.source, barrier.barrier or ""):
                self._wait(item, barrier)
        if item.barrier is not None:
            self._admit_barrier(item, item.barrier)
        self._open[item.position] = item
        self._top = max(self._top, item.rank)
        return not item.waits

    def must_wait(self, item: Item) -> bool:
        """Whether an event that is not open waits for an open one."""
        if item.rank > self._top and any(key in self._last for key in item.hashes()):
            return True
        return any(other.rank <= item.rank and item.related(other) for other in self._open.values())

    def insert(self, item: Item) -> None:
        """Add an event also before open ones: those of a higher rank that must wait for it do so from now on."""
        if item.rank > self._top or not self._open:
            self.admit(item)
            return
        for other in self._open.values():
            if item.related(other):
                later, earlier = (item, other) if other.rank <= item.rank else (other, item)
                self._wait(later, earlier)
        for key in item.hashes():
            last = self._last.get(key)
            if last is None or last.rank <= item.rank:
                self._last[key] = item
        if item.barrier is not None:
            self._barriers.append(item)
        self._open[item.position] = item

    def _admit_barrier(self, item: Item, prefix: str) -> None:
        for earlier in self._open.values():
            if earlier.under(item.source, prefix):
                self._wait(item, earlier)
        self._barriers.append(item)

    @staticmethod
    def _wait(item: Item, earlier: Item) -> None:
        if earlier.dependents is None:
            earlier.dependents = []
        earlier.dependents.append(item)
        item.waits += 1
        item.parked = item.parked or earlier.parked

    def complete(self, item: Item) -> list[Item]:
        """Take an event out; returns those that waited for nothing else, in order."""
        del self._open[item.position]
        for key in item.hashes():
            if self._last.get(key) is item:
                del self._last[key]
        if item.barrier is not None:
            self._barriers.remove(item)
        freed = []
        for dependent in item.dependents or ():
            dependent.waits -= 1
            if not dependent.waits:
                freed.append(dependent)
        return freed

    def concerns(self, key: int, special: Special | None) -> bool:
        """Whether an event with this key would have to wait; says yes too often where there are barriers."""
        if self._barriers or key in self._last:
            return True
        return special is not None and (special.barrier is not None or special.previous in self._last)

    @staticmethod
    def behind(item: Item) -> Iterator[Item]:
        """All that waits for an event, directly or not."""
        stack, seen = list(item.dependents or ()), set()
        while stack:
            one = stack.pop()
            if one.position not in seen:
                seen.add(one.position)
                yield one
                stack.extend(one.dependents or ())
