"""What `doctor` says of a server: every bad state by its name, with the SQL that mends it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import psycopg

from headrace.errors import HeadraceError
from headrace.protocols import Context, Finding
from headrace.sources.postgres import publication, slots
from headrace.sources.postgres.connect import OLDEST, Connections, rows
from headrace.sources.postgres.failures import explained
from headrace.sources.postgres.publication import candidates
from headrace.sources.postgres.settings import PostgresSource

_SERVER: Final = """
SELECT current_setting('wal_level') AS wal_level, current_setting('max_replication_slots')::int AS slots,
  current_setting('max_wal_senders')::int AS senders, current_setting('max_slot_wal_keep_size') AS keep,
  pg_is_in_recovery() AS standby,
  (SELECT count(*) FROM pg_replication_slots) AS slots_used,
  (SELECT count(*) FROM pg_stat_replication) AS senders_used,
  (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user) AS may_replicate,
  current_user AS role
"""
_ORPHANS: Final = """
SELECT slot_name AS name, pg_size_pretty(pg_wal_lsn_diff(
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn)) AS held
FROM pg_replication_slots
WHERE slot_name LIKE 'headrace\\_%%' AND slot_name <> %s AND NOT active AND database = current_database()
"""
_LISTED: Final = 'SELECT schemaname AS schema, tablename AS "table" FROM pg_publication_tables WHERE pubname = ANY(%s)'


async def diagnose(settings: PostgresSource, context: Context, connections: Connections) -> AsyncIterator[Finding]:
    """All that can be seen without changing anything."""
    try:
        with explained(connections.user):
            async with connections.open() as connection:
                doctor = _Doctor(settings, context.name, connection)
                async for finding in doctor.look():
                    yield finding
    except HeadraceError as error:
        yield Finding("error", error.message, error.hint)


class _Doctor:
    """One look at one server."""

    def __init__(self, settings: PostgresSource, name: str, connection: psycopg.AsyncConnection[Any]) -> None:
        self._settings = settings
        self._slot = settings.slot_name(name)
        self._publication = settings.publication_name(name)
        self._connection = connection

    async def look(self) -> AsyncIterator[Finding]:
        version = self._connection.info.server_version // 10_000
        if version < OLDEST:
            yield Finding("error", f"Postgres {version} is too old", f"upgrade to {OLDEST} or later")
            return
        yield Finding("ok", f"Postgres {version} answers")
        [server] = await rows(self._connection, _SERVER)
        for finding in (*self._server(server), *await self._slot_findings(server), *await self._orphans()):
            yield finding
        for finding in await self._tables(standby=server.standby):
            yield finding

    @staticmethod
    def _server(server: Any) -> list[Finding]:
        found = []
        if server.wal_level == "logical":
            found.append(Finding("ok", "wal_level is logical"))
        else:
            mend = "ALTER SYSTEM SET wal_level = 'logical'; and restart the server"
            found.append(Finding("error", f"wal_level is {server.wal_level}", mend))
        if not server.may_replicate:
            mend = f"ALTER ROLE {server.role} REPLICATION;"
            found.append(Finding("error", f"role {server.role} may not replicate", mend))
        if server.senders_used >= server.senders:
            mend = f"ALTER SYSTEM SET max_wal_senders = {server.senders + 10}; and restart the server"
            found.append(Finding("error", f"all {server.senders} WAL senders are in use", mend))
        if server.keep == "-1":
            mend = "ALTER SYSTEM SET max_slot_wal_keep_size = '…'; SELECT pg_reload_conf();"
            found.append(Finding("warning", "nothing limits the WAL that slots keep: the server's disk may fill", mend))
        return found

    async def _slot_findings(self, server: Any) -> list[Finding]:
        slot = await slots.look(self._connection, self._slot)
        if slot is None:
            if server.slots_used < server.slots:
                return [Finding("ok", f"slot {self._slot} is not there yet; there is room for it")]
            mend = f"ALTER SYSTEM SET max_replication_slots = {server.slots + 10}; and restart the server"
            return [Finding("error", f"all {server.slots} replication slots are in use", mend)]
        if slot.wal_status == "lost" or slot.reason:
            mend = f"SELECT pg_drop_replication_slot('{slot.name}'); and a new `epoch` in the settings"
            return [Finding("error", f"slot {slot.name} was invalidated: changes are lost", mend)]
        held = max(slot.current - slot.flushed, 0)
        text = f"slot {slot.name} is {held / (1 << 20):.1f} MiB of WAL behind"
        if held > self._settings.retained_warning:
            return [Finding("warning", text, "see whether the source runs: `headrace status`")]
        return [Finding("ok", text)]

    async def _orphans(self) -> list[Finding]:
        return [
            Finding(
                "warning",
                f"slot {row.name} looks like ours, is used by nobody and keeps {row.held} of WAL",
                f"if its source is gone: SELECT pg_drop_replication_slot('{row.name}');",
            )
            for row in await rows(self._connection, _ORPHANS, self._slot)
        ]

    async def _tables(self, *, standby: bool) -> list[Finding]:
        tables = await candidates(self._connection, self._settings)
        found = [self._identity(table) for table in tables if not table.identified]
        if not tables:
            found.append(Finding("error", "no table matches `tables`", "see `tables`, and the rights of the role"))
        names = [self._publication, self._publication + publication.INSERTS_ONLY]
        if not await publication.existing(self._connection, names):
            if standby and self._settings.primary_dsn is None:
                mend = "set primary_dsn, or create it on the primary"
                return [*found, Finding("error", f"publication {self._publication} is not there", mend)]
            return [*found, Finding("ok", f"publication {self._publication} is not there yet")]
        listed = {(row.schema, row.table) for row in await rows(self._connection, _LISTED, names)}
        missing = [table for table in tables if (table.schema, table.table) not in listed]
        for table in missing:
            name = table.name.as_string(self._connection)
            mend = f"ALTER PUBLICATION {self._publication} ADD TABLE {name};"
            found.append(Finding("warning", f"publication {self._publication} lacks {name}", mend))
        return [*found, Finding("ok", f"publication {self._publication} has {len(listed)} tables")]

    def _identity(self, table: publication.Candidate) -> Finding:
        name = table.name.as_string(self._connection)
        mend = f"ALTER TABLE {name} REPLICA IDENTITY FULL;"
        if self._settings.keyless == "insert-only":
            return Finding("warning", f"{name} has no key: its inserts and truncates only are captured", mend)
        return Finding("error", f"{name} has no primary key or replica identity", mend)
