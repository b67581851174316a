"""The rows that are there already: how fast the initial snapshot brings them, and with how much memory."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.capture.daemon import Headrace
from benchmarks.capture.processes import used, wait_for
from benchmarks.capture.shapes import SHAPES
from tests.fixtures.postgres import Server

Figures = dict[str, float | int | str]


def measured(server: Server, folder: Path, rows: int) -> Figures:
    """Two sizes of the table: memory must not grow with it."""
    return {
        f"{count:,} rows, {what}": figure
        for count in (rows, 4 * rows)
        for what, figure in _one(server, folder / str(count), count).items()
    }


def _one(server: Server, folder: Path, rows: int) -> Figures:
    """From when its slot is made, which waits for other transactions, to the last durable row."""
    shape = SHAPES["8 columns"]
    with server.database() as database:
        shape.create(database, rows)
        shape.write(database, rows)
        database.execute("VACUUM orders", "CHECKPOINT")
        headrace = Headrace(folder, database, database.name, snapshot="initial")
        with headrace.running(b'"snapshot"') as pid:
            start = time.perf_counter()
            wait_for(lambda: headrace.journaled() >= rows, 600, pause=0.01)
            return {"rows/s": round(rows / (time.perf_counter() - start)), "memory MB": round(used(pid).memory)}
