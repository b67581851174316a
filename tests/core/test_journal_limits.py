"""The embedded engine within its limits: retention, `max_size`, back-pressure, space, the log."""

import asyncio
from pathlib import Path

import pytest

from headrace.errors import Transient
from headrace.journal import schema, upkeep
from headrace.journal.space import Limits
from headrace.journal.sqlite import FILE, SHARD, SqliteJournal, open_journal
from headrace.protocols import Change, Row
from headrace.testing.fakes import RecordingLog
from headrace.testing.journal import everything, make_block, read_ids
from headrace.testing.leaks import eventually
from tests.core.journals import WEEK, failed_log, journal_in, noise, numbers, run


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
            await journal.submit(noise(0))
            futures = [journal.submit(noise(number)) for number in range(1, 100)]
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
