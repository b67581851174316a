"""One delivery: calling the sink, and deciding what its answer means for each event."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from headrace.delivery.commit import Committer, child_event
from headrace.delivery.cursor import Cursor, Failure, ShardCursor
from headrace.delivery.flow import Flow
from headrace.delivery.order import Item
from headrace.delivery.records import Records
from headrace.delivery.retry import Outage, delay
from headrace.delivery.run import Run
from headrace.delivery.status import Counts
from headrace.errors import Fatal, Permanent, Transient
from headrace.event import Event
from headrace.failpoints import reach
from headrace.protocols import Batch, Context, Sink, StoresCursor, Verdict
from headrace.settings import ConsumerSettings


class Attempt:
    """Delivers for one run of a consumer. `pause` pauses the consumer, for `on_failure = "pause"`."""

    def __init__(
        self,
        records: Records,
        settings: ConsumerSettings,
        sink: Sink,
        committer: Committer,
        outage: Outage,
        counts: Counts,
        context: Context,
        pause: Callable[[str], Awaitable[None]],
    ) -> None:
        self.committer = committer
        self._records = records
        self._settings = settings
        self._sink = sink
        self._stores_cursor = isinstance(sink, StoresCursor)
        self._outage = outage
        self._counts = counts
        self._context = context
        self._pause = pause

    async def items(self, flow: Flow, items: Sequence[Item]) -> None:
        """Deliver these and settle each; no two of them have a key in common."""
        for item in items:
            await self._load(flow, item)
        attempt = 1 + max(item.failure.attempts if item.failure else 0 for item in items)
        data = b"".join(item.line or b"" for item in items)
        verdict = await self._verdict(Batch(flow.shard, [item.position for item in items], data, attempt))
        if isinstance(verdict, Verdict):
            await self._settle(flow, items, verdict)
        elif len(items) > 1:
            half = len(items) // 2
            await self.items(flow, items[:half])
            await self.items(flow, items[half:])
        else:
            await self._failed(flow, items[0], verdict)
        self.committer.touch()

    async def run(self, flow: Flow, run: Run) -> None:
        """Deliver a run in order; what fails is parked alone, and what waits for it as well."""
        run = flow.without_parked(run)
        if not run:
            return
        cursor = Cursor({flow.shard: ShardCursor(run.end)}) if self._stores_cursor else None
        verdict = await self._verdict(Batch(flow.shard, run.positions, run.data, cursor=cursor))
        if isinstance(verdict, Verdict):
            await self._settle_run(flow, run, verdict)
        elif run.size > 1:
            for half in run.split():
                await self.run(flow, half)
        else:
            ((block, index),) = run.events()
            await self._failed(flow, flow.enter(block, index), verdict)
        self.committer.touch()

    async def _load(self, flow: Flow, item: Item) -> None:
        if item.line is None:
            parked = await self._records.parked_at(flow.shard, item.position)
            if parked is None:
                raise Fatal(f"the parked event at {item.position} of {self._records.consumer} is gone")
            item.line = parked.line

    async def _verdict(self, batch: Batch) -> Verdict | str:
        """The sink's verdict, or why the batch failed as a whole. An outage of the target is waited out."""
        since = None
        while True:
            reach("delivery.before-deliver")
            try:
                async with asyncio.timeout(None if self._settings.own_timeout else self._settings.timeout):
                    verdict: Verdict | str = await self._sink.deliver(batch)
            except Transient as error:
                since = since or self._now()
                if self._now() - since <= self._settings.retry.max_age:
                    await self._outage.wait_out(batch, error)
                    continue
                verdict = self._all_failed(batch, f"target away for longer than retry.max_age: {error}")
            except Permanent as error:
                verdict = str(error)
            except TimeoutError:
                verdict = f"timed out after {self._settings.timeout:g} s"
            except Fatal:
                raise
            except Exception as error:  # the supervised boundary: a sink's bug is the event's failure
                self._context.log.exception("sink raised")
                verdict = f"{type(error).__name__}: {error}"
            self._outage.ended()
            reach("delivery.after-deliver")
            return verdict

    @staticmethod
    def _all_failed(batch: Batch, why: str) -> Verdict:
        return Verdict(failed=dict.fromkeys(batch.positions, why))

    async def _settle(self, flow: Flow, items: Sequence[Item], verdict: Verdict) -> None:
        self._accept(flow, items, verdict)
        skipped = frozenset(verdict.skipped)
        for item in reversed(items):  # so that what is put back keeps its order
            if item.position in skipped:
                flow.put_back(item)
        for item in items:
            if (why := verdict.failed.get(item.position)) is not None:
                await self._failed(flow, item, why)
            elif item.position not in skipped:
                flow.delivered(item)
                self._counts.delivered += 1

    def _accept(self, flow: Flow, items: Sequence[Item], verdict: Verdict) -> None:
        if verdict.state is not None:
            self.committer.state = verdict.state
        if verdict.events:
            lines = {item.position: item.line or b"" for item in items}
            self._emit(lines, verdict)

    async def _settle_run(self, flow: Flow, run: Run, verdict: Verdict) -> None:
        if verdict.state is not None:
            self.committer.state = verdict.state
        if not (verdict.failed or verdict.skipped or verdict.events):
            self._counts.delivered += run.size
            return
        skipped = frozenset(verdict.skipped)
        self._emit({block.first + index: block.line(index) for block, index in run.events()}, verdict)
        for block, index in run.events():
            position = block.first + index
            if (why := verdict.failed.get(position)) is not None:
                await self._failed(flow, flow.enter(block, index), why)
            elif position in skipped:
                flow.put_back(flow.enter(block, index))
            else:
                self._counts.delivered += 1

    def _emit(self, lines: dict[int, bytes], verdict: Verdict) -> None:
        for index, (position, event) in enumerate(verdict.events):
            parent = Event.parse(lines[position])
            made = child_event(parent, event, self._records.consumer, index, self._context.origin)
            if made is None:
                self._context.log.error("returned event dropped: it went round too often", parent=parent.id)
            else:
                self.committer.emit(made)

    async def _failed(self, flow: Flow, item: Item, why: str) -> None:
        now, before = self._now(), item.failure or Failure()
        failure = Failure(before.attempts + 1, before.first or now, now, why)
        self._counts.failed += 1
        retry = self._settings.retry
        if failure.attempts < retry.attempts and now - failure.first <= retry.max_age:
            self._counts.retried += 1
            flow.park(item, failure, now + delay(retry, failure.attempts))
        else:
            await self._give_up(flow, item, failure)

    async def _give_up(self, flow: Flow, item: Item, failure: Failure) -> None:
        mode = self._settings.on_failure
        self._context.log.error(
            "event failed for good", position=item.position, attempts=failure.attempts, error=failure.error, then=mode
        )
        self._counts.dead += 1
        if mode == "dead-letter":
            flow.bury(item, failure)
        elif mode == "hold-key":
            flow.park(item, failure, 0.0, held=True)
        else:
            flow.park(item, Failure(0, failure.first, failure.last, failure.error), 0.0)
            await self._pause(f"the event at {item.position} failed {failure.attempts} times: {failure.error}")

    def _now(self) -> float:
        return self._context.clock.time()
