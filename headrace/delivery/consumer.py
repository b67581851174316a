"""One consumer: the journal to one sink, with cursor, order, retries and dead letters.

Killed anywhere, the next run starts from the last commit: what was delivered after it is delivered again, nothing is
skipped. A commit holds the cursor, the parked events, the dead letters and the sink's state, in one transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from headrace.delivery.attempt import Attempt
from headrace.delivery.commit import Committer
from headrace.delivery.cursor import Control, Cursor, DeadLetter, Failure, Parked, ShardCursor
from headrace.delivery.dispatch import BulkReader, KeyedReader, Slots
from headrace.delivery.flow import Flow
from headrace.delivery.records import Records
from headrace.delivery.retry import Outage
from headrace.delivery.selection import Selection
from headrace.delivery.status import ConsumerStatus, Counts
from headrace.errors import Fatal, Permanent
from headrace.event import Event
from headrace.protocols import Change, ConsumerJournal, Context, Flushes, Position, Row, Sink, StoresCursor
from headrace.settings import ConsumerSettings
from headrace.tasks import first_of

HANDLER_COMMIT: Final = 0.005  # seconds between two commits, which bound what is repeated after a crash
FLUSH_COMMIT: Final = 0.05  # the same where each commit waits for the target's fsync


class Consumer:
    """The life of one consumer over one or more runs. `prepare` comes before any source starts."""

    def __init__(
        self,
        name: str,
        settings: ConsumerSettings,
        journal: ConsumerJournal,
        context: Callable[[bytes | None], Context],
    ) -> None:
        self.name = name
        self.settings = settings
        self.records = Records(journal, name)
        self.counts = Counts()
        self.control = Control()
        self._journal = journal
        self._context = context
        self._selection = Selection(settings.on)
        self._prepared: dict[str, Position] = {}
        self._flows: dict[str, Flow] = {}
        self._slots: Slots | None = None
        self._outage: Outage | None = None
        self._stopping = asyncio.Event()
        self._resumed = asyncio.Event()
        self.failed = ""

    # Before the first source starts.

    async def prepare(self) -> None:
        """Make the cursor where the consumer is new, and hold what it still needs."""
        self.control = await self.records.control()
        cursor = await self.records.cursor()
        if cursor is None:
            cursor = Cursor({shard: ShardCursor(await self._start(shard)) for shard in self._journal.shards})
            await self._journal.submit(Change(rows=[self.records.cursor_row(cursor)]))
        self._prepared = {shard: at.low for shard, at in cursor.shards.items()}
        if not self.control.detached:
            for shard, at in cursor.shards.items():
                self._journal.hold(self.name, shard, at.low)

    async def _start(self, shard: str) -> Position:
        match self.settings.start:
            case "earliest":
                return await self._journal.oldest(shard)
            case "latest":
                return self._journal.head(shard)
            case moment:
                return await self._journal.at(shard, moment.timestamp())

    # A run.

    async def run(self) -> None:
        """Deliver until stopped or cancelled. Raises what the sink or the journal raised."""
        self.failed = ""
        while not self._stopping.is_set():
            if self.control.paused:
                self._resumed.clear()
                await first_of(self._resumed.wait(), self._stopping.wait())
            else:
                await self._deliver()

    async def stop(self, grace: float) -> None:
        """Stop reading, and finish what is in flight within `grace` seconds."""
        self._stopping.set()
        if self._slots:
            await self._slots.finish(grace)

    async def _deliver(self) -> None:
        cursor = await self.records.cursor()
        if cursor is None:
            raise Fatal(f"the cursor of consumer {self.name} is gone", hint="restart the daemon")
        context = self._context(cursor.state)
        async with self.settings.open(context) as sink:
            if isinstance(sink, StoresCursor):
                cursor = await sink.position() or cursor
            self._flows = await self._load(cursor, context)
            await self._engine(sink, cursor, context)

    async def _load(self, cursor: Cursor, context: Context) -> dict[str, Flow]:
        parked: dict[str, dict[Position, Parked]] = {shard: {} for shard in self._journal.shards}
        async for shard, position, row in self.records.parked():
            parked[shard][position] = row
        flows = {}
        for shard in self._journal.shards:
            at = cursor.shards.get(shard) or ShardCursor(await self._journal.oldest(shard))
            at = await self._past_the_gap(shard, at, context)
            flows[shard] = Flow(shard, self.settings.ordering, at, parked[shard])
        return flows

    async def _past_the_gap(self, shard: str, at: ShardCursor, context: Context) -> ShardCursor:
        """What is gone from the journal is recorded, said loudly, and passed."""
        oldest = await self._journal.oldest(shard)
        if at.low >= oldest:
            return at
        gap = (shard, at.low, oldest - 1, "the journal no longer has these positions")
        self.control = Control(self.control.paused, (*self.control.gaps, gap))
        await self.records.set_control(self.control)
        context.log.error("gap", first=at.low, last=oldest - 1, why=gap[3])
        return ShardCursor(oldest, tuple(done for done in at.done if done[0] >= oldest))

    async def _engine(self, sink: Sink, cursor: Cursor, context: Context) -> None:
        """Everything that runs while the sink is open, until stopped or paused."""
        settings = self.settings
        interval = FLUSH_COMMIT if isinstance(sink, Flushes) else HANDLER_COMMIT
        committer = Committer(self._journal, self.records, self._flows, sink, cursor.state, interval)
        self._outage = Outage(settings.retry, context.clock, context.log)
        attempt = Attempt(self.records, settings, sink, committer, self._outage, self.counts, context, self.pause)
        self._slots = slots = Slots(attempt, self._flows, settings, self._outage, context.clock)
        reader = BulkReader if settings.bulk else KeyedReader
        async with asyncio.TaskGroup() as group:
            committing = group.create_task(committer.run())
            reading = [
                group.create_task(reader(self._journal, flow, self._selection, slots, self.counts, context.log).run())
                for flow in self._flows.values()
            ]
            await slots.run(group, self._stopping)
            for task in reading:
                task.cancel()
            committing.cancel()
        await committer.commit()
        self._slots = None

    # What the operator may do while it runs, or not.

    async def pause(self, why: str) -> None:
        """Durably: also after a restart, until resumed."""
        await self._decide(Control(why or "paused by the operator", self.control.gaps))

    async def _decide(self, control: Control) -> None:
        self.control = control
        await self.records.set_control(control)
        if self._slots:
            self._slots.close()

    async def detach(self, why: str) -> None:
        """Pause, and give up what was not read: `on_lag = "detach"`. The gap is recorded when it is resumed."""
        await self._decide(Control(why, self.control.gaps, detached=True))
        self._journal.release(self.name)

    async def resume(self) -> None:
        """Go on from the cursor."""
        self.control = Control("", self.control.gaps)
        await self.records.set_control(self.control)
        self._resumed.set()

    async def redrive(self, shard: str, position: Position) -> None:
        """Deliver a dead letter again, or one that is held. Raises `Permanent` where there is none."""
        letter = await self.records.dead_at(shard, position)
        parked = await self.records.parked_at(shard, position)
        if letter is None and not (parked and parked.held):
            raise Permanent(f"consumer {self.name} has no dead letter at {position}")
        again = Parked(_marked(letter.line), letter.source) if letter else _unheld(parked)
        rows = [self.records.parked_row(shard, position, again)]
        if letter:
            rows.append(self.records.dead_row(shard, position, None))
        await self._change(rows)
        if self._slots:
            self._slots.admit_again(shard, position, again)

    async def discard(self, shard: str, position: Position) -> None:
        """Forget a dead letter, or one that is held, so that its key goes on."""
        parked = await self.records.parked_at(shard, position)
        if parked is None and await self.records.dead_at(shard, position) is None:
            raise Permanent(f"consumer {self.name} has no dead letter at {position}")
        if parked and self._slots:
            self._slots.complete(shard, position)
        rows = [self.records.dead_row(shard, position, None), self.records.parked_row(shard, position, None)]
        await self._change(rows)

    async def _change(self, rows: list[Row]) -> None:
        await self._journal.submit(Change(rows=rows))

    async def dead_letters(self) -> AsyncIterator[tuple[str, Position, DeadLetter, bool]]:
        """Dead letters and held events, the latter marked."""
        async for shard, position, letter in self.records.dead():
            yield shard, position, letter, False
        async for shard, position, parked in self.records.parked():
            if parked.held:
                yield shard, position, DeadLetter(parked.line, parked.source, parked.failure), True

    def status(self) -> ConsumerStatus:
        """For `status`: where it stands and what it did since the daemon started."""
        lows = {**self._prepared, **{shard: flow.cursor().low for shard, flow in self._flows.items()}}
        lag = sum(self._journal.head(shard) - low for shard, low in lows.items())
        return ConsumerStatus(
            name=self.name,
            state=self._state(),
            why=self.failed
            or self.control.paused
            or self.counts.problem
            or (self._outage.reason if self._outage else ""),
            lag=lag,
            behind=self.counts.behind(self._context(None).clock.time()) if lag else 0.0,
            delivered=self.counts.delivered,
            failed=self.counts.failed,
            retried=self.counts.retried,
            dead=self.counts.dead,
            parked=sum(flow.parked for flow in self._flows.values()),
            gaps=len(self.control.gaps),
        )

    def _state(self) -> str:
        if self.failed:
            return "failed"
        if self.control.paused:
            return "paused"
        return "target away" if self._outage and self._outage.there else "running"


def _marked(line: bytes) -> bytes:
    """A redriven event says so: `headraceredrive` is a CloudEvents extension attribute."""
    event = Event.parse(line)
    return msgspec.structs.replace(event, extensions={**event.extensions, "headraceredrive": True}).line()


def _unheld(parked: Parked | None) -> Parked:
    if parked is None:
        raise Permanent("nothing is held there")
    return Parked(parked.line, parked.source, Failure(first=parked.failure.first, error=parked.failure.error))
