"""Directories that appeared, and whose content is still to be listed: each once, in order, bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from headrace.inventory import PAGE, Found
from headrace.sources.filesystem.walk import Walker

LIMIT: Final = 10_000  # directories waiting; beyond it a listing of the whole tree is cheaper


class Appeared:
    """What waits below a directory that waits itself is listed with it. `walker` makes what lists one directory.

    `unreadable`: directories that could not be listed, for the caller to take out.
    """

    def __init__(self, walker: Callable[[bytes], Walker], limit: int = LIMIT) -> None:
        self._make = walker
        self._limit = limit
        self._waiting: dict[bytes, None] = {}
        self._walker: Walker | None = None
        self.unreadable: dict[bytes, OSError] = {}

    def __bool__(self) -> bool:
        return self._walker is not None or bool(self._waiting)

    def add(self, path: bytes) -> bool:
        """List it, once its turn comes. False where too many wait: only a comparison finds what is in it."""
        if self._awaited(path):
            return True
        if len(self._waiting) >= self._limit:
            return False
        self._waiting[path] = None
        return True

    def _awaited(self, path: bytes) -> bool:
        while path and path not in self._waiting:
            path = path.rpartition(b"/")[0]
        return bool(path)

    def page(self) -> list[Found]:
        """The next entries; none only where nothing waits any more. Blocking."""
        page: list[Found] = []
        while self and len(page) < PAGE:
            walker = self._walker = self._walker or self._make(self._next())
            found = walker.page(PAGE - len(page))
            page += found
            if not found:
                self.unreadable |= walker.unreadable
                self._walker = None
        return page

    def _next(self) -> bytes:
        path = next(iter(self._waiting))
        del self._waiting[path]
        return path
