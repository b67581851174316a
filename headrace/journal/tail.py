"""The newest blocks in memory, and who waits for the next one: what every engine needs for consumers at the head."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from headrace.errors import Fatal
from headrace.journal.block import Block, Kind
from headrace.protocols import Page, Position

TAIL_BYTES: Final = 8 << 20
PAGE_BYTES: Final = 2 << 20
BLOCK_COST: Final = 4_096  # bytes that a block takes beside its lines, about


class Tail:
    """The last blocks of one shard, about `limit` bytes of memory, each decoded once for all consumers."""

    def __init__(self, head: Position, limit: float = TAIL_BYTES) -> None:
        self.head = head
        self._limit = limit
        self._blocks: deque[Block] = deque()
        self._bytes = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._failed: Fatal | None = None

    @property
    def start(self) -> Position:
        """The first position that can be read from here."""
        return self._blocks[0].first if self._blocks else self.head

    def extend(self, blocks: Sequence[Block]) -> None:
        """Add durable blocks in order and wake who waits for them."""
        for block in blocks:
            self._blocks.append(block)
            self._bytes += block.raw_size + BLOCK_COST
            self.head = block.end
        while self._bytes > self._limit and len(self._blocks) > 1:
            self._bytes -= self._blocks.popleft().raw_size + BLOCK_COST
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def fail(self, error: Fatal) -> None:
        """Nothing will come any more: end all waiting with the error."""
        self._failed = error
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)

    def clear(self) -> None:
        """Forget the blocks, so that all reads go to the engine (after a block was skipped)."""
        self._blocks.clear()
        self._bytes = 0

    async def grown(self, position: Position) -> None:
        """Returns once the head is beyond `position`. Raises `Fatal` where that can no longer happen."""
        while self.head <= position:
            if self._failed:
                raise self._failed
            future = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await future
            finally:
                self._waiting.discard(future)

    def page(self, start: Position, wanted: Callable[[Sequence[Kind]], bool]) -> Page:
        """As `Journal.read`, for a start that is not before `self.start`."""
        found: list[Block] = []
        size, end = 0, start
        first = max(0, bisect_right(self._blocks, start, key=lambda block: block.first) - 1)
        for index in range(first, len(self._blocks)):
            block = self._blocks[index]
            if block.end <= start:
                continue
            if wanted(block.kinds):
                if found and size + block.raw_size > PAGE_BYTES:
                    break
                found.append(block)
                size += block.raw_size
            end = block.end
        return Page(found, end)
