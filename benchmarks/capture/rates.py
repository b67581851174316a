"""All readers on the same WAL: rows per second, CPU and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from benchmarks.capture import readers
from benchmarks.capture.daemon import SINK, Headrace
from benchmarks.capture.debezium import Debezium
from benchmarks.capture.processes import has_row, used, wait_for
from benchmarks.capture.shapes import Shape
from tests.fixtures.postgres import Database

HEAPS: Final = {"small heap": "256m", "large heap": "4g"}
DEADLINE: Final = 600.0
RAW: Final = ("pg_recvlogical", "psycopg, no decoding", "psycopg, no decoding, streamed, in gulps")

Figures = dict[str, float | int | str]


def measured(database: Database, folder: Path, shape: Shape, rows: int, classes: Path | None, repeat: int) -> Figures:
    """`repeat` rounds of everything, each with slots of its own; of each reader the best round counts."""
    shape.create(database, rows)
    rounds = [Round(database, folder / str(number), rows, classes) for number in range(repeat)]
    shape.write(database, rows)
    [(end,)] = database.execute("CHECKPOINT", "SELECT pg_current_wal_lsn()::text")
    found: dict[str, Figures] = {}
    for each in rounds:
        for name, figures in each.run(str(end)):
            if name not in found or figures["rows/s"] > found[name]["rows/s"]:  # type: ignore[operator]
                found[name] = figures
    return _flat(found)


def _flat(found: dict[str, Figures]) -> Figures:
    best = max(float(found[name]["rows/s"]) for name in RAW)
    flat: Figures = {}
    for name, figures in found.items():
        flat |= {f"{name}, {unit}": figure for unit, figure in figures.items()}
        flat[f"{name}, of the better raw read"] = round(float(figures["rows/s"]) / best, 2)
    return flat


class Round:
    """Slots for one reading of the same WAL by everybody; made before it is written."""

    def __init__(self, database: Database, folder: Path, rows: int, classes: Path | None) -> None:
        self._database = database
        self._rows = rows
        self._slot = f"{database.name}_{folder.name}"
        self._journal = Headrace(folder / "journal", database, f"{self._slot}_journal")
        self._file = Headrace(folder / "file", database, f"{self._slot}_file", further=SINK)
        self._debezium = {
            name: Debezium(folder / name.replace(" ", "_"), database, f"{self._slot}_{heap}", classes, heap)
            for name, heap in HEAPS.items()
            if classes is not None
        }
        for each in (self._journal, self._file, *self._debezium.values()):
            each.prepare()
        for slot in ("recv", "raw", "streamed"):
            database.execute(f"SELECT pg_create_logical_replication_slot('{self._slot}_{slot}', 'pgoutput')")

    def run(self, end: str) -> Iterator[tuple[str, Figures]]:
        database, rows = self._database, self._rows
        recvlogical, psycopg, streamed = RAW
        yield recvlogical, self._timed(lambda: readers.recvlogical(database, f"{self._slot}_recv", end))
        yield psycopg, self._timed(lambda: readers.raw(database, f"{self._slot}_raw"))
        yield (
            streamed,
            self._timed(lambda: readers.raw(database, f"{self._slot}_streamed", readers.STREAMED, readers.GULP)),
        )
        journal, file = self._journal, self._file
        yield "Headrace to the journal", self._process(journal.running(), lambda: journal.journaled() >= rows)
        yield "Headrace to a file", self._process(file.running(), lambda: has_row(file.out, rows))
        for name, debezium in self._debezium.items():
            yield f"Debezium, {name}", self._debezium_run(debezium)

    def _timed(self, call: Callable[[], None]) -> Figures:
        start = time.perf_counter()
        call()
        return {"rows/s": round(self._rows / (time.perf_counter() - start))}

    def _process(self, running: AbstractContextManager[int], done: Callable[[], bool]) -> Figures:
        """From when it streams to the last row: its own start is not the stream's."""
        with running as pid:
            return self._until(pid, done)

    def _until(self, pid: int, done: Callable[[], bool]) -> Figures:
        start, before = time.perf_counter(), used(pid).cpu
        wait_for(done, DEADLINE, pause=0.01)
        seconds, (cpu, memory) = time.perf_counter() - start, used(pid)
        return {
            "rows/s": round(self._rows / seconds),
            "CPU µs/row": round((cpu - before) / self._rows * 1e6, 1),
            "memory MB": round(memory),
        }

    def _debezium_run(self, debezium: Debezium) -> Figures:
        """From its first line to its last, which leaves out how long it takes to start."""
        with debezium.running() as pid:
            wait_for(lambda: debezium.out.exists() and debezium.out.stat().st_size > 0, DEADLINE, pause=0.01)
            try:
                return self._until(pid, lambda: has_row(debezium.out, self._rows))
            finally:
                debezium.out.unlink()
