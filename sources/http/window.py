"""Which ids were captured already, for a window of time and a number of ids.

Two generations are known: the one that ids are added to, and the one before it. When the younger one is full or as old
as the window, the older is forgotten. So an id is known for the whole window, or until as many others have followed as
the window may hold. Every append keeps its ids in one row of state, committed together with its events.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from mmap import mmap
from typing import Final

from headrace.protocols import State, Write
from headrace.sources.http.parcel import ID_BYTES

PREFIX: Final = b"ids/"
PAGE: Final = 500  # rows in one read, and in one deletion

_EMPTY: Final = bytes(ID_BYTES)
_AT: Final = len(PREFIX)  # then the start of the generation (8 bytes) and the number of the row (8 bytes)


class Table:
    """A set of ids in one flat table, 32 bytes for each; a set of Python objects takes three times as much."""

    def __init__(self, capacity: int) -> None:
        self.count = 0
        slots = 1 << (2 * capacity - 1).bit_length()
        self._mask = slots - 1
        self._slots = mmap(-1, slots * ID_BYTES)  # zeroed pages, which cost nothing until they are used

    def __contains__(self, id_: bytes) -> bool:
        return bool(self.count) and self._find(id_)[1]

    def add(self, id_: bytes) -> None:
        if 4 * self.count > 3 * self._mask:  # one request brought more ids than the window is to hold
            self._grow()
        at, found = self._find(id_)
        if not found:
            self._slots[at : at + ID_BYTES] = id_
            self.count += 1

    def _grow(self) -> None:
        larger = Table(self._mask + 1)
        for at in range(0, len(self._slots), ID_BYTES):
            if (id_ := self._slots[at : at + ID_BYTES]) != _EMPTY:
                larger.add(id_)
        self._mask, self._slots = larger._mask, larger._slots

    def _find(self, id_: bytes) -> tuple[int, bool]:
        """The place of an id, or the free one for it."""
        slot = int.from_bytes(id_[:8]) & self._mask
        while True:
            at = slot * ID_BYTES
            found = self._slots[at : at + ID_BYTES]
            if found == id_:
                return at, True
            if found == _EMPTY:
                return at, False
            slot = (slot + 1) & self._mask


class Window:
    """The ids of one source. `start` of a generation is in milliseconds since 1970."""

    def __init__(self, seconds: float, most: int, now: float) -> None:
        self._milliseconds = int(seconds * 1000)
        self._most = most
        self._young = Table(most)
        self._old = Table(1)
        self._start = _instant(now)
        self._before = 0  # start of the older generation
        self._number = 0
        self._forgetting = False

    @classmethod
    async def load(cls, state: State, seconds: float, most: int, now: float) -> Window:
        """As the last run left it."""
        window = cls(seconds, most, now)
        after: bytes | None = None
        while rows := await state.scan(PREFIX, after, PAGE):
            for key, value in rows:
                window._remember(key, value)
            after = rows[-1][0]
        window.rotate(now)
        return window

    def _remember(self, key: bytes, value: bytes) -> None:
        start, number = int.from_bytes(key[_AT : _AT + 8]), int.from_bytes(key[_AT + 8 :])
        if not self._young.count:
            self._start = start
        elif start != self._start:
            self._next(start)
        self._number = number + 1
        for at in range(0, len(value), ID_BYTES):
            self._young.add(value[at : at + ID_BYTES])

    def __contains__(self, id_: bytes) -> bool:
        return id_ in self._young or id_ in self._old

    def rotate(self, now: float, coming: int = 0) -> None:
        """Begin a new generation where it is time for one; where none was begun for long, both are forgotten."""
        # A clock that was set back makes a generation younger than it is: it is kept for longer.
        age = _instant(now) - self._start
        for _ in range(min(2, age // self._milliseconds)):
            self._next(_instant(now))
        if self._young.count and self._young.count + coming > self._most:
            self._next(_instant(now))

    def _next(self, start: int) -> None:
        if self._young.count:
            self._forgetting = True
        self._old, self._young = self._young, Table(self._most)
        self._before, self._start = self._start, max(start, self._start + 1)
        self._number = 0

    def row(self, ids: Sequence[bytes]) -> list[Write]:
        """The row that keeps these ids; `add` them once it was handed over."""
        if not ids:
            return []
        key = PREFIX + self._start.to_bytes(8) + self._number.to_bytes(8)
        self._number += 1
        return [Write(key, b"".join(ids))]

    def add(self, ids: Iterable[bytes]) -> None:
        for id_ in ids:
            self._young.add(id_)

    async def forget(self, state: State) -> Sequence[Write]:
        """The deletion of a page of what is older than both generations."""
        if not self._forgetting:
            return ()
        rows = await state.scan(PREFIX, None, PAGE)
        gone = [key for key, _ in rows if int.from_bytes(key[_AT : _AT + 8]) < self._before]
        self._forgetting = len(gone) == PAGE
        return [Write(key, None) for key in gone]


def _instant(now: float) -> int:
    return max(0, int(now * 1000))
