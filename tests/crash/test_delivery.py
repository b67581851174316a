"""Delivery under fire: daemon and workers are killed at random while a handler fails at random; its own log tells."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections import Counter, defaultdict
from contextlib import suppress
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

WORKERS = 3
SETTINGS = f"""
[sources.orders]
type = "filesystem"
path = "orders"

[handlers.work]
function = "work.py:work"
start = "earliest"
concurrency = {WORKERS}
retry = {{ initial = "5ms", max = "20ms", attempts = 1000 }}
"""
HANDLER = """
import os, random, time
log = os.open("work.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
def work(event):
    time.sleep(0.004)
    failed = random.random() < 0.03
    os.write(log, f"{event['partitionkey']} {event['id']} {'failed' if failed else 'done'}\\n".encode())
    if failed:
        raise ValueError("at random")
"""
EVENTS = 6_000
KEYS = 100
KILLS = 100
OF_THE_DAEMON = 15
PROGRESS = (1, 30)  # calls between two kills
IN_FLIGHT = UNCOMMITTED + 2 * WORKERS  # what a kill of the daemon may repeat


def fill(folder: Path, count: int = EVENTS) -> None:
    """A journal with so many events, as a source would have left it; their numbers are their positions."""
    numbers = list(range(count))

    async def append() -> None:
        log = structlog.get_logger(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        with claim(folder / "headrace-data") as data_dir:
            async with open_journal(data_dir, Limits(1e6, 1 << 30), log) as journal:
                for begin in range(0, count, 500):
                    lines = Lines.of([event(number) for number in numbers[begin : begin + 500]], source_seed("orders"))
                    await journal.submit(Change([seal("orders", lines)]))

    asyncio.run(append())


def event(number: int) -> Event:
    key = f"key{number % KEYS}"
    return Event(id=str(number), source="headrace:orders", type="headrace.test.placed", partitionkey=key)


def children(pid: int) -> list[int]:
    """The daemon's workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                stat = (entry / "stat").read_text()
                if int(stat.rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def calls(folder: Path) -> list[tuple[str, int, bool]]:
    """What the handler wrote: key, event, whether it was done."""
    file = folder / "work.log"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(key, int(id_), how == "done") for key, id_, how in map(str.split, lines)]


def kill_at_random(daemon: Daemon, chance: random.Random) -> None:
    log = daemon.folder / "work.log"
    whom = [True] * OF_THE_DAEMON + [False] * (KILLS - OF_THE_DAEMON)
    chance.shuffle(whom)
    for the_daemon in whom:
        size = log.stat().st_size if log.exists() else 0
        more = chance.randint(*PROGRESS) * len("key100 5000 done\n")
        until(lambda most=size + more: log.exists() and log.stat().st_size > most, daemon.log[-3000:])  # type: ignore[misc]
        if the_daemon:
            daemon.kill()
            daemon.start()
        elif workers := children(daemon.process.pid):
            with suppress(ProcessLookupError):
                os.kill(chance.choice(workers), signal.SIGKILL)


def check(found: list[tuple[str, int, bool]]) -> None:
    """Nothing lost, nothing skipped, each key in order: after N comes N again, what is before it, or the next."""
    done = Counter(number for _, number, it in found if it)
    assert done.keys() == set(range(EVENTS)), "lost"
    by_key = defaultdict(list)
    for key, number, it in found:
        by_key[key].append((number // KEYS, it))
    for key, entries in by_key.items():
        ready = 0  # the furthest that may come next
        for place, it in entries:
            assert place <= ready, f"{place} of {key} did not wait"
            ready = place + 1 if it else place
    again = sum(done.values()) - EVENTS
    assert again <= OF_THE_DAEMON * IN_FLIGHT + 2 * KILLS, f"{again} were repeated"


@pytest.mark.crash
def test_order_holds_and_nothing_is_lost_under_random_kills(tmp_path: Path) -> None:
    (tmp_path / "orders").mkdir()
    (tmp_path / "work.py").write_text(HANDLER)
    fill(tmp_path)
    daemon = start(tmp_path, SETTINGS)
    try:
        kill_at_random(daemon, random.Random(6))
        assert len({number for _, number, it in calls(tmp_path) if it}) < EVENTS, "the last kill came too late"
        daemon.wait_until(lambda told: not told["consumers"][0]["lag"] and not told["consumers"][0]["parked"])
        assert not daemon.consumer("work")["dead_letters"]
        assert daemon.stop() == 0
    finally:
        daemon.process.kill()
        daemon.process.wait()
    check(calls(tmp_path))
