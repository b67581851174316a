"""The loop from the server to the journal, and the acknowledgement of what is durable, on its own timer."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from time import monotonic
from typing import Final

import msgspec

from headrace.errors import Transient
from headrace.failpoints import reach
from headrace.protocols import Capture, Clock
from headrace.sources.postgres.assembly import Assembly, Portion
from headrace.sources.postgres.positions import Position
from headrace.sources.postgres.replication import MESSAGES, Replication
from headrace.sources.postgres.slots import went_back

REPORT: Final = 1.0  # seconds between reports of what is durable
IDLE: Final = 10.0  # seconds between notes of how far the server looked without finding anything for us
SILENT: Final = 30.0  # seconds without a word after which the server is asked for one; after two of them it is gone
AT_ONCE: Final = 2  # appends in flight beyond which small portions wait to grow


class History:
    """Notices a server that went back: it has other transactions at LSNs that were captured.

    `expected` is the last captured transaction, where the server must send it again.
    """

    def __init__(self, position: Position, flushed: int, epoch: int) -> None:
        self._position = position
        self._epoch = epoch
        self._expected = position.xid != 0 and flushed <= position.lsn

    def check(self, lsn: int, xid: int, time: int) -> None:
        """Raises `Fatal` where this transaction cannot follow, or be, what was captured."""
        if not self._expected or lsn < self._position.lsn:
            return
        if lsn > self._position.lsn:
            raise went_back(self._position, "it is not in the server's history", self._epoch)
        if (xid, time) != (self._position.xid, self._position.time):
            raise went_back(self._position, f"transaction {xid} is in its place", self._epoch)
        self._expected = False


class Stream:
    """Runs one connection's stream until it ends or is cancelled."""

    def __init__(self, replication: Replication, assembly: Assembly, out: Capture, clock: Clock) -> None:
        self._replication = replication
        self._assembly = assembly
        self._out = out
        self._clock = clock
        self._wake = asyncio.Event()
        self._report_now = asyncio.Event()
        self._in_flight: deque[tuple[Future[None], int]] = deque()
        self._submitted = assembly.position
        self._durable = assembly.position.end
        self._heard = self._noted = monotonic()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._report(), name="feedback")
            group.create_task(self._watch(), name="silence")
            await self._pump()

    async def _pump(self) -> None:
        while True:
            messages = self._replication.take()
            if messages:
                self._heard = monotonic()
                for portion in self._assembly.feed(messages):
                    await self._submit(portion)
                await asyncio.sleep(0)  # the report's turn
                if len(messages) == MESSAGES:
                    continue
            if len(self._in_flight) < AT_ONCE:
                for portion in self._assembly.flush():
                    await self._submit(portion)
            if not messages:
                await self._note_idle()
                await self._replication.readable(REPORT, self._wake)

    async def _submit(self, portion: Portion) -> None:
        reach("postgres.before-submit")
        writes = [portion.position.write(), *portion.writes]
        future = await self._out.submit(portion.lines, writes)
        reach("postgres.after-submit")
        self._submitted = portion.position
        self._track(future, portion.position.end)

    def _track(self, future: Future[None], end: int) -> None:
        self._in_flight.append((future, end))
        future.add_done_callback(lambda _: self._settle())
        self._settle()

    def _settle(self) -> None:
        """Move what may be acknowledged behind all that is durable; a failed append wakes the loop, which meets it."""
        while self._in_flight and self._in_flight[0][0].done():
            future, end = self._in_flight[0]
            if future.cancelled() or future.exception():
                break
            self._in_flight.popleft()
            self._durable = max(self._durable, end)
        self._wake.set()

    async def _note_idle(self) -> None:
        """Record how far the server looked, so that its WAL can go although nothing of it concerns us."""
        self._raise_failed()
        end = self._assembly.idle_end
        due = self._assembly.reply_wanted or monotonic() - self._noted >= IDLE
        if due and end > self._submitted.end and not self._in_flight and self._assembly.idle:
            self._submitted = msgspec.structs.replace(self._assembly.position, end=end)
            self._assembly.moved(self._submitted)
            self._track(await self._out.submit([], [self._submitted.write()]), end)
        if due:
            self._noted = monotonic()
            self._report_now.set()
        self._assembly.reply_wanted = False

    def _raise_failed(self) -> None:
        if self._in_flight and self._in_flight[0][0].done():
            self._in_flight[0][0].result()

    async def _report(self) -> None:
        while True:
            try:
                async with asyncio.timeout(REPORT):
                    await self._report_now.wait()
            except TimeoutError:
                pass
            self._report_now.clear()
            reach("postgres.before-report")
            await self._replication.report(self._durable, self._clock.time())

    async def _watch(self) -> None:
        """A connection that was cut without a word is noticed."""
        while True:
            await asyncio.sleep(SILENT / 2)
            silent = monotonic() - self._heard
            if silent > 2 * SILENT and not self._in_flight:
                raise Transient(f"Postgres: nothing heard for {silent:.0f} seconds")
            if silent > SILENT:
                await self._replication.report(self._durable, self._clock.time(), reply=True)
