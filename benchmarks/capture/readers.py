"""Readers that decode nothing: what the walsender and the transport can do at most."""

from __future__ import annotations

import select
import subprocess
import time
from contextlib import closing

import psycopg
from psycopg import pq

from tests.fixtures.postgres import Database


def recvlogical(database: Database, slot: str, end: str) -> None:
    """`pg_recvlogical` to /dev/null."""
    options = ["-o", "proto_version=1", "-o", "publication_names=p", "-f", "/dev/null", "--no-loop"]
    command = [str(database.server.program("pg_recvlogical")), "-d", database.dsn, "--slot", slot, "--start"]
    subprocess.run([*command, *options, "--endpos", end], check=True, capture_output=True)


STREAMED = "proto_version '2', streaming 'on'"
WHOLE = "proto_version '1'"
GULP = 0.0003  # seconds that a reader leaves the server alone once it took all: the best of several that were tried


def raw(database: Database, slot: str, options: str = WHOLE, pause: float = 0.0) -> None:
    """Up to the first commit. `STREAMED`: as Headrace asks for it, so that the server spills nothing to its disk.

    Without a `pause` the reader is woken for every message, which costs the server more than to decode it.
    """
    with closing(psycopg.connect(database.dsn, replication="database", autocommit=True)) as connection:
        start = f"START_REPLICATION SLOT {slot} LOGICAL 0/0 ({options}, publication_names 'p')"
        connection.execute(start.encode())
        pgconn = connection.pgconn
        taken = 0
        while (found := _take(pgconn)) >= 0:
            if not found:
                _wait(pgconn.socket, pause if taken else 0.0)
            taken = found
            pgconn.consume_input()


def _take(pgconn: pq.abc.PGconn) -> int:
    """How many messages were there; -1 at a commit."""
    taken = 0
    while True:
        count, data = pgconn.get_copy_data(1)
        if count <= 0:
            return taken
        taken += 1
        message = bytes(data)
        if message[0] == ord("w") and message[25] in b"Cc":
            return -1


def _wait(socket: int, pause: float) -> None:
    if pause:
        time.sleep(pause)
    else:
        select.select([socket], [], [], 10)
