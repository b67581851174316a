"""What notifications say, on its way to the task that owns the inventory: bounded, in order, never waited for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from headrace.sources.objects.records import Hint

LIMIT: Final = 50_000  # hints waiting, some 40 MB; beyond it a listing is cheaper


class Taken(NamedTuple):
    """Hints, and what is to be called once their events are durable."""

    hints: Sequence[Hint]
    done: Sequence[Callable[[], None]]


class Hints:
    """Filled by whoever listens, emptied by the follower.

    `connected`: what happens from now on is told, so a listing that begins now misses nothing. When hints were lost,
    by a cut connection or because nobody took them in time, `take_listing` is true once.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._hints: deque[Hint] = deque()
        self._done: list[Callable[[], None]] = []
        self._awaited: set[object] = set()
        self._listing = False
        self.overflows = 0
        self.held_back: set[object] = set()  # streams whose server tells late
        self.woken = asyncio.Event()

    @property
    def connected(self) -> bool:
        return not self._awaited

    def expect(self, stream: object) -> None:
        """This stream is not there yet, or not any more."""
        self._awaited.add(stream)

    def arrived(self, stream: object) -> None:
        """The stream tells everything from now on; what it did not tell needs a listing."""
        self._awaited.discard(stream)
        self.want_listing()

    def absent(self, stream: object) -> None:
        """There is nothing that the stream could tell of."""
        self._awaited.discard(stream)
        self.woken.set()

    def want_listing(self) -> None:
        self._listing = True
        self.woken.set()

    def put(self, hints: Sequence[Hint], done: Callable[[], None] | None = None) -> None:
        """Add them. Where they do not fit, all are forgotten and a listing is wanted; `done` is called then, too."""
        self._hints.extend(hints)
        if len(self._hints) > self._limit:
            self._hints.clear()
            self.overflows += 1
            self.want_listing()
        if done is not None:
            self._done.append(done)
        self.woken.set()

    def take(self, limit: int) -> Taken:
        """The next hints; what is done with them only when none waits before its turn."""
        hints = [self._hints.popleft() for _ in range(min(limit, len(self._hints)))]
        if self._hints:
            return Taken(hints, ())
        done, self._done = self._done, []
        return Taken(hints, done)

    def take_listing(self) -> bool:
        listing, self._listing = self._listing, False
        return listing

    def __len__(self) -> int:
        return len(self._hints)
