"""Which keys have events still to be replayed, so that their live ones wait. No I/O, no clock."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Final

from headrace.delivery.order import Item
from headrace.journal.block import Special

BUCKETS: Final = 1 << 18  # of key hashes: 1 MiB; keys that share one wait for each other's replay, which is harmless
ALL: Final = -1


class Gate:
    """Counts by key what a replay has not settled. A live event passes once nothing of its keys is left.

    A barrier in the replay stops all keys, and a live barrier waits for the whole replay.
    """

    def __init__(self) -> None:
        self._counts = array("I", bytes(4 * BUCKETS))
        self._left = 0
        self._barriers = 0
        self._waiting: dict[int, list[Item]] = {}
        self.release: Callable[[Item], None] = lambda _: None

    @property
    def left(self) -> int:
        """How many events are still to be replayed."""
        return self._left

    def add(self, key: int, special: Special | None) -> None:
        """An event to be replayed."""
        self._left += 1
        if special and special.barrier is not None:
            self._barriers += 1
        for bucket in _buckets(key, special.previous if special else 0):
            self._counts[bucket] += 1

    def add_item(self, item: Item) -> None:
        self.add(item.key, Special(item.previous, item.barrier))

    def settled(self, item: Item) -> None:
        """One of those is delivered or given up: who waited for it alone is released."""
        self._left -= 1
        opened = []
        if item.barrier is not None:
            self._barriers -= 1
        if not (self._barriers and self._left):
            opened.append(ALL)
        for bucket in _buckets(item.key, item.previous):
            self._counts[bucket] -= 1
            if not self._counts[bucket]:
                opened.append(bucket)
        for bucket in opened:
            for waiting in self._waiting.pop(bucket, ()):
                if not self.stops(waiting):
                    self.release(waiting)

    def stops(self, item: Item) -> bool:
        """Whether a live event has to wait; then it is released later."""
        reason = self._reason(item.key, item.previous, barrier=item.barrier is not None)
        if reason is None:
            return False
        self._waiting.setdefault(reason, []).append(item)
        return True

    def shut(self, key: int, special: Special | None) -> bool:
        """Whether a live event with these keys would have to wait."""
        barrier = special is not None and special.barrier is not None
        return self._reason(key, special.previous if special else 0, barrier=barrier) is not None

    def _reason(self, key: int, previous: int, *, barrier: bool) -> int | None:
        if self._left and (barrier or self._barriers):
            return ALL
        return next((bucket for bucket in _buckets(key, previous) if self._counts[bucket]), None)


def _buckets(key: int, previous: int) -> tuple[int, ...]:
    if previous and previous != key:
        return (key % BUCKETS, previous % BUCKETS) if key else (previous % BUCKETS,)
    return (key % BUCKETS,) if key else ()
