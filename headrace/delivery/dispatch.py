"""The loops of a running consumer that deliver."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Mapping

from headrace.delivery.attempt import Abandoned, Attempt
from headrace.delivery.bulk import BulkFlow
from headrace.delivery.cursor import Parked
from headrace.delivery.flow import Flow
from headrace.delivery.order import Item
from headrace.delivery.run import Run
from headrace.protocols import Clock, Position
from headrace.settings import ConsumerSettings
from headrace.tasks import first_of


class Slots:
    """As many loops as deliveries may be in flight. A delivery that began is finished before its loop ends.

    Everything that may give a slot work rings; everything that may give a reader room says so. A check and the wait
    that follows it are one step of the event loop, so nothing is missed between them.
    """

    def __init__(self, attempt: Attempt, flows: Mapping[str, Flow], settings: ConsumerSettings, clock: Clock) -> None:
        self.attempt = attempt
        self.settings = settings
        self.clock = clock
        self._flows = flows
        self._turns = deque(flows.values())
        self._outage = attempt.outage
        self._count = 1 if settings.bulk or settings.ordering == "strict" else settings.in_flight
        self._tasks: list[asyncio.Task[None]] = []
        self._bell = asyncio.Event()
        self._sooner = asyncio.Event()
        self._armed = math.inf
        self._room = asyncio.Event()
        self._closed = asyncio.Event()
        attempt.committer.committed = self._room.set

    async def run(self, group: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        """Until stopping or closed, and then until what is in flight has ended."""
        self._tasks = [group.create_task(self._slot()) for _ in range(self._count)]
        timer = group.create_task(self._ring_when_due())
        await first_of(stopping.wait(), self._closed.wait())
        self.close()
        await asyncio.wait(self._tasks)
        timer.cancel()

    def close(self) -> None:
        """Begin no further delivery, and wait no longer for an absent target."""
        self._closed.set()
        self._outage.close()
        self._bell.set()

    async def finish(self, grace: float) -> None:
        """Let deliveries in flight end within `grace` seconds."""
        self.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()

    def ring(self) -> None:
        """There may be something to deliver."""
        self._bell.set()
        self._arm()

    async def room(self, flow: Flow) -> None:
        """Wait until the flow takes more."""
        while not flow.has_room:
            self._room.clear()
            await self._room.wait()

    def admit_again(self, shard: str, position: Position, parked: Parked) -> None:
        self._flows[shard].admit_again(position, parked)
        self.ring()

    def discard(self, shard: str, position: Position) -> None:
        self._flows[shard].discard(position)
        self._room.set()
        self.ring()

    async def _slot(self) -> None:
        while not self._closed.is_set():
            if self._outage.there:
                await self._outage.over()
            elif (taken := self._take()) is None:
                self._bell.clear()
                await self._bell.wait()
            elif not await self._deliver(*taken):
                return

    def _take(self) -> tuple[Flow, Run | list[Item]] | None:
        """The next delivery, from one shard after the other."""
        now = self.clock.time()
        for _ in range(len(self._turns)):
            flow = self._turns[0]
            self._turns.rotate(-1)
            if (work := flow.take(self.settings.batch.size, now)) is not None:
                self._arm()
                return flow, work
        return None

    async def _deliver(self, flow: Flow, work: Run | list[Item]) -> bool:
        try:
            if isinstance(work, list):
                await self.attempt.items(flow, work)
            elif isinstance(flow, BulkFlow):
                await self.attempt.run(flow, work)
                flow.end_run()
        except Abandoned:
            return False
        self._room.set()
        self.ring()  # what waited for these may be delivered now
        return True

    # Parked events whose time comes.

    def _next_due(self) -> float:
        earliest = math.inf
        for flow in self._turns:
            at = flow.next_due
            if at is not None and at < earliest:
                earliest = at
        return earliest

    def _arm(self) -> None:
        if self._next_due() < self._armed:
            self._sooner.set()

    async def _ring_when_due(self) -> None:
        while True:
            self._sooner.clear()
            wait = self._next_due() - self.clock.time()
            if wait <= 0:
                self._bell.set()
                self._armed = math.inf  # whatever is still due when a slot is done rings again
                await self._sooner.wait()
            elif wait == math.inf:
                self._armed = math.inf
                await self._sooner.wait()
            else:
                self._armed = self.clock.time() + wait
                await first_of(self.clock.sleep(wait), self._sooner.wait())
