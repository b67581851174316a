"""Finding and passing damage, and making copies."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from headrace.errors import Permanent
from headrace.failpoints import reach
from headrace.journal.block import Block, CorruptBlock
from headrace.journal.schema import error_code
from headrace.journal.upkeep import transaction

PAGE: Final = 16  # blocks verified in one read
BACKUP_PAGES: Final = 256  # pages copied between two rounds of the writer: 1 MiB

_FIRSTS: Final = "SELECT first FROM block WHERE first > ? ORDER BY first LIMIT ?"
_BLOCK: Final = "SELECT count, head, idx, body FROM block WHERE first=?"


class Repair:
    """Works on one connection; what changes the file needs the writer's."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def verify(self, after: int) -> tuple[list[CorruptBlock], int, bool]:
        """The damaged ones of the next blocks behind `after`, where to go on, and whether there may be more."""
        firsts = [first for (first,) in self._db.execute(_FIRSTS, (after, PAGE))]
        found = [problem for first in firsts if (problem := self._problem(first))]
        return found, firsts[-1] if firsts else after, len(firsts) == PAGE

    def _problem(self, first: int) -> CorruptBlock | None:
        try:
            row = self._db.execute(_BLOCK, (first,)).fetchone()
        except sqlite3.DatabaseError as error:
            if error_code(error) != sqlite3.SQLITE_CORRUPT:
                raise
            return CorruptBlock(first, f"its pages are damaged ({error})")
        return None if row is None else _problem(first, *row)  # None: merged or deleted since

    def skip(self, first: int, reason: str) -> int:
        """Delete the block at `first` and record the gap, in one transaction."""
        row = self._db.execute("SELECT count FROM block WHERE first=?", (first,)).fetchone()
        if row is None:
            raise Permanent(f"no block starts at {first}", hint="`headrace journal verify` names the damaged ones")
        with transaction(self._db):
            self._db.execute("DELETE FROM block WHERE first=?", (first,))
            self._db.execute("INSERT INTO gap VALUES (?, ?, ?, ?)", (first, row[0], time.time(), reason))
        return int(row[0])

    def gaps(self) -> list[tuple[int, int, float, str]]:
        """Recorded gaps: first position, count of events, time of skipping, reason."""
        return self._db.execute("SELECT first, count, skipped, reason FROM gap ORDER BY first").fetchall()

    def copy(self, target: Path, between: Callable[[], None]) -> None:
        """Copy the database; `between` runs after every portion, and what it writes is in the copy as well.

        The copy is not synced: `finish` does it, away from the writer.
        """
        with _target_errors(target), closing(sqlite3.connect(target, isolation_level=None)) as copy:
            copy.execute("PRAGMA synchronous=OFF")
            self._db.backup(copy, pages=BACKUP_PAGES, progress=lambda *_: between())


@contextmanager
def prepared(target: Path) -> Iterator[Path]:
    """An empty private file to copy to; gone afterwards unless it was renamed. Raises `Permanent`."""
    partial = target.with_name(target.name + ".partial")
    if target.exists():
        raise Permanent(f"{target} exists", hint="name a new file")
    try:
        with suppress(FileNotFoundError):
            partial.unlink()
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise Permanent(f"{target}: {error.strerror}", hint="name a file that this user may write") from error
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def finish(partial: Path, target: Path) -> None:
    """Make the copy a file of its own, durable, and give it its name."""
    with _target_errors(target):
        with closing(sqlite3.connect(partial, isolation_level=None)) as copy:
            copy.execute("PRAGMA journal_mode=DELETE")
        _sync(partial)
        reach("journal.backup-copied")
        partial.rename(target)
        _sync(target.parent)


@contextmanager
def _target_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise Permanent(f"backup to {target}: {error}", hint="the journal itself is not affected") from error


def head_of(first: int, head: bytes) -> Block:
    """The block by its head alone. Raises `CorruptBlock` where it is damaged or belongs elsewhere."""
    try:
        block = Block(head, b"", None)
    except CorruptBlock as error:
        raise CorruptBlock(first, error.why) from None
    if block.first != first:
        raise CorruptBlock(first, f"it belongs to position {block.first}")
    return block


def _problem(first: int, count: int, head: bytes, index: bytes, body: bytes) -> CorruptBlock | None:
    try:
        if head_of(first, head).count != count:
            return CorruptBlock(first, "its count differs from its head's")
        Block(head, index, body).verify()
    except CorruptBlock as error:
        return CorruptBlock(first, error.why)
    return None


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
