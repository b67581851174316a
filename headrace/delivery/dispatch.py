"""The loops of a running consumer: readers bring events in, slots deliver them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from headrace.delivery.attempt import Attempt
from headrace.delivery.cursor import Parked
from headrace.delivery.flow import Flow
from headrace.delivery.order import Item
from headrace.delivery.retry import Outage
from headrace.delivery.run import Piece, Run, runs_of
from headrace.delivery.selection import Selection
from headrace.delivery.status import Counts
from headrace.journal.block import Block, CorruptBlock
from headrace.protocols import Clock, Journal, Logger, Page, Position
from headrace.settings import ConsumerSettings
from headrace.tasks import first_of

QUEUED_RUNS: Final = 2
CORRUPT_RETRY: Final = 2.0  # seconds until a damaged block is looked at again: it may have been skipped
TURN: Final = 256  # events admitted before others get a turn on the loop


class Slots:
    """As many loops as deliveries may be in flight. A delivery that began is finished before its loop ends."""

    def __init__(
        self, attempt: Attempt, flows: Mapping[str, Flow], settings: ConsumerSettings, outage: Outage, clock: Clock
    ) -> None:
        self.attempt = attempt
        self.settings = settings
        self.clock = clock
        self._flows = flows
        self._outage = outage
        self._count = 1 if settings.bulk or settings.ordering == "strict" else settings.concurrency
        self._tasks: list[asyncio.Task[None]] = []
        self._bell = asyncio.Event()
        self._due = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = asyncio.Event()

    async def run(self, group: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        """Until stopping or closed, and then until what is in flight has ended."""
        self._tasks = [group.create_task(self._slot()) for _ in range(self._count)]
        timer = group.create_task(self._ring_when_due())
        await first_of(stopping.wait(), self._closed.wait())
        self.close()
        await asyncio.wait(self._tasks)
        timer.cancel()

    def close(self) -> None:
        """Begin no further delivery."""
        self._closed.set()
        self.ring()

    async def finish(self, grace: float) -> None:
        """Let deliveries in flight end within `grace` seconds, unless they wait for an absent target."""
        self.close()
        if self._tasks and not self._outage.there:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()

    def ring(self) -> None:
        """There may be something to deliver."""
        self._bell.set()

    async def room(self, flow: Flow) -> None:
        """Wait until the flow takes more."""
        while not flow.has_room or len(flow.runs) >= QUEUED_RUNS:
            self._room.clear()
            await self._room.wait()

    def admit_again(self, shard: str, position: Position, parked: Parked) -> None:
        self._flows[shard].admit_again(position, parked)
        self.ring()

    def complete(self, shard: str, position: Position) -> None:
        self._flows[shard].discard(position)
        self.ring()

    async def _slot(self) -> None:
        while not self._closed.is_set():
            await self._outage.over()
            if (work := self._next()) is not None:
                await self._deliver(*work)
            else:
                self._bell.clear()
                await self._bell.wait()

    def _next(self) -> tuple[Flow, Run | list[Item]] | None:
        now = self.clock.time()
        for flow in self._flows.values():
            if items := flow.take(self.settings.batch.size, now):
                return flow, items
            if run := flow.take_run():
                return flow, run
        return None

    async def _deliver(self, flow: Flow, work: Run | list[Item]) -> None:
        if isinstance(work, Run):
            await self.attempt.run(flow, work)
            flow.end_run()
        else:
            await self.attempt.items(flow, work)
        self._room.set()
        self._due.set()
        if flow.has_ready:
            self.ring()

    async def _ring_when_due(self) -> None:
        """Wake the slots when a parked event's time has come."""
        while True:
            self._due.clear()
            times = [at for flow in self._flows.values() if (at := flow.next_due) is not None]
            if times:
                await first_of(self.clock.sleep(max(0.0, min(times) - self.clock.time())), self._due.wait())
                self.ring()
                if min(times) <= self.clock.time():
                    await self._due.wait()
            else:
                await self._due.wait()


class Reader:
    """Reads one shard for one consumer, page by page, as far as there is room."""

    def __init__(
        self, journal: Journal, flow: Flow, selection: Selection, slots: Slots, counts: Counts, log: Logger
    ) -> None:
        self.flow = flow
        self.selection = selection
        self.slots = slots
        self._journal = journal
        self._counts = counts
        self._log = log

    async def run(self) -> None:
        while True:
            await self.slots.room(self.flow)
            await self._journal.grown(self.flow.shard, self.flow.read)
            await self._wait_for_more()
            page = await self._page()
            if page.blocks:
                self._counts.reading_from = page.blocks[0].appended
                await self.enter(page)
            self.flow.read = max(self.flow.read, page.next)
            self.slots.attempt.committer.touch_later()

    async def _wait_for_more(self) -> None:
        batch = self.slots.settings.batch
        if batch.wait and self._journal.head(self.flow.shard) - self.flow.read < batch.size:
            await self.slots.clock.sleep(batch.wait)

    async def _page(self) -> Page:
        while True:
            try:
                return await self._journal.read(self.flow.shard, self.flow.read, self.selection.wants)
            except CorruptBlock as error:
                self._log.error("damaged block", error=str(error))
                self._counts.problem = str(error)
                await self.slots.clock.sleep(CORRUPT_RETRY)

    async def enter(self, page: Page) -> None:
        raise NotImplementedError

    def pieces(self, page: Page) -> list[Piece]:
        """The wanted events of a page that were not read before."""
        found = []
        for block in page.blocks:
            indices = self.selection.indices(block, max(0, self.flow.read - block.first))
            if indices:
                found.append(Piece(block, indices))
        return found


class KeyedReader(Reader):
    """Brings in event by event, so that keys run in parallel."""

    async def enter(self, page: Page) -> None:
        for block, indices in self.pieces(page):
            for start in range(0, len(indices), TURN):
                await self.slots.room(self.flow)
                self._admit(block, indices[start : start + TURN])
                self.slots.ring()

    def _admit(self, block: Block, indices: Sequence[int]) -> None:
        for index in indices:
            self.flow.admit(block, index)
        self.flow.read = block.first + indices[-1] + 1


class BulkReader(Reader):
    """Brings in runs: whole batches in the order of the journal."""

    async def enter(self, page: Page) -> None:
        pieces = [fresh for piece in self.pieces(page) if (fresh := self._fresh(piece)).indices]
        for run in runs_of(pieces, self.slots.settings.batch.size, page.next):
            await self.slots.room(self.flow)
            self.flow.enqueue(run)
            self.slots.ring()

    def _fresh(self, piece: Piece) -> Piece:
        """Without what the last run settled."""
        if not self.flow.resuming(piece.block.first):
            return piece
        block, flow = piece.block, self.flow
        return Piece(block, [index for index in piece.indices if not flow.settled_before(block.first + index)])
