"""The workers of one handler: started by need, one kept warm, the others ended when idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Generic, Protocol, TypeVar

from headrace.errors import HeadraceError
from headrace.handlers.process import Process
from headrace.protocols import Logger

_IDLE: Final = 10.0
_GRACE: Final = 2.0
_RESTART_PAUSE: Final = 1.0


class Pooled(Protocol):
    """A process that serves deliveries one after the other, and is used no more once `usable` is false.

    `ready` gives None, or the error for which it cannot be used.
    """

    ready: asyncio.Future[HeadraceError | None]
    usable: bool
    idle_since: float

    @property
    def process(self) -> Process: ...
    def stop(self, grace: float) -> None:
        """Let it end by itself; killed after `grace` seconds."""


W = TypeVar("W", bound=Pooled)
Start = Callable[[Callable[[W], None]], W]
"""Starts one; what it is given is called once, when the process is gone."""


class Pool(Generic[W]):
    """Lends workers. At most `limit` are lent at once; a worker that died is replaced, and the function loaded anew."""

    def __init__(self, start: Start[W], limit: int, log: Logger) -> None:
        self._make = start
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._lendable = asyncio.Semaphore(limit)
        self._idle: list[W] = []  # the one used last is at the end
        self._running: set[W] = set()
        self._last_start = 0.0
        self._trimmer: asyncio.TimerHandle | None = None
        self._closing = False

    @property
    def size(self) -> int:
        """Workers that run, those included that are just starting or ending."""
        return len(self._running)

    async def take(self) -> W:
        """A worker that is ready. Raises what keeps a new one from starting.

        Cancelled while the worker loads the function, it leaves the worker to load on: a slow import is not repeated.
        """
        await self._lendable.acquire()
        try:
            return await self._ready()
        except BaseException:
            self._lendable.release()
            raise

    def give(self, worker: W) -> None:
        self._lendable.release()
        if worker.usable and not self._closing:
            worker.idle_since = time.monotonic()
            self._idle.append(worker)
            self._trim_later()

    async def _ready(self) -> W:
        worker = self._idle.pop() if self._idle else self._start()
        if not worker.ready.done():
            try:
                await asyncio.wait({worker.ready})
            except asyncio.CancelledError:
                self._idle.append(worker)
                raise
        error = worker.ready.result()
        if error is not None:
            raise error
        return worker

    def _start(self) -> W:
        self._last_start = time.monotonic()
        worker = self._make(self._ended)
        self._running.add(worker)
        return worker

    def _ended(self, worker: W) -> None:
        self._running.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        rested = time.monotonic() - self._last_start > _RESTART_PAUSE
        if not (self._closing or self._running) and worker.ready.result() is None and rested:
            self._start_spare()

    def _start_spare(self) -> None:
        try:
            self._idle.append(self._start())
        except HeadraceError as error:  # the next delivery meets it again, and raises it
            self._log.warning("a worker could not be replaced", error=str(error))

    def _trim_later(self) -> None:
        if self._trimmer is None and len(self._idle) > 1:
            self._trimmer = self._loop.call_later(_IDLE, self._trim)

    def _trim(self) -> None:
        self._trimmer = None
        long_ago = time.monotonic() - _IDLE
        for worker in [one for one in self._idle[:-1] if one.idle_since <= long_ago]:
            self._idle.remove(worker)
            worker.stop(_GRACE)
        self._trim_later()

    async def close(self) -> None:
        """Every worker may end by itself, and is killed after two seconds; on return none is left."""
        self._closing = True
        if self._trimmer is not None:
            self._trimmer.cancel()
        ends = {worker.process.ended for worker in self._running}
        for worker in self._running:
            worker.stop(_GRACE)
        try:
            if ends:
                await asyncio.wait(ends)
        finally:
            for worker in self._running:
                worker.process.kill()


@asynccontextmanager
async def open_pool(start: Start[W], limit: int, log: Logger) -> AsyncIterator[Pool[W]]:
    """A pool whose first worker is ready. Raises what kept it from that."""
    pool = Pool(start, limit, log)
    try:
        pool.give(await pool.take())
        yield pool
    finally:
        await pool.close()
