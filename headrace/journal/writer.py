"""The one thread that writes: it groups all that waits into one transaction, and keeps the file within its limits.

A change is acknowledged only after the commit that holds it, and so after the fsync of the write-ahead log. A failed
fsync is never retried: the kernel marks the pages clean, so a second one would lie. The writer then fails for good.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar

from headrace.errors import Fatal, HeadraceError, JournalFailed, Transient
from headrace.failpoints import reach
from headrace.journal import schema
from headrace.journal.block import Block, SealedBlock
from headrace.journal.intake import GROUP_BYTES, Intake, Pending
from headrace.journal.schema import damaged, disk_full, error_code
from headrace.journal.space import Limits, Reserve, Usage
from headrace.journal.upkeep import Upkeep, transaction
from headrace.protocols import Change, Logger

IDLE: Final = 5.0  # seconds between two rounds of upkeep
BUSY: Final = 0.05  # the same while there is more to do

T = TypeVar("T")

_PUT = (
    "INSERT INTO state VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value=excluded.value, secondary=excluded.secondary"
)
_DELETE = "DELETE FROM state WHERE space=? AND key=?"
_APPEND = "INSERT INTO block VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(slots=True)
class Call:
    """Work for the writer's connection that is not a change: usage, skip, backup, stop."""

    run: Callable[[], Any]
    future: Future[Any]


@dataclass(frozen=True, slots=True)
class Listener:
    """What the writer tells, on the loop: the durable blocks of each transaction in order, and its end by a failure."""

    committed: Callable[[Sequence[Block]], None]
    failed: Callable[[Fatal], None]


class Writer:
    """Runs the thread. `exclusive` keeps all readers out, for a checkpoint that needs the whole log."""

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        limits: Limits,
        reserve: Reserve,
        log: Logger,
        listener: Listener,
        exclusive: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.db = db
        self.upkeep = Upkeep(db, limits, log)
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._limits = limits
        self._log = log
        self._listener = listener
        self._exclusive = exclusive
        self._intake = Intake(limits, reserve, self.upkeep, log, self._checkpoint)
        self._loop: AbstractEventLoop
        self._queue: SimpleQueue[Pending | Call | None] = SimpleQueue()
        self._in_hand: list[Pending] = []
        self._failed: Fatal | None = None
        self._stopping = False  # belongs to the loop
        self._open = True  # belongs to the thread
        self._upkeep_at = time.monotonic() + IDLE
        self._wal_limit = schema.WAL_LIMIT

    # What the loop calls.

    def start(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    def submit(self, change: Change) -> Future[None]:
        future: Future[None] = self._loop.create_future()
        self._put(Pending.of(change, future))
        return future

    def call(self, run: Callable[[], T]) -> Future[T]:
        """Run something on the writer's connection, between two transactions."""
        future: Future[T] = self._loop.create_future()
        self._put(Call(run, future))
        return future

    def _put(self, item: Pending | Call) -> None:
        if self._stopping:
            item.future.set_exception(Transient("the journal is closed"))
        else:
            self._queue.put(item)

    def hold(self, holds: dict[tuple[str, str], int]) -> None:
        """What each consumer needs, by name and shard; stopped intake is tried again."""
        self.upkeep.holds = holds
        if self._intake.why:
            self._intake.nudge()
            self._queue.put(None)

    async def stop(self) -> None:
        """Write what waits, and end the thread. Intake that is stopped fails with `Transient`."""
        closing = self.call(self._close)
        self._stopping = True
        try:
            await closing
        finally:
            await asyncio.to_thread(self._thread.join)

    def usage(self) -> Usage:
        """To be run by `call`."""
        upkeep, oldest = self.upkeep, self.upkeep.oldest()
        why = str(self._failed) if self._failed else self._intake.why
        events = upkeep.head - oldest
        return Usage(upkeep.size, self._limits.max_size, self._wal_size(), events, oldest, why, upkeep.blockers())

    # What the thread does.

    def _run(self) -> None:
        self._supervised(self._intake.start)
        while self._open:
            self._supervised(lambda: self._turn(self._patience()))
        self.db.close()

    def _supervised(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # noqa: BLE001 -- a writer that died must not look like one that is slow
            self._fail(error)

    def _patience(self) -> float:
        upkeep = max(0.0, self._upkeep_at - time.monotonic())
        retry = None if self._failed else self._intake.patience()
        return upkeep if retry is None else min(retry, upkeep)

    def between(self) -> None:
        """One round without waiting, for a long task on the writer's connection that lets the others by."""
        self._supervised(lambda: self._turn(0.0))
        if not self._open or self._failed:
            raise Transient("the journal was closed meanwhile")

    def _turn(self, patience: float) -> None:
        self._in_hand, call = self._gather(patience)
        if self._failed:
            self._reject(self._in_hand, self._failed)
        else:
            self._write()
        self._in_hand = []
        if call is not None:
            self._perform(call)
        if time.monotonic() >= self._upkeep_at:
            self._keep_up()

    def _gather(self, patience: float) -> tuple[list[Pending], Call | None]:
        """All that waits now, up to `GROUP_BYTES`; a call ends the group, so that it sees what came before it."""
        changes: list[Pending] = []
        size = 0
        with suppress(Empty):
            item = self._queue.get(timeout=patience) if patience > 0 else self._queue.get_nowait()
            while not isinstance(item, Call):
                if item is not None:
                    changes.append(item)
                    size += item.size
                if size >= GROUP_BYTES:
                    return changes, None
                item = self._queue.get_nowait()
            return changes, item
        return changes, None

    def _write(self) -> None:
        self._in_hand = self._intake.admit(self._in_hand)
        if not self._in_hand:
            return None
        try:
            blocks = self._commit(self._in_hand)
        except sqlite3.OperationalError as error:
            if not disk_full(error):
                raise
            return self._intake.full(self._in_hand)
        reach("journal.after-commit")
        self._post(self._acknowledge, self._in_hand, blocks)
        self._in_hand = []
        self.upkeep.measure()
        return self._bound_wal()

    def _commit(self, changes: Iterable[Pending]) -> list[Block]:
        now, head = time.time(), self.upkeep.head
        blocks: list[Block] = []
        with transaction(self.db):
            for item in changes:
                for sealed in item.change.blocks:
                    blocks.append(self._insert(sealed, head, now))
                    head += sealed.count
                self._put_rows(item.change)
            if blocks:
                self.db.execute("UPDATE head SET position=?", (head,))
            reach("journal.before-commit")
        self.upkeep.head = head
        return blocks

    def _insert(self, sealed: SealedBlock, first: int, now: float) -> Block:
        head = sealed.head(first, now, now)
        self.db.execute(_APPEND, (first, sealed.count, now, head, sealed.index, sealed.body))
        return Block(head, sealed.index, sealed.body)

    def _put_rows(self, change: Change) -> None:
        for space, key, value, secondary in change.rows:
            if value is None:
                self.db.execute(_DELETE, (space, key))
            else:
                self.db.execute(_PUT, (space, key, value, secondary))

    def _acknowledge(self, changes: Sequence[Pending], blocks: Sequence[Block]) -> None:
        if blocks:
            self._listener.committed(blocks)
        for item in changes:
            if not item.future.done():
                item.future.set_result(None)

    def _post(self, run: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(run, *args)

    # When it does not work.

    def _meaning(self, error: Exception) -> HeadraceError:
        if isinstance(error, HeadraceError):
            return error
        if isinstance(error, sqlite3.Error):
            return damaged(self._path, error)
        return JournalFailed(f"the journal {self._path} failed: {type(error).__name__}: {error}")

    def _fail(self, error: Exception) -> None:
        if self.db.in_transaction:
            with suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
        if self._failed is None:
            meaning = self._meaning(error)
            self._failed = _final(meaning)
            self._log.error("journal failed", error=str(self._failed))
            self._post(self._listener.failed, self._failed)
        self._reject([*self._intake.take_all(), *self._in_hand], self._failed)
        self._in_hand = []

    def _reject(self, changes: Sequence[Pending], error: HeadraceError) -> None:
        for item in changes:
            self._answer(item.future, error=error)

    def _answer(self, future: Future[Any], result: object = None, error: Exception | None = None) -> None:
        def answer() -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self._post(answer)

    def _perform(self, call: Call) -> None:
        try:
            result = call.run()
        except Exception as error:  # the caller is told, and what may be damage is raised again
            self._answer(call.future, error=self._meaning(error))
            if not isinstance(error, HeadraceError) and not (isinstance(error, sqlite3.Error) and disk_full(error)):
                raise
        else:
            self._answer(call.future, result)

    def change(self, run: Callable[[], T]) -> T:
        """To be run by `call`, around what changes the file."""
        if self._failed:
            raise self._failed
        return run()

    def _close(self) -> None:
        self._open = False
        self._reject(self._intake.take_all(), Transient("the daemon stopped while intake was stopped"))
        if not self._failed:
            self._checkpoint()

    # Upkeep.

    def _keep_up(self) -> None:
        more = False
        if not self._failed:
            try:
                more = self.upkeep.round()
            except sqlite3.OperationalError as error:
                if not disk_full(error):
                    raise
            self._bound_wal()
        self._upkeep_at = time.monotonic() + (BUSY if more else IDLE)

    def _wal_size(self) -> int:
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0

    def _bound_wal(self) -> None:
        """A reader that is always there keeps the log from starting over: hold readers back for one checkpoint."""
        size = self._wal_size()
        if size > self._wal_limit:
            self._checkpoint()
            # A stranger with a long read keeps it large: do not wait for it at every commit.
            self._wal_limit = max(schema.WAL_LIMIT, self._wal_size() + schema.WAL_LIMIT)

    def _checkpoint(self) -> None:
        with self._exclusive():
            try:
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite3.OperationalError as error:
                if error_code(error) not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY):
                    raise


def _final(error: HeadraceError) -> JournalFailed:
    """Whatever stopped the writer, the journal has failed."""
    return error if isinstance(error, JournalFailed) else JournalFailed(error.message, hint=error.hint)
