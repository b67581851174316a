"""Snapshot and backfills under fire: killed at every step of them, with writers running."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.crash.test_postgres import WORK_MEMORY, Daemon, settle, strike, write_settings
from tests.fixtures.postgres import need_server, server
from tests.fixtures.postgres_workload import Workload

FAILPOINTS = (
    "postgres.slot-recorded",
    "postgres.snapshot-table",
    "postgres.snapshot-rows",
    "postgres.snapshot-table-done",
    "postgres.snapshot-done",
    "postgres.backfill-read",
    "postgres.backfill-watermark",
    "postgres.backfill-joined",
)
KILLS = int(os.environ.get("HEADRACE_TEST_KILLS", "25"))


def backfill(house: Path) -> None:
    """Ask for it; whether the daemon can take it at the moment is part of the game."""
    command = [sys.executable, "-m", "headrace", "backfill", "db", "public.*", "-c", str(house / "headrace.toml")]
    subprocess.run(command, check=False, capture_output=True, timeout=60)


@pytest.mark.long
@pytest.mark.crash
@pytest.mark.postgres
@pytest.mark.parametrize("version", ["newest", "oldest"])
def test_tables_rebuilt_from_reads_equal_the_tables(tmp_path: Path, version: str) -> None:
    found = need_server()
    chance = random.Random(11)
    with server(found[0 if version == "newest" else -1], WORK_MEMORY) as running, running.database() as database:
        workload = Workload(database, writers=1)
        workload.prepare()
        write_settings(tmp_path, database, "initial")
        workload.start()
        daemon = Daemon(tmp_path, FAILPOINTS[0])
        try:
            for number in range(1, KILLS):
                time.sleep(chance.uniform(0.5, 2.5))  # how long it may work is what varies
                backfill(tmp_path)
                if chance.random() < 0.3 or daemon.process.poll() is not None:
                    strike(daemon, database, chance)
                if daemon.process.poll() is not None:
                    daemon = Daemon(tmp_path, f"{FAILPOINTS[number % len(FAILPOINTS)]}:{chance.randint(1, 3)}")
            daemon.kill()
            daemon = Daemon(tmp_path)
        finally:
            workload.stop()
        settle(tmp_path, daemon, database, {}, workload)
