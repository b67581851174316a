"""A consumer's rows in the store: cursor, parked events, dead letters, the operator's decisions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from headrace.delivery.cursor import (
    CONTROLS,
    CURSORS,
    Control,
    Cursor,
    DeadLetter,
    Parked,
    dead_space,
    decode,
    encode,
    parked_space,
    parse_row_key,
    row_key,
)
from headrace.protocols import Change, Journal, Position, Row

PAGE: Final = 100  # rows in one read: each holds an event


class Records:
    """The rows of one consumer."""

    def __init__(self, journal: Journal, consumer: str) -> None:
        self._journal = journal
        self._store = journal.store
        self.consumer = consumer

    async def written(self) -> None:
        """Returns when everything submitted before can be read: the last commit of a run that failed, above all."""
        await self._journal.submit(Change())

    async def cursor(self) -> Cursor | None:
        """None where the consumer was never seen."""
        data = await self._store.get(CURSORS, self.consumer.encode())
        return decode(data, Cursor) if data is not None else None

    def cursor_row(self, cursor: Cursor | None) -> Row:
        return Row(CURSORS, self.consumer.encode(), encode(cursor) if cursor else None)

    async def control(self) -> Control:
        data = await self._store.get(CONTROLS, self.consumer.encode())
        return decode(data, Control) if data is not None else Control()

    def control_row(self, control: Control | None) -> Row:
        return Row(CONTROLS, self.consumer.encode(), encode(control) if control else None)

    async def set_control(self, control: Control) -> None:
        """Durable on return."""
        await self._journal.submit(Change(rows=[self.control_row(control)]))

    async def parked(self) -> AsyncIterator[tuple[str, Position, Parked]]:
        async for key, value in self._rows(parked_space(self.consumer)):
            yield *parse_row_key(key), decode(value, Parked)

    async def parked_at(self, shard: str, position: Position) -> Parked | None:
        data = await self._store.get(parked_space(self.consumer), row_key(shard, position))
        return decode(data, Parked) if data is not None else None

    def parked_row(self, shard: str, position: Position, parked: Parked | None) -> Row:
        value = encode(parked) if parked else None
        return Row(parked_space(self.consumer), row_key(shard, position), value)

    async def dead(self) -> AsyncIterator[tuple[str, Position, DeadLetter]]:
        async for key, value in self._rows(dead_space(self.consumer)):
            yield *parse_row_key(key), decode(value, DeadLetter)

    async def dead_at(self, shard: str, position: Position) -> DeadLetter | None:
        data = await self._store.get(dead_space(self.consumer), row_key(shard, position))
        return decode(data, DeadLetter) if data is not None else None

    def dead_row(self, shard: str, position: Position, letter: DeadLetter | None) -> Row:
        value = encode(letter) if letter else None
        return Row(dead_space(self.consumer), row_key(shard, position), value)

    async def _rows(self, space: str) -> AsyncIterator[tuple[bytes, bytes]]:
        after: bytes | None = None
        while page := await self._store.scan(space, b"", after, PAGE):
            for row in page:
                yield row
            after = page[-1][0]

    async def forget(self) -> None:
        """Take all rows out, in one change: the consumer never was."""
        await self.replace([])

    async def rename(self, new: str) -> None:
        """Move all rows to another name, in one change."""
        target = Records(self._journal, new)
        cursor, control = await self.cursor(), await self.control()
        rows = [target.cursor_row(cursor), target.control_row(control)]
        rows += [target.parked_row(*row) async for row in self.parked()]
        rows += [target.dead_row(*row) async for row in self.dead()]
        await self.replace(rows)

    async def replace(self, rows: list[Row]) -> None:
        gone = [self.cursor_row(None), self.control_row(None)]
        gone += [self.parked_row(shard, position, None) async for shard, position, _ in self.parked()]
        gone += [self.dead_row(shard, position, None) async for shard, position, _ in self.dead()]
        await self._journal.submit(Change(rows=[*gone, *rows]))


async def known_consumers(journal: Journal) -> list[str]:
    """All consumers that have a cursor, in the settings or not."""
    rows = await journal.store.scan(CURSORS, b"", None, 10_000)
    return [key.decode() for key, _ in rows]
