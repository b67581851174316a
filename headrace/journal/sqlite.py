"""The embedded engine: one SQLite file with one shard, one thread that writes and two that read.

Nobody but the writer writes or checkpoints: SQLite before 3.51.3 can corrupt the file with two connections that do
(https://sqlite.org/wal.html, "the WAL-reset bug"). Reads are short and paged, because a long one lets the log grow.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from asyncio import Future
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from headrace.errors import Fatal
from headrace.journal.block import Block, CorruptBlock, Kind
from headrace.journal.reading import Gate, read_page, rows_with, scan_query, since
from headrace.journal.repair import Repair, finish, prepared
from headrace.journal.schema import attach, damaged, open_reader, open_writer
from headrace.journal.space import RESERVE, Limits, Reserve, Usage
from headrace.journal.tail import Tail
from headrace.journal.writer import Listener, Writer
from headrace.protocols import Change, Logger, Page, Position

SHARD: Final = "0"
FILE: Final = "journal.db"
RESERVE_FILE: Final = "reserve"
READERS: Final = 2
T = TypeVar("T")


@asynccontextmanager
async def open_journal(
    data_dir: Path, limits: Limits, log: Logger, reserve: int = RESERVE
) -> AsyncIterator[SqliteJournal]:
    """The journal in a claimed data directory; all it gives is durable. Raises `Fatal` where it cannot be used."""
    path = data_dir / FILE
    db = await asyncio.to_thread(open_writer, path)
    journal = SqliteJournal(db, path, limits, log, Reserve(data_dir / RESERVE_FILE, reserve))
    journal.start()
    try:
        yield journal
    finally:
        await journal.close()


class SqliteJournal:
    """The `Journal` in one file; also its `Store`, and `Bounds`, `Retains` and `Repairs`."""

    def __init__(self, db: sqlite3.Connection, path: Path, limits: Limits, log: Logger, reserve: Reserve) -> None:
        self._path = path
        self._gate = Gate()
        listener = Listener(self._committed, self._failed)
        self._writer = Writer(db, path, limits, reserve, log, listener, self._gate.exclusive)
        self._tail = Tail(self._writer.upkeep.head)
        self._pool = ThreadPoolExecutor(READERS, "journal-reader")
        self._local = threading.local()
        # One more reader outlives the writer: SQLite checkpoints when the last connection that may write is closed,
        # and after a failed fsync that must not happen.
        self._readers = [open_reader(path)]
        attach(self._readers[0])

    def start(self) -> None:
        self._writer.start(asyncio.get_running_loop())

    async def close(self) -> None:
        """Write what was submitted, complete a checkpoint, and close the file. Raises `Fatal` where that failed."""
        try:
            await self._writer.stop()
        finally:
            await asyncio.to_thread(self._pool.shutdown)
            for reader in self._readers:
                reader.close()

    # Journal

    @property
    def shards(self) -> Sequence[str]:
        return (SHARD,)

    @property
    def store(self) -> SqliteJournal:
        return self

    def head(self, shard: str) -> Position:
        return self._tail.head

    def submit(self, change: Change) -> Future[None]:
        return self._writer.submit(change)

    async def grown(self, shard: str, position: Position) -> None:
        await self._tail.grown(position)

    async def read(self, shard: str, start: Position, wanted: Callable[[Sequence[Kind]], bool]) -> Page:
        if start >= self._tail.start:
            return self._tail.page(start, wanted)
        return await self._in_reader(lambda db: read_page(db, start, self._tail.head, wanted))

    def _committed(self, blocks: Sequence[Block]) -> None:
        self._tail.extend(blocks)

    def _failed(self, error: Fatal) -> None:
        self._tail.fail(error)

    # Store

    async def get(self, space: str, key: bytes) -> bytes | None:
        row = await self._in_reader(
            lambda db: db.execute("SELECT value FROM state WHERE space=? AND key=?", (space, key)).fetchone()
        )
        return None if row is None else bytes(row[0])

    async def get_many(self, space: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        return dict(await self._in_reader(partial(rows_with, column="key", space=space, values=keys)))

    async def scan(self, space: str, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        query, values = scan_query(space, prefix, after, limit)
        return await self._in_reader(lambda db: db.execute(query, values).fetchall())

    async def find(self, space: str, secondaries: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        values = sorted(set(secondaries))
        return sorted(await self._in_reader(partial(rows_with, column="secondary", space=space, values=values)))

    async def _in_reader(self, run: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._read_with, run)

    def _read_with(self, run: Callable[[sqlite3.Connection], T]) -> T:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = open_reader(self._path)
            self._readers.append(db)
        try:
            with self._gate.shared():
                return run(db)
        except sqlite3.DatabaseError as error:
            raise damaged(self._path, error) from error

    # Bounds and Retains

    async def oldest(self, shard: str) -> Position:
        return await self._in_reader(
            lambda db: db.execute("SELECT coalesce(min(first), ?) FROM block", (self._tail.head,)).fetchone()[0]
        )

    async def at(self, shard: str, time: float) -> Position:
        """As `Bounds.at`. A merged block counts by its last event, so none is missed; pages of one short read each."""
        after: int | None = -1
        while after is not None:
            found, after = await self._in_reader(partial(since, after=after, time=time))
            if found is not None:
                return found
        return self._tail.head

    def hold(self, consumer: str, shard: str, position: Position) -> None:
        self._hold({**self._writer.upkeep.holds, (consumer, shard): position})

    def release(self, consumer: str) -> None:
        self._hold({key: at for key, at in self._writer.upkeep.holds.items() if key[0] != consumer})

    def _hold(self, holds: dict[tuple[str, str], Position]) -> None:
        self._writer.hold(holds)

    def begin_retention(self) -> None:
        """From now on blocks may be deleted. Call it once every consumer has its hold: before, nothing is."""
        self._writer.upkeep.retaining = True

    async def usage(self) -> Usage:
        return await self._writer.call(self._writer.usage)

    # Repair

    async def verify(self) -> AsyncIterator[CorruptBlock]:
        """Every damaged block, in order; reads everything, a page at a time."""
        start = -1
        while True:
            found, start, more = await self._in_reader(partial(_verify, after=start))
            for problem in found:
                yield problem
            if not more:
                return

    async def skip(self, first: Position, reason: str) -> int:
        """Take the block at `first` out and record the gap; returns how many events it held."""
        count = await self._change(lambda db: Repair(db).skip(first, reason))
        self._tail.clear()
        return count

    async def gaps(self) -> list[tuple[Position, int, float, str]]:
        """Recorded gaps: first position, count of events, time of skipping, reason."""
        return await self._in_reader(lambda db: Repair(db).gaps())

    async def backup(self, target: Path) -> None:
        """A consistent copy, made while everything goes on; the target appears only when it is complete.

        It holds all that was acknowledged before the call. Raises `Permanent` where the target cannot be written.
        """
        with prepared(target) as partial_copy:
            await self._change(lambda db: Repair(db).copy(partial_copy, self._writer.between))
            await asyncio.to_thread(finish, partial_copy, target)

    async def _change(self, run: Callable[[sqlite3.Connection], T]) -> T:
        return await self._writer.call(lambda: self._writer.change(lambda: run(self._writer.db)))


def _verify(db: sqlite3.Connection, after: int) -> tuple[list[CorruptBlock], int, bool]:
    return Repair(db).verify(after)
