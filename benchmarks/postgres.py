"""Postgres at the speed of the walsender, side by side in one run on the same WAL: `make bench-postgres`.

Rates: every reader has a slot of its own, made before the rows were written: `pg_recvlogical` to /dev/null, psycopg
reading without decoding, Headrace to its durable journal and to a file, Debezium to a file. Then latency from commit to
the consumer's line, one large transaction, what a backlog does to the rest of the daemon, and the initial snapshot.
`--quick` is a small run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.capture import debezium, draining, freshness, initial, large, rates
from benchmarks.capture.shapes import SHAPES
from benchmarks.report import measured, report
from tests.fixtures.postgres import Server, need_local, server

SERVER = {"max_wal_size": "16GB", "shared_buffers": "512MB", "fsync": "on"}

Figures = dict[str, float | int | str]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Benchmark of Postgres capture.")
    parser.add_argument("--quick", action="store_true", help="a small run, which compares little")
    parser.add_argument("--part", choices=PARTS, action="append", help="only these")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="only these tables")
    parser.add_argument("--rows", type=int, help="in the WAL, for the rates")
    parser.add_argument("--large", type=int, help="rows of the one large transaction")
    parser.add_argument("--seconds", type=float, help="of each measurement of latency")
    parser.add_argument("--repeat", type=int, help="rounds of the rates; the best of each reader counts")
    parser.add_argument("--no-debezium", action="store_true")
    given = parser.parse_args()
    given.rows = given.rows or (100_000 if given.quick else 1_000_000)
    given.large = given.large or (600_000 if given.quick else 10_000_000)
    given.seconds = given.seconds or (3 if given.quick else 15)
    given.repeat = given.repeat or (1 if given.quick else 2)
    return given


def run_rates(running: Server, folder: Path, given: argparse.Namespace, classes: Path | None) -> Figures:
    found: Figures = {}
    for name in given.shape or SHAPES:
        shape = SHAPES[name]
        with running.database() as database:
            rows = int(given.rows * shape.share)
            place = folder / name.replace(" ", "_")
            part = rates.measured(database, place, shape, rows, classes, given.repeat)
        found |= noted(f"{name}: ", part)
    return found


def run_freshness(running: Server, folder: Path, given: argparse.Namespace, classes: Path | None) -> Figures:
    return noted("commit to line: ", freshness.measured(running, folder, given.seconds, classes))


def run_large(running: Server, folder: Path, given: argparse.Namespace, classes: Path | None) -> Figures:  # noqa: ARG001 -- one form for all parts
    return noted(f"one transaction of {given.large:,} rows: ", large.measured(running, folder, given.large))


def run_draining(running: Server, folder: Path, given: argparse.Namespace, classes: Path | None) -> Figures:  # noqa: ARG001
    return noted("while a backlog drains: ", draining.measured(running, folder, 2 * given.rows))


def run_snapshot(running: Server, folder: Path, given: argparse.Namespace, classes: Path | None) -> Figures:  # noqa: ARG001
    return noted("snapshot: ", initial.measured(running, folder, given.rows))


PARTS: dict[str, Callable[[Server, Path, argparse.Namespace, Path | None], Figures]] = {
    "rates": run_rates,
    "latency": run_freshness,
    "large": run_large,
    "draining": run_draining,
    "snapshot": run_snapshot,
}


def noted(prefix: str, figures: Figures) -> Figures:
    """The figures under their names, told as they come, with how busy the machine was."""
    found = {prefix + name: figure for name, figure in figures.items()}
    for name, figure in found.items():
        print(f"{name}  {figure}", flush=True)
    print(f"load average {os.getloadavg()[0]:.1f}\n", flush=True)
    return found


def main() -> None:
    given = options()
    why = "left out as asked" if given.no_debezium else debezium.missing()
    if why:
        print(why)
    found: Figures = measured("postgres") if given.part and not given.quick else {}
    with server(need_local()[0], SERVER) as running, tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        (folder / "classes").mkdir()
        classes = None if why else debezium.compiled(folder / "classes")
        for part in given.part or PARTS:
            found |= PARTS[part](running, folder / part, given, classes)
        found["Postgres"] = running.version
    found["load average of the machine before the end"] = round(os.getloadavg()[0], 1)
    if why:
        found["Debezium"] = why
    report("postgres", found)


if __name__ == "__main__":
    main()
