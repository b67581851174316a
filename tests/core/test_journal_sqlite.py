"""The embedded engine beyond the port: its file, its limits, its upkeep, damage and copies."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from headrace.errors import Fatal, Permanent, Transient
from headrace.journal import offline, schema, upkeep
from headrace.journal.block import _CHECK, _HEAD, CorruptBlock
from headrace.journal.place import claim
from headrace.journal.schema import RESTORE, STEPS, open_writer
from headrace.journal.space import Limits
from headrace.journal.sqlite import FILE, SHARD, SqliteJournal, open_journal
from headrace.protocols import Change, Row
from headrace.testing.fakes import RecordingLog
from headrace.testing.journal import everything, make_block, only, read_blocks, read_ids
from headrace.testing.leaks import eventually

WEEK = 604_800.0


@asynccontextmanager
async def journal_in(
    folder: Path, *, max_size: int = 1 << 30, retention: float = WEEK, log: RecordingLog | None = None
) -> AsyncIterator[SqliteJournal]:
    limits = Limits(retention, max_size)
    async with asyncio.timeout(60), open_journal(folder, limits, log or RecordingLog(), reserve=1 << 20) as journal:
        journal.begin_retention()
        yield journal


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def noise(number: int, size: int = 50_000) -> Change:
    """An intake of one event that does not compress."""
    return Change([make_block("a", [f"{number}:{os.urandom(size // 2).hex()}"])], intake=True)


def numbers(ids: list[str]) -> list[int]:
    return [int(one.partition(":")[0]) for one in ids]


def execute(path: Path, statement: str, *values: object) -> list[Any]:
    """On the closed file, as nobody else may."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        return db.execute(statement, values).fetchall()


def failed_log(log: RecordingLog, event: str) -> list[dict[str, Any]]:
    return [fields for _, name, fields in log.records if name == event]


# The file


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            for number in range(10):
                await journal.submit(Change([make_block("a", [str(number)])], [Row("a", b"k", b"%d" % number)]))
        async with journal_in(tmp_path) as journal:
            assert journal.head(SHARD) == 10
            assert await read_ids(journal, SHARD) == [str(number) for number in range(10)]
            assert await journal.get("a", b"k") == b"9"
            await journal.submit(Change([make_block("a", ["10"])]))
            assert (await read_ids(journal, SHARD))[-1] == "10"

    run(main())


def test_what_was_submitted_is_written_before_the_journal_closes(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            futures = [journal.submit(Change([make_block("a", [str(number)])])) for number in range(500)]
        assert all(future.done() and not future.exception() for future in futures)
        with pytest.raises(Transient, match="closed"):
            await journal.submit(Change())
        async with journal_in(tmp_path) as journal:
            assert journal.head(SHARD) == 500

    run(main())


def test_many_changes_share_a_commit(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            await asyncio.gather(*(journal.submit(Change([make_block("a", [str(n)])])) for n in range(1_000)))
            appended = {block.appended for block in await read_blocks(journal, SHARD)}
            assert len(appended) < 100

    run(main())


def test_a_positions_head_outlives_its_blocks(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            await journal.submit(Change([make_block("a", ["1", "2"])]))
            await journal.skip(0, "test")
        async with journal_in(tmp_path) as journal:
            assert journal.head(SHARD) == 2
            assert await journal.oldest(SHARD) == 2

    run(main())


def test_the_log_of_a_killed_process_is_recovered_and_emptied(tmp_path: Path) -> None:
    program = """
import asyncio, os, signal, sys
from pathlib import Path
from headrace.journal.space import Limits
from headrace.journal.sqlite import open_journal
from headrace.protocols import Change
from headrace.testing.fakes import RecordingLog
from headrace.testing.journal import make_block
async def main():
    async with open_journal(Path(sys.argv[1]), Limits(1e6, 1 << 30), RecordingLog(), 1 << 20) as journal:
        for number in range(100):
            await journal.submit(Change([make_block("a", [str(number)])]))
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    wal = tmp_path / f"{FILE}-wal"
    assert wal.stat().st_size > 0
    with closing(open_writer(tmp_path / FILE)) as db:
        assert wal.stat().st_size == 0
        assert db.execute("SELECT position FROM head").fetchone() == (100,)
        assert db.execute("SELECT count(*) FROM block").fetchone() == (100,)


def test_settings_are_as_they_must_be(tmp_path: Path) -> None:
    with closing(open_writer(tmp_path / FILE)) as db:
        names = ("journal_mode", "synchronous", "secure_delete", "auto_vacuum", "mmap_size", "page_size")
        values = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
        assert values == ["wal", 2, 0, 2, 0, 4096]


def test_a_setting_that_is_refused_is_fatal() -> None:
    class Deaf:
        def execute(self, statement: str) -> "Deaf":
            return self

        def fetchone(self) -> tuple[int]:
            return (1,)

    with pytest.raises(Fatal, match="refused synchronous=2 and has 1"):
        schema._set(Deaf(), "synchronous", 2)  # type: ignore[arg-type]


def test_an_older_format_is_brought_up(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "STEPS", STEPS[:1])
        open_writer(tmp_path / FILE).close()
    assert execute(tmp_path / FILE, "PRAGMA user_version") == [(1,)]

    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            assert await journal.gaps() == []

    run(main())
    assert execute(tmp_path / FILE, "PRAGMA user_version") == [(len(STEPS),)]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    open_writer(tmp_path / FILE).close()
    execute(tmp_path / FILE, f"PRAGMA user_version={len(STEPS) + 1}")
    with pytest.raises(Fatal, match=f"format {len(STEPS) + 1}.*newer version of Headrace"):
        open_writer(tmp_path / FILE)


def test_a_strangers_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / FILE
    execute(path, "CREATE TABLE precious (x)")
    before = path.read_bytes()
    with pytest.raises(Fatal, match="not a Headrace journal"):
        open_writer(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"nonsense " * 1_000)
    with pytest.raises(Fatal, match="not a database"):
        open_writer(tmp_path / FILE)


def test_an_empty_file_becomes_a_journal(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    open_writer(tmp_path / FILE).close()
    assert execute(tmp_path / FILE, "PRAGMA auto_vacuum") == [(2,)]


# Limits


def test_retention_deletes_what_is_old_and_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.journal.writer.IDLE", 0.01)

    async def main() -> None:
        async with journal_in(tmp_path, retention=0.001) as journal:
            journal.hold("c", SHARD, 50)
            for number in range(100):
                await journal.submit(noise(number, 100))
            async with asyncio.timeout(20):
                while await journal.oldest(SHARD) != 50:
                    pass
            assert numbers(await read_ids(journal, SHARD, 50)) == list(range(50, 100))
        async with journal_in(tmp_path) as journal:
            assert numbers(await read_ids(journal, SHARD)) == list(range(50, 100))

    run(main())


def test_nothing_is_deleted_before_every_consumer_has_its_hold(tmp_path: Path) -> None:
    async def main() -> None:
        limits = Limits(WEEK, 2 << 20)
        async with asyncio.timeout(60), open_journal(tmp_path, limits, RecordingLog(), reserve=1 << 20) as journal:
            futures = [journal.submit(noise(number)) for number in range(100)]
            await stopped(journal)
            assert await journal.oldest(SHARD) == 0
            journal.begin_retention()
            await asyncio.gather(*futures)
            assert await journal.oldest(SHARD) > 0

    run(main())


async def stopped(journal: SqliteJournal) -> str:
    async with asyncio.timeout(20):
        while not (why := (await journal.usage()).stopped):
            pass
    return why


def test_max_size_bounds_the_file(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path, max_size=4 << 20) as journal:
            for number in range(400):
                await journal.submit(noise(number))
                assert (await journal.usage()).size <= 4 << 20
            ids = numbers(await read_ids(journal, SHARD, await journal.oldest(SHARD)))
            assert ids[-1] == 399
            assert ids == list(range(ids[0], 400))
            assert len(ids) > 20

    run(main())
    assert (tmp_path / FILE).stat().st_size < 8 << 20


def test_a_held_journal_stops_intake_and_goes_on_by_itself(tmp_path: Path) -> None:
    log = RecordingLog()

    async def main() -> None:
        async with journal_in(tmp_path, max_size=2 << 20, log=log) as journal:
            journal.hold("slow", SHARD, 0)
            futures = [journal.submit(noise(number)) for number in range(100)]
            why = await stopped(journal)
            assert "max_size of 2097152 bytes" in why
            assert (await journal.usage()).blockers == {"slow": 0}
            # All else goes on.
            await journal.submit(Change([make_block("returned", ["x"])], [Row("slow", b"cursor", b"1")]))
            assert not all(future.done() for future in futures)
            start = 0
            while not all(future.done() for future in futures):
                page = await journal.read(SHARD, start, everything)
                start = page.next
                journal.hold("slow", SHARD, start)
                await asyncio.sleep(0.001)
            await asyncio.gather(*futures)
            assert (await journal.usage()).stopped == ""

    run(main())
    assert next(iter(failed_log(log, "intake stopped")))["oldest_needed_by"] == ["slow"]
    assert failed_log(log, "intake resumed")


def test_held_intake_keeps_its_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path, max_size=2 << 20) as journal:
            journal.hold("slow", SHARD, 0)
            futures = [journal.submit(noise(number)) for number in range(60)]
            await stopped(journal)
            futures += [journal.submit(noise(number, 10)) for number in range(60, 80)]  # small: would fit
            await journal.submit(Change([], [Row("c", b"c", b"1")]))
            kept = numbers(await read_ids(journal, SHARD))
            assert kept == list(range(len(kept)))
            journal.release("slow")
            await asyncio.gather(*futures)
            left = numbers(await read_ids(journal, SHARD, await journal.oldest(SHARD)))
            assert left == list(range(left[0], 80))

    run(main())


def test_a_change_larger_than_the_journal_is_let_in_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path, max_size=1 << 20) as journal:
            journal.hold("c", SHARD, 0)
            await journal.submit(noise(0))
            huge = journal.submit(noise(1, 3 << 20))
            await stopped(journal)
            journal.hold("c", SHARD, 1)
            await huge
            assert numbers(await read_ids(journal, SHARD, 1)) == [1]

    run(main())


def test_intake_that_is_stopped_fails_when_the_journal_closes(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path, max_size=1 << 20) as journal:
            journal.hold("slow", SHARD, 0)
            futures = [journal.submit(noise(number)) for number in range(60)]
            await stopped(journal)
        outcomes = [future.exception() for future in futures]
        done = [error is None for error in outcomes]
        assert sorted(done, reverse=True) == done  # all that was written came before all that was not
        assert all(isinstance(error, Transient) for error in outcomes if error)
        async with journal_in(tmp_path, max_size=1 << 20) as journal:
            assert journal.head(SHARD) == sum(done)

    run(main())


def test_what_is_needed_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.journal.writer.IDLE", 0.01)
    log = RecordingLog()

    async def main() -> None:
        async with journal_in(tmp_path, max_size=4 << 20, log=log) as journal:
            journal.hold("slow", SHARD, 0)
            for number in range(200):
                if failed_log(log, "journal fills up"):
                    break
                await journal.submit(noise(number, 20_000))
                await asyncio.sleep(0.005)

    run(main())
    assert failed_log(log, "journal fills up")[0] == {"percent": 50, "needed_by": ["slow"]}


def test_space_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.journal.writer.IDLE", 0.01)
    monkeypatch.setattr("headrace.journal.writer.BUSY", 0.001)
    monkeypatch.setattr(upkeep, "SPARE_BYTES", 1 << 20)

    async def main() -> None:
        async with journal_in(tmp_path, retention=0.001) as journal:
            journal.hold("c", SHARD, 0)
            await asyncio.gather(*(journal.submit(noise(number, 100_000)) for number in range(100)))
            journal.release("c")
            async with asyncio.timeout(20):
                while await journal.oldest(SHARD) < journal.head(SHARD):
                    pass

            def given() -> bool:
                pages = journal._writer.call(lambda: upkeep.pragma(journal._writer.db, "freelist_count"))
                waiting.append(pages)
                return any(it.done() and it.result() * 4096 <= 1 << 20 for it in waiting)

            waiting: list[asyncio.Future[int]] = []
            await eventually(given, "free pages are given back")

    run(main())
    assert (tmp_path / FILE).stat().st_size < 4 << 20


def test_a_busy_reader_does_not_let_the_log_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "WAL_LIMIT", 4 << 20)
    monkeypatch.setattr(schema, "WAL_PAGES", 256)
    largest = 0

    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            stop = asyncio.Event()

            async def read() -> None:
                while not stop.is_set():
                    await journal.scan("a", b"", None, 1_000)

            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(read())
                nonlocal largest
                for number in range(60):
                    await journal.submit(noise(number, 1_000_000))
                    largest = max(largest, (tmp_path / f"{FILE}-wal").stat().st_size)
                stop.set()

    run(main())
    assert largest < 8 << 20


# Merging


def age(path: Path, seconds: float) -> None:
    """Make all blocks older, heads included."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for first, head in db.execute("SELECT first, head FROM block").fetchall():
            db.execute(
                "UPDATE block SET appended=appended-?, head=? WHERE first=?", (seconds, aged(head, seconds), first)
            )


def aged(head: bytes, seconds: float) -> bytes:
    fields = list(_HEAD.unpack_from(head))
    fields[5] -= seconds
    fields[6] -= seconds
    changed = _HEAD.pack(*fields) + head[_HEAD.size : -_CHECK.size]
    return changed + _CHECK.pack(crc32(changed))


def test_small_blocks_are_merged_and_nobody_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.journal.writer.BUSY", 0.001)
    sources = ["a", "b", "a", "a", "c"]

    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            for number in range(600):
                block = make_block(sources[number % 5], [str(number)], f"t.{number % 7}")
                await journal.submit(Change([block]))
        age(tmp_path / FILE, 300)
        monkeypatch.setattr("headrace.journal.writer.IDLE", 0.001)
        async with journal_in(tmp_path) as journal:
            expected = [str(number) for number in range(600)]
            sevens = [str(number) for number in range(600) if number % 7 == 3]
            async with asyncio.timeout(30):
                while len(await read_blocks(journal, SHARD)) > 3:
                    for start in (0, 1, 255, 300, 599):
                        assert await read_ids(journal, SHARD, start) == expected[start:]
            blocks = await read_blocks(journal, SHARD, wanted=only("t.3"))
            ids = [
                block.line(index)
                for block in blocks
                for index in range(block.count)
                if block.kinds[block.kind_of[index]].type == "t.3"
            ]
            assert [line.split(b'"id":"')[1].split(b'"')[0].decode() for line in ids] == sevens
            assert [problem async for problem in journal.verify()] == []

    run(main())


def test_a_reader_between_pages_sees_each_event_once_through_a_merge(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            for number in range(300):
                await journal.submit(Change([make_block("a", [str(number)])]))
        age(tmp_path / FILE, 300)
        async with journal_in(tmp_path) as journal:
            page = await journal.read(SHARD, 0, everything)
            assert page.next == 256
            done = await journal._writer.call(lambda: upkeep.merge_small(journal._writer.db, 0, time.time()))
            assert done == (256, True)
            assert await read_ids(journal, SHARD, page.next) == [str(number) for number in range(256, 300)]
            done = await journal._writer.call(lambda: upkeep.merge_small(journal._writer.db, 100, time.time()))
            assert await read_ids(journal, SHARD, 250) == [str(number) for number in range(250, 300)]

    run(main())


def test_the_youngest_blocks_wait_to_be_merged(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            for number in range(10):
                await journal.submit(Change([make_block("a", [str(number)])]))
            now = time.time()
            for later, expected in ((0.0, (0, False)), (90.0, (0, False)), (200.0, (10, True))):
                merge = lambda later=later: upkeep.merge_small(journal._writer.db, 0, now + later)  # noqa: E731
                outcome = await journal._writer.call(merge)
                assert outcome == expected or later == 200.0
            assert await journal._writer.call(
                lambda: journal._writer.db.execute("SELECT first, count FROM block").fetchall()
            ) == [(0, 10)]

    run(main())


def test_large_and_damaged_blocks_are_not_merged(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            for number in range(3):
                await journal.submit(Change([make_block("a", [str(number)])]))
            await journal.submit(Change([make_block("a", [str(n) for n in range(600)])]))
            for number in range(4):
                await journal.submit(Change([make_block("a", [str(number)])]))
        age(tmp_path / FILE, 300)
        execute(tmp_path / FILE, "UPDATE block SET body=x'00' WHERE first=604")
        async with journal_in(tmp_path) as journal:
            db, now, start, more = journal._writer.db, time.time(), 0, True
            while more:
                start, more = await journal._writer.call(lambda: upkeep.merge_small(db, start, now))  # noqa: B023
            rows = await journal._writer.call(lambda: db.execute("SELECT first, count FROM block").fetchall())
            # The last four stay as they are, because one of them is damaged.
            assert rows == [(0, 3), (3, 600), (603, 1), (604, 1), (605, 1), (606, 1)]

    run(main())


# Damage and copies


def damaged_journal(folder: Path, statement: str) -> None:
    async def fill() -> None:
        async with journal_in(folder) as journal:
            for number in range(40):
                kind = "t.odd" if number % 2 else "t.even"
                ids = [f"{number}.{index}" for index in range(10)]
                await journal.submit(Change([make_block("a", ids, kind)]))

    run(fill())
    execute(folder / FILE, statement)


@pytest.mark.parametrize("column", ["head", "idx", "body"])
def test_damage_stops_only_who_reaches_it(tmp_path: Path, column: str) -> None:
    damage = f"substr({column}, 1, 20) || x'ff00ff' || substr({column}, 24)"
    damaged_journal(tmp_path, f"UPDATE block SET {column}=CAST({damage} AS BLOB) WHERE first=210")

    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            page = await journal.read(SHARD, 0, everything)
            assert page.next == 210  # all before it is delivered
            with pytest.raises(CorruptBlock, match="block at 210 is damaged"):
                await journal.read(SHARD, 210, everything)
            assert len(await read_blocks(journal, SHARD, 220)) == 18
            if column != "head":  # from a sound head it is known that the others do not want it
                assert len(await read_blocks(journal, SHARD, 0, only("t.even"))) == 20
            found = [problem.first async for problem in journal.verify()]
            assert found == [210]
            assert await journal.skip(210, "disk error") == 10
            assert [problem async for problem in journal.verify()] == []
            assert [gap[:2] + gap[3:] for gap in await journal.gaps()] == [(210, 10, "disk error")]
            assert len(await read_ids(journal, SHARD)) == 390
            await journal.submit(Change([make_block("a", ["more"])]))
            assert journal.head(SHARD) == 401

    run(main())


def test_skipping_what_is_not_there_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            with pytest.raises(Permanent, match="no block starts at 7"):
                await journal.skip(7, "x")
            await journal.submit(Change())  # the writer goes on

    run(main())


def test_damage_is_found_and_skipped_without_a_daemon(tmp_path: Path) -> None:
    damaged_journal(tmp_path, "UPDATE block SET body=x'00' WHERE first IN (0, 390)")
    assert [problem.first for problem in offline.verify(tmp_path)] == [0, 390]
    assert offline.skip(tmp_path, 0, "gone") == 10
    assert offline.skip(tmp_path, 390, "gone") == 10
    assert list(offline.verify(tmp_path)) == []
    assert [gap[:2] for gap in offline.gaps(tmp_path)] == [(0, 10), (390, 10)]
    offline.backup(tmp_path, tmp_path / "copy.db")
    assert execute(tmp_path / "copy.db", "SELECT count(*) FROM block") == [(38,)]


def test_offline_work_needs_a_journal_that_nobody_uses(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="holds no journal"):
        list(offline.verify(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    open_writer(tmp_path / FILE).close()
    with claim(tmp_path), pytest.raises(Fatal, match="in use by another daemon"):
        list(offline.verify(tmp_path))


def damage_tree(path: Path, table: str) -> None:
    """Overwrite the root page of a table or index."""
    ((root,),) = execute(path, "SELECT rootpage FROM sqlite_master WHERE name=?", table)
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xa5" * 4096)


def test_damaged_state_is_fatal_and_says_how_to_restore(tmp_path: Path) -> None:
    async def fill() -> None:
        async with journal_in(tmp_path) as journal:
            await journal.submit(Change([make_block("a", ["1"])], [Row("a", b"%d" % n, b"x" * 99) for n in range(500)]))

    async def use() -> None:
        async with journal_in(tmp_path) as journal:
            with pytest.raises(Fatal) as read:
                await journal.get("a", b"7")
            assert read.value.hint == RESTORE
            waiting = asyncio.ensure_future(journal.grown(SHARD, journal.head(SHARD)))
            with pytest.raises(Fatal) as written:
                await journal.submit(Change([], [Row("a", b"7", b"y")]))
            assert written.value.hint == RESTORE
            for change in (Change(), Change([make_block("a", ["2"])])):
                with pytest.raises(Fatal):
                    await journal.submit(change)
            with pytest.raises(Fatal):
                await waiting
            assert "malformed" in (await journal.usage()).stopped

    run(fill())
    damage_tree(tmp_path / FILE, "state")
    run(use())


def test_a_backup_made_while_writing_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "copy" / FILE
    target.parent.mkdir()

    async def main() -> int:
        async with journal_in(tmp_path) as journal:
            for number in range(200):
                await journal.submit(noise(number))
            before = journal.head(SHARD)
            copying = asyncio.ensure_future(journal.backup(target))
            number = before
            while not copying.done():
                change = noise(number, 1_000)
                await journal.submit(Change(change.blocks, [Row("a", b"last", b"%d" % number)], intake=True))
                number += 1
            await copying
            assert number > before  # it went on meanwhile
            with pytest.raises(Permanent, match="exists"):
                await journal.backup(target)
            return before

    async def look(before: int) -> None:
        async with journal_in(target.parent) as copy:
            ids = numbers(await read_ids(copy, SHARD))
            assert len(ids) >= before
            assert ids == list(range(len(ids)))
            last = await copy.get("a", b"last")
            assert last is None or int(last) == ids[-1]
            assert [problem async for problem in copy.verify()] == []

    before = asyncio.run(main())
    assert target.stat().st_mode & 0o077 == 0
    assert [path.name for path in target.parent.iterdir()] == [FILE]
    assert execute(target, "PRAGMA integrity_check") == [("ok",)]
    run(look(before))


def test_a_backup_that_cannot_be_written_harms_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            with pytest.raises(Permanent, match="name a file that this user may write"):
                await journal.backup(tmp_path / "nowhere" / "copy.db")
            await journal.submit(Change([make_block("a", ["1"])]))

    run(main())


def test_an_unforeseen_error_ends_the_journal_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RecordingLog()

    def fail(*_: object) -> None:
        raise RuntimeError("unforeseen")

    async def main() -> None:
        async with journal_in(tmp_path, log=log) as journal:
            monkeypatch.setattr(journal._writer, "_commit", fail)
            for _ in range(2):
                with pytest.raises(Fatal, match="unforeseen"):
                    await journal.submit(Change())

    run(main())
    assert failed_log(log, "journal failed")


def test_the_time_of_a_merged_block_misses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with journal_in(tmp_path) as journal:
            times: list[float] = []
            for number in range(5):
                await journal.submit(Change([make_block("a", [str(number)])]))
                times.append((await read_blocks(journal, SHARD, number))[0].appended)
            merge: Callable[[], object] = lambda: upkeep.merge_small(journal._writer.db, 0, time.time() + 300)  # noqa: E731
            await journal._writer.call(merge)
            assert await journal.at(SHARD, times[-1]) == 0
            assert await journal.at(SHARD, times[-1] + 1) == 5

    run(main())
