"""Postgres at the speed of the walsender, side by side in one run on the same WAL: `make bench-postgres`.

Every reader has a slot of its own, made before the rows were written: `pg_recvlogical` to /dev/null, psycopg reading
without decoding, Headrace to its durable journal, and Headrace to a file.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fixtures.postgres import Database, Server, choices, server

NARROW = "id bigint PRIMARY KEY, n int, word text"
EIGHT = (
    "id bigint PRIMARY KEY, customer int NOT NULL, status text NOT NULL, amount numeric(12,2), created timestamptz, "
    "paid bool, note text, weight float8"
)
EIGHT_ROWS = (
    "g, g % 5000, (array['new','paid','shipped','lost'])[1 + g % 4], (g % 100000) / 100.0, "
    "timestamptz '2026-01-01' + g * interval '1 second', g % 2 = 0, 'order number ' || g || ', with a note', g * 1.25"
)
WIDE = "id bigint PRIMARY KEY, " + ", ".join(f"c{i} {'int' if i % 2 else 'text'}" for i in range(39))
WIDE_ROWS = "g, " + ", ".join("g" if i % 2 else f"'value {i} of ' || g" for i in range(39))


@dataclass(frozen=True)
class Shape:
    """A workload: the table, and what is written into it."""

    columns: str
    values: str
    update: str = ""
    share: float = 1.0  # of the rows asked for


SHAPES = {
    "8 columns": Shape(EIGHT, EIGHT_ROWS),
    "3 columns": Shape(NARROW, "g, g % 1000, 'word ' || g"),
    "updates, full identity": Shape(EIGHT, EIGHT_ROWS, "weight = weight + 1", 0.5),
    "40 columns": Shape(WIDE, WIDE_ROWS, share=0.3),
}
SETTINGS = """
[sources.orders]
type = "postgres"
dsn = "{dsn}"
tables = ["public.orders"]
snapshot = "never"
slot = "{slot}"
publication = "p"
"""
FILE = """
[sinks.out]
type = "file"
path = "out.jsonl"
start = "earliest"
"""


def write(database: Database, shape: Shape, rows: int) -> None:
    """The WAL to read: one transaction of `rows` changes."""
    values = f"INSERT INTO orders SELECT {shape.values} FROM generate_series(1, {rows}) g"
    if shape.update:
        database.execute("ALTER TABLE orders REPLICA IDENTITY FULL", f"UPDATE orders SET {shape.update}")
    else:
        database.execute(values)


def recvlogical(database: Database, slot: str, end: str) -> None:
    options = ["-o", "proto_version=1", "-o", "publication_names=p", "-f", "/dev/null", "--no-loop"]
    command = [str(database.server.program("pg_recvlogical")), "-d", database.dsn, "--slot", slot, "--start"]
    subprocess.run([*command, *options, "--endpos", end], check=True, capture_output=True)


def raw(database: Database, slot: str) -> None:
    with closing(psycopg.connect(database.dsn, replication="database", autocommit=True)) as connection:
        start = f"START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names 'p')"
        connection.execute(start.encode())
        pgconn = connection.pgconn
        while True:
            count, data = pgconn.get_copy_data(1)
            if count > 0:
                message = bytes(data)
                if message[0] == ord("w") and message[25] == ord("C"):
                    return
            else:
                select.select([pgconn.socket], [], [], 10)
                pgconn.consume_input()


class Headrace:
    """A real daemon in a folder of its own."""

    def __init__(self, folder: Path, database: Database, slot: str, sinks: str = "") -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "headrace.toml").write_text(SETTINGS.format(dsn=database.dsn, slot=slot) + sinks)

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "headrace", "run", "-c", str(self.folder / "headrace.toml")]
            process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(30)

    def prepare(self) -> None:
        """Let it make its slot, and end."""
        with self.running():
            wait_for(lambda: b"streaming" in (self.folder / "log").read_bytes())

    def lines(self) -> int:
        return last_ordinal(self.folder / "out.jsonl")


def last_ordinal(path: Path) -> int:
    """The ordinal of the last whole line."""
    if not path.exists() or path.stat().st_size < 4096:
        return 0
    with path.open("rb") as file:
        file.seek(-4096, os.SEEK_END)
        _, _, found = file.read().rpartition(b'"ordinal":')
    return int(found.partition(b",")[0] or 0) if b"\n" in found else 0


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(it for child in below for it in tree(int(child)))]


def cpu_and_memory(pid: int) -> tuple[float, float]:
    """CPU seconds and peak memory in MB of a process and its children."""
    cpu = memory = 0.0
    for it in tree(pid):
        fields = Path(f"/proc/{it}/stat").read_text().rpartition(")")[2].split()
        cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        status = Path(f"/proc/{it}/status").read_text()
        memory += int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return cpu, memory


def wait_for(condition: Callable[[], bool], deadline: float = 120.0, pause: float = 0.02) -> None:
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(pause)


def acknowledged(database: Database, slot: str) -> str:
    """All up to here is durable, says the daemon to the server."""
    query = f"SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{slot}'"
    return str(database.execute(query)[0][0])


def measure(database: Database, folder: Path, shape: Shape, rows: int) -> dict[str, Any]:
    database.execute(f"CREATE TABLE orders ({shape.columns})", "CREATE PUBLICATION p FOR TABLE orders")
    if shape.update:
        database.execute(f"INSERT INTO orders SELECT {shape.values} FROM generate_series(1, {rows}) g")
    name = database.name
    journal = Headrace(folder / "journal", database, f"{name}_journal")
    file = Headrace(folder / "file", database, f"{name}_file", FILE)
    journal.prepare()
    file.prepare()
    for slot in ("recv", "raw"):
        database.execute(f"SELECT pg_create_logical_replication_slot('{name}_{slot}', 'pgoutput')")
    write(database, shape, rows)
    [(end,)] = database.execute("CHECKPOINT", "SELECT pg_current_wal_lsn()::text")
    before = acknowledged(database, f"{name}_journal")
    found = {
        "pg_recvlogical": timed(rows, lambda: recvlogical(database, f"{name}_recv", end)),
        "psycopg, no decoding": timed(rows, lambda: raw(database, f"{name}_raw")),
        "Headrace to journal": daemon(journal, rows, lambda: acknowledged(database, f"{name}_journal") != before),
        "Headrace to file": daemon(file, rows, lambda: file.lines() == rows),
    }
    best = max(found["pg_recvlogical"]["rows/s"], found["psycopg, no decoding"]["rows/s"])
    for result in found.values():
        result["of the best raw read"] = round(result["rows/s"] / best, 2)
    return found


def timed(rows: int, call: Callable[[], None]) -> dict[str, Any]:
    start = time.perf_counter()
    call()
    return {"rows/s": round(rows / (time.perf_counter() - start))}


def daemon(headrace: Headrace, rows: int, done: Callable[[], bool]) -> dict[str, Any]:
    """From the start of streaming to the last row: its own start is not the stream's."""
    log = headrace.folder / "log"
    log.write_bytes(b"")
    with headrace.running() as process:
        wait_for(lambda: b"streaming" in log.read_bytes(), pause=0.002)
        start = time.perf_counter()
        before = cpu_and_memory(process.pid)[0]
        wait_for(done, pause=0.01)
        seconds = time.perf_counter() - start
        cpu, memory = cpu_and_memory(process.pid)
    return {"rows/s": round(rows / seconds), "CPU s": round(cpu - before, 2), "memory MB": round(memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--shape", choices=SHAPES, action="append")
    given = parser.parse_args()
    results: dict[str, Any] = {}
    options = {"max_wal_size": "8GB", "shared_buffers": "512MB", "fsync": "on"}
    with server(choices()[0], options) as running, tempfile.TemporaryDirectory() as folder:
        for name in given.shape or SHAPES:
            results[name] = shape_results(running, Path(folder) / name.replace(" ", "_"), SHAPES[name], given.rows)
            print(name, json.dumps(results[name], indent=1), flush=True)


def shape_results(running: Server, folder: Path, shape: Shape, rows: int) -> dict[str, Any]:
    folder.mkdir()
    with running.database() as database:
        return measure(database, folder, shape, int(rows * shape.share))


if __name__ == "__main__":
    main()
