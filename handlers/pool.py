"""The processes of one handler: started by need, ended when idle, replaced when they have done enough."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from headrace.errors import HeadraceError
from headrace.handlers.process import Process
from headrace.protocols import Logger

_IDLE: Final = 10.0  # seconds until a process beside another one ends
_GRACE: Final = 2.0
_RESTART_PAUSE: Final = 1.0
_LOOK: Final = 1.0  # seconds between looks at a process's memory
AHEAD: Final = 2  # deliveries that a quick process may have at a time


class Pooled(Protocol):
    """A process that serves deliveries, and is used no more once `usable` is false.

    `ready` gives None, or the error for which it cannot be used. `quick`: it may have the next delivery already while
    it works on one.
    """

    ready: asyncio.Future[HeadraceError | None]
    usable: bool

    @property
    def process(self) -> Process: ...
    @property
    def quick(self) -> bool: ...
    def stop(self, grace: float) -> None:
        """Let it end by itself; killed after `grace` seconds."""


W = TypeVar("W", bound=Pooled)
Start = Callable[[Callable[[W], None]], W]
"""Starts one; what it is given is called once, when the process is gone."""


@dataclass(frozen=True, slots=True)
class Limits:
    """At most `most` processes; the last one ends after `idle` seconds.

    Between two deliveries one is replaced that has had `deliveries` events, or holds more than `memory` bytes.
    """

    most: int
    idle: float = 600.0
    deliveries: int | None = None
    memory: int | None = None


@dataclass(slots=True, eq=False)
class _Member(Generic[W]):
    worker: W
    lent: int = 0
    deliveries: int = 0
    looked: float = 0.0
    idle_since: float = 0.0

    @property
    def free(self) -> bool:
        return self.lent == 0 and self.worker.usable


class Pool(Generic[W]):
    """Lends processes, in the order they are asked for. One that died is replaced, and the code loaded anew."""

    def __init__(self, start: Start[W], limits: Limits, log: Logger) -> None:
        self._make = start
        self._limits = limits
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._members: dict[int, _Member[W]] = {}  # by the worker's identity, the one used last at the end
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._last_start = 0.0
        self._trimmer: asyncio.TimerHandle | None = None
        self._closing = False

    @property
    def running(self) -> list[W]:
        """Those that run, also those that are just starting or ending."""
        return [member.worker for member in self._members.values()]

    async def take(self) -> W:
        """A process that is ready. Raises what keeps a new one from starting.

        Cancelled while the process loads the code, it leaves it to load on: a slow import is not repeated.
        """
        while (member := self._choose()) is None:
            await self._turn()
        member.lent += 1
        try:
            return await self._ready(member)
        except BaseException:  # also where it is cancelled: the process is free again
            self._give_back(member)
            raise

    def give(self, worker: W, deliveries: int = 1) -> None:
        """It has served so many events."""
        member = self._members.get(id(worker))
        if member is not None:
            member.deliveries += deliveries
            self._give_back(member)
        else:
            self._wake()

    # --- lending

    def _choose(self) -> _Member[W] | None:
        """A free one, else a new one, else a quick one that works on one delivery only."""
        usable, quick = 0, None
        for member in reversed(self._members.values()):
            if member.worker.usable:
                if not member.lent:
                    return member
                usable += 1
                if quick is None and member.lent < AHEAD and member.worker.quick:
                    quick = member
        return self._start() if usable < self._limits.most else quick

    async def _turn(self) -> None:
        turn = self._loop.create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:
                self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def _ready(self, member: _Member[W]) -> W:
        worker = member.worker
        if not worker.ready.done():
            await asyncio.wait({worker.ready})
        error = worker.ready.result()
        if error is not None:
            raise error
        return worker

    def _give_back(self, member: _Member[W]) -> None:
        member.lent -= 1
        if member.free and not self._closing:
            if len(self._members) > 1:
                self._members[id(member.worker)] = self._members.pop(id(member.worker))
            member.idle_since = time.monotonic()
            if self._has_done_enough(member):
                member.worker.stop(_GRACE)
            self._trim_later()
        self._wake()

    def _has_done_enough(self, member: _Member[W]) -> bool:
        limits = self._limits
        if limits.deliveries is not None and member.deliveries >= limits.deliveries:
            return True
        if limits.memory is None or member.idle_since - member.looked < _LOOK:
            return False
        member.looked = member.idle_since
        return resident(member.worker.process.pid) > limits.memory

    # --- starting and ending

    def _start(self) -> _Member[W]:
        self._last_start = time.monotonic()
        member = _Member(self._make(self._ended))
        self._members[id(member.worker)] = member
        if self._trimmer is not None and len(self._members) > 1:  # armed for a single one
            self._trimmer.cancel()
            self._trimmer = None
        return member

    def _ended(self, worker: W) -> None:
        del self._members[id(worker)]
        rested = time.monotonic() - self._last_start > _RESTART_PAUSE
        died = worker.ready.result() is None and not self._closing and rested
        if died and not self._members and self._limits.idle:
            self._start_spare()
        self._wake()

    def _start_spare(self) -> None:
        try:
            self._start()
        except HeadraceError as error:  # the next delivery meets it again, and raises it
            self._log.warning("a worker could not be replaced", error=str(error))

    def _trim_later(self) -> None:
        """Look for idle ones when the first of them may have become so."""
        if self._trimmer is None:
            several = sum(member.worker.usable for member in self._members.values()) > 1
            delay = min(_IDLE, self._limits.idle) if several else self._limits.idle
            self._trimmer = self._loop.call_later(delay, self._trim)

    def _trim(self) -> None:
        """End what nobody needed for long; the one used last stays longest."""
        self._trimmer = None
        now = time.monotonic()
        free = [member for member in self._members.values() if member.free]
        for member in free:
            alone = member is free[-1]
            if now - member.idle_since >= (self._limits.idle if alone else min(_IDLE, self._limits.idle)) - 0.01:
                member.worker.stop(_GRACE)
        if any(member.worker.usable for member in self._members.values()):
            self._trim_later()

    async def close(self) -> None:
        """Every process may end by itself, and is killed after two seconds; on return none is left."""
        self._closing = True
        if self._trimmer is not None:
            self._trimmer.cancel()
        ends = {worker.process.ended for worker in self.running}
        for worker in self.running:
            worker.stop(_GRACE)
        try:
            if ends:
                await asyncio.wait(ends)
        finally:
            for worker in self.running:
                worker.process.kill()


def resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


@asynccontextmanager
async def open_pool(start: Start[W], limits: Limits, log: Logger) -> AsyncIterator[Pool[W]]:
    """A pool whose first process is ready. Raises what kept it from that."""
    pool = Pool(start, limits, log)
    try:
        pool.give(await pool.take(), 0)
        yield pool
    finally:
        await pool.close()
