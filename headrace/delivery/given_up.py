"""What the operator does with events that were given up: dead letters, and events that are held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from headrace.delivery.cursor import DeadLetter, Failure, Parked
from headrace.delivery.dispatch import Slots
from headrace.delivery.records import Records
from headrace.delivery.status import Counts
from headrace.errors import Permanent
from headrace.event import Event
from headrace.protocols import Change, Journal, Position, Row


class GivenUp:
    """The given up events of one consumer, also of one that left the settings; `slots` is set while it delivers.

    `changing` is held by whoever changes or loads them: a change reaches either the rows, or the running slots as well.
    """

    def __init__(self, journal: Journal, records: Records, counts: Counts) -> None:
        self.changing = asyncio.Lock()
        self.slots: Slots | None = None
        self._journal = journal
        self._records = records
        self._counts = counts

    async def count(self) -> None:
        """Learn how many dead letters are kept."""
        self._counts.kept = sum([1 async for _ in self._records.dead()])

    async def redrive(self, shard: str, position: Position) -> None:
        """Deliver a dead letter again, or one that is held. Raises `Permanent` where there is none."""
        async with self.changing:
            letter, held = await self._one(shard, position)
            again = _redriven(letter or held)
            records = self._records
            await self._change(records.parked_row(shard, position, again), records.dead_row(shard, position, None))
            self._counts.kept -= letter is not None
            if self.slots:
                self.slots.admit_again(shard, position, again)

    async def discard(self, shard: str, position: Position) -> None:
        """Forget a dead letter, or one that is held: its key goes on. Raises `Permanent` where there is none."""
        async with self.changing:
            letter, _ = await self._one(shard, position)
            row = self._records.parked_row if letter is None else self._records.dead_row
            await self._change(row(shard, position, None))
            self._counts.kept -= letter is not None
            if self.slots and letter is None:
                self.slots.discard(shard, position)

    async def _one(self, shard: str, position: Position) -> tuple[DeadLetter | None, Parked | None]:
        letter = await self._records.dead_at(shard, position)
        parked = await self._records.parked_at(shard, position)
        if letter is None and not (parked and parked.held):
            raise Permanent(f"consumer {self._records.consumer} has no dead letter at {position}")
        return letter, parked

    async def _change(self, *rows: Row) -> None:
        await self._journal.submit(Change(rows=rows))

    async def all(self) -> AsyncIterator[tuple[str, Position, DeadLetter, bool]]:
        """Dead letters and held events, the latter marked."""
        async for shard, position, letter in self._records.dead():
            yield shard, position, letter, False
        async for shard, position, parked in self._records.parked():
            if parked.held:
                yield shard, position, DeadLetter(parked.line, parked.source, parked.failure), True


def _redriven(letter: DeadLetter | Parked | None) -> Parked:
    """It starts over, and says so: `headraceredrive` is a CloudEvents extension attribute."""
    assert letter is not None  # noqa: S101 -- one of both is there
    event = Event.parse(letter.line)
    line = msgspec.structs.replace(event, extensions={**event.extensions, "headraceredrive": True}).line()
    return Parked(line, letter.source, Failure(error=letter.failure.error))
