"""Damage is named and passed; copies are whole."""

import asyncio
from pathlib import Path

import pytest

from headrace.errors import Fatal, Permanent
from headrace.journal import offline
from headrace.journal.block import CorruptBlock
from headrace.journal.place import claim
from headrace.journal.schema import RESTORE, open_writer
from headrace.journal.sqlite import FILE, SHARD
from headrace.protocols import Change, Row
from headrace.testing.journal import everything, make_block, only, read_blocks, read_ids
from tests.core.journals import execute, journal_in, noise, numbers, run


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
