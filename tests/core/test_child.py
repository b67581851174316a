"""A source in a child process has the contract of one in the daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace.capture import JournalPort, SourceCapture
from headrace.child import ChildSource
from headrace.errors import Fatal, HeadraceError, JournalFailed, Permanent, Transient
from headrace.event import Event
from headrace.journal.memory import MemoryJournal
from headrace.protocols import Change
from headrace.testing import RecordingLog, make_context
from headrace.testing.leaks import eventually
from tests.core.piped_source import PipedSettings

MAX_EVENT = 16 << 20
ROOT = Path(__file__).parents[2]
Run = Callable[["Rig", str], "asyncio.Task[None]"]


class Rig:
    """A journal, and runs of the test source over it."""

    def __init__(self, tmp_path: Path) -> None:
        self.journal = MemoryJournal(shards=1)
        self.log = RecordingLog()
        self.context = make_context(tmp_path, name="piped", log=self.log)
        self.port = JournalPort(self.journal, "piped")

    async def inside(self, act: str) -> None:
        capture = SourceCapture(self.port, "piped", MAX_EVENT)
        async with PipedSettings(act=act).open(self.context) as source:
            try:
                await source.run(capture)
            finally:
                await capture.drain()

    async def child(self, act: str) -> None:
        await ChildSource(PipedSettings(act=act), self.context, self.port, MAX_EVENT).run()

    async def ids(self) -> list[str]:
        page = await self.journal.read("0", 0, lambda _: True)
        return [Event.parse(line).id for block in page.blocks for line in block.lines]

    async def pid(self) -> int:
        while (found := await self.port.get(b"pid")) is None:  # noqa: ASYNC110 -- of another process
            await asyncio.sleep(0.005)
        return int(found)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child imports the test source by its name."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))


@pytest.fixture(params=["inside", "child"])
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(tmp_path: Path, where: str, act: str) -> Rig:
    async def main() -> Rig:
        rig = Rig(tmp_path)
        async with asyncio.timeout(30):
            await getattr(rig, where)(act)
        return rig

    return asyncio.run(main())


def test_appends_and_reads_its_state(tmp_path: Path, where: str) -> None:
    rig = run(tmp_path, where, "appends")
    assert asyncio.run(rig.ids()) == [str(number) for number in range(30)]


def test_what_was_handed_over_is_durable_when_it_ends(tmp_path: Path, where: str) -> None:
    rig = run(tmp_path, where, "submits")
    assert asyncio.run(rig.ids()) == [str(number) for number in range(200)]
    assert asyncio.run(rig.port.get(b"last")) == b"199"


def test_large_events_pass(tmp_path: Path, where: str) -> None:
    rig = run(tmp_path, where, "big")
    assert rig.journal.head("0") == 6


def test_cancelling_the_future_is_no_failure(tmp_path: Path, where: str) -> None:
    assert asyncio.run(run(tmp_path, where, "cancels_what_it_waits_for").ids()) == ["0", "1"]


ERRORS: list[tuple[str, type[Exception], str]] = [
    ("fatal", Fatal, "slot lost (make it again)"),
    ("permanent", Permanent, "odd"),
    ("too_many", Fatal, "5000"),
    ("submits_and_fails", Transient, "origin away (wait)"),
]


@pytest.mark.parametrize(("act", "kind", "text"), ERRORS)
def test_errors_keep_their_kind(tmp_path: Path, where: str, act: str, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as raised:
        run(tmp_path, where, act)
    assert text in str(raised.value)


def test_a_group_tells_its_cause(tmp_path: Path) -> None:
    with pytest.raises(Transient) as raised:
        run(tmp_path, "child", "transient")
    assert raised.value.retry_after == 7


def test_a_bug_is_unexpected_and_tells_where(tmp_path: Path) -> None:
    with pytest.raises(HeadraceError) as raised:
        run(tmp_path, "child", "bug")
    assert not isinstance(raised.value, Fatal | Transient)
    assert str(raised.value) == "ZeroDivisionError: a bug"
    assert "in bug" in raised.value.__notes__[0]


def test_log_lines_reach_the_daemons_log(tmp_path: Path, where: str) -> None:
    rig = run(tmp_path, where, "logs")
    ((level, text, fields),) = rig.log.records
    assert (level, text, fields["table"], fields["seconds"]) == ("warning", "slow", "t", 3)


def test_a_killed_child_is_transient_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    async def main() -> None:
        rig = Rig(tmp_path)
        with pytest.raises(Transient, match="SIGKILL"):
            await rig.child("killed")
        assert await rig.ids() == [str(number) for number in range(200)]

    asyncio.run(main())


@pytest.mark.parametrize("act", ["forever", "hangs"])
def test_a_cancelled_one_takes_its_child_with_it(tmp_path: Path, act: str) -> None:
    async def main() -> None:
        rig = Rig(tmp_path)
        task = asyncio.create_task(rig.child(act))
        pid = await rig.pid()
        task.cancel()
        await asyncio.wait([task], timeout=10)
        assert task.cancelled()
        assert not alive(pid)

    asyncio.run(main())


class Failing(MemoryJournal):
    """Fails at the third change."""

    def __init__(self) -> None:
        super().__init__(shards=1)
        self.changes = 0

    def submit(self, change: Change) -> asyncio.Future[None]:
        self.changes += 1
        if self.changes < 3:
            return super().submit(change)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(JournalFailed("fsync failed"))
        return future


def test_a_failed_journal_is_told_as_such(tmp_path: Path, where: str) -> None:
    async def main() -> None:
        rig = Rig(tmp_path)
        rig.journal = Failing()
        rig.port = JournalPort(rig.journal, "piped")
        with pytest.raises(JournalFailed):
            await getattr(rig, where)("appends")
        assert await rig.ids() == ["0", "1"]

    asyncio.run(main())


DAEMON = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from tests.core.test_child import Rig
async def main():
    rig = Rig(Path(sys.argv[1]))
    task = asyncio.create_task(rig.child("hangs"))
    print(await rig.pid(), flush=True)
    await task
asyncio.run(main())
"""


def test_a_killed_daemon_takes_its_child_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with _daemon(tmp_path) as daemon:
            assert daemon.stdout
            pid = int(await daemon.stdout.readline())
            assert alive(pid)
            daemon.send_signal(signal.SIGKILL)
            await daemon.wait()
            await eventually(lambda: not alive(pid), "the child has ended", 15)

    asyncio.run(main())


@asynccontextmanager
async def _daemon(tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    command = (sys.executable, "-c", DAEMON, str(tmp_path), str(ROOT))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if process._transport:  # type: ignore[attr-defined]
            process._transport.close()  # type: ignore[attr-defined]


def alive(pid: int) -> bool:
    """Whether it runs: a child whose parent was killed may stay a zombie where nobody reaps it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
