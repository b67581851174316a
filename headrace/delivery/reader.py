"""The loops of a running consumer that read: one per shard, page by page, as far as there is room."""

from __future__ import annotations

import asyncio
from typing import Final, Generic, TypeVar

from headrace.delivery.bulk import BulkFlow
from headrace.delivery.dispatch import Slots
from headrace.delivery.flow import Flow
from headrace.delivery.heads import Heads
from headrace.delivery.keyed import KeyedFlow
from headrace.delivery.run import Piece, runs_of
from headrace.delivery.selection import Selection
from headrace.delivery.status import Counts
from headrace.journal.block import CorruptBlock
from headrace.protocols import Journal, Logger, Page, Position
from headrace.tasks import first_of

CORRUPT_RETRY: Final = 2.0  # seconds until a damaged block is looked at again: it may have been skipped
TURN: Final = 256  # events admitted before others get a turn on the loop
AnyFlow = TypeVar("AnyFlow", bound=Flow)


class Reader(Generic[AnyFlow]):
    """Reads one shard for one consumer. Its cursor passes a page only once all of it has entered."""

    def __init__(
        self,
        journal: Journal,
        flow: AnyFlow,
        selection: Selection,
        heads: Heads,
        slots: Slots,
        counts: Counts,
        log: Logger,
    ) -> None:
        self.flow = flow
        self.selection = selection
        self._heads = heads
        self.slots = slots
        self._journal = journal
        self._counts = counts
        self._log = log

    async def run(self) -> None:
        while True:
            await self.slots.room(self.flow)
            await self._skip()
            await self._wait_for_more()
            page = await self._page()
            if page.blocks:
                self._counts.reading_from = page.blocks[0].appended
                await self.enter(page)
            self._go_to(page.next)

    async def _skip(self) -> None:
        """Wait for what is wanted, and pass what is not."""
        shard = self.flow.journal_shard
        while True:
            position = await self._heads.wanted(shard, self.flow.read, self.selection)
            if position > self.flow.read:
                self._go_to(position)
            if self._journal.head(shard) > position:
                return

    def _go_to(self, position: Position) -> None:
        self.flow.advance(position)
        self.slots.ring()
        self.slots.attempt.committer.touch_later()

    async def _wait_for_more(self) -> None:
        batch, shard, read = self.slots.settings.batch, self.flow.journal_shard, self.flow.read
        if batch.wait and self._journal.head(shard) - read < batch.size:
            full = self._journal.grown(shard, read + batch.size - 1)
            await first_of(self.slots.clock.sleep(batch.wait), full)

    async def _page(self) -> Page:
        told = ""
        while True:
            try:
                page = await self._journal.read(self.flow.journal_shard, self.flow.read, self.selection.wants)
            except CorruptBlock as error:
                if str(error) != told:
                    self._log.error("damaged block", error=str(error))
                self._counts.problem = told = str(error)
                await self.slots.clock.sleep(CORRUPT_RETRY)
                continue
            if told:
                self._counts.problem = ""
            return page

    async def enter(self, page: Page) -> None:
        raise NotImplementedError

    async def pieces(self, page: Page) -> list[Piece]:
        """The wanted events of a page that were not read before."""
        found = []
        for block in page.blocks:
            indices = self.selection.indices(block, max(0, self.flow.read - block.first))
            if indices:
                found.append(Piece(block, indices))
            if self.selection.looks_inside:
                await asyncio.sleep(0)  # a pattern takes about a millisecond for a block
        return found


class KeyedReader(Reader[KeyedFlow]):
    """Brings in event by event, so that keys run in parallel."""

    async def enter(self, page: Page) -> None:
        """Rings for each full batch only: blocks may be smaller, and `run` rings at the end of the page."""
        entered, size = 0, self.slots.settings.batch.size
        for block, indices in await self.pieces(page):
            for start in range(0, len(indices), TURN):
                if not self.flow.has_room:
                    self.slots.ring()
                    await self.slots.room(self.flow)
                turn = indices[start : start + TURN]
                self.flow.admit(block, turn)
                entered += len(turn)
                if entered >= size:
                    self.slots.ring()
                    entered = 0
                await asyncio.sleep(0)


class BulkReader(Reader[BulkFlow]):
    """Brings in runs: whole batches in the order of the journal."""

    async def enter(self, page: Page) -> None:
        pieces = [fresh for piece in await self.pieces(page) if (fresh := self.flow.fresh(piece)).indices]
        for run in runs_of(pieces, self.slots.settings.batch.size, page.next):
            await self.slots.room(self.flow)
            self.flow.enqueue(run)
            self.slots.ring()
