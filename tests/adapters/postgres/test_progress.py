"""How far reading is, in the state of the source, in `status` and on a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace.progress import PREFIX, Progress
from headrace.protocols import Captured, Write
from headrace.testing import MemoryCapture, RecordingLog
from headrace.testing.leaks import eventually
from tests.adapters.postgres.test_backfill import streaming, told
from tests.adapters.postgres.test_heals import SETTINGS
from tests.fixtures.killed import Daemon, until
from tests.fixtures.postgres import Database, Server

pytestmark = pytest.mark.postgres
TABLE = (
    "CREATE TABLE t (a int PRIMARY KEY, b text)",
    "INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, 5000) g",
    "ANALYZE t",
)


class Seen(MemoryCapture):
    """Notes how far reading was with each append."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Progress] = []

    async def submit(self, events: Captured, state: Sequence[Write] = ()) -> asyncio.Future[None]:
        self.steps += [Progress.parse(each.value) for each in state if each.key.startswith(PREFIX) and each.value]
        return await super().submit(events, state)


def test_it_grows_and_goes(database: Database, tmp_path: Path) -> None:
    database.execute(*TABLE)

    async def main() -> tuple[list[Progress], list[Progress]]:
        found, log = Seen(), RecordingLog()
        async with streaming(database, tmp_path, found, log, snapshot="initial") as source:
            assert await found.state.scan(PREFIX, None, 10) == []
            snapshot, found.steps = found.steps, []
            await source.backfill("public.t")
            assert [key for key, _ in await found.state.scan(PREFIX, None, 10)] == [PREFIX + b"public.t"]
            await eventually(lambda: told(log, "backfill done") == 1, "the backfill", 30)
            assert await found.state.scan(PREFIX, None, 10) == []
        return snapshot, found.steps

    for steps in asyncio.run(main()):
        assert [step.done for step in steps] == sorted(step.done for step in steps)
        assert steps[-1] == Progress(5000, 5000)
        assert len(steps) > 2


def test_a_terminal_shows_a_bar(newest_postgres: Server, tmp_path: Path) -> None:
    with newest_postgres.database() as database:
        database.execute(*TABLE)
        (tmp_path / "headrace.toml").write_text(SETTINGS.format(dsn=database.dsn))
        with Daemon(tmp_path) as daemon:
            until(lambda: daemon.says('"streaming"'), "it streams")
            with database.connect() as connection:
                connection.execute("BEGIN; SELECT pg_current_xact_id()")  # a backfill waits for those that run
                ours, theirs = pty.openpty()
                command = [sys.executable, "-m", "headrace", "backfill", "db", "public.*"]
                process = subprocess.Popen(command, cwd=tmp_path, stderr=theirs)
                shown = b""
                while b"public.t " not in shown:
                    shown += os.read(ours, 4096)
                connection.execute("COMMIT")
            assert process.wait(60) == 0
            os.close(theirs)
            os.close(ours)
            status = subprocess.run(
                [sys.executable, "-m", "headrace", "status", "--json"], cwd=tmp_path, capture_output=True, check=True
            )
            assert json.loads(status.stdout)["sources"][0]["reading"] == []
