"""What keeps the embedded engine's file small: deleting, merging and giving back. All of it on the writer's thread."""

from __future__ import annotations

import math
import sqlite3
from typing import Final

from headrace.journal.block import BLOCK_BYTES, BLOCK_EVENTS, Block, CorruptBlock, Kind, merge

SMALL_EVENTS: Final = 500  # a block with fewer events is worth merging
SETTLED: Final = 60.0  # seconds after which a block is merged; also the most that one merged block may span
MERGES: Final = 32  # merged blocks in one round, so that a round stays short
DROPS: Final = 64  # blocks deleted in one statement
SPARE_PAGES: Final = 2_048  # free pages kept for reuse before any are given back to the file system
GIVEN_BACK: Final = 512  # pages given back in one round

_DROP: Final = """
    DELETE FROM block WHERE first IN (
        SELECT first FROM (SELECT first, count, appended FROM block ORDER BY first LIMIT ?)
        WHERE first + count <= ? AND appended < ?
    )
"""
_SMALL: Final = """
    SELECT first, head, idx, body FROM block
    WHERE first >= ? AND appended < ? AND count < ? ORDER BY first LIMIT ?
"""


def live_size(db: sqlite3.Connection) -> int:
    """Bytes of the file that hold something."""
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


def drop_oldest(db: sqlite3.Connection, needed: int, wanted: int) -> int:
    """Delete the oldest blocks that end at or before `needed` until `wanted` bytes are free; returns bytes freed."""
    start = live_size(db)
    while (freed := start - live_size(db)) < wanted:
        if not _drop(db, needed, math.inf):
            break
    return freed


def drop_expired(db: sqlite3.Connection, needed: int, before: float) -> int:
    """Delete the blocks that end at or before `needed` and were appended before a time; returns how many."""
    total = 0
    while dropped := _drop(db, needed, before):
        total += dropped
    return total


def _drop(db: sqlite3.Connection, needed: int, before: float) -> int:
    return db.execute(_DROP, (DROPS, needed, before)).rowcount


def merge_small(db: sqlite3.Connection, start: int, now: float) -> int:
    """Merge runs of small neighbouring blocks from `start` on, positions unchanged; returns where to go on."""
    for _ in range(MERGES):
        run, start = _next_run(db, start, now - SETTLED)
        if not run:
            break
        if len(run) > 1:
            _replace(db, run)
    return start


def _next_run(db: sqlite3.Connection, start: int, settled: float) -> tuple[list[Block], int]:
    """The next small blocks that fit into one, and where to go on after them. The last run waits to be full."""
    rows = db.execute(_SMALL, (start, settled, SMALL_EVENTS, BLOCK_EVENTS))
    run: list[Block] = []
    events, size = 0, 0
    kinds: set[Kind] = set()
    for first, *row in rows:
        try:
            block = Block(*row)
            block.verify()
        except CorruptBlock:  # left as it is, for the consumer that reaches it to report
            return run, first + 1
        kinds.update(block.kinds)
        events += block.count
        size += block.raw_size
        full = events > BLOCK_EVENTS or size > BLOCK_BYTES or len(kinds) > 256
        if run and (full or block.first != run[-1].end or block.until - run[0].appended > SETTLED):
            return run, block.first
        run.append(block)
    return [], start


def _replace(db: sqlite3.Connection, run: list[Block]) -> None:
    sealed = merge(run)
    first = run[0].first
    head = sealed.head(first, run[0].appended, run[-1].until)
    db.execute("BEGIN IMMEDIATE")
    db.execute("DELETE FROM block WHERE first BETWEEN ? AND ?", (first, run[-1].first))
    db.execute(
        "INSERT INTO block VALUES (?, ?, ?, ?, ?, ?)",
        (first, sealed.count, run[0].appended, head, sealed.index, sealed.body),
    )
    db.execute("COMMIT")


def give_back(db: sqlite3.Connection) -> None:
    """Return free pages to the file system once there are many, a few at a time."""
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    if free > SPARE_PAGES:
        db.execute(f"PRAGMA incremental_vacuum({GIVEN_BACK})").fetchall()
