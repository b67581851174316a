"""The rows that were there before the stream: read in parallel from one exported snapshot, each table durably noted.

The stream goes on where the snapshot ends: a transaction is either in the snapshot or in the stream. After a crash the
tables that are not complete are read again, whole, from a later snapshot, and with another run id; the stream is
captured up to that snapshot first. Changes that the stream brings of a table before it was begun are left out.
"""

from __future__ import annotations

import asyncio
import secrets
from array import array
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final, NamedTuple

import msgspec
import psycopg
from psycopg import sql

from headrace.errors import Transient
from headrace.failpoints import reach
from headrace.journal.block import BLOCK_BYTES, Lines
from headrace.progress import Progress, finished
from headrace.protocols import Capture, Context, Logger, State, Write
from headrace.sources.postgres.catalogue import Leaf, Published, estimated, leaves
from headrace.sources.postgres.connect import Connections, rows
from headrace.sources.postgres.decode import Reads, compiled_read
from headrace.sources.postgres.lines import TYPE_PREFIX, Names, Tx, snapshot_tx
from headrace.sources.postgres.positions import KnownRelation
from headrace.sources.postgres.relations import Relation
from headrace.sources.postgres.replication import MESSAGES, CopyOut
from headrace.sources.postgres.request import Request, readable
from headrace.tasks import cause

TABLE: Final = b"snapshot/"
RANGE: Final = 4_096  # pages read by one COPY: 32 MiB
_PAGE: Final = 1_000
_FIRST: Final = 64  # rows taken at once before their length is known
_TELL: Final = 10.0  # seconds between words on how far a table is
_SAME_FILE: Final = "SELECT relfilenode = pg_relation_filenode(oid) AS same FROM pg_class WHERE oid = %s"


class Rewritten(Transient):
    """A table was truncated or rewritten after the snapshot began, which sees no rows in it then."""


class TableState(msgspec.Struct, frozen=True, array_like=True):
    """How far a table's snapshot is. The stream counts for it from `since` on."""

    since: int
    done: bool

    def write(self, epoch: int, oid: int) -> Write:
        return Write(_prefix(epoch) + b"%d" % oid, msgspec.msgpack.encode(self))


class Source(NamedTuple):
    """A snapshot: its name on the server, and the LSN at which the stream continues it."""

    name: str
    lsn: int


def _prefix(epoch: int) -> bytes:
    return TABLE + b"%d/" % epoch


async def states(state: State, epoch: int) -> dict[int, TableState]:
    """What was read in this epoch, by the table's oid."""
    prefix = _prefix(epoch)
    found: dict[int, TableState] = {}
    after: bytes | None = None
    while page := await state.scan(prefix, after, _PAGE):
        for key, value in page:
            found[int(key[len(prefix) :])] = msgspec.msgpack.decode(value, type=TableState)
        after = page[-1][0]
    return found


class _Range(NamedTuple):
    leaf: Leaf
    first: int
    last: int | None  # None: to the end


def ranges(found: Sequence[Leaf]) -> list[_Range]:
    """All pages in portions; the last of each table has no end, for pages that were added meanwhile."""
    parts: list[_Range] = []
    for leaf in found:
        starts = list(range(0, max(leaf.pages, 1), RANGE))
        ends = [*starts[1:], None]
        parts += [_Range(leaf, first, last) for first, last in zip(starts, ends, strict=True)]
    return parts


class Snapshot:
    """Reads the tables of one snapshot into the journal."""

    def __init__(
        self,
        connections: Connections,
        context: Context,
        names: Names,
        out: Capture,
        *,
        epoch: int,
        readers: int,
        beside: bool,
    ) -> None:
        """`beside`: a table that changed too much may be left to a backfill."""
        self._beside = beside
        self._connections = connections
        self._context = context
        self._names = names
        self._out = out
        self._epoch = epoch
        self._readers = readers

    async def read(self, source: Source, tables: Sequence[Published]) -> None:
        """Every table that is not complete yet. All of it is durable on return."""
        before = await states(self._out.state, self._epoch)
        for number, table in enumerate(tables):
            oid = table.relation.message.oid
            known = before.get(oid)
            if known is not None and known.done:
                continue
            since = known.since if known is not None else source.lsn
            await self._out.append([], [TableState(since, done=False).write(self._epoch, oid)])
            reach("postgres.snapshot-table")
            writes = [TableState(since, done=True).write(self._epoch, oid)]
            try:
                count = await self._table(source, table)
                writes.append(KnownRelation(table.relation.digest, table.relation.description).write(oid))
                writes.append(finished(table.relation.name))
            except* Rewritten as group:
                if not self._beside or not readable(table.relation):
                    raise
                count = 0
                writes += Request(oid, table.relation.name, secrets.token_hex(4)).accepted()
                self._context.log.info("will be read beside the stream", why=str(cause(group)))
            await self._out.append([], writes)
            reach("postgres.snapshot-table-done")
            self._context.log.info(
                "table read", table=table.relation.name, rows=count, table_number=number + 1, tables=len(tables)
            )

    async def _table(self, source: Source, table: Published) -> int:
        async with self._connections.open() as connection:
            parts = deque(ranges(await leaves(connection, table.relation.message.oid)))
            total = await estimated(connection, table.relation.message.oid)
        tx = snapshot_tx(self._epoch, secrets.token_hex(4), source.lsn, int(self._context.clock.time() * 10**6))
        reader = _Reader(self._names, table, tx, self._out, self._context.log, total)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._readers, len(parts))):
                group.create_task(self._read(source, reader, parts))
        await reader.settle()
        return reader.count

    async def _read(self, source: Source, reader: _Reader, parts: deque[_Range]) -> None:
        async with self._connections.open() as connection:
            while parts:
                part = parts.popleft()
                async with inside(connection, source):
                    await reader.read(connection, part)


@asynccontextmanager
async def inside(connection: psycopg.AsyncConnection[Any], source: Source) -> AsyncIterator[None]:
    """A transaction that sees the snapshot; short, for it keeps tables from being altered."""
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        await connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(source.name)))
    except psycopg.errors.Error as error:
        raise Transient(f"the snapshot is gone: {error}", hint="the tables that are left are read anew") from error
    yield
    await connection.execute("COMMIT")


class _Reader:
    """Reads ranges of one table, possibly several at a time."""

    def __init__(self, names: Names, table: Published, tx: Tx, out: Capture, log: Logger, total: int | None) -> None:
        self._total = total
        self._relation = table.relation
        self._filter = table.filter
        self._decode: Reads = compiled_read(names, table.relation)
        self._tx = tx
        self._out = out
        self._log = log
        self._last: asyncio.Future[None] | None = None
        self._portion = _FIRST
        self._told = monotonic()
        self.count = 0

    async def read(self, connection: psycopg.AsyncConnection[Any], part: _Range) -> None:
        """All rows of a range. Raises `Transient` where the table was rewritten, so that the snapshot misses rows."""
        query = select(self._relation, self._filter, part)
        try:  # to have it analysed takes the lock that keeps the table as it is
            await connection.execute(sql.SQL("EXPLAIN {}").format(query))
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
            raise Rewritten(f"table {self._relation.name} was altered: {error.diag.message_primary}") from error
        copy = CopyOut(connection)
        await copy.copy(sql.SQL("COPY ({}) TO STDOUT").format(query).as_bytes(connection))
        wake = asyncio.Event()
        while not copy.ended:
            found = copy.take(self._portion)
            if found:
                await self._submit(found)
            elif not copy.ended:
                await copy.readable(1.0, wake)
        [same] = await rows(connection, _SAME_FILE, part.leaf.oid)
        if not same.same:
            raise Rewritten(f"table {self._relation.name} was rewritten or truncated before it was read")

    async def _submit(self, found: list[bytes]) -> None:
        lines: list[bytes] = []
        keys: list[int] = []
        self._decode(found, self._tx, lines, keys)
        whole = Lines(
            *(b"".join(lines), array("I", map(len, lines)), (f"{TYPE_PREFIX}read",), bytes(len(lines))),
            array("I", keys),
        )
        self._portion = max(1, min(MESSAGES, BLOCK_BYTES * len(lines) // len(whole.data)))
        self.count += len(lines)
        at = Progress(self.count, self._total)
        self._last = await self._out.submit(whole, [at.write(self._relation.name)])
        reach("postgres.snapshot-rows")
        if monotonic() - self._told > _TELL:
            self._told = monotonic()
            self._log.info("reading", table=self._relation.name, rows=self.count)

    async def settle(self) -> None:
        """Until all that was read is durable: appends become so in order."""
        if self._last is not None:
            await asyncio.shield(self._last)


def select(relation: Relation, filter_: str | None, part: _Range) -> sql.Composed:
    """The rows of a range: `ctid`, then the columns as the stream has them."""
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in relation.message.columns)
    conditions: list[sql.Composable] = [sql.SQL("ctid >= {}").format(sql.Literal(f"({part.first},0)"))]
    if part.last is not None:
        conditions.append(sql.SQL("ctid < {}").format(sql.Literal(f"({part.last},0)")))
    if filter_:
        conditions.append(sql.SQL("({})").format(sql.SQL(filter_)))
    return sql.SQL("SELECT ctid, {} FROM ONLY {} WHERE {}").format(
        columns, sql.Identifier(part.leaf.schema, part.leaf.table), sql.SQL(" AND ").join(conditions)
    )


def begun_at(found: Mapping[int, TableState], otherwise: int, oid: int) -> int:
    """From which LSN on the stream counts for a table; `otherwise` where it was not begun."""
    return found[oid].since if oid in found else otherwise
