"""Truth under fire: the daemon, its child, the connection and the server die again and again amid every kind of change.

The tables rebuilt from the events must equal the tables; no id comes twice; every committed message comes once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fixtures.postgres import Database, need_server, server, wait_for
from tests.fixtures.postgres_workload import TABLES, Workload, rebuilt, tables

SETTINGS = """
[sources.db]
type = "postgres"
dsn = "{dsn}"
tables = [{tables}]
snapshot = "{snapshot}"

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
"""
FAILPOINTS = (
    "postgres.intent",
    "postgres.slot-created",
    "postgres.slot-recorded",
    "postgres.before-submit",
    "postgres.after-submit",
    "postgres.before-report",
    "postgres.snapshot-table",
    "postgres.snapshot-rows",
    "postgres.snapshot-table-done",
    "postgres.snapshot-done",
    "capture.before-append",
    "journal.before-commit",
    "journal.after-commit",
)
KILLS = int(os.environ.get("HEADRACE_TEST_KILLS", "25"))
WORK_MEMORY = {"logical_decoding_work_mem": "64kB", "autovacuum": "off", "restart_after_crash": "on"}


class Daemon:
    """The real daemon in its own process group."""

    def __init__(self, house: Path, failpoint: str = "") -> None:
        self._log = (house / "daemon.log").open("ab")
        command = [sys.executable, "-m", "headrace", "run", "-c", str(house / "headrace.toml")]
        environment = {**os.environ, "HEADRACE_FAILPOINT": failpoint}
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=environment)

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._log.close()


def events(house: Path) -> list[dict[str, Any]]:
    file = house / "audit.jsonl"
    if not file.exists():
        return []
    whole = file.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def write_settings(house: Path, database: Database, snapshot: str) -> None:
    chosen = ", ".join(f'"public.{table}"' for table in TABLES)
    (house / "headrace.toml").write_text(SETTINGS.format(dsn=database.dsn, tables=chosen, snapshot=snapshot))


def strike(daemon: Daemon, database: Database, chance: random.Random) -> bool:
    """Let something die. Whether that was the daemon."""
    match chance.choice(["daemon", "daemon", "child", "child", "connection", "server"]):
        case "child":
            for pid in daemon.children():
                os.kill(pid, signal.SIGKILL)
        case "connection":
            with suppress(psycopg.OperationalError):
                database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        case "server":
            database.server.restart(signal.SIGQUIT)
        case _:
            daemon.kill()
            return True
    return False


@pytest.mark.long
@pytest.mark.crash
@pytest.mark.postgres
@pytest.mark.parametrize("version", ["newest", "oldest"])
@pytest.mark.parametrize("snapshot", ["never", "initial"])
def test_tables_rebuilt_from_events_equal_the_tables(tmp_path: Path, version: str, snapshot: str) -> None:
    found = need_server()
    chance = random.Random(7)
    with server(found[0 if version == "newest" else -1], WORK_MEMORY) as running, running.database() as database:
        workload = Workload(database)
        workload.prepare()
        write_settings(tmp_path, database, snapshot)
        if snapshot == "initial":  # the writers are there first, and the snapshot is under fire as well
            workload.start()
            first, baseline = Daemon(tmp_path, f"postgres.snapshot-rows:{chance.randint(1, 40)}"), {}
        else:
            first = Daemon(tmp_path)
            wait_for(lambda: b"streaming" in (tmp_path / "daemon.log").read_bytes())
            baseline = tables(database)
            workload.start()
        try:
            daemon = under_fire(tmp_path, first, database, chance)
        finally:
            workload.stop()
        settle(tmp_path, daemon, database, baseline, workload)


def under_fire(house: Path, daemon: Daemon, database: Database, chance: random.Random) -> Daemon:
    failpoints = [point for point in FAILPOINTS for _ in range(2)]
    for number in range(KILLS):
        time.sleep(chance.uniform(0.2, 2.5))  # how long it may work is what varies
        if strike(daemon, database, chance) or daemon.process.poll() is not None:
            failpoint = (
                f"{failpoints[number % len(failpoints)]}:{chance.randint(1, 30)}" if chance.random() < 0.6 else ""
            )
            daemon = Daemon(house, failpoint)
    daemon.kill()
    return Daemon(house)


def settle(
    house: Path, daemon: Daemon, database: Database, baseline: dict[str, dict[Any, dict[str, Any]]], workload: Workload
) -> None:
    """Everything arrives, and is right."""
    truth = tables(database)
    started = [
        {"data": {"op": "read", "table": t, "key": {TABLES[t]: k}, "after": r}}
        for t, rows in baseline.items()
        for k, r in rows.items()
    ]
    try:
        with suppress(AssertionError):
            wait_for(lambda: rebuilt([*started, *events(house)]) == truth, 60)
    finally:
        daemon.stop()
    found = events(house)
    now = rebuilt([*started, *found])
    for table in TABLES:
        assert now[table] == truth[table], table
    repeated = [id_ for id_, times in Counter(it["id"] for it in found).items() if times > 1]
    assert not repeated
    sequence = [it["sequence"] for it in found]
    assert sequence == sorted(sequence)
    messages = Counter(it["data"]["content"] for it in found if it["data"]["op"] == "message")
    sent = Counter(text for writer in workload.writers for text in writer.messages)
    if baseline:  # else some were sent before the slot was there
        assert not sent - messages, "messages lost"
    assert max(messages.values(), default=1) == 1
