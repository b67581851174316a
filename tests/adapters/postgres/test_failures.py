"""Every bad state gives its own error, with what mends it; what time heals is `Transient`."""

from __future__ import annotations

import asyncio
import gc
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from headrace.errors import Fatal, HeadraceError, Transient
from headrace.protocols import Finding
from headrace.sources.postgres import PostgresSource, guard
from headrace.sources.postgres.source import Postgres
from headrace.testing import MemoryCapture, RecordingLog, make_context
from headrace.testing.leaks import cancelled, eventually, nothing_left
from tests.adapters.postgres.kit import running, settings, until
from tests.fixtures.postgres import Database, Server, need_local, need_server, server, wait_for

pytestmark = pytest.mark.postgres
TABLE = "CREATE TABLE t (a int PRIMARY KEY, b text)"


def ends(database: Database, tmp_path: Path, found: MemoryCapture | None = None, **options: Any) -> HeadraceError:
    """What `run` raises."""

    async def main() -> HeadraceError:
        context = make_context(tmp_path)
        try:
            async with settings(database, **options).open(context) as source, asyncio.timeout(30):
                await source.run(found or MemoryCapture())
        except HeadraceError as error:
            return error
        raise AssertionError("it ended without an error")

    return asyncio.run(main())


def captured(database: Database, tmp_path: Path, found: MemoryCapture, key: int, **options: Any) -> MemoryCapture:
    """Run until a new row is captured."""

    async def main() -> None:
        async with running(settings(database, **options), tmp_path, found):
            await asyncio.to_thread(database.execute, f"INSERT INTO t VALUES ({key})")
            await until(found, lambda events: any(event.partitionkey == f"public.t/{key}" for event in events))

    asyncio.run(main())
    free(database)
    return found.survivor()


def free(database: Database) -> None:
    used = "SELECT 1 FROM pg_replication_slots WHERE active AND database = current_database()"
    wait_for(lambda: not database.execute(used))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Server]:
    """A server with one slot."""
    options = {
        "max_replication_slots": "1",
        "max_slot_wal_keep_size": "1MB",
        "min_wal_size": "32MB",
        "max_wal_size": "32MB",
    }
    with server(need_server()[0], options) as made:
        yield made


def test_wal_level(tmp_path: Path) -> None:
    with server(need_server()[0], {"wal_level": "replica"}) as made, made.database() as database:
        error = ends(database, tmp_path)
    assert isinstance(error, Fatal)
    assert "ALTER SYSTEM SET wal_level" in error.hint


def test_a_wrong_password(database: Database, tmp_path: Path) -> None:
    role = "scram" if database.server.version < 16 else f"scram_{database.name}"  # as `pg_hba.conf` names it
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'right'", TABLE)
    try:
        error = ends(database, tmp_path, dsn=make_conninfo(database.dsn, user=role), password="wrong")
    finally:
        database.execute(f"DROP ROLE {role}")
    assert isinstance(error, Fatal)
    assert "password" in error.message
    assert f"ALTER ROLE {role} PASSWORD" in error.hint
    assert "wrong" not in str(error)


def test_a_missing_database_and_no_rights(database: Database, tmp_path: Path) -> None:
    role = f"plain_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN", TABLE)
    dsn = make_conninfo(database.dsn, user=role)
    try:
        error = ends(database, tmp_path, dsn=make_conninfo(database.dsn, dbname="nowhere"))
        assert isinstance(error, Fatal)
        assert "dbname" in error.hint
        error = ends(database, tmp_path, dsn=dsn)
        assert isinstance(error, Fatal)
        assert f"ALTER ROLE {role} REPLICATION" in error.hint
        database.execute(f"ALTER ROLE {role} REPLICATION")
        error = ends(database, tmp_path, dsn=dsn)
        assert isinstance(error, Fatal)
        assert "CREATE PUBLICATION" in error.hint
        database.execute(f"CREATE PUBLICATION {database.name} FOR TABLE t", "INSERT INTO t VALUES (1)")
        error = ends(database, tmp_path, dsn=dsn, snapshot="initial")
        assert isinstance(error, Fatal)
        assert "GRANT SELECT" in error.hint
    finally:
        database.drop_slot(database.name)
        database.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_tls_that_cannot_be_had(database: Database, tmp_path: Path) -> None:
    error = ends(database, tmp_path, dsn=make_conninfo(database.dsn, sslmode="require"))
    assert isinstance(error, Fatal)
    assert "sslmode" in error.hint


def test_a_server_that_is_gone_is_waited_for(database: Database, tmp_path: Path) -> None:
    error = ends(database, tmp_path, dsn=make_conninfo(database.dsn, port=1))
    assert isinstance(error, Transient)


def test_cancelled_while_it_connects_it_leaves_nothing(tmp_path: Path) -> None:
    """To a server that takes the connection and says nothing."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set()
        while await reader.read(1 << 10):
            pass
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening, nothing_left():
            port = listening.sockets[0].getsockname()[1]
            source = PostgresSource.model_validate({"type": "postgres", "dsn": f"host=127.0.0.1 port={port} dbname=x"})
            async with source.open(make_context(tmp_path)) as opened, asyncio.TaskGroup() as group:
                task = group.create_task(opened.run(MemoryCapture()))
                await heard.wait()
                await cancelled(task)

    heard = asyncio.Event()
    gc.disable()  # it is not to be what closes the connection
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_no_slot_left_and_a_slot_that_is_lost(small: Server, tmp_path: Path) -> None:
    with small.database() as database:
        database.execute(TABLE, "SELECT pg_create_logical_replication_slot('other', 'pgoutput')")
        error = ends(database, tmp_path)
        assert isinstance(error, Transient)
        assert "max_replication_slots" in error.hint
        database.execute("SELECT pg_drop_replication_slot('other')")
        found = captured(database, tmp_path, MemoryCapture(), 1)
        for _ in range(6):
            database.execute("INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(10, 20000) g", "TRUNCATE t")
            database.execute("SELECT pg_switch_wal()", "CHECKPOINT")
        error = ends(database, tmp_path, found)
        assert isinstance(error, Fatal)
        gap = re.search(r"the changes from (\S+) to (\S+) are lost", error.message)
        assert gap is not None
        [(within,)] = database.execute(
            f"SELECT '{gap[1]}'::pg_lsn < '{gap[2]}'::pg_lsn AND '{gap[2]}'::pg_lsn <= pg_current_wal_lsn()"
        )
        assert within
        assert "epoch = 2" in error.hint
        found = captured(database, tmp_path, found.survivor(), 2, epoch=2)
        assert found.events[-1].id.startswith("2/")


def test_a_slot_in_use(database: Database, tmp_path: Path) -> None:
    database.execute(TABLE)

    async def main() -> None:
        found = MemoryCapture()
        async with running(settings(database), tmp_path, found):
            error = await asyncio.to_thread(ends, database, tmp_path, found.survivor())
            assert isinstance(error, Transient)
            assert "pg_replication_slots" in error.hint

    asyncio.run(main())


def test_a_slot_that_was_dropped(database: Database, tmp_path: Path) -> None:
    database.execute(TABLE)
    found = captured(database, tmp_path, MemoryCapture(), 1)
    database.drop_slot(database.name)
    error = ends(database, tmp_path, found)
    assert isinstance(error, Fatal)
    assert "is gone" in error.message


def test_a_journal_that_was_restored_from_a_backup(database: Database, tmp_path: Path) -> None:
    database.execute(TABLE)
    before = captured(database, tmp_path, MemoryCapture(), 1)
    after = captured(database, tmp_path, before.survivor(), 2)
    flushed = f"SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{database.name}'"
    first = database.execute(flushed)
    captured(database, tmp_path, after, 3)
    wait_for(lambda: database.execute(flushed) > first)
    error = ends(database, tmp_path, before)
    assert isinstance(error, Fatal)
    assert "ahead of the journal" in error.message


def test_a_server_that_went_back(tmp_path: Path) -> None:
    import shutil

    with server(need_local()[0], {}) as made, made.database() as database:
        assert made.data is not None
        database.execute(TABLE)
        found = captured(database, tmp_path, MemoryCapture(), 1)
        made.stop(signal.SIGINT)
        shutil.copytree(made.data, tmp_path / "copy")
        made.start()
        found = captured(database, tmp_path, found, 2)
        made.stop(signal.SIGINT)
        restore(tmp_path / "copy", made.data)
        made.start()
        database.execute(
            "INSERT INTO t VALUES (77, 'never seen')", "INSERT INTO t SELECT g FROM generate_series(100, 9999) g"
        )
        error = ends(database, tmp_path, found)
        assert isinstance(error, Fatal)
        assert "went back" in error.message
        assert "epoch = 2" in error.hint


def restore(copy: Path, data: Path) -> None:
    import os
    import shutil

    owner = data.stat()
    shutil.rmtree(data)
    shutil.copytree(copy, data)
    for path in (data, *data.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


def test_tables_without_identity_are_refused_and_not_touched(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE nokey (a int)", "INSERT INTO nokey VALUES (1)")
    error = ends(database, tmp_path)
    assert isinstance(error, Fatal)
    assert 'ALTER TABLE "public"."nokey" REPLICA IDENTITY FULL' in error.hint
    database.execute("UPDATE nokey SET a = 2")


def test_a_publication_that_lacks_a_table(database: Database, tmp_path: Path) -> None:
    database.execute(TABLE, "CREATE TABLE u (a int PRIMARY KEY)", f"CREATE PUBLICATION {database.name} FOR TABLE t")
    error = ends(database, tmp_path, tables=["public.t", "public.u"])
    assert isinstance(error, Fatal)
    assert 'ADD TABLE "public"."u"' in error.hint


def test_a_published_table_without_identity_breaks_the_application(database: Database, tmp_path: Path) -> None:
    """Somebody else published it: `doctor` says so, with what mends it."""
    database.execute("CREATE TABLE nokey (a int)", "INSERT INTO nokey VALUES (1)")
    database.execute(f"CREATE PUBLICATION {database.name} FOR TABLE nokey")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        database.execute("UPDATE nokey SET a = 2")
    [found] = [finding for finding in findings(database, tmp_path) if finding.level == "error"]
    assert "updates of it would fail" in found.what
    database.execute(found.remedy.partition(";")[0])
    database.execute("UPDATE nokey SET a = 2")


def test_a_slot_that_keeps_wal_is_warned_of_while_it_streams(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a transaction on the server is what holds it."""
    monkeypatch.setattr(guard, "LOOK", 0.1)
    database.execute(TABLE)

    async def main() -> None:
        found, log = MemoryCapture(), RecordingLog()
        with database.connect() as connection:
            async with running(settings(database, retained_warning=1 << 20), tmp_path, found, log):
                connection.execute("BEGIN; INSERT INTO t VALUES (1)")
                fill = "INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series({}, {}) g"
                for number in range(8):
                    first = 10 + number * 3_000
                    await asyncio.to_thread(database.execute, fill.format(first, first + 2_999), "CHECKPOINT")
                    await until(found, lambda events: len(events) == (number + 1) * 3_000)  # noqa: B023 -- awaited here
                await eventually(lambda: any("pg_stat_activity" in it for it in hints(log)), "the warning", 30)

    asyncio.run(main())


def hints(log: RecordingLog) -> list[str]:
    return [fields["hint"] for level, event, fields in log.records if event == "the slot keeps WAL on the server"]


@pytest.mark.parametrize("version", [0, -1])
def test_a_quiet_database_in_a_busy_server_keeps_no_wal(tmp_path: Path, version: int) -> None:
    """Others write, nothing of it is for us: what the server has looked through is acknowledged, nothing is written."""
    with server(need_server()[version]) as made, made.database() as database, made.database() as other:
        database.execute(TABLE)
        other.execute("CREATE TABLE big (a int, b text)")
        asyncio.run(_quiet(database, other, tmp_path))


async def _quiet(database: Database, other: Database, tmp_path: Path) -> None:
    kept = (
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) FROM pg_replication_slots "
        f"WHERE slot_name = '{database.name}'"
    )
    found = MemoryCapture()
    async with running(settings(database), tmp_path, found):
        [(before,)] = database.execute("SELECT pg_current_wal_lsn()::text")
        for _ in range(4):
            fill = "INSERT INTO big SELECT g, repeat('x', 1000) FROM generate_series(1, 10000) g"
            await asyncio.to_thread(other.execute, fill, "CHECKPOINT")
        [(written,)] = database.execute(f"SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '{before}')")

        def little() -> bool:
            other.execute("INSERT INTO big VALUES (1, 'more')", "CHECKPOINT")
            [(keeps,)] = database.execute(kept)
            return bool(keeps < written / 10)

        await asyncio.to_thread(wait_for, little, 60)
    assert written > 40_000_000
    assert found.events == []


def findings(database: Database, tmp_path: Path, **options: Any) -> list[Finding]:
    async def main() -> list[Finding]:
        source = Postgres(settings(database, **options), make_context(tmp_path))
        return [finding async for finding in source.diagnose()]

    return asyncio.run(main())


def test_doctor_sees_what_is_wrong_and_says_how_to_mend_it(database: Database, tmp_path: Path) -> None:
    database.execute(TABLE, "CREATE TABLE nokey (a int)")
    database.execute("SELECT pg_create_logical_replication_slot('headrace_gone_' || current_database(), 'pgoutput')")
    found = findings(database, tmp_path)
    remedies = " ".join(finding.remedy for finding in found if finding.level != "ok")
    assert "REPLICA IDENTITY FULL" in remedies
    assert f"pg_drop_replication_slot('headrace_gone_{database.name}')" in remedies
    [unreachable] = findings(database, tmp_path, dsn=make_conninfo(database.dsn, port=1))
    assert unreachable.level == "error"
