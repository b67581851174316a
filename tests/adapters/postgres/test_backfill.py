"""Backfill beside the stream: the tables rebuilt from the events equal the source, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from headrace.errors import Permanent
from headrace.event import Event
from headrace.journal.block import Lines
from headrace.protocols import Captured, Write
from headrace.sources.postgres.source import Postgres
from headrace.testing import MemoryCapture, RecordingLog, SimulatedCrash, make_context
from headrace.testing.leaks import cancelled, eventually
from tests.adapters.postgres.kit import Stall, settings, until
from tests.fixtures.postgres import Database, wait_for

pytestmark = pytest.mark.postgres
TABLE = ("CREATE TABLE t (a int PRIMARY KEY, n int, big text)", "ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
FILL = "INSERT INTO t SELECT g, 0, repeat(g::text || 'x', 600) FROM generate_series({}, {}) g"


@asynccontextmanager
async def streaming(
    database: Database, tmp_path: Path, found: MemoryCapture, log: RecordingLog | None = None, **options: Any
) -> AsyncIterator[Postgres]:
    """The source, once it streams."""
    log = log or RecordingLog()
    async with settings(database, **options).open(make_context(tmp_path, log=log)) as source:
        assert isinstance(source, Postgres)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(source.run(found))
            await eventually(
                lambda: task.done() or found.crashed.is_set() or told(log, "streaming") > 0, "it streams", 30
            )
            try:
                yield source
            finally:
                if not task.done():
                    await cancelled(task)


def told(log: RecordingLog, what: str) -> int:
    return sum(event == what for _, event, _ in log.records)


def rebuilt(events: Sequence[Event]) -> dict[int, dict[str, Any]]:
    """The table from its events; a change of a row that was not read yet may leave some of it out."""
    table: dict[int, dict[str, Any]] = {}
    for event in events:
        data = event.data
        match data["op"]:
            case "truncate":
                table.clear()
            case "delete":
                table.pop(data["key"]["a"], None)
            case "insert" | "read":
                table[data["key"]["a"]] = data["after"]
            case "update":
                old = table.pop((data["before"] or data["key"])["a"], {})
                kept = {name: old[name] for name in data.get("unchanged", ()) if name in old}
                table[data["key"]["a"]] = data["after"] | kept
    return table


def truth(database: Database) -> dict[int, dict[str, Any]]:
    return {a: {"a": a, "n": n, "big": big} for a, n, big in database.execute("SELECT a, n, big FROM t")}


def assert_same(events: Sequence[Event], database: Database) -> None:
    now, there = rebuilt(events), truth(database)
    assert now.keys() == there.keys()
    assert [key for key in there if now[key] != there[key]] == []
    assert len({event.id for event in events}) == len(events)
    assert [event.sequence for event in events] == sorted(event.sequence or "" for event in events)


@contextmanager
def writing(database: Database, seed: int = 1) -> Iterator[None]:
    """Changes of every kind until the end of the block."""
    stop = threading.Event()
    thread = threading.Thread(target=_write, args=(database, Random(seed), stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _write(database: Database, chance: Random, stop: threading.Event) -> None:
    fresh = 1_000_000
    with database.connect() as connection:
        while not stop.is_set():
            key = chance.randint(1, 3000)
            match chance.randint(1, 12):
                case 1 | 2:
                    connection.execute("DELETE FROM t WHERE a = %s", (key,))
                case 3:  # to a key that was perhaps read already, with a value that is not sent
                    connection.execute("UPDATE t SET a = -a WHERE a = %s", (key,))
                case 4:
                    fresh += 1
                    connection.execute("UPDATE t SET a = %s WHERE a = %s", (fresh, key))
                case 5:
                    connection.execute("UPDATE t SET big = 'changed' WHERE a = %s", (key,))
                case 6:
                    connection.execute("INSERT INTO t VALUES (%s, -1, 'new') ON CONFLICT DO NOTHING", (key,))
                case _:
                    connection.execute("UPDATE t SET n = n + 1 WHERE a BETWEEN %s AND %s", (key, key + 20))
            stop.wait(0.001)


async def at_the_end(database: Database, found: MemoryCapture) -> None:
    """Everything has arrived."""
    await asyncio.to_thread(database.execute, "INSERT INTO t VALUES (0, 0, 'end')")
    await until(found, lambda events: any(event.partitionkey == "public.t/0" for event in events))


def test_with_writers_and_changed_keys(database: Database, tmp_path: Path) -> None:
    database.execute(*TABLE, FILL.format(1, 3000))

    async def main() -> list[Event]:
        found, log = MemoryCapture(), RecordingLog()
        async with streaming(database, tmp_path, found, log) as source:
            with writing(database):
                await source.backfill("public.t")
                await eventually(lambda: told(log, "backfill done") == 1, "the backfill", 60)
                await source.backfill("public.*")
                await eventually(lambda: told(log, "backfill done") == 2, "the second one", 60)
            await at_the_end(database, found)
        return found.events

    events = asyncio.run(main())
    assert sum(event.type.endswith("read") for event in events) > 3000
    assert_same(events, database)


def test_killed_again_and_again(database: Database, tmp_path: Path) -> None:
    database.execute(*TABLE, FILL.format(1, 3000))

    async def main() -> list[Event]:
        found, log = MemoryCapture(), RecordingLog()
        async with streaming(database, tmp_path, found, log) as source:
            await source.backfill("public.t")
        with writing(database):
            for number in range(2, 12):
                found = found.survivor(crash=SimulatedCrash(number, "before" if number % 2 else "after"))
                async with streaming(database, tmp_path, found):
                    await found.crashed.wait()
        found = found.survivor()
        async with streaming(database, tmp_path, found, log):
            await eventually(lambda: told(log, "backfill done") == 1, "the backfill", 60)
            await at_the_end(database, found)
        return found.events

    assert_same(asyncio.run(main()), database)


def test_a_row_does_not_go_back_while_its_commit_waits_for_a_standby(database: Database, tmp_path: Path) -> None:
    """The stream has the change already; every other session still sees the old row."""
    database.execute(*TABLE, FILL.format(1, 10))

    async def main() -> tuple[list[Event], list[Event]]:
        found, log, stall = MemoryCapture(), RecordingLog(), Stall(database)
        async with streaming(database, tmp_path, found, log) as source:
            try:
                await source.backfill("public.t")
                await eventually(lambda: told(log, "backfill done") == 1, "a backfill before it", 30)
                await asyncio.to_thread(stall.begin)
                await asyncio.to_thread(stall.commit, "UPDATE t SET n = 7 WHERE a = 3")
                await until(found, lambda events: any(event.data["op"] == "update" for event in events))
                assert truth(database)[3]["n"] == 0
                await source.backfill("public.t")
                await asyncio.to_thread(wait_for, lambda: told(log, "backfill") == 2)
                during = list(found.events)
            finally:
                await asyncio.to_thread(stall.end)
            await eventually(lambda: told(log, "backfill done") == 2, "the backfill", 30)
            await at_the_end(database, found)
        return during, found.events

    during, events = asyncio.run(main())
    assert [event.data["after"]["n"] for event in events if event.data["key"] == {"a": 3}][1:] in ([7, 7], [7])
    assert_same(events, database)
    assert rebuilt(during)[3]["n"] == 7


class Gate(MemoryCapture):
    """Holds back the first rows that were read."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.open = asyncio.Event(), asyncio.Event()

    async def submit(self, events: Captured, state: Sequence[Write] = ()) -> asyncio.Future[None]:
        if isinstance(events, Lines) and "headrace.postgres.read" in events.types:
            self.waiting.set()
            await self.open.wait()
        return await super().submit(events, state)


CHANGES = "UPDATE t SET n = 7 WHERE a > 900; DELETE FROM t WHERE a = 800"
RENAMED = f"{CHANGES}; UPDATE t SET a = -a WHERE a = 700"


@pytest.mark.parametrize("change", [CHANGES, RENAMED])
def test_a_commit_that_waits_while_chunks_are_read_wins(database: Database, tmp_path: Path, change: str) -> None:
    """It is delivered after the backfill began, and chunks after it do not see it."""
    database.execute(*TABLE, FILL.format(1, 1000))

    async def main() -> list[Event]:
        found, log, stall = Gate(), RecordingLog(), Stall(database)
        async with streaming(database, tmp_path, found, log) as source:
            try:
                await source.backfill("public.t")
                await found.waiting.wait()
                await asyncio.to_thread(stall.begin)
                await asyncio.to_thread(stall.commit, change)
                found.open.set()
                await until(found, lambda events: any(event.id.endswith("/public.t/1000") for event in events))
                assert truth(database)[950]["n"] == 0
            finally:
                await asyncio.to_thread(stall.end)
            await eventually(lambda: told(log, "backfill done") == 1, "the backfill", 30)
            await at_the_end(database, found)
        return found.events

    assert_same(asyncio.run(main()), database)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_transaction_that_comes_while_it_runs(database: Database, tmp_path: Path, renamed: bool) -> None:
    """It changes all rows while chunks are read that do not see it, and is committed in the middle of the backfill."""
    database.execute(*TABLE, FILL.format(1, 1000))
    database.execute(f"ALTER DATABASE {database.name} SET logical_decoding_work_mem = '64kB'")
    changes = ["UPDATE t SET n = n + 1", "INSERT INTO t SELECT g, 1, 'new' FROM generate_series(2001, 4000) g"]
    changes += ["UPDATE t SET a = -a WHERE a % 9 = 0"] if renamed else []
    counted = f"SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = '{database.name}'"

    async def main() -> list[Event]:
        found, log = Gate(), RecordingLog()
        with database.connect() as connection:
            async with streaming(database, tmp_path, found, log) as source:
                await source.backfill("public.t")
                await found.waiting.wait()
                connection.execute("BEGIN")
                for change in changes:
                    connection.execute(change.encode())
                await asyncio.to_thread(wait_for, lambda: database.execute(counted) > [(0,)])
                found.open.set()
                await until(found, lambda events: sum(event.data["op"] == "read" for event in events) > 200)
                connection.execute("COMMIT")
                await eventually(lambda: told(log, "backfill done") == 1, "the backfill", 30)
                await at_the_end(database, found)
        return found.events

    assert_same(asyncio.run(main()), database)


def test_a_table_published_later_is_read(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE other (a int PRIMARY KEY)", "INSERT INTO other VALUES (1)")
    database.execute(f"CREATE PUBLICATION {database.name} FOR TABLE other")

    async def main() -> list[Event]:
        found, log = MemoryCapture(), RecordingLog()
        async with streaming(database, tmp_path, found, snapshot="initial"):
            await asyncio.to_thread(database.execute, *TABLE, FILL.format(1, 50))
            statement = f"ALTER PUBLICATION {database.name} ADD TABLE t"
            await asyncio.to_thread(database.execute, statement, "UPDATE t SET n = 1 WHERE a = 5")
        found = found.survivor()
        async with streaming(database, tmp_path, found, log, snapshot="initial"):
            await eventually(lambda: told(log, "backfill done") == 1, "the backfill", 30)
            await at_the_end(database, found)
        return found.events

    events = asyncio.run(main())
    assert sum(event.subject == "public.other" for event in events) == 1
    assert_same([event for event in events if event.subject == "public.t"], database)


def test_what_cannot_be_read_is_refused(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE nokey (a int)", "ALTER TABLE nokey REPLICA IDENTITY FULL", *TABLE)

    async def main() -> None:
        async with streaming(database, tmp_path, MemoryCapture()) as source:
            with pytest.raises(Permanent, match="no primary key"):
                await source.backfill("public.nokey")
            with pytest.raises(Permanent, match=r"no captured table matches public\.tt"):
                await source.backfill("public.tt")

    asyncio.run(main())


def test_columns_added_meanwhile_are_told_of_first(database: Database, tmp_path: Path) -> None:
    database.execute(*TABLE, "INSERT INTO t VALUES (1, 1, 'x')")

    async def main() -> list[Event]:
        found, log = MemoryCapture(), RecordingLog()
        async with streaming(database, tmp_path, found, log) as source:
            await asyncio.to_thread(database.execute, "UPDATE t SET n = 2", "ALTER TABLE t ADD c int DEFAULT 5")
            await source.backfill("public.t")
            await eventually(lambda: told(log, "backfill done") == 1, "the backfill", 30)
            await at_the_end(database, found)
        return found.events

    events = asyncio.run(main())
    assert [event.data["op"] for event in events] == ["update", "schema", "read", "insert"]
    assert events[1].data["added"] == ["c"]
    assert events[2].data["after"]["c"] == 5
