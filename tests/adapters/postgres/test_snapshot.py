"""The rows that were there: all of them, once, as the stream would show them, and then the stream without a gap."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from headrace.event import Event
from headrace.testing import MemoryCapture, SimulatedCrash, make_context
from headrace.testing.leaks import cancelled, eventually
from tests.adapters.postgres.kit import Stall, capture, running, settings, until
from tests.adapters.postgres.test_backfill import CHANGES, FILL, TABLE, Gate, assert_same, at_the_end, truth
from tests.adapters.postgres.test_types import TRAPS, TYPES
from tests.fixtures.postgres import Database, wait_for

pytestmark = pytest.mark.postgres


def test_rows_look_as_the_stream_shows_them(database: Database, tmp_path: Path) -> None:
    columns = ", ".join(f"c{number} {type_}" for number, (type_, _, _) in enumerate(TRAPS))
    literals = ", ".join("'" + text.replace("'", "''") + "'" for _, text, _ in TRAPS)
    make = [*TYPES, f"CREATE TABLE t (id int PRIMARY KEY, {columns}, free text)"]
    rows = [f"INSERT INTO t VALUES ({key}, {literals}, NULL)" for key in (1, 2)]
    events = capture(database, tmp_path, rows[1], before=[*make, rows[0]], count=2, snapshot="initial")
    read, inserted = events
    assert [event.type.rpartition(".")[2] for event in events] == ["read", "insert"]
    assert read.data["after"] | {"id": 2} == inserted.data["after"]
    assert read.data["unparsed"] == inserted.data["unparsed"]
    assert (read.partitionkey, read.data["key"]) == ("public.t/1", {"id": 1})
    assert (read.sequence or "") < (inserted.sequence or "")


def test_partitions_filters_and_keyless_tables(database: Database, tmp_path: Path) -> None:
    make = [
        "CREATE TABLE p (a int PRIMARY KEY, b text) PARTITION BY RANGE (a)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE p2 (b text, a int NOT NULL)",
        "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)",
        "INSERT INTO p VALUES (1, 'one'), (11, 'eleven')",
        "CREATE TABLE nokey (a int)",
        "INSERT INTO nokey VALUES (1), (1)",
    ]
    events = capture(
        *(database, tmp_path, "INSERT INTO nokey VALUES (2)"),
        before=make,
        count=5,
        snapshot="initial",
        keyless="insert-only",
    )
    rows = sorted((event.subject, event.data["after"]["a"], event.type.rpartition(".")[2]) for event in events)
    assert rows == [
        *[("public.nokey", 1, "read")] * 2,
        ("public.nokey", 2, "insert"),
        *[("public.p", 1, "read"), ("public.p", 11, "read")],
    ]
    assert len({event.id for event in events}) == 5
    database.execute("UPDATE nokey SET a = 3 WHERE a = 2")  # the application is not disturbed


def test_many_rows_with_writers_and_a_crash_in_the_middle(database: Database, tmp_path: Path) -> None:
    database.execute(
        "CREATE TABLE t (a int PRIMARY KEY, n int)",
        "INSERT INTO t SELECT g, 0 FROM generate_series(1, 20000) g",
        "CREATE TABLE u (a int PRIMARY KEY, n int)",
        "INSERT INTO u SELECT g, 0 FROM generate_series(1, 3000) g",
    )

    async def main() -> list[Event]:
        found = MemoryCapture()
        for number in (3, 6, 9, 12):
            found = found.survivor(crash=SimulatedCrash(number, "after"))
            task = asyncio.create_task(_run(database, tmp_path, found))
            await eventually(lambda: found.crashed.is_set() or task.done(), "the crash")  # noqa: B023
            task.cancel()
            await asyncio.wait([task])
            await asyncio.to_thread(
                database.execute, "UPDATE t SET n = n + 1 WHERE a % 7 = 0", "DELETE FROM t WHERE a % 91 = 0"
            )
            await asyncio.to_thread(database.execute, f"UPDATE u SET n = n + 1 WHERE a % {number} = 0")
        found = found.survivor()
        async with running(settings(database, snapshot="initial"), tmp_path, found):
            await asyncio.to_thread(database.execute, "INSERT INTO u VALUES (-1, -1)")
            await until(found, lambda events: any(event.partitionkey == "public.u/-1" for event in events))
        return found.events

    tables: dict[str, dict[int, int]] = {"t": {}, "u": {}}
    events = asyncio.run(main())
    assert len({event.id for event in events}) == len(events)
    for event in events:
        table, key = tables[event.data["table"]], event.data["key"]["a"]
        if event.data["op"] == "delete":
            table.pop(key, None)
        else:
            table[key] = event.data["after"]["n"]
    for name, table in tables.items():
        assert table == dict(database.execute(f"SELECT a, n FROM {name}"))


async def _run(database: Database, tmp_path: Path, found: MemoryCapture) -> None:
    async with running(settings(database, snapshot="initial"), tmp_path, found):
        await found.crashed.wait()


@pytest.mark.parametrize("before_the_slot", [True, False])
def test_a_commit_that_waits_for_a_standby(database: Database, tmp_path: Path, before_the_slot: bool) -> None:
    """The WAL has it, other sessions do not see it: it is in the snapshot or in the stream all the same."""
    database.execute(*TABLE, FILL.format(1, 1000), f"CREATE PUBLICATION {database.name} FOR TABLE t")
    stall = Stall(database)

    async def main() -> list[Event]:
        found = Gate()
        given = settings(database, snapshot="initial").open(make_context(tmp_path))
        async with given as source, asyncio.TaskGroup() as group:
            if before_the_slot:
                await asyncio.to_thread(stall.begin)
                await asyncio.to_thread(stall.commit, CHANGES)
            task = group.create_task(source.run(found))
            try:
                if before_the_slot:
                    slot = f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{database.name}'"
                    await asyncio.to_thread(wait_for, lambda: bool(database.execute(slot)))
                    found.open.set()
                else:
                    await found.waiting.wait()
                    await asyncio.to_thread(stall.begin)
                    await asyncio.to_thread(stall.commit, CHANGES)
                    found.open.set()
                    await until(found, lambda events: any(event.data["op"] == "update" for event in events))
                    assert truth(database)[950]["n"] == 0
            finally:
                await asyncio.to_thread(stall.end)
            await at_the_end(database, found)
            await cancelled(task)
        return found.events

    assert_same(asyncio.run(main()), database)
