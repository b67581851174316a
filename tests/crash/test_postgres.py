"""Truth under fire: the daemon, its child, the connection and the server die again and again amid every kind of change.

The tables rebuilt from the events must equal the tables, step by step; no id comes twice; every committed message comes
once. `HEADRACE_TEST_SEED` gives other kills and other changes, `HEADRACE_TEST_KILLS` another number of the long run.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import product
from pathlib import Path
from typing import Any

import psycopg
import pytest

from headrace.sources.postgres.request import REQUEST
from tests.fixtures.killed import Daemon, until
from tests.fixtures.postgres import Database, need_server, server
from tests.fixtures.postgres_truth import HISTORY, TABLES, Rebuilt, Tables, history, tables
from tests.fixtures.postgres_workload import LAST_KEY, Workload

SETTINGS = """
[sources.db]
type = "postgres"
dsn = "{dsn}"
tables = [{tables}]
keyless = "insert-only"
snapshot = "{snapshot}"

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
"""
SLOT = ("postgres.intent", "postgres.slot-created", "postgres.slot-recorded")
SNAPSHOT = (
    "postgres.snapshot-table",
    "postgres.snapshot-rows",
    "postgres.snapshot-table-done",
    "postgres.snapshot-done",
)
STREAM = (
    "postgres.before-submit",
    "postgres.after-submit",
    "postgres.before-report",
    "capture.before-append",
    "journal.before-commit",
    "journal.after-commit",
)
VERSIONS = ("newest", "oldest")
SEED = int(os.environ.get("HEADRACE_TEST_SEED", "7"))
# Decodes transactions while they run beyond 64 kB; a process that is killed alone does not take the machine with it.
WORK_MEMORY = {"logical_decoding_work_mem": "64kB", "autovacuum": "off", "restart_after_crash": "on"}
FEW, MANY = 6, int(os.environ.get("HEADRACE_TEST_KILLS", "100"))


def write_settings(house: Path, database: Database, snapshot: str) -> None:
    listed = [*TABLES, HISTORY] if snapshot == "never" else [*TABLES]
    chosen = ", ".join(f'"public.{table}"' for table in listed)
    (house / "headrace.toml").write_text(SETTINGS.format(dsn=database.dsn, tables=chosen, snapshot=snapshot))


class Fire:
    """Lets daemons die: at failpoints, and at random, with their child, their connection or their server."""

    def __init__(self, house: Path, database: Database, chance: random.Random) -> None:
        self._house = house
        self._database = database
        self._chance = chance
        self.deaths = 0

    def at(self, failpoint: str, times: int = 1, meanwhile: Callable[[], object] = bool) -> None:
        """One that dies, or whose child does, when it comes to the failpoint for the n-th time."""
        with Daemon(self._house, f"{failpoint}:{times}") as daemon:
            until(lambda: f"failpoint {failpoint}" in daemon.log or bool(meanwhile()), f"{failpoint} is reached")
            daemon.kill()
        self.deaths += 1

    def at_random(self) -> None:
        with Daemon(self._house) as daemon:
            if self._chance.random() < 0.7:
                until(lambda: daemon.says('"streaming"'), "it streams")
            mishaps, likely = [self._child, self._cut, self._crash], [5, 2, 1]
            for mishap in self._chance.choices(mishaps, likely, k=self._chance.randint(0, 3)):
                self._while_it_works()
                mishap(daemon)
            self._while_it_works()
            daemon.kill()
        self.deaths += 1

    def _while_it_works(self) -> None:
        time.sleep(self._chance.uniform(0.0, 1.0))  # how far it comes is what varies

    def _child(self, daemon: Daemon) -> None:
        for pid in daemon.children():
            os.kill(pid, signal.SIGKILL)
            self.deaths += 1

    def _cut(self, _daemon: Daemon) -> None:
        with suppress(psycopg.OperationalError):
            self._database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")

    def _crash(self, _daemon: Daemon) -> None:
        self._database.server.restart(signal.SIGQUIT)


@pytest.mark.crash
@pytest.mark.postgres
@pytest.mark.parametrize(
    ("snapshot", "version", "kills"),
    [
        ("initial", "newest", len(SLOT) + len(SNAPSHOT) + 1),
        ("never", "oldest", FEW),
        *(pytest.param(*each, MANY, marks=pytest.mark.long) for each in product(("never", "initial"), VERSIONS)),
    ],
)
def test_tables_rebuilt_from_events_equal_the_tables(tmp_path: Path, version: str, snapshot: str, kills: int) -> None:
    found = need_server()
    chance = random.Random(SEED)
    with server(found[0 if version == "newest" else -1], WORK_MEMORY) as running, running.database() as database:
        workload = Workload(database, seed=SEED)
        workload.prepare()
        write_settings(tmp_path, database, snapshot)
        fire = Fire(tmp_path, database, chance)
        known = before_the_writers(tmp_path, fire, database) if snapshot == "never" else None
        with workload.running():
            for failpoint in (*SLOT, *SNAPSHOT) if snapshot == "initial" else ():
                fire.at(failpoint)
            under_fire(fire, chance, kills)
        settle(tmp_path, database, workload, known)


def before_the_writers(house: Path, fire: Fire, database: Database) -> Tables:
    """Killed while it makes its slot; then it has one, and what is there is known."""
    for failpoint in SLOT:
        fire.at(failpoint)
    with Daemon(house) as daemon:
        until(lambda: daemon.says('"streaming"'), "it streams")
        return tables(database)


def under_fire(fire: Fire, chance: random.Random, kills: int) -> None:
    """At every failpoint at least once where there are enough kills, else at the first ones of a random order."""
    waiting = chance.sample(STREAM, len(STREAM)) * max(1, kills // 20)
    while fire.deaths < kills:
        if waiting and chance.random() < 0.6:
            fire.at(waiting.pop(), chance.randint(1, 30))
        else:
            fire.at_random()


def settle(house: Path, database: Database, workload: Workload, known: Tables | None) -> None:
    """Everything arrives, and is right."""
    truth = tables(database)
    with Daemon(house) as daemon:
        until(lambda: (arrived(house) and not at_work(house)) or daemon.dead, "the last row has arrived", 120)
    assert arrived(house), daemon.log[-2_000:]
    now = Rebuilt(known)
    now.take(events(house), {} if known is not None else being_read(house))
    for table in TABLES:
        assert now.tables[table] == truth[table], table
    sent = Counter(text for writer in workload.writers for text in writer.messages)
    assert max(now.messages.values(), default=1) == 1
    if known is not None:  # else some were sent before the slot was there
        assert sent - now.messages == Counter()
        assert now.history == history(database)


def arrived(house: Path) -> bool:
    """Whether the row that is written last is there."""
    file = house / "audit.jsonl"
    if not file.exists() or not file.stat().st_size:
        return False
    with file.open("rb") as lines, mmap.mmap(lines.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return whole.rfind(f'"public.items/{LAST_KEY}"'.encode()) >= 0


def at_work(house: Path) -> bool:
    """Whether tables are left to be read beside the stream."""
    query = "SELECT 1 FROM state WHERE space = 'source:db' AND key BETWEEN ? AND ?"
    with closing(sqlite3.connect(f"file:{house}/headrace-data/journal.db?mode=ro", uri=True)) as journal:
        return bool(journal.execute(query, (REQUEST, REQUEST + b"~")).fetchall())


def events(house: Path) -> Iterator[dict[str, Any]]:
    with (house / "audit.jsonl").open("rb") as lines:
        yield from map(json.loads, lines)


def being_read(house: Path) -> dict[str, int]:
    """Until which event not all of a table is known: its last `read`, or the truncate behind, where that found none."""
    found: dict[str, int] = {}
    emptied: set[str] = set()
    for number, event in enumerate(events(house)):
        table, operation = event["data"].get("table"), event["data"]["op"]
        if operation == "read":
            emptied.discard(table)
        if operation == "read" or (operation == "truncate" and table not in emptied):
            found[table] = number
            emptied |= {table} if operation == "truncate" else set()
    return found
