"""Which rows the live stream changed since a listing began: the listing may be older than they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

LIMIT: Final = 100_000


class Touched:
    """Bounded: beyond `LIMIT` keys it forgets and says so by `overflowed`: every difference needs the origin's word."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._keys: set[bytes] | None = None
        self.overflowed = False

    def begin(self) -> None:
        self._keys = set()
        self.overflowed = False

    def end(self) -> None:
        self._keys = None

    def add(self, keys: Iterable[bytes]) -> None:
        if self._keys is None or self.overflowed:
            return
        self._keys.update(keys)
        if len(self._keys) > self._limit:
            self._keys.clear()
            self.overflowed = True

    def __contains__(self, key: bytes) -> bool:
        return self._keys is not None and key in self._keys
