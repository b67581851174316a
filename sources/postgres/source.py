"""The source: prepares publication and slot, then streams until the connection ends."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any, Final

import psycopg

from headrace.errors import Fatal, HeadraceError, Transient
from headrace.protocols import Capture, Context, Finding
from headrace.sources.postgres import connect, positions, publication
from headrace.sources.postgres.assembly import Assembly
from headrace.sources.postgres.backfill import Backfill
from headrace.sources.postgres.catalogue import published
from headrace.sources.postgres.connect import OLDEST, STANDBYS, Connections
from headrace.sources.postgres.diagnosis import Diagnosis
from headrace.sources.postgres.failures import explain, explained
from headrace.sources.postgres.guard import Guard
from headrace.sources.postgres.lines import Names
from headrace.sources.postgres.protocol import lsn_text
from headrace.sources.postgres.replication import Replication
from headrace.sources.postgres.schemas import schemas
from headrace.sources.postgres.settings import PostgresSource
from headrace.sources.postgres.slots import Hasten, Slots, check_server, create, free, log_running_transactions, look
from headrace.sources.postgres.snapshot import Snapshot, Source, begun_at, inside, states
from headrace.sources.postgres.stream import History, Stream
from headrace.sources.postgres.tables import Tables
from headrace.sources.postgres.transactions import Spool
from headrace.tasks import among, cause

_SERVER: Final = "SELECT current_setting('wal_level') AS wal_level, pg_is_in_recovery() AS standby"


class Postgres:
    """One captured database. Also `Diagnoses` and `Describes`."""

    def __init__(self, settings: PostgresSource, context: Context) -> None:
        self._settings = settings
        self._context = context
        self._connections = Connections(settings, context)
        self._backfill: Backfill | None = None
        self._hasten: Hasten | None = None
        self._names = Names(context.name, context.source)

    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        return schemas()

    async def run(self, out: Capture) -> None:
        try:
            with explained(self._connections.user):
                await self._run(out)
        except ExceptionGroup as group:
            error = among(group, Fatal) or cause(group)
            raise explain(error, self._connections.user) if isinstance(error, psycopg.Error) else error from group

    async def diagnose(self) -> AsyncIterator[Finding]:
        """See `diagnosis`; a server that cannot be reached is a finding, too."""
        try:
            with explained(self._connections.user):
                async for finding in Diagnosis(self._settings, self._context.name, self._connections).run():
                    yield finding
        except HeadraceError as error:
            yield Finding("error", error.message, error.hint)

    async def backfill(self, what: str) -> None:
        """Durably wanted on return; read beside the stream. `what`: a pattern of `schema.table`. Raises `Permanent`."""
        if self._backfill is None:
            raise Transient("the source is not connected", hint="`headrace status` tells why")
        await self._backfill.request(what)

    async def _run(self, out: Capture) -> None:
        async with self._connections.open() as admin:
            standby = await self._check(admin)
            async with self._connections.open(replication=True) as replication:  # nothing is created on another server
                await check_server(replication, out, self._settings, standby=standby)
            publications = await self._publications(admin, standby=standby)
            self._backfill = Backfill(
                *(self._settings, self._context, self._connections, self._names, out),
                publications=publications,
                standby=standby,
            )
            slot, warning = self._settings.slot_name(self._context.name), self._settings.retained_warning
            async with asyncio.TaskGroup() as group:
                group.create_task(Guard(slot, warning, self._context.log).run(admin))
                await self._capture(admin, out, publications, standby=standby)

    async def _capture(
        self, admin: psycopg.AsyncConnection[Any], out: Capture, publications: list[str], *, standby: bool
    ) -> None:
        async with self._connections.open(replication=True) as replication:
            state = await self._prepare(admin, replication, out, publications, standby=standby)
            await self._stream(admin, replication, out, state, publications)

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
        await check_server(replication, out, self._settings, standby=standby)
        self._hasten = partial(log_running_transactions, self._connections, self._context.log) if standby else None
        slots = Slots(self._settings, self._context.name, out, self._hasten)
        state, created = await slots.ready(admin, replication)
        if not state.snapshot or state.snapshot_done:
            return state
        if created is not None and created.snapshot is not None:
            await self._snapshot(out, Source(created.snapshot, created.start), publications)
        else:
            await self._resume_snapshot(admin, out, state, publications)
        return await slots.snapshot_done(state)

    async def _resume_snapshot(
        self, admin: psycopg.AsyncConnection[Any], out: Capture, state: positions.SlotState, publications: list[str]
    ) -> None:
        """Read what is left, where our slot was made before a crash, or by others.

        The exported snapshot is gone. A later one comes from a temporary slot, and the stream is captured up to it
        first, exactly: so what was read already is brought up to date, and nothing goes back in time.
        """
        async with self._connections.open(replication=True) as replication:
            self._context.log.info("snapshot resumes", hint="waiting for the transactions that run on the server now")
            made = await create(
                replication, f"headrace_{secrets.token_hex(8)}", export=True, temporary=True, hasten=self._hasten
            )
            if made.snapshot is None:
                raise Transient("the server exported no snapshot")
            async with self._connections.open(replication=True) as stream:
                await self._stream(admin, stream, out, state, publications, until=made.start)
            await free(admin, state.name)
            await self._snapshot(out, Source(made.snapshot, made.start), publications)

    async def _snapshot(self, out: Capture, source: Source, publications: list[str]) -> None:
        async with self._connections.open() as connection, inside(connection, source):
            tables = await published(connection, self._settings, publications)
        self._context.log.info("snapshot", tables=len(tables), lsn=lsn_text(source.lsn))
        epoch, readers = self._settings.epoch, self._settings.snapshot_readers
        snapshot = Snapshot(
            *(self._connections, self._context, self._names, out),
            epoch=epoch,
            readers=readers,
            beside=self._backfill is not None and self._backfill.possible,
        )
        await snapshot.read(source, tables)

    async def _stream(
        self,
        admin: psycopg.AsyncConnection[Any],
        replication: psycopg.AsyncConnection[Any],
        out: Capture,
        state: positions.SlotState,
        publications: list[str],
        until: int | None = None,
    ) -> None:
        """Returns at LSN `until`, with all before it in the journal."""
        slot = await look(admin, state.name)
        if slot is None:
            raise Transient(f"slot {state.name} has just gone")
        stream = Replication(replication)
        with closing(Spool(self._context.scratch, self._names)) as spool:
            assembly = await self._assembly(out, slot.flushed, spool, until)
            settings = self._settings
            await stream.start(state.name, publications, streaming=settings.streaming, origin=settings.origin)
            event = "streaming" if until is None else "catching up"
            self._context.log.info(event, slot=state.name, behind=max(slot.current - slot.flushed, 0))
            if self._backfill and until is None:
                await self._backfill.prepare(assembly)
            async with asyncio.TaskGroup() as group:
                beside = group.create_task(self._backfill.run(assembly)) if self._backfill and until is None else None
                await Stream(stream, assembly, out, self._context.clock, until).run()
                if beside is not None:
                    beside.cancel()

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
        if row.standby and version < STANDBYS * 10_000:
            raise Fatal(
                f"the server is a standby: they can be captured from PostgreSQL {STANDBYS} on",
                hint="`dsn` must lead to the primary",
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

    async def _assembly(self, out: Capture, flushed: int, spool: Spool, until: int | None) -> Assembly:
        position = await positions.position(out.state, self._settings.epoch)
        known = await positions.relations(out.state)
        begun = await states(out.state, self._settings.epoch)
        since = partial(begun_at, begun, until or 0)  # a table that is not begun will be read at `until`
        tables = Tables(self._names, self._settings.shown, self._connections.primary_key, known, since)
        history = History(position, flushed if self._settings.origin == "any" else position.lsn + 1, position.epoch)
        return Assembly(
            *(self._names, position, tables, spool),
            wants_message=self._settings.wants_message,
            check=history.check,
            until=until,
        )
