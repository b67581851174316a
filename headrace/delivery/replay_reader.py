"""Reading what is to be replayed: once to learn its keys, and once to deliver it."""

from __future__ import annotations

import asyncio

from headrace.delivery.reader import KeyedReader
from headrace.delivery.replay import ReplayFlow, included
from headrace.delivery.run import Piece
from headrace.delivery.selection import Selection
from headrace.protocols import Journal, Page


class ReplayReader(KeyedReader):
    """Reads the ranges of a replay, and ends."""

    flow: ReplayFlow

    async def run(self) -> None:
        while self.flow.read < self.flow.end:
            await self.slots.room(self.flow)
            page = await self._page()
            await self.enter(page)
            self.flow.advance(min(page.next, self.flow.end))
            self.slots.ring()
            self.slots.attempt.committer.touch_later()
        self.flow.advance(self.flow.end)
        self.slots.attempt.committer.touch_later()

    async def pieces(self, page: Page) -> list[Piece]:
        pieces = [Piece(block, included(self.flow, block, indices)) for block, indices in await super().pieces(page)]
        return [piece for piece in pieces if piece.indices]


async def announce(journal: Journal, flow: ReplayFlow, selection: Selection) -> None:
    """Read once through all that is to be replayed, before any live event may overtake it."""
    at = flow.read
    while at < flow.end:
        page = await journal.read(flow.journal_shard, at, selection.wants)
        for block in page.blocks:
            wanted = selection.indices(block, max(0, flow.read - block.first))
            flow.expect(block, included(flow, block, wanted))
            await asyncio.sleep(0)
        at = max(page.next, at + 1)
    flow.expected()
