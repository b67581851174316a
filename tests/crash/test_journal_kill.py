"""Killed at any moment, the journal holds everything that it acknowledged, in order, without gap or repeat."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from headrace.journal.schema import open_writer
from headrace.journal.space import Limits
from headrace.journal.sqlite import FILE, SHARD, open_journal
from headrace.testing.fakes import RecordingLog
from headrace.testing.journal import read_ids

pytestmark = pytest.mark.crash

CHILD = str(Path(__file__).with_name("journal_child.py"))
ROUNDS = int(os.environ.get("HEADRACE_CRASH_ROUNDS", "100"))
BOUNDARIES = ["journal.before-commit", "journal.after-commit"]


@contextmanager
def child(*args: str, failpoint: str = "") -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, "HEADRACE_FAILPOINT": failpoint}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, CHILD, *args], stdin=pipe, stdout=pipe, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def acknowledged(lines: list[str]) -> int:
    """The last number printed whole, or -1."""
    return max((int(line) for line in lines if line.strip().isdigit() and line.endswith("\n")), default=-1)


def survivors(folder: Path) -> int:
    """How many events are there, all of them checked."""

    async def main() -> int:
        async with open_journal(folder, Limits(604_800.0, 1 << 30), RecordingLog(), reserve=1 << 20) as journal:
            ids = await read_ids(journal, SHARD)
            assert ids == [str(number) for number in range(len(ids))]
            last = await journal.get("a", b"last")
            assert int(last or b"-1") == len(ids) - 1  # the row of the last event, no other
            assert [problem async for problem in journal.verify()] == []
            return len(ids)

    return asyncio.run(main())


def test_killed_at_random(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    last = -1
    with child("serve", str(tmp_path)) as server:
        assert server.stdin
        assert server.stdout
        for round_ in range(ROUNDS):
            print("go", file=server.stdin, flush=True)
            name, _, pid = server.stdout.readline().partition(" ")
            assert name == "pid"
            time.sleep(chance.uniform(0.0, 0.08))  # not to wait for something: the moment is the point
            os.kill(int(pid), signal.SIGKILL)
            said = list(iter(server.stdout.readline, "dead\n"))
            last = max(last, acknowledged(said))
            if round_ % 10 == 9 or round_ == ROUNDS - 1:
                assert survivors(tmp_path) > last, f"seed {seed}"
    assert last > ROUNDS


@pytest.mark.parametrize("times", [1, 2, 20])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_killed_at_a_boundary(tmp_path: Path, boundary: str, times: int) -> None:
    for _ in range(2):
        with child("append", str(tmp_path), failpoint=f"{boundary}:{times}") as process:
            assert process.stdout
            last = acknowledged(list(process.stdout))
            assert process.wait(30) == -signal.SIGKILL
        assert survivors(tmp_path) > last


@pytest.mark.parametrize("boundary", ["journal.before-recovery", "journal.after-upgrade"])
def test_killed_while_opening(tmp_path: Path, boundary: str) -> None:
    with child("append", str(tmp_path), failpoint=boundary) as process:
        assert process.wait(30) == -signal.SIGKILL
    with child("append", str(tmp_path), "20", failpoint="journal.after-commit:10") as process:
        assert process.stdout
        last = acknowledged(list(process.stdout))
    with child("append", str(tmp_path), failpoint=boundary.replace("after-upgrade", "before-recovery")) as process:
        assert process.wait(30) == -signal.SIGKILL
    assert survivors(tmp_path) > last


@pytest.mark.parametrize("boundary", ["journal.before-merge", "journal.after-merge", "journal.backup-copied"])
def test_killed_while_tidying(tmp_path: Path, boundary: str) -> None:
    with child("append", str(tmp_path), "600") as process:
        assert process.wait(60) == 0
    before = survivors(tmp_path)
    with child("tidy", str(tmp_path), failpoint=boundary) as process:
        assert process.wait(30) == -signal.SIGKILL
    assert not (tmp_path / "copy").exists()
    with child("tidy", str(tmp_path)) as process:
        assert process.wait(30) == 0
    assert (tmp_path / "copy").exists()
    assert survivors(tmp_path) == before


def test_killed_while_deleting(tmp_path: Path) -> None:
    with child("append", str(tmp_path), "300") as process:
        assert process.wait(60) == 0
    events = survivors(tmp_path)
    with child("drop", str(tmp_path), failpoint="journal.after-drop:2") as process:
        assert process.wait(30) == -signal.SIGKILL
    with closing(open_writer(tmp_path / FILE)) as db:
        assert db.execute("SELECT min(first), count(*) FROM block").fetchone() == (128, events - 128)
    with child("drop", str(tmp_path)) as process:
        assert process.wait(30) == 0
    with closing(open_writer(tmp_path / FILE)) as db:
        assert db.execute("SELECT min(first), count(*) FROM block").fetchone() == (events - 50, 50)
        assert db.execute("SELECT position FROM head").fetchone() == (events,)
