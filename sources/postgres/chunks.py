"""Chunks of a table: read by primary key, each in a snapshot of its own, handed to the stream at a watermark."""

from __future__ import annotations

import asyncio
import secrets
from array import array
from asyncio import Future
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import psycopg
from psycopg import sql

from headrace.errors import Permanent
from headrace.failpoints import reach
from headrace.journal.block import Lines
from headrace.progress import Progress
from headrace.protocols import Clock, Write
from headrace.sources.postgres.catalogue import Published, published
from headrace.sources.postgres.connect import rows
from headrace.sources.postgres.decode import compiled_read
from headrace.sources.postgres.lines import TYPE_PREFIX, Names, Row, frame, snapshot_tx
from headrace.sources.postgres.relations import Relation
from headrace.sources.postgres.replication import CopyOut
from headrace.sources.postgres.request import Request
from headrace.sources.postgres.settings import PostgresSource
from headrace.sources.postgres.window import WATERMARK, Joined, Visible, Window, key_of, row_values

AGAIN: Final = b"backfill-again/"
MOST_AGAIN: Final = 500  # keys read again at once
_FIRST: Final = 200  # rows of the first chunk
_ROWS: Final = 10_000
_BYTES: Final = 2 << 20  # of a chunk, about
_PAUSE: Final = 0.2  # seconds before a chunk is read again
_KIND: Final = "SELECT relkind::text AS kind FROM pg_class WHERE oid = %s"


def again_prefix(oid: int) -> bytes:
    """Rows to read again: they got a new key before they were read, and the stream did not send all their values."""
    return AGAIN + b"%d/" % oid


class Chunk(NamedTuple):
    """What was read, on its way to its watermark. `joined`: whether it came into the stream, or must be read again."""

    nonce: bytes
    table: Published
    visible: Visible
    rows: list[bytes]
    tx: tuple[int, str, int]  # epoch, run, time
    next: Request
    again: Sequence[bytes]
    progress: Progress
    joined: Future[bool]


class Watcher:
    """The stream's side: follows the table's changes, and lets chunks join."""

    def __init__(self, request: Request, names: Names, epoch: int) -> None:
        self.oid = request.oid
        self.anew: Request | None = None  # where the table must be read from its beginning again
        self._request = request
        self.epoch = epoch
        self._names = names
        self._window = Window()
        self._collects = not request.finished
        self._waiting: Chunk | None = None

    def begins(self) -> None:
        """A chunk is going to be read."""
        self._waiting = None

    def expect(self, chunk: Chunk) -> None:
        self._waiting = chunk

    def rows(self, relation: Relation, messages: Sequence[bytes], xid: int) -> Sequence[Write]:
        writes = []
        for message in messages:
            key = self._window.row(relation, message, xid)
            if key is not None and self._collects:
                name = again_prefix(self.oid) + msgspec.msgpack.encode(key)
                writes.append(Write(name, b"1"))
        return writes

    def page(self, xid: int, *, renamed: bool) -> Sequence[Write]:
        self._window.unknown(xid)
        if not renamed or not self._collects:
            return ()
        self.anew = msgspec.structs.replace(self._request, run=secrets.token_hex(4), after=None)
        return [self.anew.write()]

    def truncated(self, xid: int) -> None:
        self._window.truncated(xid)

    def reached(self, content: bytes, lsn: int) -> Joined | None:
        chunk, self._waiting = self._waiting, None
        if chunk is None or content != chunk.nonce:
            self._waiting = chunk
            return None
        if chunk.joined.done():  # nobody waits any more
            return None
        if self._window.too_much(chunk.visible) or self.anew is not None:
            chunk.joined.set_result(False)
            return None
        lines = self._lines(chunk, lsn)
        writes = [chunk.next.write(), chunk.progress.write(chunk.next.name)]
        writes += [Write(key, None) for key in chunk.again if self._settled(key, chunk.visible)]
        self._window.forget(chunk.visible)
        self._collects = self._collects and not chunk.next.finished
        chunk.joined.set_result(True)
        return Joined(chunk.table.relation, lines, writes)

    def _settled(self, again: bytes, visible: Visible) -> bool:
        """Whether the chunk saw all changes of a row that was read again."""
        return not self._window.unseen(_again_key(self.oid, again), visible)

    def _lines(self, chunk: Chunk, lsn: int) -> Lines:
        relation = chunk.table.relation
        plain, merged = self._window.news(relation, chunk.rows, chunk.visible)
        epoch, run, time = chunk.tx
        tx = snapshot_tx(epoch, run, lsn, time)
        lines: list[bytes] = []
        keys: list[int] = []
        compiled_read(self._names, relation)(plain, tx, lines, keys)
        row, shape = Row(self._names, relation), frame(self._names, relation, "read")
        for values in merged:
            line, key = row.read(shape, values, tx)
            lines.append(line)
            keys.append(key)
        kinds = bytes(len(lines))
        return Lines(b"".join(lines), array("I", map(len, lines)), (f"{TYPE_PREFIX}read",), kinds, array("I", keys))


class ChunkReader:
    """The server's side: reads chunks and writes their watermarks."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        settings: PostgresSource,
        publications: Sequence[str],
        watcher: Watcher,
        clock: Clock,
        progress: Progress,
    ) -> None:
        self._progress = progress
        self._connection = connection
        self._settings = settings
        self._publications = publications
        self._watcher = watcher
        self._clock = clock
        self._limit = _FIRST

    async def read(self, request: Request, again: Sequence[bytes] | None) -> tuple[int, Request | None]:
        """Read the next chunk, or the rows `again`, and wait until they are in the stream.

        Returns how many rows were read, and what is left to do.
        """
        if again is not None and not again:
            return 0, None
        chunk = await self._chunk(request, again)
        reach("postgres.backfill-watermark")
        if await chunk.joined:
            self._progress = chunk.progress
            reach("postgres.backfill-joined")
            if again is not None:
                await asyncio.sleep(_PAUSE)  # some may wait for a transaction
            return len(chunk.rows), chunk.next
        await asyncio.sleep(_PAUSE)
        anew, self._watcher.anew = self._watcher.anew, None
        return 0, anew or request

    async def _chunk(self, request: Request, again: Sequence[bytes] | None) -> Chunk:
        """Read in a transaction that keeps the table from being altered until behind the watermark."""
        self._watcher.begins()
        async with self._connection.transaction():
            await self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            table = await self._locked(request)
            visible = await snapshot_of(self._connection)
            chunk = await self._filled(request, table, visible, again)
            self._watcher.expect(chunk)
            reach("postgres.backfill-read")
            message = "SELECT pg_logical_emit_message(false, %s, %s)"
            await self._connection.execute(message, (WATERMARK, chunk.nonce.decode()))
            await self._connection.execute("SELECT pg_current_xact_id()")  # the commit then flushes the WAL at once
        return chunk

    async def _locked(self, request: Request) -> Published:
        # The lock must come before the snapshot.
        schema, _, table = request.name.partition(".")
        name = sql.Identifier(schema, table)
        await self._connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(name))
        found = await published(self._connection, self._settings, self._publications, request.oid)
        if not found or not found[0].relation.key:
            raise Permanent(f"{request.name} is not published any more, or has no primary key")
        return found[0]

    async def _filled(
        self, request: Request, table: Published, visible: Visible, again: Sequence[bytes] | None
    ) -> Chunk:
        [kind] = await rows(self._connection, _KIND, request.oid)
        nonce = secrets.token_hex(8)
        if again is None:
            condition = _after(table.relation, request.after)
            run = request.run
        else:
            condition = _among(table.relation, again)
            run = f"{request.run}-{nonce}"
        query = _select(table, condition, self._limit if again is None else None, only=kind.kind == "r")
        found = await self._copied(query.as_bytes(self._connection))
        following = self._following(request, table.relation, found, last=again is not None)
        time = int(self._clock.time() * 10**6)
        joined: Future[bool] = asyncio.get_running_loop().create_future()
        tx = (self._watcher.epoch, run, time)
        done = Progress(self._progress.done + len(found), self._progress.total)
        return Chunk(nonce.encode(), table, visible, found, tx, following, again or (), done, joined)

    def _following(self, request: Request, relation: Relation, found: Sequence[bytes], *, last: bool) -> Request:
        if last:
            return request
        if len(found) < self._limit:
            return msgspec.structs.replace(request, finished=True)
        size = sum(map(len, found)) // len(found) + 1
        self._limit = max(1, min(_ROWS, _BYTES // size))
        key = key_of(relation, row_values(found[-1])[1:])
        return msgspec.structs.replace(request, after=[value for value in key if isinstance(value, bytes)])

    async def _copied(self, query: bytes) -> list[bytes]:
        copy = CopyOut(self._connection)
        await copy.copy(query)
        wake = asyncio.Event()
        found: list[bytes] = []
        while not copy.ended:
            taken = copy.take()
            found += taken
            if not taken and not copy.ended:
                await copy.readable(1.0, wake)
        return found


async def snapshot_of(connection: psycopg.AsyncConnection[Any]) -> Visible:
    """What the connection's next statement sees."""
    [row] = await rows(connection, "SELECT pg_current_snapshot()::text AS snapshot")
    return Visible.parse(row.snapshot)


def _columns(relation: Relation) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(field.name) for field in relation.key)


def _again_key(oid: int, name: bytes) -> tuple[bytes, ...]:
    return msgspec.msgpack.decode(name[len(again_prefix(oid)) :], type=tuple[bytes, ...])


def _values(values: Sequence[bytes]) -> sql.Composed:
    literals = sql.SQL(", ").join(sql.Literal(value.decode("utf-8", "surrogateescape")) for value in values)
    return sql.SQL("({})").format(literals)


def _after(relation: Relation, after: Sequence[bytes] | None) -> sql.Composed | None:
    return sql.SQL("({}) > {}").format(_columns(relation), _values(after)) if after else None


def _among(relation: Relation, again: Sequence[bytes]) -> sql.Composed:
    keys = [_again_key(relation.message.oid, key) for key in again]
    return sql.SQL("({}) IN ({})").format(_columns(relation), sql.SQL(", ").join(_values(key) for key in keys))


def _select(table: Published, condition: sql.Composed | None, limit: int | None, *, only: bool) -> sql.Composed:
    """The COPY of a chunk: `ctid`, then the columns as the stream has them."""
    message = table.relation.message
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in message.columns)
    given: list[sql.Composable] = [condition] if condition is not None else []
    if table.filter:
        given.append(sql.SQL("({})").format(sql.SQL(table.filter)))
    where = sql.SQL(" WHERE ") + sql.SQL(" AND ").join(given) if given else sql.SQL("")
    source = sql.SQL("ONLY {}" if only else "{}").format(sql.Identifier(message.schema, message.table))
    order = sql.SQL(" ORDER BY {}").format(_columns(table.relation))
    end = sql.SQL(" LIMIT {}").format(sql.Literal(limit)) if limit is not None else sql.SQL("")
    select = sql.SQL("SELECT ctid, {} FROM {}").format(columns, source) + where + order + end
    return sql.SQL("COPY ({}) TO STDOUT").format(select)
