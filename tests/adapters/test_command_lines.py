"""Programs that stay: verdicts as lines on descriptor 3, and everything that goes wrong with them."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest

from headrace.errors import Fatal
from headrace.handlers.command import CommandHandler
from headrace.protocols import Batch, Verdict
from headrace.settings_file import load
from tests.adapters.handlers_fixture import kit
from tests.adapters.handlers_fixture.kit import Log, batch, event, lines, opened, running, until

EXAMPLES = Path(__file__).parents[2] / "examples" / "commands"


def program(script: str, **options: object) -> CommandHandler:
    """A Python program that has `next_event()` and `say(verdict)`."""
    head = (
        "import json, os, sys, time\n"
        "def next_event():\n    line = sys.stdin.readline()\n    return json.loads(line) if line else sys.exit()\n"
        "def say(verdict):\n    text = verdict if isinstance(verdict, str) else json.dumps(verdict)\n"
        "    os.write(3, text.encode() + b'\\n')\n"
    )
    known = {"command": [sys.executable, "-c", head + script], "mode": "lines", "concurrency": 1}
    return CommandHandler.model_validate(known | options)


def deliver(settings: CommandHandler, directory: Path, *work: Batch, log: Log | None = None) -> list[Verdict]:
    async def main() -> list[Verdict]:
        async with opened(settings, directory, log or Log()) as sink:
            verdicts = [await sink.deliver(one) for one in work]
        assert kit.children() <= before
        return verdicts

    before = kit.children()
    return asyncio.run(main())


def failed(verdict: Verdict) -> dict[int, str]:
    return dict(verdict.failed)


def test_one_process_takes_every_event(tmp_path: Path) -> None:
    script = (
        "while True:\n    event = next_event()\n"
        "    open('seen', 'a').write(f\"{os.getpid()} {event['id']}\\n\")\n    say('ok')"
    )
    assert all(not one.failed and not one.skipped for one in deliver(program(script), tmp_path, batch(1, 2), batch(3)))
    seen = [line.split() for line in lines(tmp_path / "seen")]
    assert [name for _, name in seen] == ["e1", "e2", "e3"]
    assert len({pid for pid, _ in seen}) == 1


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        ("'ok'", None),
        ("'  ok '", None),
        ("{}", None),
        ("{'id': event['id']}", None),
        ("{'events': None, 'more': 1}", None),
        ("'error disk full'", "disk full"),
        ("'error'", "failed, and said no reason"),
        ("{'error': 'é'}", "é"),
        ("{'error': ''}", "failed, and said no reason"),
        ("{'events': [{'data': 1}]}", "the program returned no event"),
        ("{'events': 3}", "the program returned no event"),
        ("'okay'", "the program wrote no verdict: 'okay'"),
        ("'[]'", "the program wrote no verdict"),
        ("'{\"error\": 3}'", "the program wrote no verdict"),
        ("{'id': 'other'}", "about 'other', which it does not have"),
    ],
)
def test_verdicts(tmp_path: Path, verdict: str, why: str | None) -> None:
    [found] = deliver(program(f"event = next_event()\nsay({verdict})\nnext_event()"), tmp_path, batch(1))
    assert list(found.failed) == ([] if why is None else [100])
    assert why is None or why in found.failed[100]


def test_returned_events(tmp_path: Path) -> None:
    script = "event = next_event()\nsay({'events': [{'type': 'a.b', 'data': 5}, {'type': 'c.d'}]})\nnext_event()"
    [verdict] = deliver(program(script), tmp_path, batch(1))
    assert [(at, made.type, made.data, made.id) for at, made in verdict.events] == [
        (100, "a.b", 5, "headrace:test/e1/0"),
        (100, "c.d", None, "headrace:test/e1/1"),
    ]


def test_verdicts_in_any_order_by_id(tmp_path: Path) -> None:
    script = (
        "events = [next_event() for _ in range(4)]\n"
        "for event in reversed(events):\n"
        "    say({'id': event['id'], **({'error': 'two'} if event['id'] == 'e2' else {})})\n"
        "next_event()"
    )
    [verdict] = deliver(program(script), tmp_path, batch(1, 2, 3, 4))
    assert (failed(verdict), list(verdict.skipped)) == ({101: "two"}, [])


def test_strict_order_sends_the_next_after_the_verdict(tmp_path: Path) -> None:
    script = (
        "import select\n"
        "while True:\n"
        "    event = next_event()\n"
        "    assert not select.select([0], [], [], 0.05)[0], 'another event came already'\n"
        "    say({'error': 'third'} if event['id'] == 'e3' else 'ok')"
    )
    [verdict] = deliver(program(script, ordering="strict"), tmp_path, batch(1, 2, 3, 4, 5))
    assert (failed(verdict), list(verdict.skipped)) == ({102: "third"}, [103, 104])


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("sys.exit(3)", "exit code 3"),
        ("sys.exit('last words')", "exit code 1: last words"),
        ("os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("os.close(3); time.sleep(60)", "the program closed descriptor 3"),
        ("os.write(3, b'x' * (9 << 20)); time.sleep(60)", "the program wrote a verdict without an end"),
        ("say('ok'); say('ok'); say('ok'); say('ok')", None),
    ],
)
def test_death_fails_the_oldest_and_the_rest_comes_again(tmp_path: Path, end: str, why: str | None) -> None:
    script = f"next_event(); say('ok')\nnext_event()\n{end}\nnext_event()"
    log = Log()
    first, second = deliver(program(script), tmp_path, batch(1, 2, 3), batch(4), log=log)
    if why is None:
        assert (failed(first), list(first.skipped)) == ({}, [])
    else:
        assert (failed(first), list(first.skipped)) == ({101: why}, [102])
        assert failed(second) == {}, "a new process takes over"


def test_time_without_a_verdict(tmp_path: Path) -> None:
    script = "while True:\n    event = next_event()\n    time.sleep(60 if event['id'] == 'e2' else 0.2)\n    say('ok')"
    first, second = deliver(program(script, timeout="500ms"), tmp_path, batch(1, 2, 3), batch(4, 5, 6, 7))
    assert (failed(first), list(first.skipped)) == ({101: "timed out after 0.5 s"}, [102])
    assert failed(second) == {}, "each verdict starts the time anew"


def test_a_program_that_does_not_read(tmp_path: Path) -> None:
    large = batch(event(1, data="x" * 3_000_000))
    [verdict] = deliver(program("time.sleep(60)", timeout="300ms"), tmp_path, large)
    assert failed(verdict) == {100: "timed out after 0.3 s"}
    assert not deliver(program("say({'id': next_event()['id']}); next_event()"), tmp_path, large)[0].failed


def test_cancelling_kills_the_program_and_its_children(tmp_path: Path) -> None:
    script = (
        "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\n"
        "open('pids', 'w').write(f'{os.getpid()}\\n{child.pid}\\n')\ntime.sleep(60)"
    )

    async def main() -> None:
        async with opened(program(script), tmp_path, Log()) as sink:
            task = asyncio.ensure_future(sink.deliver(batch(1)))
            await until(lambda: len(lines(tmp_path / "pids")) == 2)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            await until(lambda: not any(running(int(pid)) for pid in lines(tmp_path / "pids")))

    asyncio.run(main())


def test_the_end_of_the_input_lets_it_finish(tmp_path: Path) -> None:
    script = "for line in sys.stdin:\n    say('ok')\nopen('bye', 'w').write('bye')"
    deliver(program(script), tmp_path, batch(1))
    assert (tmp_path / "bye").read_text() == "bye"


def test_output_carries_the_events_id(tmp_path: Path) -> None:
    log = Log()
    script = (
        "event = next_event()\nprint('hello', flush=True)\nprint('oh', file=sys.stderr, flush=True)\n"
        "time.sleep(0.2)\nsay('ok')\nnext_event()"
    )
    deliver(program(script), tmp_path, batch(1), log=log)
    assert ("e1", "hello") in log.output("info")
    assert ("e1", "oh") in log.output("warning")


def test_programs_start_by_need(tmp_path: Path) -> None:
    script = (
        "while True:\n    event = next_event()\n    time.sleep(0.3)\n"
        "    open('pids', 'a').write(f'{os.getpid()}\\n')\n    say('ok')"
    )

    async def main() -> None:
        async with opened(program(script, concurrency=3), tmp_path, Log()) as sink:
            await asyncio.gather(*(sink.deliver(batch(n)) for n in range(6)))

    asyncio.run(main())
    assert len(set(lines(tmp_path / "pids"))) == 3


def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="nothing-here is not on the PATH"):
        deliver(CommandHandler(command=("nothing-here",), mode="lines"), tmp_path, batch(1))
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    [verdict] = deliver(CommandHandler(command=("./broken",), mode="lines", concurrency=1), tmp_path, batch(1))
    assert "cannot start" in verdict.failed[100]


@pytest.mark.parametrize("name", ["count", "note"])
def test_examples(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(EXAMPLES, tmp_path / "example")
    settings = load(folder / "headrace.toml", {}).handlers[name]
    assert isinstance(settings, CommandHandler)
    if name == "count" and shutil.which("node") is None:
        pytest.skip("needs node: apt install nodejs")
    log = Log()
    files = [event(n, subject=f"f{n}", data={"kind": "file"}) for n in range(5)]
    [verdict] = deliver(settings, folder, batch(*files), log=log)
    assert (failed(verdict), list(verdict.skipped)) == ({}, [])
    if name == "note":
        assert [json.loads(line)["subject"] for line in lines(folder / "notes.jsonl")] == ["f0", "f1", "f2", "f3", "f4"]
    else:
        assert [line for _, line in log.output("info")] == [f"{n + 1}: f{n}" for n in range(5)]
