"""The source: prepares publication and slot, then streams until the connection ends."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from typing import Any, Final

import psycopg

from headrace.errors import Fatal, HeadraceError, Transient
from headrace.event import source_seed
from headrace.protocols import Capture, Context, Finding
from headrace.sources.postgres import connect, positions, publication
from headrace.sources.postgres.assembly import Assembly
from headrace.sources.postgres.catalogue import published
from headrace.sources.postgres.connect import OLDEST, Connections
from headrace.sources.postgres.diagnosis import Diagnosis
from headrace.sources.postgres.failures import explained
from headrace.sources.postgres.lines import Names
from headrace.sources.postgres.protocol import lsn_text
from headrace.sources.postgres.replication import Replication
from headrace.sources.postgres.schemas import schemas
from headrace.sources.postgres.settings import PostgresSource
from headrace.sources.postgres.slots import Created, Slots, check_server, create, free, look
from headrace.sources.postgres.snapshot import Snapshot, Source, since, states
from headrace.sources.postgres.stream import History, Stream
from headrace.sources.postgres.tables import Tables
from headrace.sources.postgres.transactions import Spool
from headrace.tasks import cause

BACKLOG: Final = 64 << 20  # bytes of WAL behind which transactions are read whole; the server's default memory for one
_SERVER: Final = "SELECT current_setting('wal_level') AS wal_level, pg_is_in_recovery() AS standby"


class Postgres:
    """One captured database. Also `Diagnoses` and `Describes`."""

    def __init__(self, settings: PostgresSource, context: Context) -> None:
        self._settings = settings
        self._context = context
        self._connections = Connections(settings, context)
        self._names = Names(context.source, source_seed(context.name))

    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        return schemas()

    async def run(self, out: Capture) -> None:
        try:
            with explained(self._connections.user):
                await self._run(out)
        except ExceptionGroup as group:
            raise cause(group) from group

    async def diagnose(self) -> AsyncIterator[Finding]:
        """See `diagnosis`; a server that cannot be reached is a finding, too."""
        try:
            with explained(self._connections.user):
                async for finding in Diagnosis(self._settings, self._context.name, self._connections).run():
                    yield finding
        except HeadraceError as error:
            yield Finding("error", error.message, error.hint)

    async def _run(self, out: Capture) -> None:
        async with self._connections.open() as admin:
            standby = await self._check(admin)
            publications = await self._publications(admin, standby=standby)
            while True:
                async with self._connections.open(replication=True) as replication:
                    state = await self._prepare(admin, replication, out, publications, standby=standby)
                    await self._stream(admin, replication, out, state, publications)
                await free(admin, state.name)

    async def _prepare(
        self,
        admin: psycopg.AsyncConnection[Any],
        replication: psycopg.AsyncConnection[Any],
        out: Capture,
        publications: list[str],
        *,
        standby: bool,
    ) -> positions.SlotState:
        """A slot to stream from, with all rows that were there before it in the journal."""
        system = await connect.identify(replication)
        await check_server(replication, system, out, self._settings, standby=standby)
        slots = Slots(self._settings, self._context.name, out)
        state, created = await slots.ready(admin, replication)
        if not state.snapshot or state.snapshot_done:
            return state
        tables = await published(admin, self._settings, publications)
        snapshot = Snapshot(
            *(self._connections, self._context, self._names, out),
            epoch=self._settings.epoch,
            readers=self._settings.snapshot_readers,
        )
        async with self._exported(created) as source:
            self._context.log.info("snapshot", tables=len(tables), lsn=lsn_text(source.lsn))
            await snapshot.read(source, tables)
        return await slots.snapshot_done(state)

    @asynccontextmanager
    async def _exported(self, created: Created | None) -> AsyncIterator[Source]:
        """The snapshot of the new slot, or of a temporary one where ours was made before a crash, or by others."""
        if created is not None and created.snapshot is not None:
            yield Source(created.snapshot, created.start)
            return
        async with self._connections.open(replication=True) as replication:
            name = f"headrace_tmp_{secrets.token_hex(8)}"
            made = await create(replication, name, export=True, temporary=True)
            if made.snapshot is None:
                raise Transient("the server exported no snapshot")
            yield Source(made.snapshot, made.start)

    async def _stream(
        self,
        admin: psycopg.AsyncConnection[Any],
        replication: psycopg.AsyncConnection[Any],
        out: Capture,
        state: positions.SlotState,
        publications: list[str],
    ) -> None:
        """Returns once a backlog is read: from then on transactions may come while they run.

        To send a transaction while it runs is of no use where it is committed already, and costs a way over the disk.
        """
        slot = await look(admin, state.name)
        if slot is None:
            raise Transient(f"slot {state.name} has just gone")
        backlog = slot.current - slot.flushed > BACKLOG
        streaming = self._settings.streaming and not backlog
        stream = Replication(replication)
        with closing(Spool(self._context.scratch)) as spool:
            assembly = await self._assembly(out, slot.flushed, spool)
            await stream.start(state.name, publications, streaming=streaming, origin=self._settings.origin)
            self._context.log.info("streaming", slot=state.name, behind=max(slot.current - slot.flushed, 0))
            target = slot.current if self._settings.streaming and backlog else None
            await Stream(stream, assembly, out, self._context.clock, target).run()

    async def _check(self, admin: psycopg.AsyncConnection[Any]) -> bool:
        """Whether the server is a standby. Raises `Fatal` where it cannot be captured."""
        version = admin.info.server_version
        if version < OLDEST * 10_000:
            raise Fatal(f"Postgres {version // 10_000} is too old: {OLDEST} is the first that is supported")
        [row] = await connect.rows(admin, _SERVER)
        if row.wal_level != "logical":
            raise Fatal(
                f"the server's wal_level is {row.wal_level}",
                hint="ALTER SYSTEM SET wal_level = 'logical'; and restart the server",
            )
        return bool(row.standby)

    async def _publications(self, admin: psycopg.AsyncConnection[Any], *, standby: bool) -> list[str]:
        name = self._settings.publication_name(self._context.name)
        if not standby:
            return await publication.ensure(admin, self._settings, name)
        if self._settings.primary_dsn is None:
            return await publication.existing(admin, [name, name + publication.INSERTS_ONLY])
        async with self._connections.open(primary=True) as primary:
            return await publication.ensure(primary, self._settings, name)

    async def _assembly(self, out: Capture, flushed: int, spool: Spool) -> Assembly:
        position = await positions.position(out.state, self._settings.epoch)
        known = await positions.relations(out.state)
        begun = since(await states(out.state, self._settings.epoch))
        tables = Tables(self._names, self._settings.shown, self._connections.primary_key, known, begun)
        history = History(position, flushed if self._settings.origin == "any" else position.lsn + 1, position.epoch)
        return Assembly(
            *(self._names, position, tables, spool),
            wants_message=self._settings.wants_message,
            check=history.check,
        )
