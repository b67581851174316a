"""The reads of the embedded engine: each is one short snapshot, so that the log stays small."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final, Literal

from headrace.journal.block import Block, CorruptBlock, Kind
from headrace.journal.repair import head_of
from headrace.journal.tail import PAGE_BYTES
from headrace.journal.upkeep import SETTLED
from headrace.protocols import Page

HEADERS: Final = 256  # heads looked at in one read

_HEADS = (
    "SELECT first, head FROM block"
    " WHERE first >= coalesce((SELECT max(first) FROM block WHERE first <= ?), ?) ORDER BY first LIMIT ?"
)
_BODY = "SELECT idx, body FROM block WHERE first=?"
_TIMES = "SELECT first, appended, head FROM block WHERE first > ? ORDER BY first LIMIT ?"
TOGETHER: Final = (16, 256)  # values asked for by one statement; of few lengths, so that each is prepared once


class Gate:
    """Many readers, or the writer alone for a checkpoint that needs all of the log."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._closed = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._closed)
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                self._condition.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._condition:
            self._closed = True
            self._condition.wait_for(lambda: not self._readers)
        try:
            yield
        finally:
            with self._condition:
                self._closed = False
                self._condition.notify_all()


def read_page(db: sqlite3.Connection, start: int, head: int, wanted: Callable[[Sequence[Kind]], bool]) -> Page:
    """As `Journal.read`: one snapshot, because the writer may merge or delete between two statements."""
    db.execute("BEGIN")
    try:
        blocks, end = _collect(db, start, head, wanted)
    finally:
        db.execute("COMMIT")
    return _decoded(blocks, end)


def _collect(
    db: sqlite3.Connection, start: int, head: int, wanted: Callable[[Sequence[Kind]], bool]
) -> tuple[list[Block], int]:
    found: list[Block] = []
    size, end, seen = 0, start, 0
    with closing(db.execute(_HEADS, (start, start, HEADERS))) as rows:
        for seen, (first, bytes_) in enumerate(rows, start=1):  # noqa: B007 -- read below
            try:
                block = head_of(first, bytes_)
            except CorruptBlock:
                if end > start:
                    return found, first
                raise
            if block.end <= start:
                continue
            if wanted(block.kinds):
                if found and size + block.raw_size > PAGE_BYTES:
                    return found, end
                found.append(Block(bytes_, *db.execute(_BODY, (first,)).fetchone()))
                size += block.raw_size
            end = block.end
    return found, end if seen == HEADERS else max(end, head)


def _decoded(blocks: list[Block], end: int) -> Page:
    """Decoded here, off the event loop. A damaged block ends the page before it, or is raised where it is the first."""
    for number, block in enumerate(blocks):
        try:
            block.lengths, block.data  # noqa: B018 -- for its effect
        except CorruptBlock:
            if not number:
                raise
            return Page(blocks[:number], block.first)
    return Page(blocks, end)


def scan_query(space: str, prefix: bytes, after: bytes | None, limit: int) -> tuple[str, list[Any]]:
    """The statement of `Store.scan` with its values."""
    # One lower bound: of two, SQLite takes the first for its range, and every page would start at the prefix.
    behind = after is not None and after >= prefix
    conditions, values = ["space=?", "key>?" if behind else "key>=?"], [space, after if behind else prefix]
    if (end := _after_prefix(prefix)) is not None:
        conditions.append("key<?")
        values.append(end)
    where = " AND ".join(conditions)
    query = f"SELECT key, value FROM state WHERE {where} ORDER BY key LIMIT ?"  # noqa: S608 -- fixed conditions
    return query, [*values, limit]


def _after_prefix(prefix: bytes) -> bytes | None:
    """The first key behind all keys with this prefix; None where there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def rows_with(
    db: sqlite3.Connection, column: Literal["key", "secondary"], space: str, values: Sequence[bytes]
) -> list[tuple[bytes, bytes]]:
    """The rows whose column has one of the values. Statements with many values: each gives the GIL away once."""
    found: list[tuple[bytes, bytes]] = []
    for start in range(0, len(values), TOGETHER[-1]):
        part = values[start : start + TOGETHER[-1]]
        count = next(it for it in TOGETHER if it >= len(part))
        query = f"SELECT key, value FROM state WHERE space=? AND {column} IN ({'?,' * (count - 1)}?)"  # noqa: S608 -- fixed
        found += db.execute(query, (space, *part, *[part[-1]] * (count - len(part)))).fetchall()
    return found


def since(db: sqlite3.Connection, after: int, time: float) -> tuple[int | None, int | None]:
    """The first block behind `after` with an event appended at or after `time`, or where to look on, or neither."""
    rows = db.execute(_TIMES, (after, HEADERS)).fetchall()
    for first, appended, head in rows:
        if appended >= time or (appended + SETTLED >= time and Block(head, b"", None).until >= time):
            return first, None
    return None, rows[-1][0] if len(rows) == HEADERS else None
