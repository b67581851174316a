"""`seek` and `replay` killed on both sides of their one change: it is done or it is not, and nothing is lost by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.crash.test_delivery import fill
from tests.fixtures.daemon import Daemon, running, until

EVENTS = 300
SETTINGS = """
[sources.orders]
type = "filesystem"
path = "orders"

[sinks.copy]
type = "file"
path = "copy.jsonl"
start = "earliest"
"""


def copied(folder: Path) -> list[tuple[int, bool]]:
    """The events in the file, whole lines only: number, and whether marked as replayed."""
    lines = (folder / "copy.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()
    return [(int(it["id"]), "headracereplay" in it) for it in map(json.loads, lines)]


def settled(daemon: Daemon) -> None:
    daemon.wait_until(lambda told: not told["consumers"][0]["lag"] and not told["consumers"][0]["replaying"])


@pytest.mark.crash
@pytest.mark.parametrize("place", ["delivery.before-move", "delivery.after-move"])
@pytest.mark.parametrize("command", [("seek", "copy", "100"), ("replay", "copy", "--from", "100", "--to", "200")])
def test_a_move_is_done_or_not(tmp_path: Path, command: tuple[str, ...], place: str) -> None:
    (tmp_path / "orders").mkdir()
    fill(tmp_path, EVENTS)
    moves = command[0]
    with running(tmp_path, SETTINGS, {"HEADRACE_FAILPOINT": place}) as daemon:
        settled(daemon)
        assert copied(tmp_path) == [(number, False) for number in range(EVENTS)]
        assert daemon.run(*command).returncode != 0, "it was killed while it answered"
        until(lambda: daemon.process.poll() is not None, "killed")
    last = EVENTS if moves == "seek" else 200
    with running(tmp_path, SETTINGS) as daemon:
        if place == "delivery.before-move":
            settled(daemon)
            assert len(copied(tmp_path)) == EVENTS, "it was not done, and the command said so"
            assert daemon.run(*command).returncode == 0
        until(lambda: len(copied(tmp_path)) >= EVENTS + last - 100, "delivered again")
        settled(daemon)
    assert sorted(copied(tmp_path)[EVENTS:]) == [(number, moves == "replay") for number in range(100, last)]
