"""A journal in memory, for tests: several shards, as a distributed log has, and nothing that outlives the process."""

from __future__ import annotations

import asyncio
import math
import time as clock
from asyncio import Future
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from zlib import crc32

from headrace.journal.block import Block, Kind
from headrace.journal.tail import Tail
from headrace.protocols import Change, Page, Position


class MemoryJournal:
    """The `Journal`, its `Store`, `Bounds` and `Retains`; blocks of one source are all in one shard.

    A change is visible at the next turn of the event loop, and then all of it. Nothing is ever deleted, so holds are
    only noted, in `holds`.
    """

    def __init__(self, shards: int = 3) -> None:
        self._tails = {str(number): Tail(0, math.inf) for number in range(shards)}
        self._blocks: dict[str, list[Block]] = {shard: [] for shard in self._tails}
        self._spaces: dict[str, _Space] = {}
        self.holds: dict[tuple[str, str], Position] = {}

    @property
    def shards(self) -> Sequence[str]:
        return tuple(self._tails)

    @property
    def store(self) -> MemoryJournal:
        return self

    def shard_of(self, source: str) -> str:
        """Where the events of a source are."""
        return str(crc32(source.encode()) % len(self._tails))

    def head(self, shard: str) -> Position:
        return self._tails[shard].head

    def submit(self, change: Change) -> Future[None]:
        loop = asyncio.get_running_loop()
        future: Future[None] = loop.create_future()
        loop.call_soon(self._commit, change, future)
        return future

    def _commit(self, change: Change, future: Future[None]) -> None:
        now = clock.time()
        for sealed in change.blocks:
            shard = self.shard_of(sealed.kinds[0].source)
            block = Block(sealed.head(self.head(shard), now, now), sealed.index, sealed.body)
            self._blocks[shard].append(block)
            self._tails[shard].extend([block])
        for space, key, value, secondary in change.rows:
            self._spaces.setdefault(space, _Space()).put(key, value, secondary)
        if not future.done():
            future.set_result(None)

    async def read(self, shard: str, start: Position, wanted: Callable[[Sequence[Kind]], bool]) -> Page:
        return self._tails[shard].page(start, wanted)

    async def grown(self, shard: str, position: Position) -> None:
        await self._tails[shard].grown(position)

    # Store

    async def get(self, space: str, key: bytes) -> bytes | None:
        return self._space(space).values.get(key)

    async def get_many(self, space: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        values = self._space(space).values
        return {key: values[key] for key in keys if key in values}

    async def scan(self, space: str, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        rows = self._space(space)
        start = bisect_left(rows.keys, prefix if after is None else max(prefix, after + b"\0"))
        return [(key, rows.values[key]) for key in rows.keys[start : start + limit] if key.startswith(prefix)]

    async def find(self, space: str, secondaries: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        rows = self._space(space)
        return [(key, rows.values[key]) for key in rows.keys if rows.secondaries.get(key) in secondaries]

    def _space(self, space: str) -> _Space:
        return self._spaces.get(space, _Space())

    # Bounds and Retains

    async def oldest(self, shard: str) -> Position:
        return 0

    async def at(self, shard: str, time: float) -> Position:
        return next((it.first for it in self._blocks[shard] if it.until >= time), self.head(shard))

    def hold(self, consumer: str, shard: str, position: Position) -> None:
        self.holds[consumer, shard] = position

    def release(self, consumer: str) -> None:
        self.holds = {key: at for key, at in self.holds.items() if key[0] != consumer}


class _Space:
    """Rows in order of their keys."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.values: dict[bytes, bytes] = {}
        self.secondaries: dict[bytes, bytes | None] = {}

    def put(self, key: bytes, value: bytes | None, secondary: bytes | None) -> None:
        if key in self.values:
            del self.keys[bisect_left(self.keys, key)], self.values[key], self.secondaries[key]
        if value is not None:
            insort(self.keys, key)
            self.values[key], self.secondaries[key] = value, secondary
