"""The file sink: every line once wherever it is killed, rotation, and files that others touched."""

import asyncio
import errno
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import failpoints
from headrace.errors import Fatal, HeadraceError, Transient
from headrace.event import Event
from headrace.protocols import Flushes, Sink
from headrace.sinks.file import FileSink
from headrace.testing import FakeClock, RecordingLog, make_batch, make_context

TOTAL = 210
FAILPOINTS = (
    "file.after-note",
    "file.before-write",
    "file.after-write",
    "file.before-flush",
    "file.after-flush",
    "file.rotate-before-rename",
    "file.rotate-after-rename",
    "file.rotate-after-create",
    "file.rotate-after-sync",
    "file.prune-after-remove",
    "file.restore-after-truncate",
    "file.restore-after-remove",
    "file.restore-after-rename",
    "engine.before-commit",
    "engine.after-commit",
)


def numbered(number: int) -> Event:
    return Event(id=str(number), source="headrace:test", type="test.made", data={"n": number})


def a_sink(**rotate: Any) -> FileSink:
    return FileSink.model_validate({"path": "audit.jsonl"} | ({"rotate": rotate} if rotate else {}))


def found(folder: Path) -> list[int]:
    """The numbers of the events in the file and its rotated ones, in order."""
    files = [*sorted(folder.glob("audit.jsonl.*")), folder / "audit.jsonl"]
    lines = [line for file in files if file.exists() for line in file.read_bytes().splitlines()]
    return [json.loads(line)["data"]["n"] for line in lines]


class Engine:
    """What the delivery engine does with a sink: deliver, flush, and only then commit cursor and state."""

    def __init__(self, folder: Path, sink: FileSink, clock: FakeClock | None = None) -> None:
        self.folder = folder
        self.sink = sink
        self.clock = clock or FakeClock()
        self.log = RecordingLog()
        self.delivered, self.state = self.committed()

    def committed(self) -> tuple[int, bytes | None]:
        path = self.folder / "commit"
        if not path.exists():
            return 0, None
        stored = json.loads(path.read_text())
        return stored["cursor"], bytes.fromhex(stored["state"])

    async def run(self, work: Callable[["Engine", Sink], Coroutine[Any, Any, None]]) -> None:
        self.delivered, self.state = self.committed()
        context = make_context(self.folder, state=self.state, clock=self.clock, log=self.log)
        async with self.sink.open(context) as target:
            await work(self, target)

    async def deliver(self, target: Sink, count: int) -> None:
        verdict = await target.deliver(
            make_batch([numbered(n) for n in range(self.delivered, self.delivered + count)], self.delivered)
        )
        self.delivered += count
        self.state = verdict.state

    async def commit(self, target: Sink) -> None:
        cursor, state = self.delivered, self.state
        assert isinstance(target, Flushes)
        await target.flush()
        if state is None:
            return
        failpoints.reach("engine.before-commit")
        part = self.folder / "commit.part"
        part.write_text(json.dumps({"cursor": cursor, "state": state.hex()}))
        part.replace(self.folder / "commit")
        failpoints.reach("engine.after-commit")


async def to_the_end(engine: Engine, target: Sink) -> None:
    while engine.delivered < TOTAL:
        for count in (3, 7, 11):
            await engine.deliver(target, count)
        await engine.commit(target)


def start(engine: Engine, work: Callable[[Engine, Sink], Coroutine[Any, Any, None]] = to_the_end) -> None:
    asyncio.run(engine.run(work))


def killed(engine: Engine, failpoint: str, times: int) -> bool:
    """Run in a child that dies at the failpoint; false where it came to its end."""
    child = os.fork()
    if child == 0:  # pragma: no cover - dies
        failpoints._name, failpoints._times, failpoints._reached = failpoint, times, itertools.count(1)
        try:
            start(engine)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("rotate", [{}, {"size": 300, "keep": "all"}, {"size": 1500, "keep": "all"}])
@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_every_line_once_wherever_it_is_killed(tmp_path: Path, failpoint: str, rotate: dict[str, Any]) -> None:
    for times in (1, 2, 5, 11):
        folder = tmp_path / str(times)
        folder.mkdir()
        engine = Engine(folder, a_sink(**rotate))
        if failpoint.startswith("file.restore"):
            killed(engine, "file.rotate-after-sync" if rotate else "file.after-write", 4)
        killed(engine, failpoint, times)
        killed(engine, failpoint, 1)
        start(engine)
        assert found(folder) == list(range(engine.delivered))


@given(st.lists(st.sampled_from(["deliver", "large", "commit", "crash"]), max_size=40), st.sampled_from([0, 200, 900]))
@settings(max_examples=60)
def test_any_history_of_crashes_keeps_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, history: list[str], size: int
) -> None:
    folder = tmp_path_factory.mktemp("history")
    engine = Engine(folder, a_sink(size=size, keep="all") if size else a_sink())

    async def live(steps: list[str]) -> None:
        async def work(engine: Engine, target: Sink) -> None:
            for step in steps:
                if step == "commit":
                    await engine.commit(target)
                else:
                    await engine.deliver(target, 1 if step == "deliver" else 12)

        await engine.run(work)

    crashes = [-1, *(at for at, step in enumerate(history) if step == "crash"), len(history)]
    for begin, end in pairwise(crashes):
        asyncio.run(live(history[begin + 1 : end]))
    start(engine)
    assert found(folder) == list(range(engine.delivered))


def test_a_failpoint_is_reached_by_the_test_that_names_it(tmp_path: Path) -> None:
    for failpoint in FAILPOINTS:
        folder = tmp_path / failpoint
        folder.mkdir()
        engine = Engine(folder, a_sink(size=300, keep=1))
        if failpoint == "file.restore-after-truncate":
            engine = Engine(folder, a_sink())
            assert killed(engine, "file.after-write", 5)  # the second after the first commit
        elif failpoint.startswith("file.restore"):
            assert killed(engine, "file.rotate-after-sync", 5)
        assert killed(engine, failpoint, 1), failpoint


def test_keeps_only_the_newest(tmp_path: Path) -> None:
    engine = Engine(tmp_path, a_sink(size=500, keep=2))
    start(engine)
    numbers = found(tmp_path)
    assert numbers == list(range(numbers[0], engine.delivered))
    assert 2 < len(list(tmp_path.glob("audit.jsonl.*"))) <= 2 + 3 * 3  # those of the last commits still wait
    engine.sink = a_sink(keep=2)

    async def more(engine: Engine, target: Sink) -> None:
        for _ in range(3):
            await engine.deliver(target, 1)
            await engine.commit(target)

    start(engine, more)
    numbers = found(tmp_path)
    assert numbers == list(range(numbers[0], engine.delivered))
    assert len(list(tmp_path.glob("audit.jsonl.*"))) == 2


def test_old_files_stay_until_a_later_one_is_committed(tmp_path: Path) -> None:
    engine = Engine(tmp_path, a_sink(size=1, keep=1))

    async def uncommitted(engine: Engine, target: Sink) -> None:
        await engine.deliver(target, 1)
        await engine.commit(target)
        for _ in range(8):
            await engine.deliver(target, 1)
        assert isinstance(target, Flushes)
        await target.flush()

    start(engine, uncommitted)
    start(engine)
    assert found(tmp_path)[-1] == engine.delivered - 1


def test_rotates_by_age(tmp_path: Path) -> None:
    clock = FakeClock()
    engine = Engine(tmp_path, a_sink(every="1d"), clock)

    async def work(engine: Engine, target: Sink) -> None:
        for _ in range(4):
            await engine.deliver(target, 1)
            await engine.commit(target)
            clock.advance(43_200)

    start(engine, work)
    start(engine, work)
    lines = [len(path.read_bytes().splitlines()) for path in sorted(tmp_path.glob("audit.jsonl*"))]
    assert lines == [2, 2, 2, 2]
    assert found(tmp_path) == list(range(8))


def test_a_rotated_file_keeps_its_mode(tmp_path: Path) -> None:
    async def work(engine: Engine, target: Sink) -> None:
        await engine.deliver(target, 1)
        os.chmod(tmp_path / "audit.jsonl", 0o604)
        await engine.deliver(target, 1)

    start(Engine(tmp_path, a_sink(size=1)), work)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("audit.jsonl*")} == {0o604}


# --- a file that was there before ------------------------------------------------------------------


def test_appends_after_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_bytes(b'{"data":{"n":-2}}\n{"data":{"n":-1}}')
    engine = Engine(tmp_path, a_sink())
    start(engine)
    assert found(tmp_path) == list(range(-2, engine.delivered))
    assert [event for _, event, _ in engine.log.records] == ["file had no newline at its end"]


def test_after_forget_what_was_written_stays(tmp_path: Path) -> None:
    async def once(engine: Engine, target: Sink) -> None:
        await engine.deliver(target, 5)
        await engine.commit(target)

    start(Engine(tmp_path, a_sink()), once)
    assert (tmp_path / ".audit.jsonl.first").exists()
    (tmp_path / "commit").unlink()  # as `consumer forget` does
    engine = Engine(tmp_path, a_sink())

    async def later(engine: Engine, target: Sink) -> None:
        engine.delivered = 5  # start = "latest"
        await engine.deliver(target, 5)
        await engine.commit(target)
        for _ in range(2):
            await engine.deliver(target, 1)
            await engine.commit(target)

    start(engine, later)
    assert found(tmp_path) == list(range(12))
    assert not (tmp_path / ".audit.jsonl.first").exists()


def test_makes_the_folders_above(tmp_path: Path) -> None:
    sink = FileSink.model_validate({"path": "a/b/audit.jsonl"})
    assert not sink.problems(tmp_path)
    start(Engine(tmp_path, sink))
    assert (tmp_path / "a/b/audit.jsonl").stat().st_size


# --- a file that others touched --------------------------------------------------------------------


def replace(path: Path) -> None:
    content = path.read_bytes()
    path.rename(path.with_name("elsewhere"))
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def rewrite(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-10] + b"?" + content[-9:])


TOUCHED: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (os.unlink, "is gone"),
    "replaced": (replace, "was replaced: expected the file with inode"),
    "truncated": (truncate, "was truncated: expected at least"),
    "rewritten": (rewrite, "was changed"),
}


@pytest.mark.parametrize("how", TOUCHED)
def test_refuses_a_file_that_is_not_the_committed_one(tmp_path: Path, how: str) -> None:
    touch, message = TOUCHED[how]
    start(Engine(tmp_path, a_sink()))
    touch(tmp_path / "audit.jsonl")
    before = (tmp_path / "audit.jsonl").read_bytes() if how != "gone" else b""
    with pytest.raises(Fatal, match=message) as refused:
        start(Engine(tmp_path, a_sink()))
    assert "headrace consumer forget under_test" in refused.value.hint
    assert not before or (tmp_path / "audit.jsonl").read_bytes() == before


@pytest.mark.parametrize("how", ["gone", "replaced", "truncated"])
def test_stops_when_the_file_is_touched_while_it_runs(tmp_path: Path, how: str) -> None:
    async def work(engine: Engine, target: Sink) -> None:
        await engine.deliver(target, 3)
        await engine.commit(target)
        TOUCHED[how][0](tmp_path / "audit.jsonl")
        await engine.deliver(target, 0 if how == "truncated" else 3)
        await engine.commit(target)

    with pytest.raises(Fatal, match=r"removed|replaced or truncated"):
        start(Engine(tmp_path, a_sink()), work)


def test_two_sinks_cannot_share_a_file(tmp_path: Path) -> None:
    async def work(engine: Engine, target: Sink) -> None:
        await Engine(tmp_path, a_sink()).run(to_the_end)

    with pytest.raises(Transient, match="another sink or daemon"):
        start(Engine(tmp_path, a_sink()), work)


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "audit.jsonl")
    with pytest.raises(Fatal, match="not a regular file"):
        start(Engine(tmp_path, a_sink()))


def test_refuses_a_state_of_another_version(tmp_path: Path) -> None:
    engine = Engine(tmp_path, a_sink())
    (tmp_path / "commit").write_text(json.dumps({"cursor": 1, "state": b"\x93\x01\x02".hex()}))
    with pytest.raises(Fatal, match="another version"):
        start(engine)


# --- a disk that fails -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, Transient, "disk full"),
        (errno.EDQUOT, Transient, "disk full"),
        (errno.EIO, Fatal, "Input/output error"),
        (errno.EROFS, Fatal, "let the daemon's user write"),
    ],
)
@pytest.mark.parametrize("count", [3, 2000])
def test_a_failed_write_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[HeadraceError], words: str, count: int
) -> None:
    real = os.write
    calls = itertools.count()

    def short(fd: int, data: bytes) -> int:
        if next(calls):
            raise OSError(code, os.strerror(code))
        return real(fd, bytes(data)[: len(data) // 2 + 3])

    async def work(engine: Engine, target: Sink) -> None:
        await engine.deliver(target, 5)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", short)
            with pytest.raises(kind, match=words):
                await engine.deliver(target, count)
        assert found(tmp_path) == list(range(5))
        await engine.deliver(target, count)
        await engine.commit(target)

    start(Engine(tmp_path, a_sink()), work)
    assert found(tmp_path) == list(range(5 + count))


def test_a_failed_sync_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def work(engine: Engine, target: Sink) -> None:
        await engine.deliver(target, 5)
        monkeypatch.setattr(os, "fdatasync", broken)
        with pytest.raises(Fatal, match="not durable"):
            await engine.commit(target)

    start(Engine(tmp_path, a_sink()), work)


def test_a_rotation_without_room_for_a_new_file_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def full(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_EXCL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, *rest, **options)

    async def work(engine: Engine, target: Sink) -> None:
        await engine.deliver(target, 5)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", full)
            with pytest.raises(Transient, match="disk full"):
                await engine.deliver(target, 5)
        assert found(tmp_path) == list(range(5))
        await engine.deliver(target, 5)
        await engine.commit(target)

    start(Engine(tmp_path, a_sink(size=1)), work)
    assert found(tmp_path) == list(range(10))
    assert (tmp_path / "audit.jsonl.000001").exists()


def test_a_slow_write_does_not_stop_the_loop_and_a_cancelled_one_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, entered, go = os.write, threading.Event(), threading.Event()

    def slow(fd: int, data: bytes) -> int:
        if len(data) > 1000:
            entered.set()
            go.wait(10)
        return real(fd, data)

    async def work(engine: Engine, target: Sink) -> None:
        await engine.deliver(target, 5)
        monkeypatch.setattr(os, "write", slow)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(engine.deliver(target, 2000))
            assert await asyncio.to_thread(entered.wait, 10)
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()  # the thread still writes
            go.set()
        assert found(tmp_path) == list(range(5))
        await engine.deliver(target, 2000)
        await engine.commit(target)

    start(Engine(tmp_path, a_sink()), work)
    assert found(tmp_path) == list(range(2005))


# --- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [{"path": "a", "concurrency": 2}, {"path": "a", "rotate": {"keep": 0}}, {"path": "a", "rotate": {"size": 0}}, {}],
)
def test_refuses_settings(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"concurrency|keep|size|path"):
        FileSink.model_validate(table)


def test_check_names_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def problem(path: str) -> str:
        return FileSink.model_validate({"path": path}).problems(tmp_path).get("path", "")

    assert "is a folder" in problem(".")
    assert "is not a folder" in problem("file/audit.jsonl")
    assert not problem("new/folder/audit.jsonl")
    assert not problem("file")
