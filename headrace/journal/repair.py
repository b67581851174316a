"""Finding and passing damage, and making copies."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from headrace.errors import Permanent
from headrace.journal.block import Block, CorruptBlock

PAGE: Final = 16  # blocks verified in one read
BACKUP_PAGES: Final = 512  # pages copied between two rounds of the writer


class Repair:
    """Works on one connection; what changes the file needs the writer's."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def verify(self, after: int) -> tuple[list[CorruptBlock], int, bool]:
        """The damaged ones of the next blocks behind `after`, where to go on, and whether there may be more."""
        rows = self._db.execute(
            "SELECT first, count, head, idx, body FROM block WHERE first > ? ORDER BY first LIMIT ?", (after, PAGE)
        ).fetchall()
        found = [problem for row in rows if (problem := _problem(*row))]
        return found, rows[-1][0] if rows else after, len(rows) == PAGE

    def skip(self, first: int, reason: str) -> int:
        """Delete the block at `first` and record the gap, in one transaction."""
        row = self._db.execute("SELECT count FROM block WHERE first=?", (first,)).fetchone()
        if row is None:
            raise Permanent(f"no block starts at {first}", hint="`headrace journal verify` names the damaged ones")
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("DELETE FROM block WHERE first=?", (first,))
        self._db.execute("INSERT INTO gap VALUES (?, ?, ?, ?)", (first, row[0], time.time(), reason))
        self._db.execute("COMMIT")
        return int(row[0])

    def gaps(self) -> list[tuple[int, int, float, str]]:
        return self._db.execute("SELECT first, count, skipped, reason FROM gap ORDER BY first").fetchall()

    def backup(self, target: Path, between: Callable[[], None]) -> None:
        """Copy the database; `between` runs after every portion, and what it writes is in the copy as well."""
        partial = target.with_name(target.name + ".partial")
        if target.exists():
            raise Permanent(f"{target} exists", hint="name a new file")
        with suppress(FileNotFoundError):
            partial.unlink()
        copy = sqlite3.connect(partial)
        try:
            self._db.backup(copy, pages=BACKUP_PAGES, progress=lambda *_: between())
            copy.execute("PRAGMA journal_mode=DELETE")
        finally:
            copy.close()
        _sync(partial)
        partial.rename(target)
        _sync(target.parent)


def _problem(first: int, count: int, head: bytes, index: bytes, body: bytes) -> CorruptBlock | None:
    try:
        block = Block(head, index, body)
        block.verify()
    except CorruptBlock as error:
        return CorruptBlock(first, error.why)
    if (block.first, block.count) != (first, count):
        return CorruptBlock(first, f"it belongs to position {block.first}")
    return None


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
