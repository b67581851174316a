"""Bursts, a flood, and a million files: `make bench-files`.

`burst-flat`, `burst-nested`: 100,000 files as fast as one process can, into one directory and into 1,000 new ones.
`tree-flat`, `tree-nested`: a million files, unchanged: compared at start against `find -printf` of the same fields.
`flood`: 10,000 files a second for a minute.

A real daemon (`headrace run`) watches, with a file sink; what it told of is read from the sink's file. Parts that are
named (their beginning will do) replace their figures in the results and leave the others as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.report import measured, report

Figures = dict[str, float | int | str]

SETTINGS: Final = """
[daemon]
data_dir = "data"

[sources.tree]
type = "filesystem"
path = "tree"

[sinks.audit]
type = "file"
path = "audit.jsonl"
"""
COMPARED: Final = re.compile(rb"compared with the tree.*?seconds\W+([\d.]+)")
LOST: Final = b"notifications were lost"
FIELDS: Final = r"%y %D %i %n %s %T@ %C@ %P\n"  # what a row of the inventory holds
FOLDERS: Final = 1_000
ROUNDS: Final = 3


class House:
    """A folder with the settings, the watched tree, the sink's file and the daemon's log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = folder / "tree"
        self.audit = folder / "audit.jsonl"
        self._log = folder / "daemon.log"
        self.tree.mkdir()
        (folder / "headrace.toml").write_text(SETTINGS)

    @property
    def log(self) -> bytes:
        return self._log.read_bytes()

    @contextmanager
    def daemon(self, patience: float = 120) -> Iterator[int]:
        """Runs one that has compared; gives its process id. The log is this run's own."""
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "headrace", "run", "-c", str(self.folder / "headrace.toml")]
            process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                wait_for(lambda: bool(COMPARED.search(self.log)), patience, "compared with the tree")
                yield process.pid
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)

    def compared(self) -> float:
        """Seconds of the first comparison of this run."""
        found = COMPARED.search(self.log)
        return float(found[1]) if found else 0.0


class Audit:
    """Counts the lines of the sink's file as it grows."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = 0
        self.lines = 0

    def count(self) -> int:
        if not self._file.exists():
            return 0
        with self._file.open("rb") as file:
            file.seek(self._at)
            while block := file.read(1 << 20):
                self.lines += block.count(b"\n")
                self._at += len(block)
        return self.lines


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak(pid: int) -> float:
    """The most memory that was ever resident, in MB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return round(int(found[1]) / 1024, 1) if found else 0.0


def fill(tree: Path, files: int, folders: int = 0, between: Callable[[int], None] | None = None) -> None:
    """Empty-handed writing, as fast as it goes: open, one byte, close."""
    width = max(files // folders, 1) if folders else files
    for number in range(files):
        if folders and number % width == 0:
            folder = tree / f"{number // width % 10}/{number // width // 10}/new"
            folder.mkdir(parents=True, exist_ok=True)
            prefix = f"{folder}/"
        elif number == 0:
            prefix = f"{tree}/"
        descriptor = os.open(f"{prefix}{number:07}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, b"x")
        os.close(descriptor)
        if between is not None:
            between(number)


def directories(folders: int) -> int:
    """How many directories `fill` makes for so many folders."""
    return min(folders, 10) + 2 * folders


def everything(tree: Path) -> int:
    """How many directories and files there are."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(tree))


def created(audit: Path) -> list[str]:
    """The paths of the files that were told of as created, each time."""
    events = (json.loads(line) for line in audit.open("rb"))
    names = ((it["type"].rpartition(".")[2], it["data"]) for it in events)
    return [data["path"] for name, data in names if name == "created" and data["kind"] == "file"]


def burst(folder: Path, files: int, folders: int) -> Figures:
    """Files as fast as one process can, each to be told of as created exactly once."""
    house = House(folder)
    what = f"{files:,} new files in {f'{folders:,} new directories' if folders else 'one directory'}"
    with house.daemon() as pid:
        began = time.monotonic()
        fill(house.tree, files, folders)
        written = time.monotonic() - began
        audit, all_of_it = Audit(house.audit), everything(house.tree)
        wait_for(lambda: audit.count() >= all_of_it, 180, what)
        took = time.monotonic() - began
        comparisons = len(COMPARED.findall(house.log)) - 1
        memory = peak(pid)
    told = created(house.audit)
    return {
        f"{what}: created events": len(told),
        f"{what}: of distinct files": len(set(told)),
        f"{what}: written in s": round(written, 2),
        f"{what}: all delivered after s": round(took, 2),
        f"{what}: comparisons": comparisons,
        f"{what}: peak RSS MB": memory,
    }


def listed_by_find(tree: Path) -> float:
    """Seconds that `find -printf` takes."""
    began = time.monotonic()
    subprocess.run(["find", tree, "-printf", FIELDS], stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def tree(folder: Path, files: int, folders: int, idle: float) -> Figures:
    """An unchanged tree compared at start, alternating with `find`; then what the idle daemon costs."""
    house = House(folder)
    fill(house.tree, files, folders)
    what = f"{files:,} files {'nested' if folders else 'flat'}"
    with house.daemon(600) as pid:
        first, first_memory = house.compared(), peak(pid)
    finds, compared, memory, percent = [], [], 0.0, 0.0
    for number in range(ROUNDS):
        finds.append(listed_by_find(house.tree))
        with house.daemon(600) as pid:
            compared.append(house.compared())
            memory = max(memory, peak(pid))
            if number == ROUNDS - 1:
                percent = idle_percent(pid, idle)
    find, mine = statistics.median(finds), statistics.median(compared)
    return {
        f"{what}: first listing s": round(first, 2),
        f"{what}: first listing peak RSS MB": first_memory,
        f"{what}: find -printf s": round(find, 2),
        f"{what}: compared unchanged s": round(mine, 2),
        f"{what}: times find": round(mine / find, 2),
        f"{what}: peak RSS MB": memory,
        f"{what}: idle CPU percent of one core": round(percent, 2),
    }


def idle_percent(pid: int, seconds: float) -> float:
    time.sleep(2)
    before = cpu_seconds(pid)
    time.sleep(seconds)
    return 100 * (cpu_seconds(pid) - before) / seconds


def flood(folder: Path, rate: int, seconds: float) -> Figures:
    """A steady rate of new files; the lag is from the writer to the sink's file."""
    house = House(folder)
    files = int(rate * seconds)
    lags: list[int] = []
    with house.daemon() as pid:
        audit, began = Audit(house.audit), time.monotonic()

        def pace(number: int) -> None:
            if number % (rate // 100 or 1):
                return
            if number % rate == 0:
                lags.append(number + directories(number * FOLDERS // files + 1) - audit.count())
            time.sleep(max(began + number / rate - time.monotonic(), 0))

        fill(house.tree, files, FOLDERS, pace)
        ended = time.monotonic()
        all_of_it = everything(house.tree)
        wait_for(lambda: audit.count() >= all_of_it, 300, "the flood was told of")
        caught_up = time.monotonic() - ended
        lost, comparisons = house.log.count(LOST), len(COMPARED.findall(house.log)) - 1
        memory = peak(pid)
    told = created(house.audit)
    what = f"{rate:,} files/s for {seconds:g} s"
    return {
        f"{what}: really written per second": round(files / (ended - began)),
        f"{what}: created events": len(told),
        f"{what}: of distinct files": len(set(told)),
        f"{what}: largest lag in files": max(lags),
        f"{what}: lag at the end in files": lags[-1],
        f"{what}: caught up after s": round(caught_up, 2),
        f"{what}: overflows told": lost,
        f"{what}: comparisons": comparisons,
        f"{what}: peak RSS MB": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="such as burst, tree-flat, flood; all of them without")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything; writes no results")
    parser.add_argument("--folder", type=Path, help="where the trees are made; default: the system's temporary folder")
    options = parser.parse_args()
    part = 10 if options.quick else 1
    runs: list[tuple[str, Callable[[Path], Figures]]] = [
        ("burst-flat", lambda it: burst(it, 100_000 // part, 0)),
        ("burst-nested", lambda it: burst(it, 100_000 // part, FOLDERS)),
        ("tree-flat", lambda it: tree(it, 1_000_000 // part, 0, 30 / part)),
        ("tree-nested", lambda it: tree(it, 1_000_000 // part, FOLDERS * 10 // part, 30 / part)),
        ("flood", lambda it: flood(it, 10_000, 60 / part)),
    ]
    figures: Figures = measured("files") if options.parts else {}
    for name, run in runs:
        if name.startswith(tuple(options.parts or [""])):
            with tempfile.TemporaryDirectory(prefix="headrace-bench-", dir=options.folder) as folder:
                found = run(Path(folder))
            sys.stdout.writelines(f"{what}: {value:,}\n" for what, value in found.items())
            sys.stdout.flush()
            figures |= found
    if not options.quick:
        sys.stdout.write("\n")
        report("files", figures)


if __name__ == "__main__":
    main()
