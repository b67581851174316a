"""What a publication makes of tables: columns, filters, generated columns, origins; and tables that come later."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from headrace.event import Event
from headrace.sources.postgres import backfill
from headrace.testing import MemoryCapture, RecordingLog
from headrace.testing.leaks import eventually
from tests.adapters.postgres.kit import capture, until
from tests.adapters.postgres.test_backfill import streaming, told
from tests.fixtures.postgres import Database

pytestmark = pytest.mark.postgres
TABLE = "CREATE TABLE t (a int PRIMARY KEY, b text, c text)"


def since(database: Database, version: int) -> None:
    if database.server.version < version:
        pytest.skip(f"comes with PostgreSQL {version}")


def rows(events: list[Event]) -> list[Any]:
    return [(event.data["op"], event.data["after"]) for event in events]


def test_a_list_of_columns_and_a_filter(database: Database, tmp_path: Path) -> None:
    """Rows that were there are read as the stream shows the others; rows enter and leave the filter."""
    since(database, 15)
    before = [TABLE, f"CREATE PUBLICATION {database.name} FOR TABLE t (a, b) WHERE (a > 1)"]
    before.append("INSERT INTO t VALUES (1, 'out', 'x'), (2, 'in', 'x')")
    changes = ["INSERT INTO t VALUES (0, 'out', 'x'), (3, 'new', 'x')", "UPDATE t SET c = 'y'", "UPDATE t SET a = -a"]
    events = capture(database, tmp_path, *changes, before=before, count=6, snapshot="initial")
    assert rows(events) == [
        ("read", {"a": 2, "b": "in"}),
        ("insert", {"a": 3, "b": "new"}),
        ("update", {"a": 2, "b": "in"}),
        ("update", {"a": 3, "b": "new"}),
        ("delete", None),
        ("delete", None),
    ]


@pytest.mark.parametrize("published", ["stored", "none"])
def test_generated_columns(database: Database, tmp_path: Path, published: str) -> None:
    since(database, 18)
    before = ["CREATE TABLE t (a int PRIMARY KEY, twice int GENERATED ALWAYS AS (a * 2) STORED)"]
    option = f"publish_generated_columns = {published}"
    before += [f"CREATE PUBLICATION {database.name} FOR TABLE t WITH ({option})", "INSERT INTO t VALUES (1)"]
    events = capture(database, tmp_path, "INSERT INTO t VALUES (2)", before=before, count=2, snapshot="initial")
    shown: list[dict[str, int]] = [{"a": 1, "twice": 2}, {"a": 2, "twice": 4}]
    if published == "none":
        shown = [{"a": row["a"]} for row in shown]
    assert rows(events) == [("read", shown[0]), ("insert", shown[1])]


def test_generated_columns_before_they_can_be_published(database: Database, tmp_path: Path) -> None:
    before = ["CREATE TABLE t (a int PRIMARY KEY, twice int GENERATED ALWAYS AS (a * 2) STORED)"]
    before.append("INSERT INTO t VALUES (1)")
    events = capture(database, tmp_path, "INSERT INTO t VALUES (2)", before=before, count=2, snapshot="initial")
    assert rows(events) == [("read", {"a": 1}), ("insert", {"a": 2})]


@pytest.mark.parametrize("origin", ["any", "none"])
def test_what_was_replicated_here(database: Database, tmp_path: Path, origin: str) -> None:
    since(database, 16)
    name = f"elsewhere_{database.name}"
    replicated = [f"SELECT pg_replication_origin_session_setup('{name}')", "INSERT INTO t VALUES (1)"]
    replicated.append("SELECT pg_replication_origin_session_reset()")
    make = [TABLE, f"SELECT pg_replication_origin_create('{name}')"]
    try:
        count = 2 if origin == "any" else 1
        changes = [*replicated, "INSERT INTO t VALUES (2)"]
        events = capture(database, tmp_path, *changes, before=make, count=count, origin=origin)
    finally:
        database.execute(f"SELECT pg_replication_origin_drop('{name}')")
    found = [(event.data["key"]["a"], event.data["tx"].get("origin")) for event in events]
    assert found == ([(1, name), (2, None)] if origin == "any" else [(2, None)])


def test_partitions_under_their_own_names(database: Database, tmp_path: Path) -> None:
    before = [
        "CREATE TABLE t (a int PRIMARY KEY) PARTITION BY RANGE (a)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)",
        f"CREATE PUBLICATION {database.name} FOR TABLE t",
        "INSERT INTO t VALUES (1)",
    ]
    events = capture(database, tmp_path, "INSERT INTO t VALUES (5)", before=before, count=2, snapshot="initial")
    assert [(event.subject, event.data["op"]) for event in events] == [("public.t1", "read"), ("public.t1", "insert")]


def test_a_service_file(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**conninfo_to_dict(database.dsn), "dbname": database.name}
    file = tmp_path / "services.conf"
    file.write_text("[shop]\n" + "".join(f"{key}={value}\n" for key, value in given.items()))
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    [event] = capture(database, tmp_path, "INSERT INTO t VALUES (1)", before=[TABLE], count=1, dsn="service=shop")
    assert event.partitionkey == "public.t/1"


# Tables that come later


def later(database: Database, tmp_path: Path, *statements: str, log: RecordingLog, **options: Any) -> list[Event]:
    """What the source captures of tables that are made while it streams; the last row of `t` ends it."""

    async def main() -> list[Event]:
        found = MemoryCapture()
        async with streaming(database, tmp_path, found, log, snapshot="initial", **options):
            await asyncio.to_thread(database.execute, *statements)
            await eventually(lambda: told(log, "new table is published") > 0, "it is published", 30)
            await eventually(lambda: told(log, "backfill done") > 0, "it is read", 30)
            await asyncio.to_thread(database.execute, "INSERT INTO later VALUES (3)")
            await until(found, lambda events: any(event.partitionkey == "public.later/3" for event in events))
        return found.events

    return asyncio.run(main())


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "LOOK", 0.1)


@pytest.mark.usefixtures("eager")
def test_a_table_that_comes_later_is_published_and_read(database: Database, tmp_path: Path) -> None:
    database.execute(TABLE)
    log = RecordingLog()
    make = [
        "CREATE TABLE keyless (a int)",
        "CREATE TABLE later (a int PRIMARY KEY)",
        "INSERT INTO later VALUES (1), (2)",
    ]
    events = later(database, tmp_path, *make, log=log)
    assert [(event.data["op"], event.data["key"]["a"]) for event in events] == [("read", 1), ("read", 2), ("insert", 3)]
    [warning] = [fields for level, event, fields in log.records if event == "a new table is not captured"]
    assert 'ALTER TABLE "public"."keyless" REPLICA IDENTITY FULL' in warning["hint"]
    database.execute("INSERT INTO keyless VALUES (1)", "UPDATE keyless SET a = 2")  # the application is not disturbed


@pytest.mark.usefixtures("eager")
def test_the_publication_of_others_is_left_alone(database: Database, tmp_path: Path) -> None:
    database.execute(TABLE, f"CREATE PUBLICATION {database.name} FOR TABLE t", "CREATE TABLE u (a int PRIMARY KEY)")

    async def main() -> None:
        found, log = MemoryCapture(), RecordingLog()
        async with streaming(database, tmp_path, found, log):
            await asyncio.to_thread(database.execute, "CREATE TABLE later (a int PRIMARY KEY)")
            await asyncio.to_thread(database.execute, "INSERT INTO t VALUES (1)")
            await until(found, lambda events: len(events) == 1)
        assert told(log, "new table is published") == 0

    asyncio.run(main())
    listed = f"SELECT tablename FROM pg_publication_tables WHERE pubname = '{database.name}'"
    assert database.execute(listed) == [("t",)]


def test_a_table_that_comes_while_nothing_runs(database: Database, tmp_path: Path) -> None:
    """Published at the next start; of a keyless one its inserts, where that is wanted."""
    capture(database, tmp_path, "INSERT INTO t VALUES (1)", before=[TABLE], count=1)
    database.drop_slot(database.name)
    make = ["CREATE TABLE later (a int PRIMARY KEY)", "CREATE TABLE keyless (a int)"]
    changes = ["INSERT INTO later VALUES (1)", "INSERT INTO keyless VALUES (1)"]
    events = capture(database, tmp_path, *changes, before=make, count=2, keyless="insert-only")
    assert [event.subject for event in events] == ["public.later", "public.keyless"]
