"""A real daemon (`headrace run`) in a folder of its own."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.capture.processes import has_row, wait_for
from headrace.journal.sqlite import FILE as JOURNAL
from tests.fixtures.postgres import Database

SETTINGS = """
[sources.orders]
type = "postgres"
dsn = "{dsn}"
tables = ["public.orders"]
snapshot = "{snapshot}"
slot = "{slot}"
publication = "p"
streaming = {streaming}
"""
SINK = """
[sinks.out]
type = "file"
path = "out.jsonl"
start = "earliest"
on = ["orders"]
"""


class Headrace:
    """Its slot is `SLOT`; what it writes is in `out`, where it has a sink."""

    def __init__(
        self,
        folder: Path,
        database: Database,
        slot: str,
        *,
        further: str = "",
        streaming: bool = True,
        snapshot: str = "never",
    ) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.out = folder / "out.jsonl"
        self.slot = slot
        self._further = further
        given = {"dsn": database.dsn, "slot": slot, "streaming": str(streaming).lower(), "snapshot": snapshot}
        (folder / "headrace.toml").write_text(SETTINGS.format(**given) + further)

    @contextmanager
    def running(self, logged: bytes = b"streaming") -> Iterator[int]:
        """Its process, from when it says so: by default, that it streams."""
        path = self.folder / "log"
        with path.open("wb") as log:
            command = [sys.executable, "-m", "headrace", "run", "-c", str(self.folder / "headrace.toml")]
            process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                wait_for(lambda: logged in path.read_bytes() or process.poll() is not None, pause=0.002)
                if process.poll() is not None:
                    raise RuntimeError(path.read_text())
                yield process.pid
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)

    def prepare(self) -> None:
        """Let it make its slot, and end."""
        with self.running():
            pass

    def journaled(self) -> int:
        """Events that are durable."""
        path = self.folder / "headrace-data" / JOURNAL
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
            return int(journal.execute("SELECT position FROM head").fetchone()[0])

    def has(self, rows: int) -> bool:
        """Whether all rows are durable, and the last one is in the file, where there is one."""
        return has_row(self.out, rows) if self._further else self.journaled() >= rows
