"""A disk that fails and a disk that is full."""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest

from headrace.errors import Transient
from headrace.journal import schema
from headrace.journal.space import Limits
from headrace.journal.sqlite import FILE, SHARD, SqliteJournal, open_journal
from headrace.protocols import Change, Row
from headrace.testing.fakes import RecordingLog
from headrace.testing.journal import make_block, read_ids

pytestmark = pytest.mark.crash

CHILD = str(Path(__file__).with_name("journal_child.py"))
SHIM = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
static int broken(void) { return access(getenv("BROKEN_DISK"), F_OK) == 0; }
int fsync(int fd) { if (broken()) { errno = EIO; return -1; } sync(); return 0; }
int fdatasync(int fd) { if (broken()) { errno = EIO; return -1; } sync(); return 0; }
"""


def lines_in(stream: IO[str]) -> Iterator[str]:
    return iter(stream.readline, "")


@contextmanager
def strace_breaks(process: subprocess.Popen[str]) -> Iterator[None]:
    """While it lasts every fsync of the process fails."""
    inject = "inject=fsync,fdatasync:error=EIO"
    command = ["strace", "-f", "-p", str(process.pid), "-e", "trace=fsync,fdatasync", "-e", inject]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr
        first = tracer.stderr.readline()
        if "attached" not in first:
            pytest.skip(f"strace may not attach here: {first.strip()}")
        drain = threading.Thread(target=lambda: list(lines_in(tracer.stderr)), daemon=True)  # type: ignore[arg-type]
        drain.start()
        try:
            yield
        finally:
            tracer.terminate()
            tracer.wait()
            drain.join()


@contextmanager
def shim_breaks(flag: Path) -> Iterator[None]:
    flag.touch()
    try:
        yield
    finally:
        flag.unlink()


def start(folder: Path, **env: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, CHILD, "obey", str(folder)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **env})


def ask(process: subprocess.Popen[str], line: str = "append") -> str:
    assert process.stdin
    assert process.stdout
    print(line, file=process.stdin, flush=True)
    return process.stdout.readline().strip()


def ids_in(folder: Path) -> list[str]:
    async def main() -> list[str]:
        async with open_journal(folder, Limits(1e6, 1 << 30), RecordingLog(), reserve=1 << 20) as journal:
            return await read_ids(journal, SHARD)

    return asyncio.run(main())


def check_failed_fsync(folder: Path, process: subprocess.Popen[str], breaks: AbstractContextManager[None]) -> None:
    with process:
        assert process.stdin
        assert process.stdout
        try:
            assert process.stdout.readline() == "ready\n"
            assert ask(process) == "ok 0"
            with breaks:
                failure = ask(process)
            assert failure.startswith("JournalFailed the journal")
            assert "its disk failed" in failure
            # The disk works again: the journal is not trusted any more all the same.
            assert ask(process).startswith("JournalFailed the journal")
            before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(FILE)}
            process.stdin.write("stop\n")
            process.stdin.flush()
            process.wait(30)
            # Nor was anything written on the way out.
            after = {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(FILE)}
            assert after[FILE] == before[FILE]
            assert after[f"{FILE}-wal"] == before[f"{FILE}-wal"]
        finally:
            process.kill()
    assert ids_in(folder)[0] == "0"


def test_a_failed_fsync_is_fatal_for_all_that_follows_strace(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt install strace")
    process = start(tmp_path)
    check_failed_fsync(tmp_path, process, strace_breaks(process))


def test_a_failed_fsync_is_fatal_for_all_that_follows_shim(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler: apt install gcc libc6-dev")
    library, flag, folder = tmp_path / "shim.so", tmp_path / "broken", tmp_path / "data"
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "shim.c")], check=True)
    folder.mkdir()
    process = start(folder, LD_PRELOAD=str(library), BROKEN_DISK=str(flag))
    check_failed_fsync(folder, process, shim_breaks(flag))


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(autouse=True)
def small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log in proportion to the reserve, as it is in earnest: a quarter of it between two checkpoints."""
    monkeypatch.setattr(schema, "WAL_PAGES", 512)


def intake(number: int) -> Change:
    return Change([make_block("a", [f"{number}:{os.urandom(50_000).hex()}"])], intake=True)


async def stopped(journal: SqliteJournal, want: str) -> None:
    while (await journal.usage()).stopped != want:
        pass


def test_a_full_disk_stops_intake_and_all_goes_on_when_space_returns(tmp_path: Path) -> None:
    log = RecordingLog()

    async def main(folder: Path) -> None:
        ballast = folder / "ballast"
        limits = Limits(1e6, 1 << 30)
        async with asyncio.timeout(60), open_journal(folder, limits, log, reserve=8 << 20) as journal:
            journal.hold("slow", SHARD, 0)
            journal.begin_retention()
            for number in range(10):
                await journal.submit(intake(number))
            with suppress(OSError), ballast.open("wb") as file:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
            futures = [journal.submit(intake(number)) for number in range(10, 60)]
            await stopped(journal, "the disk is full")
            # Cursors still commit, and returned events.
            for number in range(100):
                await journal.submit(Change([make_block("r", ["x"])], [Row("slow", b"cursor", b"%d" % number)]))
            assert not all(future.done() for future in futures)
            written = [one.partition(":")[0] for one in await read_ids(journal, SHARD) if one != "x"]
            assert written == [str(number) for number in range(len(written))]
            ballast.unlink()
            await stopped(journal, "")
            await asyncio.gather(*futures)
        async with open_journal(folder, limits, log, reserve=8 << 20) as journal:
            ids = [one.partition(":")[0] for one in await read_ids(journal, SHARD)]
            assert [one for one in ids if one != "x"] == [str(number) for number in range(60)]
            assert ids.count("x") == 100
            assert await journal.get("slow", b"cursor") == b"99"

    with small_disk(tmp_path / "disk", 48) as folder:
        asyncio.run(main(folder))
    assert [fields["why"] for _, event, fields in log.records if event == "intake stopped"] == ["the disk is full"]
    assert [fields["after"] for _, event, fields in log.records if event == "intake resumed"] == ["the disk is full"]


def test_a_disk_filled_by_the_journal_itself_recovers_when_consumers_move_on(tmp_path: Path) -> None:
    log = RecordingLog()

    async def main(folder: Path) -> None:
        async with asyncio.timeout(90), open_journal(folder, Limits(1e6, 1 << 30), log, reserve=8 << 20) as journal:
            journal.hold("slow", SHARD, 0)
            journal.begin_retention()
            futures = [journal.submit(intake(number)) for number in range(900)]
            await stopped(journal, "the disk is full")
            at = 0
            while not all(future.done() for future in futures):
                head = journal.head(SHARD)
                if head == at:
                    await asyncio.sleep(0.01)
                    continue
                ids = (await read_ids(journal, SHARD, at))[: head - at]
                assert [one.partition(":")[0] for one in ids] == [str(number) for number in range(at, head)]
                at = head
                await journal.submit(Change([], [Row("slow", b"cursor", b"%d" % at)]))
                journal.hold("slow", SHARD, at)
            await asyncio.gather(*futures)
            assert journal.head(SHARD) == 900

    with small_disk(tmp_path / "disk", 48) as folder:
        asyncio.run(main(folder))


def test_a_disk_without_room_for_the_reserve_takes_no_intake(tmp_path: Path) -> None:
    async def main(folder: Path) -> None:
        async with asyncio.timeout(60), open_journal(folder, Limits(1e6, 1 << 30), RecordingLog(), 64 << 20) as journal:
            await stopped(journal, "the disk is full")
            future = journal.submit(intake(0))
            await journal.submit(Change([], [Row("slow", b"cursor", b"1")]))
            assert not future.done()
        assert isinstance(future.exception(), Transient)

    with small_disk(tmp_path / "disk", 32) as folder:
        asyncio.run(main(folder))
