"""What time heals, a running daemon rides out: it says what is wrong, and goes on without being asked to."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.fixtures.killed import Daemon, events_of, until
from tests.fixtures.postgres import Database, need_server, server

pytestmark = pytest.mark.postgres
SETTINGS = """
[sources.db]
type = "postgres"
dsn = "{dsn}"
slot = "ours"

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
"""


def comes(house: Path, database: Database, key: int) -> None:
    database.execute(f"INSERT INTO t VALUES ({key})")
    until(lambda: any(event["partitionkey"] == f"public.t/{key}" for event in events_of(house)), f"row {key}")


@pytest.mark.parametrize("version", [0, -1])
def test_no_slot_left_then_a_server_that_is_gone_then_a_slot_in_use(tmp_path: Path, version: int) -> None:
    with server(need_server()[version], {"max_replication_slots": "1"}) as made, made.database() as database:
        database.execute("CREATE TABLE t (a int PRIMARY KEY)")
        database.execute("SELECT pg_create_logical_replication_slot('other', 'pgoutput')")
        (tmp_path / "headrace.toml").write_text(SETTINGS.format(dsn=database.dsn))
        with Daemon(tmp_path) as daemon:
            until(lambda: daemon.says("max_replication_slots"), "it says that no slot is left")
            database.drop_slot("other")
            comes(tmp_path, database, 1)
            made.stop(signal.SIGQUIT)
            until(lambda: daemon.log.count("will try again") > 1, "it says that the server is gone")
            made.start()
            comes(tmp_path, database, 2)
        with closing(psycopg.connect(database.dsn, autocommit=True, replication="database")) as user:
            options = "(proto_version '1', publication_names 'ours')"
            user.execute(f"START_REPLICATION SLOT ours LOGICAL 0/0 {options}".encode())
            with Daemon(tmp_path) as daemon:
                until(lambda: daemon.says("another process uses the slot"), "it says that the slot is in use")
                user.close()
                comes(tmp_path, database, 3)
    ids = [event["id"] for event in events_of(tmp_path)]
    assert len(set(ids)) == len(ids) == 3
