"""The journal's heads, watched once for all consumers that wait there.

A consumer that wants little is told of the blocks that hold something for it, and costs nothing for the others. Nothing
depends on being told: a consumer reads and chooses by itself, and within `LATEST` it comes to look anyway.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Final

from headrace.delivery.selection import Selection, Selections
from headrace.errors import Fatal
from headrace.journal.block import Block, CorruptBlock
from headrace.protocols import Journal, Page, Position

LATEST: Final = 0.25  # seconds that a consumer's cursor may stay behind what it does not want
BEHIND: Final = 50_000  # events; farther behind the head, where blocks may have left memory, each reads by itself

_Waiting = defaultdict[Selection, dict[asyncio.Future[Position], Position]]


class Heads:
    """All shards of a journal, and the `selections` of all consumers."""

    def __init__(self, journal: Journal) -> None:
        self.selections = Selections()
        self._shards = {shard: _Head(journal, shard, self.selections) for shard in journal.shards}

    async def run(self) -> None:
        """Until cancelled. While it does not run, consumers wait at the journal itself."""
        async with asyncio.TaskGroup() as group:
            for head in self._shards.values():
                group.create_task(head.run())

    async def wanted(self, shard: str, position: Position, selection: Selection) -> Position:
        """Returns once the shard has grown beyond `position`: where to read on. Nothing before it is wanted."""
        return await self._shards[shard].wanted(position, selection)


class _Head:
    """One shard. Blocks before `_read` have been looked at."""

    def __init__(self, journal: Journal, shard: str, selections: Selections) -> None:
        self._journal = journal
        self._shard = shard
        self._selections = selections
        self._read = journal.head(shard)
        self._running = False
        self._waiting: _Waiting = defaultdict(dict)
        self._later: asyncio.TimerHandle | None = None

    async def wanted(self, position: Position, selection: Selection) -> Position:
        if not self._running or selection.wants_all or position < self._read:
            await self._journal.grown(self._shard, position)
            return position
        future: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        self._waiting[selection][future] = position
        try:
            return await future
        finally:
            self._waiting[selection].pop(future, None)
            if not self._waiting[selection]:
                del self._waiting[selection]

    async def run(self) -> None:
        self._read, self._running = self._journal.head(self._shard), True
        try:
            while True:
                await self._journal.grown(self._shard, self._read)
                await self._look()
        except Fatal:  # each consumer meets the failed journal itself
            pass
        finally:
            self._running = False
            self._tell_all()

    async def _look(self) -> None:
        """Go through the new blocks. One that comes to wait meanwhile is told of all blocks from `_read` on."""
        head = self._journal.head(self._shard)
        page = await self._page() if self._waiting and head - self._read <= BEHIND else None
        if page is None:
            self._tell_all()
            self._read = head
            return
        for block in page.blocks:
            self._tell(block)
            self._read = block.end
            await asyncio.sleep(0)  # decoding takes about a millisecond for a block
        self._read = max(self._read, page.next)
        if self._waiting and self._later is None:
            self._later = asyncio.get_running_loop().call_later(LATEST, self._tell_all)

    async def _page(self) -> Page | None:
        """None where it is damaged, which each consumer tells by itself."""
        try:
            return await self._journal.read(self._shard, self._read, lambda _: True)
        except CorruptBlock:
            return None

    def _tell(self, block: Block) -> None:
        for selection in self._selections.wanting(block):
            for future, position in self._waiting.get(selection, {}).items():
                if not future.done() and selection.indices(block, max(0, position - block.first)):
                    future.set_result(max(position, block.first))

    def _tell_all(self) -> None:
        """All go on, over what they do not want."""
        if self._later:
            self._later.cancel()
            self._later = None
        for waiting in self._waiting.values():
            for future, position in waiting.items():
                if not future.done():
                    future.set_result(max(position, self._read))
