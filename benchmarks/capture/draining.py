"""How the rest of the daemon does while a backlog drains."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from benchmarks.capture.daemon import SINK, Headrace
from benchmarks.capture.processes import has_row, wait_for
from benchmarks.capture.shapes import SHAPES
from benchmarks.latency import HANDLER, latencies, produce
from headrace.control.client import Client
from tests.fixtures.postgres import Server

SETTINGS = """
[sources.inbox]
type = "filesystem"
path = "inbox"

[handlers.stamp]
function = "stamp.py:stamp"
on = ["inbox"]
"""
RATE = 100  # files per second

Figures = dict[str, float | int | str]


def measured(server: Server, folder: Path, rows: int) -> Figures:
    """Files are closed and `status` is asked from the start of the backlog to its end."""
    shape = SHAPES["8 columns"]
    with server.database() as database:
        shape.create(database, rows)
        headrace = Headrace(folder, database, database.name, further=SINK + SETTINGS)
        (folder / "stamp.py").write_text(HANDLER)
        (folder / "inbox").mkdir()
        (folder / "outside").mkdir()
        headrace.prepare()
        shape.write(database, rows)
        return _drained(headrace, rows)


def _drained(headrace: Headrace, rows: int) -> Figures:
    answers: list[float] = []
    done = threading.Event()
    started: list[float] = []
    with headrace.running():
        asking = threading.Thread(target=_ask, args=(headrace.folder, answers, done))
        watching = threading.Thread(target=_watch, args=(headrace, rows, started, done))
        started.append(time.perf_counter())
        asking.start()
        watching.start()
        closed: dict[str, int] = {}
        while not done.is_set():
            closed |= produce(headrace.folder, RATE, 0.1, first=len(closed))
        watching.join()
        asking.join()
        found = latencies(headrace.folder, closed)
    answers.sort()
    return {
        "to a file, rows/s": round(rows / (started[1] - started[0])),
        "file closed to function called, p50 ms": round(found[len(found) // 2], 2),
        "file closed to function called, p99 ms": round(found[len(found) * 99 // 100], 2),
        "status answers, p50 ms": round(answers[len(answers) // 2], 2),
        "status answers, at most ms": round(answers[-1], 2),
    }


def _ask(folder: Path, answers: list[float], done: threading.Event) -> None:
    client = Client(folder / "headrace-data")
    while not done.is_set():
        start = time.perf_counter()
        client.get("/status")
        answers.append((time.perf_counter() - start) * 1e3)
        time.sleep(0.1)


def _watch(headrace: Headrace, rows: int, started: list[float], done: threading.Event) -> None:
    try:
        wait_for(lambda: has_row(headrace.out, rows), 600)
        started.append(time.perf_counter())
    finally:
        done.set()
