"""Snapshot and backfills under fire: killed at every step of them, with writers running.

Among the writers' transactions are some that come while they run, and commits that wait for a missing standby.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.crash.test_postgres import FEW, MANY, SEED, SNAPSHOT, VERSIONS, WORK_MEMORY, Fire, settle, write_settings
from tests.fixtures.killed import Daemon, until
from tests.fixtures.postgres import need_server, server
from tests.fixtures.postgres_workload import Workload

BACKFILL = ("postgres.backfill-read", "postgres.backfill-watermark", "postgres.backfill-joined")


def backfill(house: Path) -> None:
    """Ask for it; whether the daemon can take it at the moment is part of the game."""
    command = [sys.executable, "-m", "headrace", "backfill", "db", "public.*", "-c", str(house / "headrace.toml")]
    subprocess.run(command, check=False, capture_output=True, timeout=60)


@pytest.mark.crash
@pytest.mark.postgres
@pytest.mark.parametrize(
    ("version", "kills"),
    [("newest", FEW), *(pytest.param(version, MANY, marks=pytest.mark.long) for version in VERSIONS)],
)
def test_tables_rebuilt_from_reads_equal_the_tables(tmp_path: Path, version: str, kills: int) -> None:
    found = need_server()
    chance = random.Random(SEED)
    with server(found[0 if version == "newest" else -1], WORK_MEMORY) as running, running.database() as database:
        workload = Workload(database, writers=2, seed=SEED, stalled=True)
        workload.prepare()
        write_settings(tmp_path, database, "initial")
        fire = Fire(tmp_path, database, chance)
        with workload.running():
            for failpoint in SNAPSHOT:
                fire.at(failpoint)
            while fire.deaths < kills:
                in_a_backfill(tmp_path, fire, chance)
        settle(tmp_path, database, workload, None)


def in_a_backfill(house: Path, fire: Fire, chance: random.Random) -> None:
    """It is asked for, again and again, also while the one before is still at work; then something dies."""
    if chance.random() < 0.6:
        fire.at(chance.choice(BACKFILL), chance.randint(1, 10), lambda: backfill(house))
        return
    with Daemon(house) as daemon:
        until(lambda: daemon.says('"streaming"'), "it streams")
        backfill(house)
        time.sleep(chance.uniform(0.0, 1.0))  # how far it comes is what varies
        daemon.kill()
    fire.at_random()
