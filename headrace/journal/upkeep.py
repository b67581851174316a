"""What keeps the embedded engine's file small: deleting, merging and giving back.

All of it runs on the writer's thread, in portions of a few milliseconds, so that commits are never late by much.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from headrace.failpoints import reach
from headrace.journal.block import BLOCK_BYTES, BLOCK_EVENTS, Block, CorruptBlock, Kind, merge
from headrace.journal.schema import disk_full
from headrace.journal.space import LagWarning, Limits
from headrace.protocols import Logger

SMALL_EVENTS: Final = 500  # a block with fewer events is worth merging
SETTLED: Final = 60.0  # seconds after which a block is merged; also the most that one merged block may span
MERGED_BLOCKS: Final = 256  # blocks that become one at once
WINDOW: Final = 2 * MERGED_BLOCKS  # blocks looked at in one round, so that the first run in it is always whole
DROPS: Final = 64  # blocks deleted in one transaction, at most
AHEAD: Final = 8 << 20  # bytes deleted at once when room is needed, so that not every commit must delete
SPARE_BYTES: Final = 32 << 20  # free pages kept for reuse before any are given back to the file system
GIVEN_BACK: Final = 1 << 20  # bytes given back in one round
_KINDS: Final = 256  # kinds that a block can hold

_DROP: Final = """
    DELETE FROM block WHERE first IN (
        SELECT first FROM (
            SELECT first, count, appended, sum(length(body)) OVER (ORDER BY first) - length(body) AS before
            FROM (SELECT * FROM block ORDER BY first LIMIT ?)
        )
        WHERE first + count <= ? AND appended < ? AND before < ?
    )
"""
_HEADS: Final = "SELECT first, count, appended, head FROM block WHERE first >= ? ORDER BY first LIMIT ?"
_RANGE: Final = "SELECT head, idx, body FROM block WHERE first BETWEEN ? AND ? ORDER BY first"
_APPEND: Final = "INSERT INTO block VALUES (?, ?, ?, ?, ?, ?)"


def pragma(db: sqlite3.Connection, name: str) -> int:
    """The value of a pragma that is a number."""
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def live_size(db: sqlite3.Connection) -> int:
    """Bytes of the file that hold something."""
    return (pragma(db, "page_count") - pragma(db, "freelist_count")) * pragma(db, "page_size")


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and never left open."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


class Upkeep:
    """The journal's extent and what may be taken from it. `size` is what the file holds, in bytes.

    `holds` is replaced, never changed, because two threads read it. Nothing is deleted before `retaining` is set: at
    start the consumers have not yet said what they need.
    """

    def __init__(self, db: sqlite3.Connection, limits: Limits, log: Logger) -> None:
        self._db = db
        self._limits = limits
        self._lag = LagWarning(log)
        self._merged_to = 0
        self.head: int = db.execute("SELECT position FROM head").fetchone()[0]
        self.size = live_size(db)
        self.holds: Mapping[tuple[str, str], int] = {}
        self.retaining = False

    def measure(self) -> None:
        self.size = live_size(self._db)

    def oldest(self) -> int:
        (first,) = self._db.execute("SELECT coalesce(min(first), ?) FROM block", (self.head,)).fetchone()
        return int(first)

    def needed(self) -> int:
        """The first position that some consumer still needs."""
        return min(self.holds.values(), default=self.head)

    def blockers(self) -> dict[str, int]:
        """The consumers that need the oldest, with the position that they hold."""
        holds = self.holds
        needed = min(holds.values(), default=self.head)
        return {name: at for (name, _), at in holds.items() if at == needed < self.head}

    def prune(self, wanted: int) -> int:
        """Delete the oldest blocks that nobody needs until `wanted` bytes are free; returns the bytes freed.

        Without room on the disk even for that, none.
        """
        before = self.size
        wanted = max(wanted, min(AHEAD, self._limits.max_size // 64))
        try:
            while (missing := wanted - (before - self.size)) > 0 and self._drop(math.inf, missing):
                pass
        except sqlite3.OperationalError as error:
            if not disk_full(error):
                raise
        return before - self.size

    def _drop(self, before: float, size: float) -> int:
        """Delete blocks that were appended before a time, up to about `size` bytes of them."""
        if not self.retaining:
            return 0
        dropped = self._db.execute(_DROP, (DROPS, self.needed(), before, size)).rowcount
        reach("journal.after-drop")
        self.measure()
        return dropped

    def round(self) -> bool:
        """One portion of everything; returns whether there is more to do at once. A full disk raises as it is."""
        now = time.time()
        dropped = self._drop(now - self._limits.retention, math.inf)
        self._merged_to, merged = merge_small(self._db, self._merged_to, now)
        given = self.give_back(SPARE_BYTES)
        self.measure()
        self._lag.check(self._lag_share(), self.blockers())
        return dropped == DROPS or merged or given

    def _lag_share(self) -> float:
        """How much of `max_size` is taken by what some consumer still needs, taking all events as equally large."""
        oldest = self.oldest()
        needed = max(oldest, self.needed())
        return self.size / self._limits.max_size * (self.head - needed) / max(1, self.head - oldest)

    def shrink(self, wanted: int) -> None:
        """Delete what nobody needs and give the space to the file system, up to `wanted` bytes, whatever is spare."""
        self.prune(wanted)
        try:
            while wanted > 0 and self.give_back(0):
                wanted -= GIVEN_BACK
        except sqlite3.OperationalError as error:
            if not disk_full(error):
                raise
        self.measure()

    def give_back(self, spare: int) -> bool:
        """Return some free pages to the file system where there are more than `spare` bytes of them."""
        size = pragma(self._db, "page_size")
        if pragma(self._db, "freelist_count") * size <= spare:
            return False
        # A script, because it gives a page back at every step, and `execute` takes one step where there is no column.
        self._db.executescript(f"PRAGMA incremental_vacuum({GIVEN_BACK // size})")
        return True


@dataclass(frozen=True, slots=True)
class _Entry:
    """What merging must know of a block. `block` is its head, None where the block is not small or not sound."""

    first: int
    count: int
    appended: float
    block: Block | None


def _entry(first: int, count: int, appended: float, head: bytes) -> _Entry:
    try:
        block = Block(head, b"", None) if count < SMALL_EVENTS else None
    except CorruptBlock:  # left as it is, for the consumer that reaches it to report
        block = None
    return _Entry(first, count, appended, block)


def merge_small(db: sqlite3.Connection, start: int, now: float) -> tuple[int, bool]:
    """Merge the first run of small neighbouring blocks from `start` on, positions unchanged.

    Returns where to go on, and whether there may be more to merge at once.
    """
    rows = db.execute(_HEADS, (start, WINDOW)).fetchall()
    entries = [_entry(*row) for row in takewhile(lambda row: row[2] < now - SETTLED, rows)]
    for run in _runs(entries):
        last = run[-1] is entries[-1]
        if last and len(rows) < WINDOW and run[0].appended >= now - 2 * SETTLED:
            return run[0].first, False  # more of the same minute may still settle
        start = run[-1].first + 1
        if len(run) > 1:
            _merge_run(db, run)
            return start, True
    return start, len(rows) == WINDOW and bool(entries)


def _runs(entries: Iterable[_Entry]) -> Iterator[list[_Entry]]:
    """The entries in portions that may each become one block."""
    run = _Run()
    for entry in entries:
        if run.entries and not run.takes(entry):
            yield run.entries
            run = _Run()
        run.add(entry)
    if run.entries:
        yield run.entries


class _Run:
    """Neighbouring blocks that fit into one."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self._events = 0
        self._bytes = 0
        self._kinds: set[Kind] = set()
        self._sound = True

    def add(self, entry: _Entry) -> None:
        self.entries.append(entry)
        self._events += entry.count
        if entry.block is None:
            self._sound = False
        else:
            self._bytes += entry.block.raw_size
            self._kinds.update(entry.block.kinds)

    def takes(self, entry: _Entry) -> bool:
        first, last, block = self.entries[0], self.entries[-1], entry.block
        return (
            self._sound
            and block is not None
            and entry.first == last.first + last.count
            and block.until - first.appended <= SETTLED
            and len(self.entries) < MERGED_BLOCKS
            and self._events + entry.count <= BLOCK_EVENTS
            and self._bytes + block.raw_size <= BLOCK_BYTES
            and len(self._kinds.union(block.kinds)) <= _KINDS
        )


def _merge_run(db: sqlite3.Connection, run: list[_Entry]) -> None:
    first, last = run[0].first, run[-1].first
    blocks = [Block(*row) for row in db.execute(_RANGE, (first, last))]
    try:
        for block in blocks:
            block.verify()
    except CorruptBlock:  # the run stays as it is, for the consumer that reaches the block to report
        return
    sealed = merge(blocks)
    head = sealed.head(first, blocks[0].appended, blocks[-1].until)
    with transaction(db):
        db.execute("DELETE FROM block WHERE first BETWEEN ? AND ?", (first, last))
        db.execute(_APPEND, (first, sealed.count, blocks[0].appended, head, sealed.index, sealed.body))
        reach("journal.before-merge")
    reach("journal.after-merge")
