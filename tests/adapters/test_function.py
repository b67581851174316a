"""Functions of the user's, called in real workers: what they return, and everything that goes wrong in them."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from headrace.errors import Fatal, Permanent, Transient
from headrace.handlers.calls import Outcome
from headrace.handlers.function import FunctionHandler, FunctionSink
from headrace.protocols import Batch, Verdict
from tests.adapters.handlers_fixture import kit
from tests.adapters.handlers_fixture.kit import Log, batch, ended, event, folder, lines, opened, running, until


def handler(function: str, **options: Any) -> FunctionHandler:
    return FunctionHandler(**{"function": f"functions.py:{function}", "concurrency": 1, **options})


def deliver(settings: FunctionHandler, directory: Path, *batches: Batch, log: Log | None = None) -> list[Verdict]:
    """The verdicts of the batches, one after the other; no process is left."""

    async def main() -> list[Verdict]:
        async with opened(settings, directory, log or Log()) as sink:
            verdicts = [await sink.deliver(one) for one in batches]
        assert kit.children() <= before
        return verdicts

    before = kit.children()
    return asyncio.run(main())


def test_plain_function_is_called_for_each_event_in_order(tmp_path: Path) -> None:
    directory = folder(tmp_path)
    assert deliver(handler("record"), directory, batch(1), batch(2, 3)) == [Verdict(), Verdict()]
    calls = [line.split() for line in lines(directory / "calls.txt")]
    assert [n for n, _ in calls] == ["1", "2", "3"]
    assert len({pid for _, pid in calls}) == 1, "one worker is kept"
    assert calls[0][1] != str(os.getpid())


def test_async_function_with_context(tmp_path: Path) -> None:
    directory = folder(tmp_path)
    deliver(handler("record_async"), directory, batch(1, 2), batch(3, attempt=4))
    assert lines(directory / "calls.txt") == ["1 thumbs 1 True", "2 thumbs 1 True", "3 thumbs 4 True"]


def test_function_named_by_module(tmp_path: Path) -> None:
    settings = FunctionHandler(function="inner.deep:call", concurrency=1)
    with pytest.raises(Fatal, match=r"ModuleNotFoundError: No module named 'neighbour' \(inner/deep.py:4\)"):
        deliver(settings, folder(tmp_path), batch(1))


def test_function_in_a_sub_folder_finds_its_neighbours(tmp_path: Path) -> None:
    [verdict] = deliver(FunctionHandler(function="inner/deep.py:call", concurrency=1), folder(tmp_path), batch(1))
    assert [(made.type, made.data) for _, made in verdict.events] == [("test.deep", "functions")]


def test_list_function_gets_all_and_fails_as_a_whole(tmp_path: Path) -> None:
    directory = folder(tmp_path)
    [verdict] = deliver(handler("together"), directory, batch(1, 2, 3))
    assert [(position, made.data) for position, made in verdict.events] == [(102, 6)]
    with pytest.raises(Permanent, match=r"ValueError: thirteen \(functions.py:"):
        deliver(handler("together"), directory, batch(1, 13))


def test_returned_events_get_stable_ids_and_the_parents_key(tmp_path: Path) -> None:
    work = batch(0, event(1, sequence="7", barrier="b", subject="s"))
    [first, again] = deliver(handler("derive"), folder(tmp_path), work, work)
    assert first == again
    assert [(position, made.type, made.id, made.partitionkey) for position, made in first.events] == [
        (100, "test.copy", "headrace:test/e0/0", "k"),
        (101, "test.a", "headrace:test/e1/0", "k"),
        (101, "test.b", "headrace:test/e1/1", "own"),
    ]
    copied = first.events[1][1]
    assert (copied.source, copied.subject, copied.sequence, copied.barrier) == ("headrace:thumbs", "s", None, None)


def test_returned_garbage_fails_the_event_alone(tmp_path: Path) -> None:
    [verdict] = deliver(handler("garbage"), folder(tmp_path), batch(*range(5)))
    assert list(verdict.failed) == [100, 101, 102, 103, 104]
    assert "the function returned str; return None, an event" in verdict.failed[101]
    assert "not JSON serializable" in verdict.failed[104]
    [verdict] = deliver(handler("no_event"), folder(tmp_path / "2"), batch(0))
    assert "the function returned no event" in verdict.failed[100]


def test_exception_fails_the_event_and_the_others_go_on(tmp_path: Path) -> None:
    log = Log()
    [verdict] = deliver(handler("raises"), folder(tmp_path), batch(0, 1, 2), log=log)
    assert list(verdict.failed) == [101]
    assert re.fullmatch(r"Teapot: short\nand stout \(functions.py:\d+\)", verdict.failed[101])
    assert not verdict.skipped
    [fields] = [fields for _, what, fields in log.entries if what == "the function raised"]
    assert fields["event_id"] == "e1"
    assert fields["traceback"].startswith("Traceback")
    assert "worker.py" not in fields["traceback"]


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("raises_unprintable", "Unprintable: (its message cannot be shown)"),
        ("raises_cancelled", "CancelledError ("),
        ("reads", "TypeError: an event of type test.made has no file to open ("),
    ],
)
def test_odd_exceptions(tmp_path: Path, function: str, why: str) -> None:
    [verdict, second] = deliver(handler(function), folder(tmp_path), batch(1), batch(1))
    assert verdict.failed[100].startswith(why)
    assert second == verdict


@pytest.mark.parametrize(
    ("function", "why"), [("exits", "SystemExit: 3 (functions.py:"), ("exits_hard", "exit code 3")]
)
def test_exit_fails_its_event_and_skips_the_rest(tmp_path: Path, function: str, why: str) -> None:
    log = Log()
    [first, then] = deliver(handler(function), folder(tmp_path), batch(0, 1, 2, 3), batch(2, 3), log=log)
    assert list(first.failed) == [101]
    assert first.failed[101].startswith(why)
    assert list(first.skipped) == [102, 103]
    assert then == Verdict(), "the worker was replaced"
    if function == "exits":
        assert log.output("info")[:2] == [("e0", "last words"), ("e1", "last words")]


def test_exit_with_a_thread_that_stays_does_not_hold_the_delivery(tmp_path: Path) -> None:
    [first] = deliver(handler("exits_but_a_thread_stays"), folder(tmp_path), batch(0))
    assert first.failed[100].startswith("SystemExit: enough")


def test_a_crash_in_a_frame_of_a_hundred_is_the_37th_events_alone(tmp_path: Path) -> None:
    directory, log = folder(tmp_path), Log()
    [verdict] = deliver(handler("crashes"), directory, batch(*range(1, 101)), log=log)
    assert verdict.failed == {136: "killed by SIGSEGV"}
    assert list(verdict.skipped) == list(range(137, 200))
    assert [line.split()[0] for line in lines(directory / "calls.txt")] == [str(n) for n in range(1, 37)]
    assert any("Segmentation fault" in line for _, line in log.output("warning"))


@pytest.mark.parametrize("function", ["hangs", "hangs_async"])
def test_an_event_that_overruns_fails_alone(tmp_path: Path, function: str) -> None:
    numbers = (0, 1, 2) if function == "hangs" else (1, 2)
    [verdict] = deliver(handler(function, timeout="300ms"), folder(tmp_path), batch(*numbers))
    assert list(verdict.failed.values()) == ["timed out after 0.3 s"]
    assert list(verdict.skipped) == [100 + len(numbers) - 1]


def test_an_event_begun_as_the_one_before_was_given_up_is_not_blamed() -> None:
    outcome = Outcome(10)
    outcome.end(4, "timed out", overrun=3)
    assert (outcome.finished, outcome.failed) == (4, {})
    outcome.end(4, "timed out", overrun=4)
    assert (outcome.finished, outcome.failed) == (5, {4: "timed out"})


def test_the_time_out_counts_for_each_event_of_a_frame(tmp_path: Path) -> None:
    [verdict] = deliver(handler("sleeps", timeout="600ms"), folder(tmp_path), batch(0.25, 0.25, 0.25, 0.25))
    assert verdict == Verdict()


def test_output_is_logged_with_its_event(tmp_path: Path) -> None:
    log = Log()
    deliver(handler("prints"), folder(tmp_path), batch(0, 1, 2), log=log)
    assert log.output("info") == [("e0", "out 0"), ("e1", "out 1"), ("e1", "from a child"), ("e2", "out 2")]
    assert log.output("warning") == [("e1", "err")]


def test_binary_output_and_endless_lines_are_bounded(tmp_path: Path) -> None:
    log = Log()
    assert deliver(handler("prints_binary"), folder(tmp_path), batch(0), log=log) == [Verdict()]
    [(_, line)] = log.output("warning")
    assert line.endswith("… (995904 bytes more)")
    assert len(line) < 4_200
    assert any("\ufffd" in line for _, line in log.output("info"))


def test_a_flood_of_output_is_counted(tmp_path: Path) -> None:
    log = Log()
    assert deliver(handler("floods"), folder(tmp_path), batch(0), log=log) == [Verdict()]
    dropped = sum(fields["lines"] for _, what, fields in log.entries if what == "output dropped")
    assert abs(dropped + len(log.output("info")) - 200_000) <= 2, "a mark may be cut in two"
    assert dropped > 100_000


def test_output_after_the_last_event_is_logged(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(handler("prints_later"), folder(tmp_path), log) as sink:
            await sink.deliver(batch(0))
            await until(lambda: log.output("info"))

    log = Log()
    asyncio.run(main())
    assert log.output("info") == [(None, "after the event")]


def test_children_of_a_worker_end_with_it(tmp_path: Path) -> None:
    directory = folder(tmp_path)
    [done, late] = deliver(handler("spawns", timeout="1s"), directory, batch(0), batch(1))
    assert done == Verdict()
    assert late.failed == {100: "timed out after 1 s"}
    ended(int((directory / "child.txt").read_text()))


def test_a_forked_child_that_returns_is_not_the_worker(tmp_path: Path) -> None:
    verdicts = deliver(handler("forks"), folder(tmp_path), batch(0), batch(1))
    assert [[made.type for _, made in verdict.events] for verdict in verdicts] == [["test.parent"], ["test.parent"]]


def test_a_function_that_closes_every_descriptor_is_noticed(tmp_path: Path) -> None:
    """How far the worker comes before it is killed is chance; each event has one verdict, and the next are tried."""
    [verdict, then] = deliver(handler("closes_everything"), folder(tmp_path), batch(*range(100)), batch(0))
    assert set(verdict.failed.values()) <= {"killed by SIGKILL", "exit code 1"}
    assert list(verdict.skipped) == list(range(200 - len(verdict.skipped), 200))
    assert len(verdict.failed) <= 1
    assert not then.skipped


def test_a_function_that_closes_its_output_goes_on(tmp_path: Path) -> None:
    assert deliver(handler("closes_output"), folder(tmp_path), batch(0), batch(1)) == [Verdict(), Verdict()]


@pytest.mark.parametrize("name", ["plain.txt", b"\xff%2F.txt"])
def test_event_opens_the_file_it_is_about(tmp_path: Path, name: str | bytes) -> None:
    import base64

    directory = folder(tmp_path)
    raw = os.fsencode(name)
    with open(os.path.join(os.fsencode(directory), raw), "w") as file:
        file.write("content")
    data: dict[str, Any] = {
        "root": str(directory),
        "path": "%FF%252F.txt",
        "path_base64": base64.b64encode(raw).decode(),
    }
    if isinstance(name, str):
        data = {"root": str(directory), "path": name}
    [verdict] = deliver(handler("reads"), directory, batch(event(1, data=data)))
    assert [made.data for _, made in verdict.events] == ["content"]


def test_environment_is_scrubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGPASSWORD", "NAMED", "LC_TIME", "TZ"):
        monkeypatch.setenv(name, f"value of {name}")
    settings = handler("environment", pass_env=["NAMED"], env={"API_KEY": "hunter2"})
    [verdict] = deliver(settings, folder(tmp_path), batch(0))
    seen = verdict.events[0][1].data["env"]
    assert (seen["NAMED"], seen["LC_TIME"], seen["API_KEY"]) == ("value of NAMED", "value of LC_TIME", "hunter2")
    assert "PGPASSWORD" not in seen
    allowed = {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "NAMED", "API_KEY", "HEADRACE_LINKS"}
    assert {name for name in seen if not name.startswith("LC_")} <= allowed
    assert "hunter2" not in repr(settings)


def test_the_users_own_python_beside_the_settings_file(tmp_path: Path) -> None:
    directory = folder(tmp_path)
    (directory / ".venv" / "bin").mkdir(parents=True)
    own = directory / ".venv" / "bin" / "python"
    own.write_text(f'#!/bin/sh\nexport WRAPPED=yes\nexec "{sys.executable}" "$@"\n')
    own.chmod(0o755)
    [verdict] = deliver(handler("environment"), directory, batch(0))
    assert verdict.events[0][1].data["env"]["WRAPPED"] == "yes"


BROKEN = {
    "syntax.py:f": ("def f(event:\n", r"syntax.py:1: SyntaxError: "),
    "raising.py:f": ("import os\n1 / 0\n", r"cannot import raising.py: ZeroDivisionError: .* \(raising.py:2\)"),
    "missing.py:f": ("import not_there_at_all\n", r"No module named 'not_there_at_all' \(missing.py:1\) \(install it"),
    "exiting.py:f": ("raise SystemExit(2)\n", r"SystemExit: 2 \(exiting.py:1\)"),
    "dying.py:f": ("import os\nos._exit(4)\n", r"ended while it loaded dying.py:f: exit code 4"),
    "typo.py:mak": ("def make(event): ...\n", r"typo.py has no function 'mak' \(it has make\)"),
    "value.py:f": ("f = 5\n", r"value.py has no function 'f' \(it defines no function at all\)"),
    "absent.py:f": (None, r"absent.py does not exist"),
    "absent_module:f": (None, r"cannot import absent_module: ModuleNotFoundError"),
    "functions.py:no_argument": (None, r"cannot be called with an event \(write `def NAME\(event\)`"),
    "functions.py:too_many": (None, r"cannot be called with an event"),
}


@pytest.mark.parametrize("function", BROKEN)
def test_what_cannot_be_loaded_is_told_once_and_spends_nothing(tmp_path: Path, function: str) -> None:
    directory = folder(tmp_path)
    code, message = BROKEN[function]
    if code is not None:
        (directory / function.rpartition(":")[0]).write_text(code)
    settings = FunctionHandler(function=function)
    with pytest.raises(Fatal, match=message) as caught:
        deliver(settings, directory)
    assert asyncio.run(settings.verify(directory)) == [str(caught.value)]


def test_verify_of_a_good_function_finds_nothing(tmp_path: Path) -> None:
    assert asyncio.run(handler("record").verify(folder(tmp_path))) == []


def test_problems_without_running_anything(tmp_path: Path) -> None:
    found = FunctionHandler(function="gone.py:f", python=Path("no/python")).problems(tmp_path)
    assert found == {"python": "no/python does not exist", "function": "gone.py does not exist"}
    with pytest.raises(ValidationError, match=r"file.py:function"):
        FunctionHandler(function="thumbs.py")


def test_a_python_that_cannot_be_started_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"cannot start .*no/python: No such file"):
        deliver(handler("record", python=Path("no/python")), folder(tmp_path))


def pids_of(sink: Any) -> list[int]:
    assert isinstance(sink, FunctionSink)
    return [worker.process.pid for worker in sink._pool.running]


def gone(sink: Any, pid: int) -> bool:
    return pid not in pids_of(sink)


def test_a_worker_killed_between_frames_spends_no_attempt(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(handler("record"), directory, Log()) as sink:
            for n in range(5):
                [pid] = pids_of(sink)
                os.kill(pid, signal.SIGKILL)  # noticed or not by the time of the delivery: both ways are met
                if n % 2:
                    await until(functools.partial(gone, sink, pid))
                assert await sink.deliver(batch(n)) == Verdict()

    directory = folder(tmp_path)
    asyncio.run(main())
    assert [line.split()[0] for line in lines(directory / "calls.txt")] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(("concurrency", "size"), [(2, 50), (1, 1), (1, 3)])
def test_under_random_kills_every_verdict_is_true(tmp_path: Path, concurrency: int, size: int) -> None:
    """Done means called to its end, skipped means never begun, and one kill costs at most one event."""

    async def main() -> None:
        settings = handler("begins_and_ends", concurrency=concurrency)
        async with opened(settings, directory, Log()) as sink, asyncio.TaskGroup() as tasks:
            killer = tasks.create_task(kill_at_random(sink))
            await asyncio.gather(*(deliver_all(sink, range(first, total, 2)) for first in (0, 1)))
            killer.cancel()

    async def kill_at_random(sink: Any) -> None:
        chance = random.Random(7)
        while True:
            await asyncio.sleep(chance.uniform(0.01, 0.08))
            if pids := pids_of(sink):
                os.kill(chance.choice(pids), signal.SIGKILL)
                kills.append(1)

    async def deliver_all(sink: Any, numbers: Sequence[int]) -> None:
        waiting = list(numbers)
        while waiting:
            work, waiting = waiting[:size], waiting[size:]
            try:
                verdict = await sink.deliver(batch(*work))
            except Transient:  # killed as they start
                waiting = work + waiting
                continue
            failed.update(work[position - 100] for position in verdict.failed)
            skipped = [work[position - 100] for position in verdict.skipped]
            assert len(verdict.failed) <= 1
            not_begun = {f"begin {n}" for n in skipped}
            assert not not_begun.intersection(lines(directory / "calls.txt"))
            waiting = skipped + waiting

    directory, total = folder(tmp_path), 4_000 if size > 1 else 1_500
    kills: list[int] = []
    failed: set[int] = set()
    asyncio.run(main())
    calls = lines(directory / "calls.txt")
    begun, done = ([int(line.split()[1]) for line in calls if line.startswith(word)] for word in ("begin", "end"))
    assert len(set(begun)) == len(begun), "nothing was called twice"
    assert set(range(total)) - failed <= set(done)
    assert 0 < len(failed) <= len(kills)


def test_a_worker_killed_at_start_is_transient(tmp_path: Path) -> None:
    directory = folder(tmp_path)
    (directory / "dying.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    with pytest.raises(Transient, match="short of memory"):
        deliver(FunctionHandler(function="dying.py:f"), directory)


def test_cancelling_a_delivery_leaves_no_process_and_the_next_works(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(handler("spawns"), directory, Log()) as sink:
            [pid] = pids_of(sink)
            delivery = asyncio.ensure_future(sink.deliver(batch(1)))
            await until(lambda: lines(directory / "child.txt"))
            delivery.cancel()
            with pytest.raises(asyncio.CancelledError):
                await delivery
            assert not running(pid)
            child = int(lines(directory / "child.txt")[0])
            await until(lambda: not running(child))
            assert await sink.deliver(batch(0)) == Verdict()

    directory = folder(tmp_path)
    asyncio.run(main())


def test_workers_start_by_need_up_to_the_limit(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(handler("sleeps", concurrency=2), folder(tmp_path), Log()) as sink:
            assert len(pids_of(sink)) == 1
            verdicts = await asyncio.gather(*(sink.deliver(batch(0.05)) for _ in range(6)))
            assert verdicts == [Verdict()] * 6
            assert len(pids_of(sink)) == 2

    asyncio.run(main())


def test_idle_workers_end_and_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(handler("sleeps", concurrency=3), folder(tmp_path), Log()) as sink:
            await asyncio.gather(*(sink.deliver(batch(0.05)) for _ in range(3)))
            assert len(pids_of(sink)) > 1
            await until(lambda: len(pids_of(sink)) == 1)
            assert await sink.deliver(batch(0)) == Verdict()

    monkeypatch.setattr("headrace.handlers.pool._IDLE", 0.1)
    asyncio.run(main())


def test_the_last_worker_ends_too_and_comes_back_by_need(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(handler("sleeps", concurrency=3, idle="200ms"), folder(tmp_path), Log()) as sink:
            await asyncio.gather(*(sink.deliver(batch(0.05)) for _ in range(3)))
            await until(lambda: not pids_of(sink))
            assert await sink.deliver(batch(0)) == Verdict()
            assert len(pids_of(sink)) == 1

    asyncio.run(main())


def test_workers_are_recycled_by_events(tmp_path: Path) -> None:
    directory = folder(tmp_path)
    deliver(handler("record", recycle={"events": 3}), directory, *(batch(2 * n, 2 * n + 1) for n in range(6)))
    pids = [line.split()[1] for line in lines(directory / "calls.txt")]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [4, 4, 4]


def test_workers_are_recycled_by_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.handlers.pool._LOOK", 0.0)
    directory = folder(tmp_path)
    (directory / "leaks.py").write_text(
        "import os\nkept = []\ndef leak(event):\n    kept.append(os.urandom(40 << 20))\n"
        "    open('pids.txt', 'a').write(f'{os.getpid()}\\n')\n"
    )
    settings = FunctionHandler.model_validate(
        {"function": "leaks.py:leak", "concurrency": 1, "recycle": {"memory": "100MiB"}}
    )
    deliver(settings, directory, *(batch(n) for n in range(6)))
    assert 2 <= len(set(lines(directory / "pids.txt"))) <= 3


def test_a_quick_worker_has_the_next_delivery_at_hand(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(handler("record"), directory, Log()) as sink:
            for first in range(0, 200, 2):
                both = await asyncio.gather(sink.deliver(batch(first)), sink.deliver(batch(first + 1)))
                assert [*both] == [Verdict(), Verdict()]
            assert len(pids_of(sink)) == 1

    directory = folder(tmp_path)
    asyncio.run(main())
    assert [int(line.split()[0]) for line in lines(directory / "calls.txt")] == [*range(200)]


def test_cancelling_one_of_two_deliveries_blames_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(handler("sleeps"), folder(tmp_path), Log()) as sink:
            for _ in range(20):  # it becomes a quick one
                await sink.deliver(batch(0))
            long = asyncio.ensure_future(sink.deliver(batch(0, 0.3)))
            behind = asyncio.ensure_future(sink.deliver(batch(0)))
            await asyncio.wait({long}, timeout=0.1)
            behind.cancel()
            verdict = await long
            assert (dict(verdict.failed), list(verdict.skipped)) == ({}, [101])
            assert await sink.deliver(batch(0)) == Verdict()

    asyncio.run(main())


def test_death_in_one_delivery_gives_the_next_to_another_worker(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(handler("exits_hard"), folder(tmp_path), Log()) as sink:
            for _ in range(20):
                await sink.deliver(batch(0))
            first, second = await asyncio.gather(sink.deliver(batch(0, 1, 2)), sink.deliver(batch(0, 2)))
            assert (dict(first.failed), list(first.skipped)) == ({101: "exit code 3"}, [102])
            assert second == Verdict()

    asyncio.run(main())


def test_without_process_descriptors_a_thread_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and in sandboxes that lack the call."""

    def refuse(_: int) -> int:
        raise OSError

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    [first, then] = deliver(handler("exits_hard"), folder(tmp_path), batch(0, 1, 2), batch(0))
    assert (first.failed, list(first.skipped)) == ({101: "exit code 3"}, [102])
    assert then == Verdict()


def test_the_example_calls_its_function(tmp_path: Path) -> None:
    directory = tmp_path / "example"
    shutil.copytree(Path(__file__).parents[2] / "examples" / "files-to-function", directory)
    (directory / "inbox" / "hello.txt").write_text("one\ntwo\n")
    log, data = Log(), {"root": str(directory / "inbox"), "path": "hello.txt", "kind": "file", "size": 8}
    created, deleted = (f"headrace.filesystem.{name}" for name in ("created", "deleted"))
    work = batch(event(1, type=created, subject="hello.txt", data=data), event(2, type=deleted, subject="gone.txt"))
    assert deliver(FunctionHandler(function="react.py:react"), directory, work, log=log) == [Verdict()]
    assert log.output("info") == [("e1", "hello.txt has 2 lines"), ("e2", "gone.txt was deleted")]


def test_a_large_event_goes_through(tmp_path: Path) -> None:
    work = batch(event(0, data={"n": 0, "text": "x" * 8_000_000}), 1)
    [verdict] = deliver(handler("derive"), folder(tmp_path), work)
    assert len(verdict.events[0][1].data["text"]) == 8_000_000
    assert len(verdict.events) == 3


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    async def main() -> tuple[int, int]:
        async with opened(handler("exits_hard"), folder(tmp_path), Log()) as sink:
            await sink.deliver(batch(0))
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(5):
                await sink.deliver(batch(1))
            await sink.deliver(batch(0))
            return before, len(os.listdir("/proc/self/fd"))

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    before, after = asyncio.run(main())
    assert after == before


def test_workers_end_when_the_daemon_is_killed(tmp_path: Path) -> None:
    directory = folder(tmp_path)
    program = f"""
import asyncio, os, signal
from pathlib import Path
from tests.adapters.test_function import *
async def main():
    async with opened(handler("nothing"), Path({str(directory)!r}), Log()) as sink:
        Path("pid.txt").write_text(str(pids_of(sink)[0]))
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    import subprocess

    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=directory, env={**os.environ, "PYTHONPATH": str(root)}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    pid = int((directory / "pid.txt").read_text())
    ended(pid)
