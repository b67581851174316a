"""One delivery: calling the sink, and deciding what its answer means for each event."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

from headrace.delivery.bulk import BulkFlow
from headrace.delivery.commit import HOPS, Committer, Returned, child_of
from headrace.delivery.cursor import Cursor, Failure, ShardCursor
from headrace.delivery.flow import Flow
from headrace.delivery.keyed import KeyedFlow
from headrace.delivery.order import Item
from headrace.delivery.records import Records
from headrace.delivery.retry import Outage, delay
from headrace.delivery.run import Piece, Run
from headrace.delivery.status import Counts
from headrace.errors import Fatal, Permanent, Transient
from headrace.event import Event
from headrace.failpoints import reach
from headrace.protocols import Batch, Context, Position, Sink, StoresCursor, Verdict
from headrace.settings import ConsumerSettings
from headrace.tasks import cause

ERROR_TEXT: Final = 8_192  # characters kept of an error


class Abandoned(Exception):
    """The consumer closes, and the delivery was not tried, or waited for its target: it is for the next run."""


class Answer(NamedTuple):
    """The sink's verdict, or why the batch failed as a whole. `since`: when the first try was, if it was waited."""

    verdict: Verdict | None
    why: str = ""
    since: float | None = None


class Attempt:
    """Delivers for one run of a consumer. `pause` pauses the consumer, for `on_failure = "pause"`.

    Settling a batch is one step without waiting, so that a commit holds all of it or nothing.
    """

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
        self.outage = outage
        self._records = records
        self._settings = settings
        self._sink = sink
        self._stores_cursor = isinstance(sink, StoresCursor)
        self._timeout = None if settings.own_timeout else settings.timeout
        self._counts = counts
        self._context = context
        self._pause = pause
        self._pause_for = ""

    async def items(self, flow: Flow, items: Sequence[Item]) -> None:
        """Deliver these and settle each; no two of them have a key in common."""
        await self.committer.bounded()
        for item in items:
            if item.line is None:
                await self._load(flow, item)
        cursor = await self._cursor(flow, None) if self._stores_cursor else None
        answer = await self._answer(_batch(flow, items, cursor))
        if answer.verdict:
            self._settle(flow, items, answer.verdict, answer.since)
        elif len(items) > 1:
            half = len(items) // 2
            await self.items(flow, items[:half])
            await self.items(flow, items[half:])
        else:
            self._failed(flow, items[0], answer.why, answer.since)
        self.committer.touch(len(items))
        if self._pause_for:
            await self._pause(self._pause_for)

    async def run(self, flow: BulkFlow, run: Run) -> None:
        """Deliver a run in order; what fails is parked alone, and what waits for it as well."""
        left = [run]
        while left:
            if part := flow.without_parked(left.pop()):
                left += reversed(await self._deliver(flow, part))
            flow.passed(left[-1].first if left else run.end)
            self.committer.touch()
            if self._pause_for:
                await self._pause(self._pause_for)

    async def _deliver(self, flow: BulkFlow, run: Run) -> Sequence[Run]:
        """Returns what is to be delivered next: what was skipped, or the halves of what failed as a whole."""
        cursor = await self._cursor(flow, run.end) if self._stores_cursor else None
        answer = await self._answer(Batch(flow.journal_shard, run.positions, run.data, cursor=cursor))
        if answer.verdict:
            return self._settle_run(flow, run, answer.verdict, answer.since)
        if run.size > 1:
            return run.split()
        ((block, index),) = run.events()
        self._failed(flow, flow.enter(block, index), answer.why, answer.since)
        return ()

    # What the sink is given.

    async def _cursor(self, flow: Flow, end: Position | None) -> Cursor:
        """For a sink that stores it. What it passes over must be durable here before, or a crash would lose it."""
        await self.committer.rows_durable()
        return Cursor({flow.journal_shard: flow.cursor() if end is None else ShardCursor(end)})

    async def _load(self, flow: Flow, item: Item) -> None:
        parked = await self._records.parked_at(flow.shard, item.position)
        if parked is None:
            raise Fatal(f"the parked event at {item.position} of {self._records.consumer} is gone")
        item.line = parked.line

    # What it says.

    async def _answer(self, batch: Batch) -> Answer:
        """An outage of the target is waited out. Raises `Abandoned` where the consumer closes meanwhile."""
        since: float | None = None
        while not self.outage.closed:
            try:
                return await self._try(batch, since)
            except Transient as error:
                now = self._now()
                since = since or now
                if now - since > self._settings.retry.max_age:
                    self.outage.ended()
                    why = f"target away for longer than retry.max_age: {error}"
                    return Answer(Verdict(failed=dict.fromkeys(batch.positions, why)), since=since)
                await self.outage.wait_out(batch, error)
        raise Abandoned

    async def _try(self, batch: Batch, since: float | None) -> Answer:
        reach("delivery.before-deliver")
        timer = asyncio.timeout(self._timeout)
        try:
            async with timer:
                answer = Answer(_checked(await self._sink.deliver(batch), batch), since=since)
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            answer = self._refused(error, since)
        except TimeoutError as error:
            late = Permanent(f"timed out after {self._timeout:g} s") if timer.expired() and self._timeout else None
            answer = self._refused(late or error, since)
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- the boundary where a sink may fail in any way
            answer = self._refused(error, since)
        self.outage.ended()
        reach("delivery.after-deliver")
        return answer

    def _refused(self, error: BaseException, since: float | None) -> Answer:
        """A sink's bug is the event's failure, so that one event cannot stop the consumer."""
        error = cause(error)
        if isinstance(error, Transient | Fatal):
            raise error
        if isinstance(error, Permanent):
            return Answer(None, str(error), since)
        self._context.log.error("sink raised", exc_info=error)
        return Answer(None, f"{type(error).__name__}: {error}", since)

    # What it means.

    def _settle(self, flow: Flow, items: Sequence[Item], verdict: Verdict, since: float | None) -> None:
        if verdict.state is not None:
            self.committer.state = verdict.state
        if not (verdict.failed or verdict.skipped or verdict.events):
            for item in items:
                flow.delivered(item)
            self._counts.delivered += len(items)
            return
        failed, final = self._emit({item.position: item.line or b"" for item in items}, verdict)
        skipped = frozenset(verdict.skipped) - failed.keys()
        if skipped and isinstance(flow, KeyedFlow):
            flow.put_back([item for item in items if item.position in skipped])
        for item in items:
            if (why := failed.get(item.position)) is not None:
                self._failed(flow, item, why, since, final=item.position in final)
            elif item.position not in skipped:
                flow.delivered(item)
                self._counts.delivered += 1

    def _settle_run(self, flow: BulkFlow, run: Run, verdict: Verdict, since: float | None) -> Sequence[Run]:
        if verdict.state is not None:
            self.committer.state = verdict.state
        if not (verdict.failed or verdict.skipped or verdict.events):
            self._counts.delivered += run.size
            return ()
        lines = {block.first + index: block.line(index) for block, index in run.events()} if verdict.events else {}
        failed, final = self._emit(lines, verdict)
        skipped = frozenset(verdict.skipped) - failed.keys()
        for block, index in run.events():
            position = block.first + index
            if (why := failed.get(position)) is not None:
                self._failed(flow, flow.enter(block, index), why, since, final=position in final)
        self._counts.delivered += run.size - len(failed) - len(skipped)
        return [_only(run, skipped)] if skipped else ()

    def _emit(self, lines: Mapping[Position, bytes], verdict: Verdict) -> tuple[dict[Position, str], set[Position]]:
        """Take the events that delivered ones returned; the failures, with those whose events cannot be taken.

        Trying again would not help the second: their events went round too often.
        """
        failed, final, made = dict(verdict.failed), set[Position](), dict[Position, list[Returned]]()
        counts, name = dict[Position, int](), self._records.consumer
        for position, event in verdict.events:
            index = counts[position] = counts.get(position, -1) + 1
            try:
                child = child_of(Event.parse(lines[position]), event, name, index, self._context.origin)
            except (ValueError, AttributeError, TypeError) as error:
                failed[position] = f"it returned no event: {error}"
                continue
            if child:
                made.setdefault(position, []).append(child)
            else:
                failed[position] = f"it returned an event that would have gone round more than {HOPS} times"
                final.add(position)
        for position, children in made.items():
            if position not in failed and position not in verdict.skipped:
                for child in children:
                    self.committer.emit(child)
        return failed, final

    def _failed(self, flow: Flow, item: Item, why: str, since: float | None, *, final: bool = False) -> None:
        now, before = self._now(), item.failure or Failure()
        failure = Failure(before.attempts + 1, before.first or since or now, now, _text(why))
        self._counts.failed += 1
        retry = self._settings.retry
        if not final and failure.attempts < retry.attempts and now - failure.first <= retry.max_age:
            self._counts.retried += 1
            flow.park(item, failure, now + delay(retry, failure.attempts))
        else:
            self._give_up(flow, item, failure)

    def _give_up(self, flow: Flow, item: Item, failure: Failure) -> None:
        mode = self._settings.on_failure
        self._context.log.error(
            "event failed for good", position=item.position, attempts=failure.attempts, error=failure.error, then=mode
        )
        if mode == "dead-letter":
            self._counts.dead += 1
            self._counts.kept += 1
            flow.bury(item, failure)
            if self._counts.kept > self._settings.dead_letter_limit:
                self._pause_for = (
                    f"it has {self._counts.kept} dead letters, dead_letter_limit is {self._settings.dead_letter_limit}:"
                    f" the last was at {item.position}: {failure.error}"
                )
        elif mode == "hold-key":
            flow.park(item, failure, 0.0, held=True)
        else:
            flow.park(item, Failure(error=failure.error), 0.0)  # resumed, it has all its attempts again
            self._pause_for = f"the event at {item.position} failed {failure.attempts} times: {failure.error}"

    def _now(self) -> float:
        return self._context.clock.time()


def _batch(flow: Flow, items: Sequence[Item], cursor: Cursor | None) -> Batch:
    if len(items) == 1:
        (item,) = items
        attempt = item.failure.attempts + 1 if item.failure else 1
        return Batch(flow.journal_shard, (item.position,), item.line or b"", attempt, cursor)
    data = b"".join([item.line or b"" for item in items])
    attempt = 1 + max([item.failure.attempts if item.failure else 0 for item in items])
    return Batch(flow.journal_shard, [item.position for item in items], data, attempt, cursor)


def _checked(verdict: Verdict, batch: Batch) -> Verdict:
    """The verdict, where it is one of this batch. A wrong one must not reach the journal."""
    if not isinstance(verdict, Verdict):
        raise Permanent(f"the sink returned {type(verdict).__name__} instead of a verdict")
    if verdict.state is not None and not isinstance(verdict.state, bytes):
        raise Permanent(f"the sink's state is {type(verdict.state).__name__} instead of bytes")
    if verdict.failed or verdict.skipped or verdict.events:
        named = {*verdict.failed, *verdict.skipped, *(position for position, _ in verdict.events)}
        if strange := named.difference(batch.positions):
            raise Permanent(f"the sink's verdict names {min(strange)}, which is not in the batch")
        if len(set(verdict.skipped)) == len(batch):
            raise Transient("the sink tried nothing")
    return verdict


def _text(why: object) -> str:
    """An error as it can be stored: any exception's text may hold undecodable bytes, or all of the input."""
    return str(why)[:ERROR_TEXT].encode("utf-8", "backslashreplace").decode()


def _only(run: Run, positions: frozenset[Position]) -> Run:
    pieces = []
    for block, indices in run.pieces:
        if kept := [index for index in indices if block.first + index in positions]:
            pieces.append(Piece(block, kept))
    return Run(pieces, run.end)
