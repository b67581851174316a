"""Standbys: captured from one, forked from one, failed over to one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from headrace.errors import Fatal
from headrace.event import Event
from headrace.testing import MemoryCapture, RecordingLog
from headrace.testing.leaks import eventually
from tests.adapters.postgres.kit import until
from tests.adapters.postgres.test_backfill import streaming, told
from tests.adapters.postgres.test_failures import captured, ends
from tests.fixtures.postgres import Database, Server, need_local, need_server, server, wait_for
from tests.fixtures.postgres_standby import caught_up, standby

pytestmark = pytest.mark.postgres
TABLE = ("CREATE TABLE t (a int PRIMARY KEY, b text)", "INSERT INTO t VALUES (1, 'before')")


@contextmanager
def pair(oldest: int = 14, choice: int = 0, sync_replication_slots: str = "") -> Iterator[tuple[Server, Server]]:
    """A primary and its standby, of a version from `oldest` on."""
    with server(need_local()[choice]) as primary:
        if primary.version < oldest:
            pytest.skip(f"needs PostgreSQL {oldest}")
        more = {"sync_replication_slots": sync_replication_slots} if sync_replication_slots else {}
        with standby(primary, {"hot_standby_feedback": "on", **more}) as follower:
            yield primary, follower


def on(follower: Server, database: Database) -> str:
    """The same database at the standby."""
    return make_conninfo(follower.dsn, dbname=database.name)


@pytest.mark.parametrize("snapshot", ["never", "initial"])
def test_a_standby_is_captured(tmp_path: Path, snapshot: str) -> None:
    """Publication and watermarks are the primary's; the slot is the standby's, and waits for no one's help."""
    with pair(16) as (primary, follower), primary.database() as database:
        database.execute(*TABLE)
        caught_up(primary, follower)
        try:
            events = asyncio.run(_from_a_standby(database, follower, tmp_path, snapshot))
        finally:
            follower.drop_slots(f"slot_name = '{database.name}'")
    found = [(event.data["op"], event.data["key"]["a"]) for event in events]
    first = [("read", 1)] if snapshot == "initial" else []
    assert found == [*first, ("insert", 2), ("read", 1), ("read", 2)]


async def _from_a_standby(database: Database, follower: Server, tmp_path: Path, snapshot: str) -> list[Event]:
    found, log = MemoryCapture(), RecordingLog()
    given = {"dsn": on(follower, database), "primary_dsn": database.dsn, "snapshot": snapshot}
    async with streaming(database, tmp_path, found, log, **given) as source:
        await asyncio.to_thread(database.execute, "INSERT INTO t VALUES (2, 'after')")
        await until(found, lambda events: any(event.data["op"] == "insert" for event in events))
        await source.backfill("public.t")
        await eventually(lambda: told(log, "backfill done") == 1, "the backfill", 30)
    return found.events


def test_a_standby_that_cannot_decode(tmp_path: Path) -> None:
    with pair(choice=-1) as (primary, follower), primary.database() as database:
        if primary.version >= 16:
            pytest.skip("needs a version before 16")
        database.execute(*TABLE)
        caught_up(primary, follower)
        error = ends(database, tmp_path, dsn=on(follower, database))
    assert isinstance(error, Fatal)
    assert "lead to the primary" in error.hint


def test_a_forked_timeline(tmp_path: Path) -> None:
    """The standby is promoted without what was captured last."""
    with pair(choice=-1) as (primary, follower), primary.database() as database:
        database.execute(*TABLE)
        found = captured(database, tmp_path, MemoryCapture(), 2)
        caught_up(primary, follower)
        follower.stop()
        found = captured(database, tmp_path, found, 3)
        primary.stop()
        follower.start()
        promote(follower)
        error = ends(database, tmp_path, found, dsn=on(follower, database))
        primary.start()
    assert isinstance(error, Fatal)
    assert "timeline 2 left ours before" in error.message
    assert "epoch = 2" in error.hint


def promote(follower: Server) -> None:
    follower.execute("SELECT pg_promote(true, 30)")


def test_another_server(tmp_path: Path) -> None:
    with server(need_server()[-1]) as one, server(need_server()[-1]) as other, one.database() as database:
        database.execute(*TABLE)
        found = captured(database, tmp_path, MemoryCapture(), 2)
        other.execute(f"CREATE DATABASE {database.name}")
        error = ends(database, tmp_path, found, dsn=make_conninfo(other.dsn, dbname=database.name))
    assert isinstance(error, Fatal)
    assert "this is another server or database" in error.message
    assert "epoch = 2" in error.hint


def test_failover_to_a_standby_that_has_the_slot(tmp_path: Path) -> None:
    """Several hosts in the DSN: whichever can be written to is captured, and nothing is lost or told twice."""
    with pair(17, sync_replication_slots="on") as (primary, follower), primary.database() as database:
        database.execute(*TABLE)
        follower.execute(f"ALTER SYSTEM SET primary_conninfo = '{primary.dsn}'")
        follower.execute("SELECT pg_reload_conf()")
        options = {"dsn": two_hosts(primary, follower, database), "failover": True}
        found = MemoryCapture()
        asyncio.run(_until_synced(primary, follower, database, found, tmp_path, **options))
        found = captured(database, tmp_path, found.survivor(), 2, **options)
        caught_up(primary, follower)
        primary.stop()
        promote(follower)
        moved = Database(follower, database.name, on(follower, database))
        found = captured(moved, tmp_path, found, 3, **options)
        follower.drop_slots(f"slot_name = '{database.name}'")
        primary.start()
    assert [event.partitionkey for event in found.events] == ["public.t/2", "public.t/3"]


async def _until_synced(
    primary: Server, follower: Server, database: Database, found: MemoryCapture, tmp_path: Path, **options: Any
) -> None:
    """The standby keeps the slot once the primary's has moved beyond where the standby began."""
    synced = f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{database.name}' AND synced AND NOT temporary"

    def is_synced() -> bool:
        primary.execute("SELECT pg_log_standby_snapshot()")
        return bool(follower.execute(synced))

    async with streaming(database, tmp_path, found, **options):
        await asyncio.to_thread(wait_for, is_synced)


def two_hosts(primary: Server, follower: Server, database: Database) -> str:
    ports = ",".join(one.dsn.split("port=")[1].split()[0] for one in (primary, follower))
    hosts = "127.0.0.1,127.0.0.1"
    return f"host={hosts} port={ports} user=postgres dbname={database.name} target_session_attrs=read-write"
