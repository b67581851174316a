"""Readers that decode nothing: what the walsender and the transport can do at most."""

from __future__ import annotations

import select
import subprocess
from contextlib import closing

import psycopg

from tests.fixtures.postgres import Database


def recvlogical(database: Database, slot: str, end: str) -> None:
    """`pg_recvlogical` to /dev/null."""
    options = ["-o", "proto_version=1", "-o", "publication_names=p", "-f", "/dev/null", "--no-loop"]
    command = [str(database.server.program("pg_recvlogical")), "-d", database.dsn, "--slot", slot, "--start"]
    subprocess.run([*command, *options, "--endpos", end], check=True, capture_output=True)


STREAMED = "proto_version '2', streaming 'on'"
WHOLE = "proto_version '1'"


def raw(database: Database, slot: str, options: str = WHOLE) -> None:
    """Up to the first commit. `STREAMED`: as Headrace asks for it, so that the server spills nothing to its disk."""
    with closing(psycopg.connect(database.dsn, replication="database", autocommit=True)) as connection:
        start = f"START_REPLICATION SLOT {slot} LOGICAL 0/0 ({options}, publication_names 'p')"
        connection.execute(start.encode())
        pgconn = connection.pgconn
        while True:
            count, data = pgconn.get_copy_data(1)
            if count > 0:
                message = bytes(data)
                if message[0] == ord("w") and message[25] in b"Cc":
                    return
            else:
                select.select([pgconn.socket], [], [], 10)
                pgconn.consume_input()
