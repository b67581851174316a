"""The loop from the server to the journal, and the acknowledgement of what is durable, on its own timer."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Final

import msgspec

from headrace.errors import Transient
from headrace.failpoints import reach
from headrace.protocols import Capture, Clock
from headrace.sources.postgres.assembly import Assembly, Reached
from headrace.sources.postgres.portion import Portion
from headrace.sources.postgres.positions import Position
from headrace.sources.postgres.replication import Replication
from headrace.sources.postgres.slots import went_back

REPORT: Final = 1.0  # seconds between reports of what is durable, whether that moved or not
SOON: Final = 0.1  # seconds from its moving to a report
IDLE: Final = 10.0  # seconds between notes of how far the server looked without finding anything for us
SILENT: Final = 30.0  # seconds without a word after which the server is asked for one; after two of them it is gone
# Seconds to leave the server alone once all that it sent of a running transaction is taken. While our buffer has room,
# each row is a segment of its own, which costs the server 5 µs; once it is full, they gather on its side: 1 µs (tried).
GATHER: Final = 0.005
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
    """Runs one connection's stream until it ends, is cancelled, or has reached its target."""

    def __init__(
        self, replication: Replication, assembly: Assembly, out: Capture, clock: Clock, target: int | None = None
    ) -> None:
        """`target`: end once everything up to this LSN is durable."""
        self._target = target
        self._replication = replication
        self._assembly = assembly
        self._out = out
        self._clock = clock
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._asked = asyncio.Event()
        self._in_flight: deque[tuple[Future[None], int]] = deque()
        self._submitted = assembly.position
        self._durable = assembly.position.end
        self._heard = self._noted = monotonic()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                others = [group.create_task(self._report(), name="feedback"), group.create_task(self._watch())]
                await self._pump()
                for task in others:
                    task.cancel()
        finally:
            self._replication.report_without_waiting(self._durable, self._clock.time())

    async def _pump(self) -> None:
        while not self._reached():
            messages = self._replication.take()
            if messages:
                self._heard = monotonic()
                if await self._feed(messages):
                    return
                await asyncio.sleep(0)  # the report's turn
                if self._replication.more:
                    continue
                if self._assembly.amid:
                    await asyncio.sleep(GATHER)
                    continue
            if len(self._in_flight) < AT_ONCE:
                for portion in self._assembly.flush():
                    await self._submit(portion)
            if not messages:
                await self._note_idle()
                await self._replication.readable(REPORT, self._wake)

    async def _feed(self, messages: Sequence[bytes]) -> bool:
        """Whether the stream came to where it was to stop."""
        try:
            for portion in self._assembly.feed(messages):
                await self._submit(portion)
        except Reached:
            for portion in self._assembly.flush():
                await self._submit(portion)
            return True
        return False

    def _reached(self) -> bool:
        if self._target is None or self._in_flight or not self._assembly.idle:
            return False
        return self._assembly.idle_end >= self._target

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
            if end > self._durable:
                self._durable = end
                self._moved.set()
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
        if self._assembly.reply_wanted:
            self._asked.set()
            self._moved.set()
        self._assembly.reply_wanted = False

    def _raise_failed(self) -> None:
        if self._in_flight and self._in_flight[0][0].done():
            self._in_flight[0][0].result()

    async def _report(self) -> None:
        while True:
            await _within(REPORT, self._moved)
            await _within(SOON, self._asked)
            self._moved.clear()
            self._asked.clear()
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


async def _within(seconds: float, event: asyncio.Event) -> None:
    """Until the event, and no longer than that."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
