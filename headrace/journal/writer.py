"""The one thread that writes: it groups all that waits into one transaction, and keeps the file within its limits.

A change is acknowledged only after the commit that holds it, and so after the fsync of the write-ahead log. A failed
fsync is never retried: the kernel marks the pages clean, so a second one would lie. The writer then fails for good.
"""

from __future__ import annotations

import sqlite3
import time
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar

from headrace.errors import Fatal, HeadraceError, Transient
from headrace.failpoints import reach
from headrace.journal import upkeep
from headrace.journal.block import Block, SealedBlock
from headrace.journal.schema import WAL_LIMIT, damaged, error_code
from headrace.journal.space import Limits, Reserve, Usage
from headrace.protocols import Change, Logger

GROUP_BYTES: Final = 8 << 20
IDLE: Final = 5.0  # seconds between two rounds of upkeep
RETRY: Final = 0.5  # seconds between two tries while intake is stopped
_HELP: Final = 1 << 20  # bytes to free per try when the disk is full

T = TypeVar("T")

_PUT = (
    "INSERT INTO state VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value=excluded.value, secondary=excluded.secondary"
)
_DELETE = "DELETE FROM state WHERE space=? AND key=?"
_APPEND = "INSERT INTO block VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(slots=True)
class Pending:
    """A change that waits for its commit."""

    change: Change
    future: Future[None]
    size: int


@dataclass(slots=True)
class Call:
    """Work for the writer's connection that is not a change: upkeep on demand, backup, stop."""

    run: Callable[[], Any]
    future: Future[Any]


class Writer:
    """Runs the thread. `committed` is called on the loop with the durable blocks of each transaction, in order."""

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        limits: Limits,
        reserve: Reserve,
        log: Logger,
        committed: Callable[[Sequence[Block]], None],
        exclusive: Callable[[], Any],
    ) -> None:
        self.db = db
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._limits = limits
        self._reserve = reserve
        self._log = log
        self._committed = committed
        self._exclusive = exclusive
        self._loop: AbstractEventLoop
        self._queue: SimpleQueue[Pending | Call | None] = SimpleQueue()
        self._held: deque[Pending] = deque()
        self._why_stopped = ""
        self._failed: Fatal | None = None
        self._open = True
        self._upkeep_at = time.monotonic() + IDLE
        self._merged_to = 0
        self._vacuumed = 0.0
        self.holds: dict[tuple[str, str], int] = {}
        (self.head,) = db.execute("SELECT position FROM head").fetchone()
        self._size = upkeep.live_size(db)

    # What the loop calls.

    def start(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._reserve.take()
        self._thread = Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    def submit(self, change: Change) -> Future[None]:
        future: Future[None] = self._loop.create_future()
        self._queue.put(Pending(change, future, sum(block.size for block in change.blocks)))
        return future

    def call(self, run: Callable[[], T]) -> Future[T]:
        """Run something on the writer's connection, between two transactions."""
        future: Future[T] = self._loop.create_future()
        self._queue.put(Call(run, future))
        return future

    def nudge(self) -> None:
        """Try stopped intake again: a consumer has moved on."""
        if self._held:
            self._queue.put(None)

    async def stop(self) -> None:
        """Write what waits, and end the thread. Intake that is stopped fails with `Fatal`."""
        await self.call(self._close)
        self._thread.join()

    def usage(self) -> Usage:
        """To be run by `call`."""
        blocks, oldest = self.db.execute("SELECT count(*), coalesce(min(first), ?) FROM block", (self.head,)).fetchone()
        wal = self._wal.stat().st_size if self._wal.exists() else 0
        blockers = {name: at for (name, _), at in self.holds.items() if at == min(self.holds.values())}
        return Usage(self._size, self._limits.max_size, wal, blocks, oldest, self._why_stopped, blockers)

    # What the thread does.

    def _run(self) -> None:
        while self._open:
            self._turn(self._patience())
        self.db.close()

    def _patience(self) -> float:
        return RETRY if self._held else max(0.0, self._upkeep_at - time.monotonic())

    def turn(self) -> None:
        """One round without waiting, for a long task on the writer's connection that lets the others by."""
        self._turn(0.0)

    def _turn(self, patience: float) -> None:
        changes, calls = self._gather(patience)
        if self._held:
            changes = [*self._released(), *changes]
        if changes:
            self._write(changes)
        for call in calls:
            self._perform(call)
        if time.monotonic() >= self._upkeep_at:
            self._keep_up()

    def _gather(self, patience: float) -> tuple[list[Pending], list[Call]]:
        """All that waits now, up to `GROUP_BYTES`; a call ends the group, so that it sees what came before it."""
        changes: list[Pending] = []
        size = 0
        try:
            item = self._queue.get(timeout=patience) if patience > 0 else self._queue.get_nowait()
            while True:
                if isinstance(item, Call):
                    return changes, [item]
                if item is not None:
                    changes.append(item)
                    size += item.size
                if size >= GROUP_BYTES:
                    return changes, []
                item = self._queue.get_nowait()
        except Empty:
            return changes, []

    def _write(self, changes: list[Pending]) -> None:
        if self._failed:
            return self._reject(changes, self._failed)
        admitted = self._admit(changes)
        if not admitted:
            return None
        try:
            blocks = self._transaction(admitted)
        except sqlite3.Error as error:
            return self._recover(admitted, error)
        reach("journal.after-commit")
        self._loop.call_soon_threadsafe(self._acknowledge, admitted, blocks)
        return self._bound_wal()

    def _admit(self, changes: list[Pending]) -> list[Pending]:
        """What may be written now; intake beyond the limit waits, and so does all intake behind it."""
        room = self._limits.intake - self._size
        wanted = sum(item.size for item in changes if item.change.intake)
        if wanted > room:
            room += self._prune(wanted - room)
        admitted: list[Pending] = []
        for item in changes:
            if item.change.intake and (self._held or item.size > room):
                self._held.append(item)
                continue
            admitted.append(item)
            room -= item.size if item.change.intake else 0
        if self._held and not self._why_stopped:
            self._stop_intake(f"the journal has reached its max_size of {self._limits.max_size} bytes")
        return admitted

    def _transaction(self, changes: Iterable[Pending]) -> list[Block]:
        db, now, head = self.db, time.time(), self.head
        blocks: list[Block] = []
        db.execute("BEGIN IMMEDIATE")
        for item in changes:
            for sealed in item.change.blocks:
                blocks.append(self._insert(sealed, head, now))
                head += sealed.count
            for space, key, value, secondary in item.change.rows:
                if value is None:
                    db.execute(_DELETE, (space, key))
                else:
                    db.execute(_PUT, (space, key, value, secondary))
        if head != self.head:
            db.execute("UPDATE head SET position=?", (head,))
        reach("journal.before-commit")
        db.execute("COMMIT")
        self.head = head
        self._size = upkeep.live_size(db)
        return blocks

    def _insert(self, sealed: SealedBlock, first: int, now: float) -> Block:
        head = sealed.head(first, now, now)
        self.db.execute(_APPEND, (first, sealed.count, now, head, sealed.index, sealed.body))
        return Block(head, sealed.index, sealed.body)

    def _acknowledge(self, changes: Sequence[Pending], blocks: Sequence[Block]) -> None:
        if blocks:
            self._committed(blocks)
        for item in changes:
            if not item.future.done():
                item.future.set_result(None)

    # When it does not fit or does not work.

    def _recover(self, changes: list[Pending], error: sqlite3.Error) -> None:
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
        if error_code(error) != sqlite3.SQLITE_FULL:
            return self._fail(changes, error)
        had_reserve = self._reserve.held
        self._reserve.give_up()
        self._held.extendleft(reversed(changes))
        self._stop_intake("the disk is full")
        return self._write(self._released()) if had_reserve else None

    def _fail(self, changes: list[Pending], error: sqlite3.Error) -> None:
        self._failed = damaged(self._path, error)
        self._log.error("journal failed", error=str(self._failed))
        self._reject([*changes, *self._held], self._failed)
        self._held.clear()

    def _reject(self, changes: Sequence[Pending], error: HeadraceError) -> None:
        def reject() -> None:
            for item in changes:
                if not item.future.done():
                    item.future.set_exception(error)

        self._loop.call_soon_threadsafe(reject)

    def _stop_intake(self, why: str) -> None:
        if self._why_stopped != why:
            self._why_stopped = why
            needed = sorted({name for (name, _), at in self.holds.items() if at == min(self.holds.values())})
            self._log.error("intake stopped", why=why, oldest_needed_by=needed)

    def _released(self) -> list[Pending]:
        """Of what is held: all of it once intake may resume, until then what is not intake."""
        held, resume = list(self._held), self._may_resume()
        self._held = deque(() if resume else (item for item in held if item.change.intake))
        return held if resume else [item for item in held if not item.change.intake]

    def _may_resume(self) -> bool:
        first = self._held[0]
        room = self._limits.intake - self._size
        if first.size > room and self._prune(first.size - room) < first.size - room:
            return False
        if not self._reserve.take():
            self._prune(_HELP)
            return False
        if self._why_stopped:
            self._log.info("intake resumed", after=self._why_stopped)
        self._why_stopped = ""
        return True

    def _perform(self, call: Call) -> None:
        try:
            result, error = call.run(), None
        except (HeadraceError, sqlite3.Error, OSError) as caught:
            result, error = None, caught

        def answer() -> None:
            if call.future.done():
                return
            if error is None:
                call.future.set_result(result)
            else:
                call.future.set_exception(error)

        self._loop.call_soon_threadsafe(answer)

    def _close(self) -> None:
        self._reject(list(self._held), Transient("the daemon stopped while intake was stopped"))
        self._held.clear()
        self._open = False
        if not self._failed:
            self._checkpoint("TRUNCATE")

    # Upkeep.

    def needed(self) -> int:
        """The first position that some consumer still needs."""
        return min(self.holds.values(), default=self.head)

    def _prune(self, wanted: int) -> int:
        """Delete the oldest blocks that nobody needs until `wanted` bytes are free, and say how many became free."""
        return self._shrink(lambda: upkeep.drop_oldest(self.db, self.needed(), wanted))

    def _shrink(self, drop: Callable[[], int]) -> int:
        before = self._size
        try:
            drop()
        except sqlite3.OperationalError as error:
            if error_code(error) != sqlite3.SQLITE_FULL:
                raise
        self._size = upkeep.live_size(self.db)
        return before - self._size

    def _keep_up(self) -> None:
        self._upkeep_at = time.monotonic() + IDLE
        if self._failed:
            return
        try:
            self._shrink(lambda: upkeep.drop_expired(self.db, self.needed(), time.time() - self._limits.retention))
            self._merged_to = upkeep.merge_small(self.db, self._merged_to, time.time())
            upkeep.give_back(self.db)
            self._size = upkeep.live_size(self.db)
        except sqlite3.Error as error:
            self._after_upkeep(error)
        self._bound_wal()

    def _after_upkeep(self, error: sqlite3.Error) -> None:
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
        if error_code(error) != sqlite3.SQLITE_FULL:
            self._fail([], error)

    def _bound_wal(self) -> None:
        """A reader that is always there keeps the log from starting over: hold readers back for one checkpoint."""
        if self._wal.exists() and self._wal.stat().st_size > 2 * WAL_LIMIT:
            with self._exclusive():
                self._checkpoint("TRUNCATE")

    def _checkpoint(self, mode: str) -> None:
        try:
            self.db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        except sqlite3.Error as error:
            if error_code(error) not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY):
                self._fail([], error)
