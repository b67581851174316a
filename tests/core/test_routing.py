"""Who gets which event: `where` in delivery and in `tail`, `check --event`, and tests of the settings."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from headrace.delivery.selection import Selection
from headrace.event import Event
from headrace.journal.block import Kind
from headrace.pattern import Pattern
from tests.core.delivery_rig import (
    ENGINES,
    BulkSettings,
    Target,
    TargetSettings,
    a_consumer,
    a_journal,
    an_event,
    append,
    running,
    until_settled,
)
from tests.fixtures.daemon import headrace

NOT_OTHER = "on asks for other, and this is headrace.filesystem.created of uploads"
WHERE: dict[str, Any] = {"data": {"size": [{"numeric": [">", 0, "<", 4]}]}, "subject": [{"suffix": ".jpg"}]}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [TargetSettings, BulkSettings])
def test_a_consumer_gets_what_matches_and_passes_the_rest(tmp_path: Path, engine: str, kind: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), a_journal(engine, tmp_path) as journal:
            events = [
                an_event(n, f"k{n}", subject=f"{n}.jpg" if n % 2 else "x", data={"size": n % 7}) for n in range(300)
            ]
            await append(journal, events)
            target = Target()
            consumer = a_consumer(journal, kind(target=target, where=WHERE), tmp_path)
            async with running(consumer):
                await until_settled(consumer, journal)
            assert sorted(map(int, target.ids)) == [n for n in range(300) if n % 2 and 0 < n % 7 < 4]

    asyncio.run(main())


def test_a_pattern_on_the_type_skips_whole_blocks() -> None:
    selection = Selection(("a", "b"), Pattern({"type": [{"suffix": ".made"}], "subject": "x"}))
    assert selection.wants([Kind("a", "t.lost"), Kind("a", "t.made")])
    assert not selection.wants([Kind("a", "t.lost"), Kind("c", "t.made")])


SETTINGS = """
[sources.uploads]
type = "filesystem"
path = "in"

[sources.other]
type = "filesystem"
path = "other"

[sinks.pictures]
type = "stdout"
on = ["uploads.created"]
where.data.size = [{ numeric = [">", 0] }]
where.subject = [{ suffix = ".jpg" }, { suffix = ".png" }]

[sinks.all]
type = "file"
path = "audit.jsonl"

[sinks.others]
type = "file"
path = "others.jsonl"
on = ["other"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "headrace.toml").write_text(SETTINGS)
    for name in ("in", "other"):
        (tmp_path / name).mkdir()
    return tmp_path


def event(**more: Any) -> Event:
    known: dict[str, Any] = {"id": "e1", "source": "headrace:uploads", "type": "headrace.filesystem.created"}
    return Event(**known | {"subject": "a.txt", "data": {"size": 0}} | more)


def test_check_says_who_gets_an_event_and_why_not(folder: Path) -> None:
    (folder / "event.json").write_bytes(event().line() + event(id="e2", subject="a.jpg", data={"size": 3}).line())
    done = headrace("check", "--event", "event.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        'e1: pictures: no: where: data.size is 0; subject is "a.txt"',
        "e1: all: yes",
        f"e1: others: no: {NOT_OTHER}",
        "e2: pictures: yes",
        "e2: all: yes",
        f"e2: others: no: {NOT_OTHER}",
    ]


def test_check_takes_one_event_on_several_lines_and_a_source(folder: Path) -> None:
    (folder / "event.json").write_text(json.dumps(json.loads(event(source="urn:shop").line()), indent=2))
    done = headrace("check", "--event", "event.json", "--source", "other", cwd=folder)
    assert "e1: others: yes" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("content", "why"), [(None, "cannot read"), (b"{", "not a CloudEvent"), (b"[3]", "not a CloudEvent")]
)
def test_check_of_what_is_no_event(folder: Path, content: bytes | None, why: str) -> None:
    if content is not None:
        (folder / "event.json").write_bytes(content)
    done = headrace("check", "--event", "event.json", cwd=folder)
    assert done.returncode == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr


TESTS = """
[[test]]
name = "pictures"
source = "uploads"
event = { type = "headrace.filesystem.created", subject = "a.jpg", data = { size = 5 } }
reaches = ["pictures", "all"]

[[test]]
name = "empty pictures"
source = "uploads"
event.type = "headrace.filesystem.created"
event.subject = "a.jpg"
event.data.size = 0
reaches = ["all"]
"""


def test_tests_of_the_settings(folder: Path) -> None:
    (folder / "routes.test.toml").write_text(TESTS)
    done = headrace("test", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "2 passed, 0 failed\n")
    (folder / "routes.test.toml").write_text(TESTS.replace('["all"]', '["pictures", "others"]'))
    done = headrace("test", "routes.test.toml", cwd=folder)
    assert (done.returncode, done.stderr) == (1, "1 passed, 1 failed\n")
    assert done.stdout.splitlines() == [
        "routes.test.toml: empty pictures: does not reach pictures: where: data.size is 0",
        "routes.test.toml: empty pictures: reaches all, and should not",
        f"routes.test.toml: empty pictures: does not reach others: {NOT_OTHER}",
    ]


def test_tests_that_are_not_written_right(folder: Path) -> None:
    file = folder / "routes.test.toml"
    file.write_text(TESTS.replace('["all"]', '["al"]').replace('name = "pictures"', 'nam = "pictures"'))
    done = headrace("test", cwd=folder)
    assert done.returncode == 78
    assert done.stderr.endswith('routes.test.toml:3: test[0].nam: unknown key; did you mean "name"?\n')
    file.write_text(TESTS.replace('["all"]', '["al"]').replace('event.type = "headrace.filesystem.created"\n', ""))
    done = headrace("test", cwd=folder)
    assert done.returncode == 78
    assert 'reaches[0]: the settings have no "al"; did you mean "all"?' in done.stderr
    assert "routes.test.toml:11: test[1].event: not a CloudEvent" in done.stderr
    file.unlink()
    assert "call them *.test.toml" in headrace("test", cwd=folder).stderr
