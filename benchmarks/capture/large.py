"""One large transaction, sent while it runs and after its commit."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.capture.daemon import SINK, Headrace
from benchmarks.capture.processes import used, wait_for
from benchmarks.capture.shapes import SHAPES
from tests.fixtures.postgres import Database, Server

_SPILL = "SELECT spill_bytes, stream_bytes, total_bytes FROM pg_stat_replication_slots WHERE slot_name = '{}'"

LAST, MEMORY = "last row after commit s", "memory MB"

Figures = dict[str, float | int | str]


def measured(server: Server, folder: Path, rows: int) -> Figures:
    """Into the journal alone, then with a file behind it, whose gigabytes are a matter of the disk."""
    found: Figures = {}
    for name, streaming in {"streamed while it runs": True, "sent after commit": False}.items():
        for place, sink in {"journal": "", "file": SINK}.items():
            with server.database() as database:
                at = folder / str(streaming) / place
                headrace = Headrace(at, database, database.name, streaming=streaming, further=sink)
                figures = _one(database, headrace, rows)
            if sink:
                headrace.out.unlink()
                figures = {"last line of a file after commit s": figures[LAST], "memory MB with it": figures[MEMORY]}
            found |= {f"{name}, {what}": it for what, it in figures.items()}
    return found


def _one(database: Database, headrace: Headrace, rows: int) -> Figures:
    shape = SHAPES["8 columns"]
    shape.create(database, rows)
    with headrace.running() as pid:
        start = time.perf_counter()
        shape.write(database, rows)
        committed = time.perf_counter()
        wait_for(lambda: headrace.has(rows), 1_200)
        seconds, memory = time.perf_counter() - committed, used(pid).memory
    # The statistics come a little later than the rows.
    wait_for(lambda: database.execute(_SPILL.format(headrace.slot))[0][2] > 0, 30)
    [(spilled, streamed, _)] = database.execute(_SPILL.format(headrace.slot))
    return {
        "transaction s": round(committed - start, 1),
        LAST: round(seconds, 1),
        MEMORY: round(memory),
        "spilled by the server MB": round(spilled / 1e6),
        "streamed by the server MB": round(streamed / 1e6),
    }
