"""One event that always fails among 100,000 others, and a daemon killed in the middle."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from pathlib import Path

import pytest
import structlog

from headrace.delivery.commit import UNCOMMITTED
from headrace.event import Event, source_seed
from headrace.journal.block import Lines, seal
from headrace.journal.place import claim
from headrace.journal.space import Limits
from headrace.journal.sqlite import open_journal
from headrace.protocols import Change
from tests.fixtures.daemon import Daemon, start, until

SETTINGS = """
[sources.orders]
type = "filesystem"
path = "orders"

[handlers.work]
function = "work.py:work"
start = "earliest"
on = ["orders"]
concurrency = 2
retry = { initial = "4s", max = "4s", attempts = 6 }
"""
HANDLER = """
import os
done = os.open("done.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
def work(event):
    if event["partitionkey"] == "poison":
        raise ValueError("cannot be done")
    os.write(done, (event["id"] + "\\n").encode())
"""
EVENTS = 100_000
POISON = 1_234
MEMORY_MB = 120
REPEATED = UNCOMMITTED + 2  # what was not committed yet, and what was in the hands of two workers


def fill(folder: Path) -> None:
    """A journal with the events, as a source would have left it."""
    seed = source_seed("orders")

    def event(number: int) -> Event:
        key = "poison" if number == POISON else f"order{number}"
        return Event(id=str(number), source="headrace:orders", type="headrace.test.placed", partitionkey=key)

    async def append() -> None:
        log = structlog.get_logger(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        with claim(folder / "headrace-data") as data_dir:
            async with open_journal(data_dir, Limits(1e6, 1 << 30), log) as journal:
                for start in range(0, EVENTS + 1, 2_000):
                    numbers = range(start, min(start + 2_000, EVENTS + 1))
                    block = seal("orders", Lines.of([event(number) for number in numbers], seed))
                    await journal.submit(Change([block]))

    asyncio.run(append())


def resident_mb(daemon: Daemon) -> float:
    return int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]) * 4096 / 2**20


def done(folder: Path) -> Counter[str]:
    file = folder / "done.log"
    return Counter(file.read_text().split()) if file.exists() else Counter()


@pytest.mark.crash
def test_the_poison_is_parked_and_the_others_are_delivered(tmp_path: Path) -> None:
    (tmp_path / "orders").mkdir()
    (tmp_path / "work.py").write_text(HANDLER)
    fill(tmp_path)
    daemon = start(tmp_path, SETTINGS)
    try:
        until(lambda: len(done(tmp_path)) > EVENTS // 3, seconds=120)
        assert daemon.ready().consumer("work")["parked"] == 1
        daemon.kill()
        daemon.start()
        until(lambda: len(done(tmp_path)) == EVENTS, seconds=120)
        memory = resident_mb(daemon)
        daemon.wait_until(lambda told: told["consumers"][0]["parked"] == 0)
        letters = daemon.run("dead-letters", "list", "--json").stdout
        assert daemon.stop() == 0
    finally:
        daemon.kill()
    assert memory < MEMORY_MB
    calls = done(tmp_path)
    assert set(calls) == {str(number) for number in range(EVENTS + 1)} - {str(POISON)}
    assert sum(calls.values()) - EVENTS <= REPEATED
    (letter,) = map(json.loads, letters.splitlines())
    assert letter["attempts"] == 6  # those before the kill count
    assert "cannot be done" in letter["error"]
