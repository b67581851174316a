"""One consumer: the journal to one sink, with cursor, order, retries and dead letters.

Killed anywhere, the next run starts from the last commit: what was delivered after it is delivered again, nothing is
skipped. A commit holds the cursor, the parked events, the dead letters and the sink's state, in one transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from headrace.delivery.attempt import Attempt
from headrace.delivery.bulk import BulkFlow
from headrace.delivery.commit import Committer
from headrace.delivery.cursor import REPLAY, Control, Cursor, Replay, ShardCursor
from headrace.delivery.dispatch import Slots
from headrace.delivery.flow import Flow
from headrace.delivery.given_up import GivenUp
from headrace.delivery.heads import Heads
from headrace.delivery.keyed import KeyedFlow
from headrace.delivery.reader import BulkReader, KeyedReader
from headrace.delivery.records import Records
from headrace.delivery.replay import ReplayFlow
from headrace.delivery.replay_reader import ReplayReader, announce
from headrace.delivery.retry import Outage
from headrace.delivery.status import ConsumerStatus, Counts
from headrace.errors import Fatal, JournalFailed
from headrace.protocols import Change, ConsumerJournal, Context, Flushes, Position, Sink, StoresCursor
from headrace.settings import ConsumerSettings
from headrace.tasks import among, first_of

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
        heads: Heads | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.records = Records(journal, name)
        self.counts = Counts()
        self.control = Control()
        self.journal = journal
        self._context = context
        self._heads = heads or Heads(journal)
        self._selection = self._heads.selections.of(settings.on, settings.where)
        self._prepared: dict[str, Position] = {}
        self._flows: dict[str, Flow] = {}
        self._slots: Slots | None = None
        self._outage: Outage | None = None
        self._stopping = asyncio.Event()
        self._resumed = asyncio.Event()
        self.given_up = GivenUp(journal, self.records, self.counts)
        self._turn = asyncio.Lock()  # held by a run, or by a command that moves the cursor between two
        self._breaks = 0
        self._stores_cursor: bool | None = None  # not known before the sink was open once

    # Before the first source starts.

    async def prepare(self) -> None:
        """Make the cursor where the consumer is new, and hold what it still needs."""
        await self.records.written()
        await self.given_up.count()
        self.control = await self.records.control()
        cursor = await self.records.cursor()
        if cursor is None:
            cursor = Cursor({shard: ShardCursor(await self._start(shard)) for shard in self.journal.shards})
            await self.journal.submit(Change(rows=[self.records.cursor_row(cursor)]))
        self._prepared = {shard: at.low for shard, at in cursor.shards.items()}
        for shard in cursor.shards:
            self.hold(shard, cursor.needs(shard))

    async def _start(self, shard: str) -> Position:
        match self.settings.start:
            case "earliest":
                return await self.journal.oldest(shard)
            case "latest":
                return self.journal.head(shard)
            case moment:
                return await self.journal.at(shard, moment.timestamp())

    # A run.

    async def run(self) -> None:
        """Deliver until stopped or cancelled. Raises what the sink or the journal raised."""
        while not self._stopping.is_set():
            if self.control.paused:
                self._resumed.clear()
                await first_of(self._resumed.wait(), self._stopping.wait())
            else:
                async with self._turn:
                    await self._deliver()

    async def stop(self, grace: float) -> None:
        """Stop reading, and finish what is in flight within `grace` seconds."""
        self._stopping.set()
        if self._slots:
            await self._slots.finish(grace)

    async def _deliver(self) -> None:
        await self.records.written()
        cursor = await self.records.cursor()
        if cursor is None:
            raise Fatal(f"the cursor of consumer {self.name} is gone", hint="restart the daemon")
        context = self._context(cursor.state)
        async with self.settings.open(context) as sink:
            self._stores_cursor = isinstance(sink, StoresCursor)
            if isinstance(sink, StoresCursor):
                cursor = await self._as_stored(sink, cursor)
            # The operator's changes to parked events reach either the rows that are loaded, or the running slots.
            async with self.given_up.changing:
                self._flows = await self._load(cursor, context)
                self._slots = self.given_up.slots = slots = self._wired(sink, cursor, context)
            try:
                await self._engine(slots, context)
            finally:
                self._slots = self.given_up.slots = self._outage = None

    async def _as_stored(self, sink: StoresCursor, cursor: Cursor) -> Cursor:
        """The sink's own cursor rules in the shards that it knows."""
        if not self.settings.bulk:
            raise Fatal(f"the sink of {self.name} keeps its cursor, so it must be delivered to in bulk")
        stored = await sink.position()
        if stored is None:
            return cursor
        for shard, at in stored.shards.items():
            if shard in self.journal.shards and at.low > self.journal.head(shard):
                hint = "was an older journal restored? `headrace seek` or empty the target"
                raise Fatal(f"the target of {self.name} is at {at.low}, beyond the journal's end", hint=hint)
        return Cursor({**cursor.shards, **stored.shards}, cursor.state)

    async def _load(self, cursor: Cursor, context: Context) -> dict[str, Flow]:
        flows: dict[str, Flow] = {}
        kind = BulkFlow if self.settings.bulk else KeyedFlow
        for shard in self.journal.shards:
            at = cursor.shards.get(shard) or ShardCursor(await self.journal.oldest(shard))
            self.hold(shard, cursor.needs(shard) if shard in cursor.shards else at.low)
            at = await self._past_the_gap(shard, at, cursor, context)
            flows[shard] = kind(shard, self.settings.ordering, at)
        await self._recall(flows)
        replays = {shard + REPLAY: self._replay_flow(flows[shard], it) for shard, it in cursor.replays.items()}
        if replays:
            await self._recall(replays)
        for again in replays.values():
            await announce(self.journal, again, self._selection)
            flows[again.journal_shard].wait_for(again.gate)
        flows |= replays
        for flow in flows.values():
            flow.advance(flow.read)
        return flows

    def _replay_flow(self, live: Flow, replay: Replay) -> ReplayFlow:
        return ReplayFlow(live.shard, self.settings.ordering, replay, frozenset(live.recalled_positions()))

    async def _recall(self, flows: Mapping[str, Flow]) -> None:
        async for shard, position, parked in self.records.parked():
            if shard in flows:
                flows[shard].recall(position, parked)

    async def _past_the_gap(self, shard: str, at: ShardCursor, cursor: Cursor, context: Context) -> ShardCursor:
        """What is gone from the journal is recorded, said loudly, and passed."""
        oldest = await self.journal.oldest(shard)
        if at.low >= oldest:
            return at
        after = ShardCursor(oldest, tuple(done for done in at.done if done[1] >= oldest))
        gap = (shard, at.low, oldest - 1, "the journal no longer has these positions")
        self.control = msgspec.structs.replace(self.control, gaps=(*self.control.gaps, gap))
        cursor = msgspec.structs.replace(cursor, shards={**cursor.shards, shard: after})
        rows = [self.records.control_row(self.control), self.records.cursor_row(cursor)]
        await self.journal.submit(Change(rows=rows))
        context.log.error("gap", shard=shard, first=at.low, last=oldest - 1, why=gap[3])
        return after

    def hold(self, shard: str, position: Position) -> None:
        """What the journal must keep, where this consumer holds anything."""
        if not self.control.detached:
            self.journal.hold(self.name, shard, position)

    def _wired(self, sink: Sink, cursor: Cursor, context: Context) -> Slots:
        settings = self.settings
        interval = FLUSH_COMMIT if isinstance(sink, Flushes) else HANDLER_COMMIT
        committer = Committer(self.journal, self.records, self._flows, sink, cursor.state, interval, self.hold)
        self._outage = Outage(settings.retry, context.clock, context.log)
        attempt = Attempt(self.records, settings, sink, committer, self._outage, self.counts, context, self.pause)
        return Slots(attempt, self._flows, settings, context.clock)

    async def _engine(self, slots: Slots, context: Context) -> None:
        """Everything that runs while the sink is open, until stopped, paused or failed."""
        committer = slots.attempt.committer
        if self.control.paused or self._breaks:  # meanwhile
            slots.close()
        committer.touch()  # the cursor may have come from the sink, or have passed a gap
        try:
            async with asyncio.TaskGroup() as group:
                background = [group.create_task(committer.run())]
                background += [group.create_task(self._reader(flow, slots, context)) for flow in self._flows.values()]
                await slots.run(group, self._stopping)
                for task in background:
                    task.cancel()
        except Exception as error:
            await self._save(committer, error, context)
            raise
        await committer.commit()

    def _reader(self, flow: Flow, slots: Slots, context: Context) -> Coroutine[Any, Any, None]:
        shared = (self._selection, self._heads, slots, self.counts, context.log)
        if isinstance(flow, ReplayFlow):
            return ReplayReader(self.journal, flow, *shared).run()
        if isinstance(flow, BulkFlow):
            return BulkReader(self.journal, flow, *shared).run()
        assert isinstance(flow, KeyedFlow)  # noqa: S101 -- there is no third kind
        return KeyedReader(self.journal, flow, *shared).run()

    @staticmethod
    async def _save(committer: Committer, error: Exception, context: Context) -> None:
        """What was settled before the failure need not be delivered again."""
        if among(error, JournalFailed):
            return
        try:
            await committer.commit()
        except Exception as second:  # noqa: BLE001 -- the first failure is the one to tell
            context.log.warning("the last commit failed too", error=str(second))

    # What the operator may do while it runs, or not.

    @asynccontextmanager
    async def between_runs(self) -> AsyncIterator[Cursor]:
        """The stored cursor while nothing is delivered: what was in flight has ended and is committed."""
        self._breaks += 1
        try:
            if self._slots:
                self._slots.close()
            async with self._turn:
                await self.records.written()
                cursor = await self.records.cursor()
                if cursor is None:
                    raise Fatal(f"the cursor of consumer {self.name} is gone", hint="restart the daemon")
                yield cursor
        finally:
            self._breaks -= 1

    def moved(self, cursor: Cursor) -> None:
        """The stored cursor was changed between two runs."""
        self._flows = {}
        self._prepared = {shard: at.low for shard, at in cursor.shards.items()}
        for shard in cursor.shards:
            self.hold(shard, cursor.needs(shard))

    async def stores_cursor(self, state: bytes | None) -> bool:
        """Whether the sink keeps the cursor with its data; it may have to be opened to know."""
        if self._stores_cursor is None:
            async with self.settings.open(self._context(state)) as sink:
                self._stores_cursor = isinstance(sink, StoresCursor)
        return self._stores_cursor

    async def pause(self, why: str) -> None:
        """Durably: also after a restart, until resumed."""
        await self._decide(msgspec.structs.replace(self.control, paused=why or "paused by the operator"))

    async def _decide(self, control: Control) -> None:
        self.control = control
        await self.records.set_control(control)
        if self._slots:
            self._slots.close()

    async def detach(self, why: str) -> None:
        """Pause, and give up what was not read: `on_lag = "detach"`. The gap is recorded when it is resumed."""
        await self._decide(msgspec.structs.replace(self.control, paused=why, detached=True))
        self.journal.release(self.name)

    async def resume(self) -> None:
        """Go on from the cursor."""
        self.control = Control("", self.control.gaps)
        await self.records.set_control(self.control)
        self._resumed.set()

    def status(self) -> ConsumerStatus:
        """For `status`: where it stands and what it did since the daemon started."""
        flows = self._flows
        lows = {**self._prepared, **{s: it.cursor().low for s, it in flows.items() if not isinstance(it, ReplayFlow)}}
        lag = sum(self.journal.head(shard) - low for shard, low in lows.items())
        return ConsumerStatus(
            name=self.name,
            state=self._state(),
            why=self.control.paused or self.counts.problem or (self._outage.reason if self._outage else ""),
            lag=lag,
            behind=self.counts.behind(self._context(None).clock.time()) if lag else 0.0,
            delivered=self.counts.delivered,
            failed=self.counts.failed,
            retried=self.counts.retried,
            dead=self.counts.dead,
            parked=sum(flow.parked + flow.recalled for flow in self._flows.values()),
            gaps=len(self.control.gaps),
            replaying=sum(flow.left for flow in flows.values() if isinstance(flow, ReplayFlow)),
        )

    def _state(self) -> str:
        if self.control.paused:
            return "paused"
        return "target away" if self._outage and self._outage.there else "running"
