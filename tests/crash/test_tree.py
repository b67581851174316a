"""The main job under fire: a daemon is killed again and again while a tree changes, and the tree comes out right."""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.delivery.commit import UNCOMMITTED
from headrace.demo.watch import rebuilt, tree_of
from tests.fixtures.churn import Churn
from tests.fixtures.daemon import Daemon, until

SETTINGS = """
[sources.tree]
type = "filesystem"
path = "tree"
snapshot = "initial"

[handlers.log]
function = "log.py:log"
start = "earliest"
concurrency = 2

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
"""
HANDLER = """
import os
log_file = os.open("called.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
def log(event):
    os.write(log_file, (event["id"] + "\\n").encode())
"""
FAILPOINTS = [
    "inventory.append",
    "inventory.submitted",
    "filesystem.page",
    "filesystem.moving",
    "capture.before-append",
    "journal.before-commit",
    "journal.after-commit",
    "delivery.before-deliver",
    "delivery.after-deliver",
    "delivery.before-commit",
    "delivery.after-commit",
    "handler.sent",
    "handler.answered",
    "file.before-write",
    "file.after-write",
    "file.before-flush",
    "file.after-flush",
]
ONCE_A_RUN = {"filesystem.page"}
KILLS = 50
IN_FLIGHT = UNCOMMITTED + 2  # what was not committed yet, and what was in the hands of two workers


@pytest.fixture
def house(tmp_path: Path) -> Path:
    (tmp_path / "headrace.toml").write_text(SETTINGS)
    (tmp_path / "log.py").write_text(HANDLER)
    (tmp_path / "tree").mkdir()
    return tmp_path


def events_of(house: Path) -> list[dict[str, Any]]:
    """Of whole lines: the last one may be in the middle of being written."""
    file = house / "audit.jsonl"
    whole = file.read_bytes().rpartition(b"\n")[0] if file.exists() else b""
    return [json.loads(line) for line in whole.splitlines()]


def settle(house: Path) -> None:
    """Let a last daemon catch up, and stop it."""
    tree = tree_of(house / "tree")

    def complete() -> bool:
        events = events_of(house)
        return rebuilt(events) == tree and called(house).keys() == {it["id"] for it in events}

    with Daemon(house):
        try:
            until(complete, "the rebuilt tree equals the tree, and the function was called for every event", 60)
        except AssertionError:
            assert rebuilt(events_of(house)) == tree
            assert called(house).keys() == {it["id"] for it in events_of(house)}


def called(house: Path) -> Counter[str]:
    file = house / "called.log"
    return Counter(file.read_text().splitlines()) if file.exists() else Counter()


def check(house: Path, kills: int) -> None:
    """No gap and no repeated line in the audit file; the function repeated at most what was in flight."""
    assert (house / "audit.jsonl").read_bytes().endswith(b"\n")
    events = events_of(house)
    numbers = [int(event["sequence"]) for event in events]
    assert numbers == list(range(1, len(events) + 1))
    assert len({event["id"] for event in events}) == len(events)
    repeated = sum(times - 1 for times in called(house).values())
    assert repeated <= IN_FLIGHT * kills


@pytest.mark.crash
def test_killed_at_random_the_tree_comes_out_right(house: Path) -> None:
    chance = random.Random(7)
    with Churn(house / "tree", seed=7) as churn:
        for _ in range(KILLS):
            with Daemon(house):
                time.sleep(chance.uniform(0.1, 1.2))  # the moment of death is the random input
            time.sleep(chance.uniform(0, 0.1))  # changes while it is down
    assert churn.operations > 1_000
    settle(house)
    check(house, KILLS)


@pytest.mark.crash
@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_killed_at_each_boundary_the_tree_comes_out_right(house: Path, failpoint: str) -> None:
    deaths = 0
    with Churn(house / "tree", seed=sum(failpoint.encode())):
        for times in (1, 1) if failpoint in ONCE_A_RUN else (1, 2, 7, 20):
            with Daemon(house, {"HEADRACE_FAILPOINT": f"{failpoint}:{times}"}) as daemon:
                assert daemon.process.wait(30) == -9, f"{failpoint} was never reached {times} times"
                deaths += 1
    settle(house)
    check(house, deaths)


@pytest.fixture(autouse=True)
def _show_log(house: Path) -> Iterator[None]:
    yield
    sys.stdout.write((house / "daemon.log").read_text()[-4000:] if (house / "daemon.log").exists() else "")
