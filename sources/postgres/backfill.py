"""Rows that are there, captured beside the running stream: on demand, and of tables that were published later.

Tables are read in chunks by primary key. Each chunk joins the stream at its watermark, a logical message; the stream's
row wins where the chunk does not see its change (`window`). Requests and how far they are survive a restart: a chunk
and the progress behind it are one append.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from fnmatch import fnmatchcase
from time import monotonic
from typing import Any, Final

import msgspec
import psycopg

from headrace.errors import HeadraceError, Permanent
from headrace.progress import Progress
from headrace.protocols import Capture, Context
from headrace.sources.postgres.assembly import Assembly
from headrace.sources.postgres.catalogue import Published, estimated, published
from headrace.sources.postgres.chunks import MOST_AGAIN, ChunkReader, Watcher, again_prefix, snapshot_of
from headrace.sources.postgres.connect import Connections, rows
from headrace.sources.postgres.failures import explain, explained
from headrace.sources.postgres.lines import Names
from headrace.sources.postgres.publication import extend
from headrace.sources.postgres.relations import Relation
from headrace.sources.postgres.request import REQUEST, Request, readable
from headrace.sources.postgres.settings import PostgresSource
from headrace.sources.postgres.snapshot import TableState, states
from headrace.sources.postgres.types import Kind
from headrace.suggest import did_you_mean

LOOK: Final = 10.0  # seconds between looks for tables that were published meanwhile
_RETRY: Final = 2.0  # seconds after a failure that time heals
_PAUSE: Final = 0.1  # seconds between looks at transactions that must end
_TELL: Final = 10.0  # seconds between words in the log
_PAGE: Final = 1_000
_RUNNING: Final = "SELECT pid, state, query FROM pg_stat_activity WHERE backend_xid IS NOT NULL"


class Backfill:
    """The requests of a source, and the task that works on them while it streams."""

    def __init__(
        self,
        settings: PostgresSource,
        context: Context,
        connections: Connections,
        names: Names,
        out: Capture,
        *,
        publications: Sequence[str],
        standby: bool,
    ) -> None:
        self._settings = settings
        self._context = context
        self._connections = connections
        self._names = names
        self._out = out
        self._publications = publications
        self._standby = standby
        self._wake = asyncio.Event()
        self._refused: set[str] = set()
        self._watcher: Watcher | None = None

    @property
    def possible(self) -> bool:
        """Whether watermarks can be written."""
        return not self._standby or self._settings.primary_dsn is not None

    async def request(self, what: str) -> None:
        """Durably wanted on return: the tables whose `schema.table` matches. Raises `Permanent`, then all of it."""
        if not self.possible:
            raise Permanent("a standby cannot write watermarks", hint="set `primary_dsn` of the source")
        with explained(self._connections.user):
            async with self._connections.open(primary=self._standby) as connection:
                tables = await published(connection, self._settings, self._publications)
        chosen = [table for table in tables if fnmatchcase(table.relation.name, what)]
        if not chosen:
            raise Permanent(f"no captured table matches {what}{did_you_mean(what, [t.relation.name for t in tables])}")
        await self._accept(chosen)

    async def _accept(self, chosen: Sequence[Published]) -> None:
        keyless = [table.relation.name for table in chosen if not table.relation.key]
        if keyless:
            raise Permanent(
                f"{', '.join(keyless)}: no primary key to read it by beside the stream",
                hint="a new `epoch` in the settings of the source reads all tables again",
            )
        hashed = [t.relation.name for t in chosen if any(field.kind is Kind.HASHED for field in t.relation.key)]
        if hashed:
            raise Permanent(f"{', '.join(hashed)}: its key is hashed, and progress would keep it as it is")
        for table in chosen:
            oid = table.relation.message.oid
            if await self._out.state.get(REQUEST + b"%d" % oid) is not None:
                raise Permanent(f"a backfill of {table.relation.name} is at work already")
        requests = [Request(t.relation.message.oid, t.relation.name, secrets.token_hex(4)) for t in chosen]
        await self._out.append([], [write for request in requests for write in request.accepted()])
        self._wake.set()

    async def prepare(self, assembly: Assembly) -> None:
        """Before the stream goes on: of a table that is read in part, no row may get a new key unnoticed."""
        self._watcher = None
        for request in await self._requests():
            if request.after is None and not request.finished:
                continue
            if self._watcher is None:
                self._watcher = assembly.watch = Watcher(request, self._names, self._settings.epoch)
            else:
                anew = msgspec.structs.replace(request, run=secrets.token_hex(4), after=None, finished=False)
                await self._out.append([], [anew.write()])

    async def run(self, assembly: Assembly) -> None:
        """Until cancelled."""
        while True:
            if await self._all(assembly):
                await self._waited()

    async def _all(self, assembly: Assembly) -> bool:
        """Do all that is wanted now; whether it could be done."""
        try:
            await self._discover()
            for request in await self._requests():
                await self._work(request, assembly)
                self._watcher = assembly.watch = None
        except (HeadraceError, psycopg.OperationalError) as error:  # the stream beside is not to end for it
            self._context.log.warning("backfill will go on", error=str(error), seconds=_RETRY)
            await asyncio.sleep(_RETRY)
            return False
        return True

    async def _waited(self) -> None:
        try:
            async with asyncio.timeout(LOOK):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _requests(self) -> list[Request]:
        found = await self._out.state.scan(REQUEST, None, _PAGE)
        requests = [msgspec.msgpack.decode(value, type=Request) for _, value in found]
        return sorted(requests, key=lambda it: self._watcher is None or it.oid != self._watcher.oid)

    async def _discover(self) -> None:
        """Tables that came later are published, and read as well, those that others published too."""
        async with self._connections.open(primary=self._standby and self.possible) as connection:
            if self.possible:
                await self._publish(connection)
            if self._settings.snapshot != "initial":
                return
            tables = await published(connection, self._settings, self._publications)
        known = await states(self._out.state, self._settings.epoch)
        for table in tables:
            if table.relation.message.oid not in known:
                await self._note(table.relation)

    async def _note(self, relation: Relation) -> None:
        """A new table: it is read, where it can be."""
        oid = relation.message.oid
        writes = [TableState(0, done=True).write(self._settings.epoch, oid)]
        if readable(relation) and self.possible:
            writes += Request(oid, relation.name, secrets.token_hex(4)).accepted()
            self._context.log.info("new table will be read", table=relation.name)
        else:
            hint = "a new `epoch` reads all tables again"
            what = "the rows of a new table are not captured, only its changes"
            self._context.log.warning(what, table=relation.name, hint=hint)
        await self._out.append([], writes)

    async def _publish(self, connection: psycopg.AsyncConnection[Any]) -> None:
        added, refused = await extend(connection, self._settings, self._publications)
        for table in added:
            self._context.log.info("new table is published", table=table)
        for table, hint in refused.items():
            if table not in self._refused:
                self._context.log.warning("a new table is not captured", table=table, hint=hint)
        self._refused = set(refused)

    # One table

    async def _work(self, request: Request, assembly: Assembly) -> None:
        self._context.log.info("backfill", table=request.name, goes_on=request.after is not None)
        async with self._connections.open(primary=self._standby) as connection:
            try:
                await self._table(connection, request, assembly)
            except (psycopg.errors.SyntaxErrorOrAccessRuleViolation, Permanent) as error:
                why = error if isinstance(error, Permanent) else explain(error, self._connections.user)
                self._context.log.warning("backfill ended, with the table not read", table=request.name, error=str(why))
                await self._out.append([], request.ended())

    async def _table(self, connection: psycopg.AsyncConnection[Any], request: Request, assembly: Assembly) -> None:
        await connection.execute("SET synchronous_commit TO local")  # a watermark waits for no standby
        watcher = self._watcher
        if watcher is None or watcher.oid != request.oid:
            watcher = self._watcher = Watcher(request, self._names, self._settings.epoch)
        assembly.watch = watcher
        await self._others_ended(connection)
        at = await Progress.of(self._out.state, request.name)
        progress = Progress(at.done, await estimated(connection, request.oid))
        reader = ChunkReader(connection, self._settings, self._publications, watcher, self._context.clock, progress)
        count, told = 0, monotonic()
        wanted: Request | None = request
        while wanted is not None:
            joined, wanted = await reader.read(wanted, await self._again(request.oid) if wanted.finished else None)
            count += joined
            if monotonic() - told > _TELL:
                told = monotonic()
                self._context.log.info("reading", table=request.name, rows=count)
        await self._out.append([], request.ended())
        self._context.log.info("backfill done", table=request.name, rows=count)

    async def _again(self, oid: int) -> list[bytes]:
        return [key for key, _ in await self._out.state.scan(again_prefix(oid), None, MOST_AGAIN)]

    async def _others_ended(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Once all transactions of now have ended: the stream may have delivered one before its rows were watched."""
        [now] = await rows(connection, "SELECT pg_current_xact_id()::text AS xid")  # a snapshot's end may be lower
        told = monotonic()
        while (await snapshot_of(connection)).xmin <= int(now.xid):
            if monotonic() - told > _TELL:
                told = monotonic()
                self._context.log.warning("backfill waits for transactions that run", hint=_RUNNING)
            await asyncio.sleep(_PAUSE)
