"""File closed -> function called, and what an idle daemon costs: `make bench-latency`.

A real daemon (`headrace run`) watches a tree; a writer in this process closes 100 files a second, and moves one file in
ten out of the tree, which stalls naive watchers. The function writes the time of its call. Both read the same clock.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import report

SETTINGS = """
[sources.inbox]
type = "filesystem"
path = "inbox"

[handlers.stamp]
function = "stamp.py:stamp"

[sinks.audit]
type = "file"
path = "audit.jsonl"
"""
HANDLER = """
import os, time

from benchmarks.report import report
out = os.open("calls.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def stamp(event):
    now = time.time_ns()
    os.write(out, f"{now} {event['type'].rpartition('.')[2]} {event['data']['path']}\\n".encode())
"""
MOVED_OUT = 10  # one file in so many
AGE = 50  # files between a file and its move, so that each is there to be seen


@contextmanager
def daemon(house: Path) -> Iterator[subprocess.Popen[bytes]]:
    (house / "headrace.toml").write_text(SETTINGS)
    (house / "stamp.py").write_text(HANDLER)
    (house / "inbox").mkdir()
    (house / "outside").mkdir()
    with (house / "daemon.log").open("wb") as log:
        command = [sys.executable, "-m", "headrace", "run", "-c", str(house / "headrace.toml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: b"compared with the tree" in (house / "daemon.log").read_bytes())
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def wait_for(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the daemon did not get there in time")
        time.sleep(0.02)


def produce(house: Path, rate: int, seconds: float, first: int = 0) -> dict[str, int]:
    """Close files at a steady rate, numbered from `first`; returns the time of each close, in nanoseconds."""
    closed: dict[str, int] = {}
    start = time.monotonic()
    for number in range(first, first + int(rate * seconds)):
        pause = start + (number - first) / rate - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        path = house / "inbox" / f"file{number}.csv"
        with path.open("wb") as file:
            file.write(b"id,name\n1,somebody\n")
        closed[path.name] = time.time_ns()
        if number % MOVED_OUT == 0 and number >= AGE:
            old = house / "inbox" / f"file{number - AGE}.csv"
            old.rename(house / "outside" / old.name)
    return closed


def latencies(house: Path, closed: dict[str, int]) -> list[float]:
    """Milliseconds from close to call, sorted, of all files."""
    file = house / "calls.log"
    wait_for(lambda: file.exists() and file.read_bytes().count(b" created ") >= len(closed))
    rows = [line.split(" ", 2) for line in file.read_text().splitlines()]
    return sorted((int(at) - closed[path]) / 1e6 for at, kind, path in rows if kind == "created")


def resources(pid: int, seconds: float) -> tuple[float, float, int]:
    """Of the daemon and its children: resident MB, of which only its own (PSS); percent of one core while idle."""
    pids = [pid, *children(pid)]
    before = sum(map(cpu_seconds, pids))
    time.sleep(seconds)
    used = sum(map(cpu_seconds, pids)) - before
    return sum(map(pss, pids)), 100 * used / seconds, len(pids)


def children(pid: int) -> list[int]:
    found = [int(it) for it in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*found, *(grand for child in found for grand in children(child))]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss(pid: int) -> float:
    """Proportional set size in MB: shared pages are counted once over all processes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def rss(pid: int) -> float:
    """Resident set size in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=100, help="files per second")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--idle", type=float, default=30, help="seconds of idling that are measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder, daemon(Path(folder)) as process:
        time.sleep(2)
        memory, percent, processes = resources(process.pid, options.idle)
        resident = rss(process.pid)
        found = latencies(Path(folder), produce(Path(folder), options.rate, options.seconds))
    report(
        "latency",
        {
            "files": len(found),
            "files per second": options.rate,
            "closed to called p50 ms": round(found[len(found) // 2], 2),
            "closed to called p99 ms": round(found[len(found) * 99 // 100], 2),
            "closed to called max ms": round(found[-1], 2),
            "idle daemon RSS MB": round(resident, 1),
            "idle daemon and worker PSS MB": round(memory, 1),
            "idle CPU percent of one core": round(percent, 2),
            "processes": processes,
        },
    )


if __name__ == "__main__":
    main()
