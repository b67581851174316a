"""The embedded engine's file: opening, closing, settings, formats, and what a failing writer does."""

import asyncio
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from headrace.errors import Fatal, Transient
from headrace.journal import schema
from headrace.journal.schema import STEPS, open_writer
from headrace.journal.sqlite import FILE, SHARD
from headrace.protocols import Change, Row
from headrace.testing.fakes import RecordingLog
from headrace.testing.journal import make_block, read_blocks, read_ids
from tests.core.journals import execute, failed_log, journal_in, run


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
