"""From commit to the consumer's line, at fixed rates and at the most that the machine holds.

The commit's time is the server's own, in the event; the line's is when the file was seen to grow, by inotify.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from benchmarks.capture.daemon import SINK, Headrace
from benchmarks.capture.debezium import Debezium
from benchmarks.capture.processes import wait_for
from benchmarks.capture.shapes import EIGHT
from tests.fixtures.postgres import Database, Server

INSERT: Final = (
    "INSERT INTO orders VALUES (nextval('numbers'), 7, 'new', 12.5, now(), true, 'order with a note', 1.25);"
)
WARM_UP: Final = 4.0
BEST: Final = "poll.interval.ms=5\n"
_IN_MODIFY: Final = 2
_HEADRACE: Final = re.compile(rb'"commit_time":"([^"]+)Z"')
_DEBEZIUM: Final = re.compile(rb'"ts_us":(\d+)')  # the first one is the source's
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Figures = dict[str, float | int | str]


def measured(server: Server, folder: Path, seconds: float, classes: Path | None) -> Figures:
    with database(server) as made:
        headrace = Headrace(folder / "headrace", made, f"{made.name}_headrace", further=SINK)
        with headrace.running():
            found = runs("Headrace", made, headrace.out, _headrace_commit, seconds)
    for name, further in {"Debezium": "", "Debezium, poll.interval.ms=5": BEST}.items() if classes else ():
        with database(server) as made:
            debezium = Debezium(folder / str(len(found)), made, f"{made.name}_debezium", classes, further=further)
            debezium.prepare()
            with debezium.running():
                wait_for(debezium.streams)
                found |= runs(name, made, debezium.out, _debezium_commit, seconds)
    return found


@contextmanager
def database(server: Server) -> Iterator[Database]:
    with server.database() as made:
        made.execute(
            f"CREATE TABLE orders ({EIGHT})", "CREATE SEQUENCE numbers", "CREATE PUBLICATION p FOR TABLE orders"
        )
        yield made


def runs(name: str, made: Database, out: Path, commit: Callable[[bytes], float], seconds: float) -> Figures:
    wait_for(lambda: bool(made.execute(INSERT)) or out.exists())
    tail = Tail(out, commit)
    pgbench(made, WARM_UP, 1000)
    found: Figures = {}
    for what, rate in {"100 tx/s": 100, "1,000 tx/s": 1000, "the most": None}.items():
        wait_for(tail.quiet, 60)
        tail.seen.clear()
        count = pgbench(made, seconds, rate)
        wait_for(lambda count=count: len(tail.seen) >= count, 60)  # type: ignore[misc]
        if rate is None:
            found[f"{name}, the most: tx/s"] = round(count / seconds)
        latencies = sorted(tail.seen)
        for share in (50, 99):
            found[f"{name}, {what}: p{share} ms"] = round(latencies[len(latencies) * share // 100] * 1e3, 2)
    tail.stop()
    return found


def pgbench(made: Database, seconds: float, rate: int | None) -> int:
    """Single inserts, each its own transaction, durable; returns how many."""
    script = f"/tmp/headrace-pgbench-{os.getpid()}.sql"
    Path(script).write_text(INSERT)
    command = [str(made.server.program("pgbench")), "-n", "-f", script, "-M", "prepared", "-c", "4", "-j", "1"]
    limit = ["-R", str(rate)] if rate else []
    command += [*limit, "-T", str(round(seconds)), made.dsn]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    Path(script).unlink()
    return int(done.stdout.partition("actually processed: ")[2].split()[0].partition("/")[0])


def _headrace_commit(line: bytes) -> float:
    found = _HEADRACE.search(line)
    moment = datetime.fromisoformat(found[1].decode()).replace(tzinfo=UTC) if found else _EPOCH
    return (moment - _EPOCH) / timedelta(seconds=1)


def _debezium_commit(line: bytes) -> float:
    found = _DEBEZIUM.search(line)
    return int(found[1]) / 1e6 if found else 0.0


class Tail:
    """Follows a file from its end; `seen` are the seconds from commit to line."""

    def __init__(self, path: Path, commit: Callable[[bytes], float]) -> None:
        self.seen: list[float] = []
        self._commit = commit
        self._file = path.open("rb")
        self._file.seek(0, os.SEEK_END)
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_CLOEXEC)
        libc.inotify_add_watch(self._inotify, os.fsencode(path), _IN_MODIFY)
        self._grown = time.monotonic()
        self._ended = False
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def quiet(self) -> bool:
        """Nothing came for a second."""
        return time.monotonic() - self._grown > 1

    def _follow(self) -> None:
        rest = b""
        while not self._ended:
            if not select.select([self._inotify], [], [], 0.2)[0]:
                continue
            os.read(self._inotify, 65_536)
            data, now = self._file.read(), time.time()
            self._grown = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            self.seen += [now - self._commit(line) for line in lines]

    def stop(self) -> None:
        self._ended = True
        self._thread.join()
        os.close(self._inotify)
        self._file.close()
