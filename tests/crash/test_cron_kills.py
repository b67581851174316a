"""The clock under fire: every second has its tick, once and in order, however often the daemon is killed."""

from __future__ import annotations

import random
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.fixtures.killed import Daemon, events_of, until

SETTINGS = """
[sources.clock]
type = "cron"
schedule = "* * * * * *"

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
"""
FAILPOINTS = ["capture.before-append", "journal.before-commit", "journal.after-commit", "cron.after-append"]
KILLS = 8

pytestmark = pytest.mark.crash


def check(house: Path) -> None:
    """A last daemon catches up to the present second; then there is no gap, and nothing twice."""
    present = datetime.now().astimezone()

    def caught_up() -> bool:
        return any(datetime.fromisoformat(event["time"]) >= present for event in events_of(house))

    with Daemon(house):
        until(caught_up, "the ticks reach the present")
    ticks = [datetime.fromisoformat(event["data"]["nominal"]) for event in events_of(house)]
    assert ticks == [ticks[0] + timedelta(seconds=number) for number in range(len(ticks))]
    assert all(event["data"]["skipped"] == 0 for event in events_of(house))


def test_random_kills(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text(SETTINGS)
    chance = random.Random(5)
    for _ in range(KILLS):
        with Daemon(tmp_path) as daemon:
            until(lambda: daemon.says("running"), "the daemon runs")
            time.sleep(chance.uniform(0, 1.5))
            daemon.kill()
    check(tmp_path)


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_kills_at_every_boundary(tmp_path: Path, failpoint: str) -> None:
    (tmp_path / "headrace.toml").write_text(SETTINGS)
    with Daemon(tmp_path) as first:
        until(lambda: first.says("running"), "the daemon runs")
        first.kill()
    for times in (1, 2):
        with Daemon(tmp_path, f"{failpoint}:{times}") as daemon:
            until(lambda: daemon.dead, f"killed at {failpoint}")
    check(tmp_path)
