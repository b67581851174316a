"""`doctor` against live servers: each bad state has its finding, with the SQL that mends it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from headrace.protocols import Diagnoses, Finding
from headrace.sources.postgres.diagnosis import outdated
from headrace.sources.postgres.guard import threatens
from headrace.testing import make_context
from tests.adapters.postgres.kit import settings
from tests.fixtures.postgres import Database, Servers, choices, need_server, server


def diagnosed(database: Database, tmp_path: Path, **options: Any) -> list[Finding]:
    async def main() -> list[Finding]:
        async with settings(database, **options).open(make_context(tmp_path)) as source:
            assert isinstance(source, Diagnoses)
            return [finding async for finding in source.diagnose()]

    return asyncio.run(main())


def bad(found: list[Finding]) -> Mapping[str, str]:
    return {finding.what: finding.remedy for finding in found if finding.level != "ok"}


def the(found: list[Finding], part: str) -> Finding:
    return next(finding for finding in found if part in finding.what)


def test_a_good_server(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    found = diagnosed(database, tmp_path)
    assert bad(found) == {}
    assert str(database.server.version) in the(found, "PostgreSQL").what
    assert "is created by the first start" in the(found, "publication").what
    assert the(found, "tables captured: 1").level == "ok"
    assert not database.execute("SELECT FROM pg_replication_slots WHERE slot_name = current_database()")


@pytest.mark.parametrize(
    ("version", "is_outdated"), [(140_017, True), (140_018, False), (170_004, True), (180_000, False)]
)
def test_releases_that_lose_changes(version: int, is_outdated: bool) -> None:
    assert outdated(version) == is_outdated


@pytest.mark.parametrize(
    ("retained", "safe", "is_told"), [(9, None, False), (11, None, True), (4, 5, False), (5, 4, True), (4, -1, True)]
)
def test_when_a_slot_is_warned_of(retained: int, safe: int | None, is_told: bool) -> None:
    """Beyond the 10 bytes of the settings, or once it keeps more than half of what it may."""
    assert threatens(retained, safe, 10) == is_told


def test_tables_without_identity(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE keyless (n int)")
    [(what, remedy)] = bad(diagnosed(database, tmp_path)).items()
    assert "keyless" in what
    assert 'ALTER TABLE "public"."keyless" REPLICA IDENTITY FULL;' in remedy
    assert bad(diagnosed(database, tmp_path, keyless="insert-only")) == {}
    database.execute('ALTER TABLE "public"."keyless" REPLICA IDENTITY FULL;')
    assert bad(diagnosed(database, tmp_path)) == {}


def test_a_publication_without_a_table(database: Database, tmp_path: Path) -> None:
    tables = ("CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE b (id int PRIMARY KEY)")
    database.execute(*tables, "CREATE PUBLICATION p FOR TABLE a")
    [(what, remedy)] = bad(diagnosed(database, tmp_path, publication="p")).items()
    assert what == '"public"."b" is in `tables` but not in publication p'
    database.execute(remedy)
    assert bad(diagnosed(database, tmp_path, publication="p")) == {}


def test_partitions_stand_for_their_table(database: Database, tmp_path: Path) -> None:
    database.execute(
        "CREATE TABLE whole (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (100)",
        "CREATE PUBLICATION p FOR TABLE whole",
    )
    assert bad(diagnosed(database, tmp_path, publication="p")) == {}


def test_a_publication_that_nobody_creates(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    [(what, remedy)] = bad(diagnosed(database, tmp_path, create=False, publication="p")).items()
    assert what == "publication p is not there"
    assert remedy.startswith("CREATE PUBLICATION")


def test_no_table(database: Database, tmp_path: Path) -> None:
    assert list(bad(diagnosed(database, tmp_path, tables=["public.none"]))) == ["no table matches `tables`"]


def test_rights(database: Database, tmp_path: Path) -> None:
    role = f"scant_{database.name}"
    database.execute("CREATE TABLE t (id int PRIMARY KEY)", f"CREATE ROLE {role} LOGIN")
    try:
        dsn = make_conninfo(database.dsn, user=role)
        found = diagnosed(database, tmp_path, dsn=dsn, snapshot="initial")
        mends = bad(found)
        assert mends[f"role {role} may not replicate"] == f"as a superuser: ALTER ROLE {role} REPLICATION;"
        assert mends['"public"."t" cannot be read for the snapshot'] == f'GRANT SELECT ON "public"."t" TO {role};'
        assert the(found, "no replication connection").level == "error"
        database.execute(f"ALTER ROLE {role} REPLICATION", f'GRANT SELECT ON "public"."t" TO {role}')
        assert bad(diagnosed(database, tmp_path, dsn=dsn, snapshot="initial")) == {}
    finally:
        database.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_slots(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    orphan = f"headrace_{database.name}"
    for name in (database.name, orphan):
        database.execute(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
    found = diagnosed(database, tmp_path)
    assert the(found, f"slot {database.name}, in use by nobody, keeps").level == "ok"
    [(what, remedy)] = bad(found).items()
    assert what.startswith(f"slot {orphan} of {database.name} is used by nobody and keeps")
    assert f"SELECT pg_drop_replication_slot('{orphan}');" in remedy
    database.execute("INSERT INTO t SELECT generate_series(1, 1000)")
    many = bad(diagnosed(database, tmp_path, retained_warning=1))
    assert any(each.startswith(f"slot {database.name}, in use by nobody, keeps") for each in many)


def test_a_slot_of_another_plug_in(database: Database, tmp_path: Path) -> None:
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY)",
        f"SELECT pg_create_logical_replication_slot('{database.name}', 'test_decoding')",
    )
    [(what, remedy)] = bad(diagnosed(database, tmp_path)).items()
    assert "belongs to another: plug-in test_decoding" in what
    assert remedy == "name another `slot`"


def test_a_server_that_was_not_made_for_it(tmp_path: Path) -> None:
    """wal_level, no slot and no sender left, a limit on WAL that was reached."""
    need_server()
    limits = {"wal_level": "replica", "max_replication_slots": "1", "max_wal_senders": "1"}
    with server(choices()[0], limits) as small:
        if small.origin is None:
            pytest.skip("needs a server of its own")
        with small.database() as database:
            database.execute("CREATE TABLE t (id int PRIMARY KEY)")
            database.execute("SELECT pg_create_physical_replication_slot('standby', true)")
            mends = bad(diagnosed(database, tmp_path))
            wal_level = "ALTER SYSTEM SET wal_level = 'logical'; and restart the server"
            assert mends["wal_level is replica"] == wal_level
            assert (
                "ALTER SYSTEM SET max_replication_slots = 2;"
                in mends["no slot is left (max_replication_slots: 1 of 1 in use)"]
            )
            database.execute("SELECT pg_drop_replication_slot('standby')")


def test_a_slot_that_was_lost(tmp_path: Path) -> None:
    need_server()
    limits = {"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}
    with server(choices()[0], limits) as small, small.database() as database:
        if small.origin is None:
            pytest.skip("needs a server of its own")
        database.execute("CREATE TABLE t (id int PRIMARY KEY, text text)")
        database.execute(f"SELECT pg_create_logical_replication_slot('{database.name}', 'pgoutput')")
        for _ in range(4):
            database.execute("INSERT INTO t SELECT -g, '' FROM generate_series(1, 9) g ON CONFLICT DO NOTHING")
            database.execute("SELECT pg_switch_wal()")
        database.execute("CHECKPOINT")
        [(what, remedy)] = [it for it in bad(diagnosed(database, tmp_path)).items() if "invalidated" in it[0]]
        assert database.name in what
        assert f"SELECT pg_drop_replication_slot('{database.name}'); and set `epoch = 2`" in remedy


def test_limits(postgres_servers: Servers, tmp_path: Path) -> None:
    """A sender's patience that is short is told of."""
    with postgres_servers.get(need_server()[0]).database() as database:
        database.execute(
            "CREATE TABLE t (id int PRIMARY KEY)", f"ALTER DATABASE {database.name} SET wal_sender_timeout = '5s'"
        )
        [(what, remedy)] = bad(diagnosed(database, tmp_path)).items()
        assert what.startswith("wal_sender_timeout is 5000 ms")
        assert remedy.startswith("ALTER SYSTEM SET wal_sender_timeout")
