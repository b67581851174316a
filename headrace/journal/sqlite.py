"""The embedded engine: one SQLite file with one shard, one thread that writes and two that read.

Nobody but the writer writes or checkpoints: SQLite before 3.51.3 can corrupt the file with two connections that do
(https://sqlite.org/wal.html, "the WAL-reset bug"). Reads are short and paged, because a long one lets the log grow.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from asyncio import Future
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from headrace.journal.block import Block, CorruptBlock, Kind
from headrace.journal.repair import Repair
from headrace.journal.schema import damaged, open_reader, open_writer
from headrace.journal.space import RESERVE, Limits, Reserve, Usage
from headrace.journal.tail import PAGE_BYTES, Tail
from headrace.journal.writer import Writer
from headrace.protocols import Change, Logger, Page, Position

SHARD: Final = "0"
FILE: Final = "journal.db"
READERS: Final = 2
HEADERS: Final = 256  # heads looked at in one read
T = TypeVar("T")

_HEADS = (
    "SELECT first, count, head FROM block"
    " WHERE first >= coalesce((SELECT max(first) FROM block WHERE first <= ?), ?) ORDER BY first LIMIT ?"
)
_FIND = "SELECT key, value FROM state WHERE space=? AND secondary=? ORDER BY key"


@asynccontextmanager
async def open_journal(
    data_dir: Path, limits: Limits, log: Logger, reserve: int = RESERVE
) -> AsyncIterator[SqliteJournal]:
    """The journal in a claimed data directory; all it gives is durable. Raises `Fatal` where it cannot be used."""
    path = data_dir / FILE
    db = await asyncio.to_thread(open_writer, path)
    journal = SqliteJournal(db, path, limits, log, Reserve(data_dir / "reserve", reserve))
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
        self._writer = Writer(db, path, limits, reserve, log, self._committed, self._gate.exclusive)
        self._tail = Tail(self._writer.head)
        self._pool = ThreadPoolExecutor(READERS, "journal-reader")
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []

    def start(self) -> None:
        self._writer.start(asyncio.get_running_loop())

    async def close(self) -> None:
        """Write what was submitted, complete a checkpoint, and close the file."""
        await self._writer.stop()
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
        return await self._in_reader(lambda db: _read(db, start, self._tail.head, wanted))

    def _committed(self, blocks: Sequence[Block]) -> None:
        self._tail.extend(blocks)

    # Store

    async def get(self, space: str, key: bytes) -> bytes | None:
        row = await self._in_reader(
            lambda db: db.execute("SELECT value FROM state WHERE space=? AND key=?", (space, key)).fetchone()
        )
        return None if row is None else bytes(row[0])

    async def scan(self, space: str, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        query, values = _scan_query(space, prefix, after, limit)
        return await self._in_reader(lambda db: db.execute(query, values).fetchall())

    async def find(self, space: str, secondary: bytes) -> list[tuple[bytes, bytes]]:
        return await self._in_reader(lambda db: db.execute(_FIND, (space, secondary)).fetchall())

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
        query = "SELECT coalesce(min(first), ?) FROM block WHERE appended >= ?"
        return await self._in_reader(lambda db: db.execute(query, (self._tail.head, time)).fetchone()[0])

    def hold(self, consumer: str, shard: str, position: Position) -> None:
        self._writer.holds[consumer, shard] = position
        self._writer.nudge()

    def release(self, consumer: str) -> None:
        self._writer.holds.pop((consumer, SHARD), None)
        self._writer.nudge()

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
        count = await self._writer.call(lambda: Repair(self._writer.db).skip(first, reason))
        self._tail.clear()
        return count

    async def gaps(self) -> list[tuple[Position, int, float, str]]:
        """Recorded gaps: first position, count of events, time of skipping, reason."""
        return await self._in_reader(lambda db: Repair(db).gaps())

    async def backup(self, target: Path) -> None:
        """A consistent copy, made while everything goes on; the target appears only when it is complete."""
        await self._writer.call(lambda: Repair(self._writer.db).backup(target, self._writer.turn))


def _verify(db: sqlite3.Connection, after: int) -> tuple[list[CorruptBlock], int, bool]:
    return Repair(db).verify(after)


class Gate:
    """Many readers, or the writer alone for a checkpoint that needs all of the log."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._closed = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._closed)
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                self._condition.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._condition:
            self._closed = True
            self._condition.wait_for(lambda: not self._readers)
        try:
            yield
        finally:
            with self._condition:
                self._closed = False
                self._condition.notify_all()


def _read(db: sqlite3.Connection, start: int, head: int, wanted: Callable[[Sequence[Kind]], bool]) -> Page:
    found: list[Block] = []
    size, end = 0, start
    rows = db.execute(_HEADS, (start, start, HEADERS)).fetchall()
    for first, count, head_bytes in rows:
        if first + count <= start:
            continue
        block = Block(head_bytes, b"", None)
        if wanted(block.kinds):
            if found and size + block.raw_size > PAGE_BYTES:
                return Page(found, end)
            found.append(_load(db, first))
            size += block.raw_size
        end = first + count
    return Page(found, end if len(rows) == HEADERS else max(end, head))


def _load(db: sqlite3.Connection, first: int) -> Block:
    head, index, body = db.execute("SELECT head, idx, body FROM block WHERE first=?", (first,)).fetchone()
    block = Block(head, index, body)
    block.lengths, block.data  # noqa: B018 -- decoded here, off the event loop
    return block


def _scan_query(space: str, prefix: bytes, after: bytes | None, limit: int) -> tuple[str, list[Any]]:
    conditions, values = ["space=?", "key>=?"], [space, prefix]
    if (end := _after_prefix(prefix)) is not None:
        conditions.append("key<?")
        values.append(end)
    if after is not None:
        conditions.append("key>?")
        values.append(after)
    where = " AND ".join(conditions)
    query = f"SELECT key, value FROM state WHERE {where} ORDER BY key LIMIT ?"  # noqa: S608 -- fixed conditions
    return query, [*values, limit]


def _after_prefix(prefix: bytes) -> bytes | None:
    """The first key behind all keys with this prefix; None where there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None
