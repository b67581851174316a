"""Small blocks become large ones, and nobody notices."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from zlib import crc32

import pytest

from headrace.journal import upkeep
from headrace.journal.block import _CHECK, _HEAD
from headrace.journal.sqlite import FILE, SHARD
from headrace.protocols import Change
from headrace.testing.journal import everything, make_block, only, read_blocks, read_ids
from tests.core.journals import execute, journal_in, run


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
