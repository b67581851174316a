"""Programs run for each event: what they get, what they say, and everything that goes wrong in them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from headrace.errors import Fatal
from headrace.handlers.command import CommandHandler
from headrace.protocols import Batch, Verdict
from tests.adapters.handlers_fixture import kit
from tests.adapters.handlers_fixture.kit import Log, batch, ended, event, lines, opened, running, until


def shell(script: str, **options: object) -> CommandHandler:
    return CommandHandler.model_validate({"command": ["sh", "-c", script], **options})


def deliver(settings: CommandHandler, directory: Path, work: Batch, log: Log | None = None) -> Verdict:
    async def main() -> Verdict:
        async with opened(settings, directory, log or Log()) as sink:
            verdict = await sink.deliver(work)
        assert kit.children() <= before
        return verdict

    before = kit.children()
    return asyncio.run(main())


def test_each_event_comes_on_the_standard_input_of_its_own_process(tmp_path: Path) -> None:
    work = batch(1, 2)
    assert deliver(shell("cat >> seen; echo $$ >> pids"), tmp_path, work) == Verdict()
    assert (tmp_path / "seen").read_bytes() == work.data
    assert len(set(lines(tmp_path / "pids"))) == 2


def test_a_large_event_that_is_not_read_is_no_error(tmp_path: Path) -> None:
    assert deliver(shell("exit 0"), tmp_path, batch(event(1, data={"text": "x" * 5_000_000}))) == Verdict()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", "exit code 3"),
        ("echo first >&2; echo 'last words' >&2; echo >&2; exit 1", "exit code 1: last words"),
        ("kill -SEGV $$", "killed by SIGSEGV"),
        ("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 9", "exit code 9: " + "x" * 487 + "…"),
    ],
)
def test_a_failure_is_told_by_its_code_and_last_word(tmp_path: Path, script: str, why: str) -> None:
    assert deliver(shell(script), tmp_path, batch(1)).failed == {100: why}


def test_a_failed_event_does_not_keep_the_next_from_it(tmp_path: Path) -> None:
    verdict = deliver(shell("read line; case $line in *e2*) exit 1;; esac"), tmp_path, batch(1, 2, 3))
    assert verdict == Verdict(failed={101: "exit code 1"})


def test_output_is_logged_with_the_event(tmp_path: Path) -> None:
    log = Log()
    deliver(shell("echo out; printf 'a\\377b\\0' >&2"), tmp_path, batch(7), log)
    assert log.output("info") == [("e7", "out")]
    assert log.output("warning") == [("e7", "a\ufffdb\0")]


def test_a_hanging_program_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 60 & echo $! > child; wait; sleep 60"
    verdict = deliver(shell(script, timeout="300ms"), tmp_path, batch(1))
    assert verdict.failed == {100: "timed out after 0.3 s"}
    ended(int((tmp_path / "child").read_text()))


def test_children_left_behind_end_with_the_program(tmp_path: Path) -> None:
    assert deliver(shell("sleep 60 & echo $! > child"), tmp_path, batch(1)) == Verdict()
    ended(int((tmp_path / "child").read_text()))


def test_cancelling_leaves_no_process(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(shell("echo $$ > pid; sleep 60"), tmp_path, Log()) as sink:
            delivery = asyncio.ensure_future(sink.deliver(batch(1)))
            await until(lambda: lines(tmp_path / "pid"))
            delivery.cancel()
            with pytest.raises(asyncio.CancelledError):
                await delivery
            assert not running(int((tmp_path / "pid").read_text()))

    asyncio.run(main())


def test_environment_is_scrubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.setenv("NAMED", "yes")
    deliver(shell("env > env", pass_env=["NAMED"], env={"TOKEN": "t"}), tmp_path, batch(1))
    seen = {line.partition("=")[0] for line in lines(tmp_path / "env")}
    assert {"PATH", "NAMED", "TOKEN"} <= seen
    assert "PGPASSWORD" not in seen


def test_a_program_beside_the_settings_file(tmp_path: Path) -> None:
    program = tmp_path / "audit.sh"
    program.write_text('#!/bin/sh\necho "$1 $PWD" > seen\n')
    program.chmod(0o755)
    assert deliver(CommandHandler(command=("./audit.sh", "argument")), tmp_path, batch(1)) == Verdict()
    assert lines(tmp_path / "seen") == [f"argument {tmp_path}"]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("./absent.sh", r"\./absent.sh does not exist \(looked in "),
        ("./plain.txt", r"\./plain.txt may not be executed \(chmod \+x\)"),
        ("plain.txt", r'plain.txt is not on the PATH \(write "\./plain.txt"'),
        ("no-such-program", r"no-such-program is not on the PATH \(install it\)"),
    ],
)
def test_a_program_that_is_not_there_is_told_before_any_event(tmp_path: Path, program: str, why: str) -> None:
    (tmp_path / "plain.txt").write_text("")
    settings = CommandHandler(command=(program,))
    with pytest.raises(Fatal, match=why) as caught:
        deliver(settings, tmp_path, batch(1))
    assert settings.problems(tmp_path) == {"command": str(caught.value)}


def test_a_script_without_an_interpreter_is_fatal(tmp_path: Path) -> None:
    program = tmp_path / "bare"
    program.write_bytes(b"\x7fbroken")
    program.chmod(0o755)
    with pytest.raises(Fatal, match=r"cannot start .*/bare: Exec format error \(a script's first line"):
        deliver(CommandHandler(command=("./bare",)), tmp_path, batch(1))


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    async def main() -> tuple[int, int]:
        async with opened(shell("echo; exit 1"), tmp_path, Log()) as sink:
            before = len(os.listdir("/proc/self/fd"))
            await sink.deliver(batch(*range(5)))
            return before, len(os.listdir("/proc/self/fd"))

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    before, after = asyncio.run(main())
    assert before == after
