"""The replication slot: created with an intent, checked before every use, never silently replaced."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import psycopg
from psycopg import sql

from headrace.errors import Fatal, Transient
from headrace.failpoints import reach
from headrace.protocols import Capture, Logger
from headrace.sources.postgres import positions
from headrace.sources.postgres.connect import Connections, forks, identify, rows
from headrace.sources.postgres.positions import Identity, Position, SlotState
from headrace.sources.postgres.protocol import lsn_number, lsn_text
from headrace.sources.postgres.settings import PostgresSource

Hasten: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

_SLOT: Final = """
SELECT slot_name, plugin, slot_type, database, active_pid, wal_status, confirmed_flush_lsn::text AS flushed,
  {reason} AS reason, now.lsn AS current, safe_wal_size AS safe,
  pg_wal_lsn_diff(now.lsn::pg_lsn, restart_lsn)::bigint AS retained
FROM pg_replication_slots, (
  SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)::text
) AS now (lsn)
WHERE slot_name = %s
"""
_LOOKS: Final = 200
_PAUSE: Final = 0.05  # seconds between looks at a slot that must become free
_LOG_RUNNING: Final = "SELECT pg_log_standby_snapshot()"
_LOG_AGAIN: Final = 1.0  # seconds
_NEW_EPOCH: Final = "to begin anew, with a new snapshot: set `epoch = {}` in the settings of the source"


class Slot(NamedTuple):
    """A slot as the server has it."""

    name: str
    plugin: str | None
    kind: str
    database: str | None
    active_pid: int | None
    wal_status: str | None
    flushed: int
    reason: str | None
    current: int
    retained: int = 0  # bytes of WAL that it keeps
    safe: int | None = None  # bytes that may still be written before it is lost; None: without limit


class Created(NamedTuple):
    """A slot that was just created, and the snapshot of the rows before it; the snapshot lives with its connection."""

    start: int
    snapshot: str | None


async def look(connection: psycopg.AsyncConnection[Any], name: str) -> Slot | None:
    """The slot, if it is there."""
    version = connection.info.server_version
    reason = "invalidation_reason" if version >= 170_000 else "CASE WHEN conflicting THEN 'conflict' END"
    reason = reason if version >= 160_000 else "NULL::text"
    for row in await rows(connection, _SLOT.replace("{reason}", reason), name):
        flushed = lsn_number(row.flushed) if row.flushed else 0
        about = (row.slot_name, row.plugin, row.slot_type, row.database, row.active_pid, row.wal_status)
        return Slot(*about, flushed, row.reason, lsn_number(row.current), row.retained or 0, row.safe)
    return None


async def create(
    replication: psycopg.AsyncConnection[Any],
    name: str,
    *,
    export: bool,
    failover: bool = False,
    temporary: bool = False,
    hasten: Hasten | None = None,
) -> Created:
    """Create a slot. The exported snapshot lives until the connection does anything else. `hasten` runs meanwhile."""
    version = replication.info.server_version
    snapshot = "export" if export else "nothing"
    if version >= 150_000:
        options = f"(SNAPSHOT '{snapshot}'{', FAILOVER true' if failover and version >= 170_000 else ''})"
    else:
        options = "EXPORT_SNAPSHOT" if export else "NOEXPORT_SNAPSHOT"
    kind = "TEMPORARY LOGICAL" if temporary else "LOGICAL"
    statement = sql.SQL("CREATE_REPLICATION_SLOT {} " + kind + " pgoutput " + options).format(sql.Identifier(name))
    async with asyncio.TaskGroup() as group:
        beside = group.create_task(hasten()) if hasten else None
        row = await (await replication.execute(statement)).fetchone()
        if beside:
            beside.cancel()
    if row is None:
        raise Fatal(f"slot {name} was not created")
    return Created(lsn_number(row[1]), row[2])


async def log_running_transactions(connections: Connections, log: Logger) -> None:
    """Until cancelled: a standby can begin to decode only where the primary has logged what runs there."""
    log.info("a slot on a standby waits for the primary", hint=f"on the primary: {_LOG_RUNNING};")
    if not connections.has_primary:
        return
    async with connections.open(primary=True) as primary:
        try:
            while True:
                await primary.execute(_LOG_RUNNING)
                await asyncio.sleep(_LOG_AGAIN)
        except psycopg.errors.InsufficientPrivilege:
            grant = f"GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO {primary.info.user};"
            log.warning("the role may not have it logged, so it may take a while", hint=f"as a superuser: {grant}")


async def drop(connection: psycopg.AsyncConnection[Any], name: str) -> None:
    """Drop a slot that nobody uses."""
    await connection.execute("SELECT pg_drop_replication_slot(%s)", (name,))


async def free(connection: psycopg.AsyncConnection[Any], name: str) -> None:
    """Once nobody uses the slot: a server ends a connection that was closed a little later."""
    for _ in range(_LOOKS):
        slot = await look(connection, name)
        if slot is None or slot.active_pid is None:
            return
        await asyncio.sleep(_PAUSE)
    raise Transient(f"slot {name} is still in use")


class Slots:
    """Our slot, in step with what the journal knows of it."""

    def __init__(self, settings: PostgresSource, name: str, out: Capture, hasten: Hasten | None) -> None:
        self._settings = settings
        self._name = settings.slot_name(name)
        self._out = out
        self._hasten = hasten

    async def ready(
        self, admin: psycopg.AsyncConnection[Any], replication: psycopg.AsyncConnection[Any]
    ) -> tuple[SlotState, Created | None]:
        """The slot to stream from; freshly created where this source never had one.

        Raises `Fatal` where it is lost, belongs to others, or is ahead of the journal.
        """
        state = await positions.slot(self._out.state)
        position = await positions.position(self._out.state, self._settings.epoch)
        slot = await look(admin, self._name)
        if state is not None and state.ready and state.epoch == self._settings.epoch:
            self._usable(slot, position)
            return state, None
        if slot is not None and (state is None or not state.nonce):
            return await self._adopt(slot), None
        return await self._create(admin, replication, state, slot)

    async def snapshot_done(self, state: SlotState) -> SlotState:
        """All tables are in the journal."""
        done = msgspec.structs.replace(state, snapshot_done=True)
        await self._out.append([], [done.write()])
        reach("postgres.snapshot-done")
        return done

    async def _adopt(self, slot: Slot) -> SlotState:
        """Somebody created it for us: begin where it stands."""
        if slot.plugin != "pgoutput":
            raise Fatal(f"slot {slot.name} uses the plug-in {slot.plugin}", hint="`slot` must name another")
        self._usable(slot, None)
        wanted = self._settings.snapshot == "initial"
        state = SlotState(slot.name, "", self._settings.epoch, *_begun(slot.flushed, wanted=wanted))
        position = Position(self._settings.epoch, end=slot.flushed)
        await self._out.append([], [state.write(), position.write()])
        return state

    async def _create(
        self,
        admin: psycopg.AsyncConnection[Any],
        replication: psycopg.AsyncConnection[Any],
        state: SlotState | None,
        slot: Slot | None,
    ) -> tuple[SlotState, Created]:
        if slot is not None and state is not None:
            # Ours: made by an intent that did not end, or by an earlier epoch.
            await self._drop(admin, slot)
        intent = SlotState(self._name, secrets.token_hex(8), self._settings.epoch)
        await self._out.append([], [intent.write()])
        reach("postgres.intent")
        wanted = self._settings.snapshot == "initial"
        failover = self._settings.failover
        created = await create(replication, self._name, export=wanted, failover=failover, hasten=self._hasten)
        reach("postgres.slot-created")
        made = SlotState(self._name, intent.nonce, intent.epoch, *_begun(created.start, wanted=wanted))
        await self._out.append([], [made.write(), Position(self._settings.epoch, end=created.start).write()])
        reach("postgres.slot-recorded")
        return made, created

    async def _drop(self, admin: psycopg.AsyncConnection[Any], slot: Slot) -> None:
        if slot.active_pid is not None:
            raise Transient(f"slot {slot.name} is still in use by process {slot.active_pid}")
        await drop(admin, slot.name)

    def _usable(self, slot: Slot | None, position: Position | None) -> None:
        begin = _NEW_EPOCH.format(self._settings.epoch + 1)
        if slot is None:
            end = lsn_text(position.end) if position else "0/0"
            raise Fatal(f"slot {self._name} is gone: the changes after {end} are lost to it", hint=begin)
        if slot.wal_status == "lost" or slot.reason:
            since = lsn_text(position.end if position else slot.flushed)
            why = f" ({slot.reason})" if slot.reason else ""
            raise Fatal(
                f"slot {slot.name} was invalidated{why}: the changes from {since} to {lsn_text(slot.current)} are lost",
                hint=f"SELECT pg_drop_replication_slot('{slot.name}'); and {begin}",
            )
        if position is not None and slot.flushed > position.end:
            raise Fatal(
                f"slot {slot.name} is ahead of the journal, which was perhaps restored from a backup: "
                f"the changes from {lsn_text(position.end)} to {lsn_text(slot.flushed)} are lost",
                hint=begin,
            )


def _begun(start: int, *, wanted: bool) -> tuple[bool, int, bool, bool]:
    """The rest of the state of a slot that is ready: a snapshot is wanted, and not done, or neither."""
    return True, start, wanted, not wanted


async def check_server(
    replication: psycopg.AsyncConnection[Any], out: Capture, settings: PostgresSource, *, standby: bool
) -> None:
    """It must be the server that the positions are from, and it must not have gone back. Raises `Fatal`."""
    system = await identify(replication)
    known = await positions.identity(out.state)
    position = await positions.position(out.state, settings.epoch)
    begin = _NEW_EPOCH.format(settings.epoch + 1)
    if known is not None and position.end:
        if (known.system, known.database) != (system.system, system.database):
            before, now = f"{known.database} of system {known.system}", f"{system.database} of system {system.system}"
            raise Fatal(f"this is another server or database: {now} instead of {before}", hint=begin)
        if known.timeline != system.timeline:
            end = (await forks(replication, system.timeline)).get(known.timeline)
            if end is None or end < position.lsn:
                raise Fatal(
                    f"the server's timeline {system.timeline} left ours before {lsn_text(position.lsn)}: "
                    "changes that were captured are not in it",
                    hint=begin,
                )
        if system.position < position.lsn:
            if standby:
                raise Transient(f"the standby is still behind {lsn_text(position.lsn)}")
            raise went_back(position, f"it is at {lsn_text(system.position)}", settings.epoch)
    now_known = Identity(system.system, system.timeline, system.database)
    if known != now_known:
        await out.append([], [now_known.write()])


def went_back(position: Position, why: str, epoch: int) -> Fatal:
    """The server lost transactions that were captured, as after a restored copy."""
    return Fatal(
        f"the server went back behind {lsn_text(position.lsn)}, transaction {position.xid}: {why}",
        hint=_NEW_EPOCH.format(epoch + 1),
    )
