"""What `doctor` finds around a captured database, with the SQL that mends it. Nothing is changed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

from headrace.errors import HeadraceError
from headrace.protocols import Finding
from headrace.sources.postgres import publication
from headrace.sources.postgres.connect import OLDEST, Connections, identify, rows
from headrace.sources.postgres.guard import threatens
from headrace.sources.postgres.publication import INSERTS_ONLY, Candidate, candidates
from headrace.sources.postgres.settings import PostgresSource

_SERVER: Final = """
SELECT current_setting('wal_level') AS wal_level, pg_is_in_recovery() AS standby, current_user AS role,
  (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user) AS may_replicate,
  current_setting('max_replication_slots')::int AS max_slots, (SELECT count(*) FROM pg_replication_slots) AS slots,
  current_setting('max_wal_senders')::int AS max_senders, (SELECT count(*) FROM pg_stat_replication) AS senders,
  (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_sender_timeout') AS sender_timeout,
  (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS keep_mib,
  coalesce(current_setting('idle_replication_slot_timeout', true), '0') AS idle_timeout
"""
_SLOTS: Final = """
SELECT slot_name AS name, slot_type AS kind, plugin, database, active_pid, wal_status, safe_wal_size AS safe,
  pg_wal_lsn_diff(now.lsn, restart_lsn)::bigint AS retained, {reason} AS reason, database = current_database() AS here
FROM pg_replication_slots, (
  SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END
) AS now (lsn)
ORDER BY slot_name
"""
_PUBLISHED: Final = "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = ANY(%s)"
_READABLE: Final = "SELECT has_table_privilege(%s, 'SELECT') AS may"
SENDER_TIMEOUT: Final = 10_000  # milliseconds below which a busy journal could cost the connection
# Before these, a table that is published while transactions write to it may lose changes for good: the server goes on
# to decode with what it knew of the table before (release notes of May 2025).
REPAIRED: Final = frozenset({140_018, 150_013, 160_009, 170_005})
OURS: Final = "headrace_"  # what the names of slots begin with where the settings give none


class Diagnosis:
    """One look at the server through one connection."""

    def __init__(self, settings: PostgresSource, name: str, connections: Connections) -> None:
        self._settings = settings
        self._slot = settings.slot_name(name)
        self._publication = settings.publication_name(name)
        self._connections = connections

    async def run(self) -> AsyncIterator[Finding]:
        """Raises `HeadraceError` where the server cannot be reached at all."""
        async with self._connections.open() as admin:
            yield self._version(admin)
            [server] = await rows(admin, _SERVER)
            for finding in self._server(server):
                yield finding
            yield await self._replicates()
            for finding in self._slots(await self._all_slots(admin), server):
                yield finding
            async for finding in self._tables(admin, standby=server.standby):
                yield finding

    def _version(self, admin: psycopg.AsyncConnection[Any]) -> Finding:
        info = admin.info
        major = info.server_version // 10_000
        shown = f"PostgreSQL {info.parameter_status('server_version')}, database {info.dbname}, role {info.user}"
        if major < OLDEST:
            return Finding("error", f"{shown}: {OLDEST} is the oldest version that is supported", "upgrade the server")
        if self._settings.failover and major < 17:
            return Finding("warning", f"{shown}: failover slots come with 17", "leave out `failover`")
        if outdated(info.server_version):
            what = f"{shown}: a table that is published while it is written to may lose changes in this release"
            return Finding("warning", what, "install the last minor release")
        return Finding("ok", shown)

    # The server

    def _server(self, server: Any) -> Iterator[Finding]:
        if server.wal_level == "logical":
            yield Finding("ok", "wal_level is logical")
        else:
            remedy = "ALTER SYSTEM SET wal_level = 'logical'; and restart the server"
            yield Finding("error", f"wal_level is {server.wal_level}", remedy)
        if not server.may_replicate:
            remedy = f"as a superuser: ALTER ROLE {server.role} REPLICATION;"
            yield Finding("error", f"role {server.role} may not replicate", remedy)
        if server.standby and self._settings.primary_dsn is None:
            what = "the server is a standby: the publication cannot be created here"
            yield Finding("warning", what, "set `primary_dsn`, or create the publication on the primary")
        yield from self._limits(server)

    def _limits(self, server: Any) -> Iterator[Finding]:
        yield _room("WAL sender", "max_wal_senders", server.senders, server.max_senders)
        if 0 < server.sender_timeout < SENDER_TIMEOUT:
            what = f"wal_sender_timeout is {server.sender_timeout} ms: short pauses end the stream"
            yield Finding("warning", what, "ALTER SYSTEM SET wal_sender_timeout = '1min'; SELECT pg_reload_conf();")
        if server.idle_timeout not in {"0", "0ms", "0s"}:
            what = f"idle_replication_slot_timeout is {server.idle_timeout}: a daemon stopped for longer loses its slot"
            remedy = "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();"
            yield Finding("warning", what, remedy)
        if server.keep_mib == -1:
            what = "max_slot_wal_keep_size is not set: a source that is stopped for long fills the server's disk"
            remedy = (
                "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf(); beyond it slots are lost"
            )
            yield Finding("ok", what, remedy)

    async def _replicates(self) -> Finding:
        """Whether `pg_hba.conf`, the role and the senders let a replication connection in."""
        try:
            async with self._connections.open(replication=True) as replication:
                system = await identify(replication)
        except HeadraceError as error:
            return Finding("error", f"no replication connection: {error.message}", error.hint)
        return Finding("ok", f"replication connection: system {system.system}, timeline {system.timeline}")

    # Slots

    async def _all_slots(self, admin: psycopg.AsyncConnection[Any]) -> list[Any]:
        version = admin.info.server_version
        reason = "invalidation_reason" if version >= 170_000 else "NULL::text"
        return await rows(admin, _SLOTS.replace("{reason}", reason))

    def _slots(self, slots: Sequence[Any], server: Any) -> Iterator[Finding]:
        own = next((slot for slot in slots if slot.name == self._slot), None)
        if own is None:
            yield _room("slot", "max_replication_slots", server.slots, server.max_slots)
        else:
            yield from self._own_slot(own)
        for slot in slots:
            if slot.name != self._slot and slot.active_pid is None and self._is_orphan(slot):
                what = f"slot {slot.name} of {slot.database or 'a standby'} is used by nobody and {_keeps(slot)}"
                remedy = f"if no stopped source or standby needs it: SELECT pg_drop_replication_slot('{slot.name}');"
                yield Finding("warning", what, remedy)

    def _own_slot(self, slot: Any) -> Iterator[Finding]:
        use = f"in use by process {slot.active_pid}" if slot.active_pid else "in use by nobody"
        if slot.plugin != "pgoutput" or not slot.here:
            what = f"slot {slot.name} belongs to another: plug-in {slot.plugin}, database {slot.database}"
            yield Finding("error", what, "name another `slot`")
        elif slot.wal_status == "lost" or slot.reason:
            what = f"slot {slot.name} was invalidated ({slot.reason or 'its WAL is gone'}): changes are lost to it"
            begin = f"set `epoch = {self._settings.epoch + 1}` to begin anew"
            yield Finding("error", what, f"SELECT pg_drop_replication_slot('{slot.name}'); and {begin}")
        elif slot.wal_status == "unreserved" or self._threatened(slot):
            what = f"slot {slot.name}, {use}, {_keeps(slot)}"
            left = "" if slot.safe is None else f"; it is lost after {_mib(max(slot.safe, 0))} more"
            yield Finding("warning", what + left, "start the daemon, or see in `headrace status` what it waits for")
        else:
            yield Finding("ok", f"slot {slot.name}, {use}, {_keeps(slot)}")

    def _threatened(self, slot: Any) -> bool:
        return threatens(slot.retained or 0, slot.safe, self._settings.retained_warning)

    def _is_orphan(self, slot: Any) -> bool:
        ours = slot.plugin == "pgoutput" and slot.name.startswith(OURS)
        return ours or (slot.retained or 0) > self._settings.retained_warning

    # Tables

    async def _tables(self, admin: psycopg.AsyncConnection[Any], *, standby: bool) -> AsyncIterator[Finding]:
        tables = await candidates(admin, self._settings)
        if not tables:
            yield Finding("error", "no table matches `tables`", "see `tables`, and the rights of the role")
        for finding in self._identities(admin, tables):
            yield finding
        names = await publication.existing(admin, [self._publication, self._publication + INSERTS_ONLY])
        yield self._published_by(names, standby=standby)
        if names:
            published = {(row.schemaname, row.tablename) for row in await rows(admin, _PUBLISHED, names)}
            for table in tables:
                if (table.schema, table.table) not in published and not await _partitioned(admin, table, published):
                    yield _unpublished(admin, self._publication, table)
        if self._settings.snapshot == "initial":
            for table in tables:
                if unreadable := await self._unreadable(admin, table):
                    yield unreadable

    def _identities(self, admin: psycopg.AsyncConnection[Any], tables: Sequence[Candidate]) -> Iterator[Finding]:
        keyless = [table for table in tables if not table.identified]
        for table in keyless:
            name = table.name.as_string(admin)
            if self._settings.keyless == "insert-only":
                yield Finding("ok", f"{name} has no replica identity: only its inserts and truncates are captured")
            else:
                what = f"{name} has no replica identity: published, the application's updates of it would fail"
                remedy = f'ALTER TABLE {name} REPLICA IDENTITY FULL; or set keyless = "insert-only"'
                yield Finding("error", what, remedy)
        if tables and not keyless:
            yield Finding("ok", f"tables captured: {len(tables)}, each with a replica identity")

    def _published_by(self, names: Sequence[str], *, standby: bool) -> Finding:
        if self._publication in names:
            return Finding("ok", f"publication {self._publication} is there")
        if self._settings.create and not standby:
            return Finding("ok", f"publication {self._publication} is not there yet and is created by the first start")
        what = f"publication {self._publication} is not there"
        return Finding("error", what, f"CREATE PUBLICATION {self._publication} FOR TABLE …; as the tables' owner")

    async def _unreadable(self, admin: psycopg.AsyncConnection[Any], table: Candidate) -> Finding | None:
        name = table.name.as_string(admin)
        [row] = await rows(admin, _READABLE, name)
        if row.may:
            return None
        remedy = f"GRANT SELECT ON {name} TO {admin.info.user};"
        return Finding("error", f"{name} cannot be read for the snapshot", remedy)


def outdated(version: int) -> bool:
    """Whether this release lacks a repair that logical replication needs; `version` as `server_version_num`."""
    return any(version // 10_000 == repaired // 10_000 and version < repaired for repaired in REPAIRED)


def _room(what: str, setting: str, used: int, most: int) -> Finding:
    shown = f"{setting}: {used} of {most} in use"
    if used < most:
        return Finding("ok", shown)
    remedy = f"ALTER SYSTEM SET {setting} = {2 * most}; and restart the server, or drop what nobody uses"
    return Finding("error", f"no {what} is left ({shown})", remedy)


def _keeps(slot: Any) -> str:
    return "keeps no WAL" if slot.retained is None else f"keeps {_mib(slot.retained)} of WAL"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


async def _partitioned(admin: psycopg.AsyncConnection[Any], table: Candidate, published: set[tuple[str, str]]) -> bool:
    """Whether its partitions are published in its place (`publish_via_partition_root = false`)."""
    query = (
        "SELECT n.nspname AS schema, c.relname AS table FROM pg_partition_tree(%s::regclass) t "
        "JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.isleaf"
    )
    leaves = await rows(admin, query, table.name.as_string(admin))
    return bool(leaves) and all((leaf.schema, leaf.table) in published for leaf in leaves)


def _unpublished(admin: psycopg.AsyncConnection[Any], name: str, table: Candidate) -> Finding:
    add = sql.SQL("ALTER PUBLICATION {} ADD TABLE {};").format(sql.Identifier(name), table.name)
    what = f"{table.name.as_string(admin)} is in `tables` but not in publication {name}"
    return Finding("warning", what, add.as_string(admin))
