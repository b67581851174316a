"""A consumer over a journal, with a sink that does as it is told and remembers what it was given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import ConfigDict

from headrace.clock import SystemClock
from headrace.delivery.consumer import Consumer
from headrace.delivery.cursor import Cursor, DeadLetter, Parked
from headrace.delivery.heads import Heads
from headrace.event import Event, source_seed
from headrace.journal.block import Lines, seal
from headrace.journal.memory import MemoryJournal
from headrace.journal.space import Limits
from headrace.journal.sqlite import open_journal
from headrace.protocols import Batch, Change, Clock, ConsumerJournal, Context, Sink, Verdict
from headrace.settings import BatchSize, Retry, SinkSettings
from headrace.testing import FakeClock, RecordingLog, make_context

ENGINES: Final = ("memory", "sqlite")
SOURCE: Final = "rows"
QUICK: Final = Retry.model_validate({"initial": "1ms", "max": "2ms", "attempts": 3})
Answering = Callable[[Batch], Awaitable[Verdict | None]]


class Target:
    """The sink. `answer` decides; `lines` are the events of every delivery that was answered without a failure."""

    def __init__(self, answer: Answering | None = None) -> None:
        self.answer = answer
        self.batches: list[Batch] = []
        self.lines: list[bytes] = []
        self.opened = 0

    async def deliver(self, batch: Batch) -> Verdict:
        self.batches.append(batch)
        verdict = await self.answer(batch) if self.answer else None
        verdict = verdict or Verdict()
        out = {*verdict.failed, *verdict.skipped}
        self.lines += [line for position, line in zip(batch.positions, batch.lines, strict=True) if position not in out]
        return verdict

    @property
    def events(self) -> list[Event]:
        return [Event.parse(line) for line in self.lines]

    @property
    def ids(self) -> list[str]:
        return [event.id for event in self.events]


class TargetSettings(SinkSettings):
    """Opens the given sink; `wrap` may give it further powers."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    type: str = "target"
    target: Any
    start: Any = "earliest"
    retry: Retry = QUICK

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Sink]:
        self.target.opened += 1
        yield self.target


class BulkSettings(TargetSettings):
    """The same for a sink that takes whole batches."""

    bulk: ClassVar[bool] = True
    batch: BatchSize = BatchSize(size=50)


@asynccontextmanager
async def a_journal(engine: str, tmp_path: Path) -> AsyncIterator[ConsumerJournal]:
    """An empty one in memory, with three shards; or the file's, as it was left."""
    if engine == "memory":
        yield MemoryJournal()
        return
    limits = Limits(retention=86_400.0, max_size=1 << 30)
    async with open_journal(tmp_path, limits, RecordingLog(), reserve=1 << 20) as journal:
        yield journal


def an_event(number: int, key: str | None = "a", **attributes: Any) -> Event:
    return Event(
        id=str(number), source="headrace:rows", type="headrace.test.made", partitionkey=key, **{"data": {}} | attributes
    )


async def append(journal: ConsumerJournal, events: Iterable[Event], source: str = SOURCE, block: int = 100) -> None:
    """Durable on return, in blocks of at most `block` events."""
    events = list(events)
    parts = [events[start : start + block] for start in range(0, len(events), block)]
    blocks = [seal(source, Lines.of(part, source_seed(source))) for part in parts]
    await journal.submit(Change(blocks))


def a_consumer(
    journal: ConsumerJournal,
    settings: SinkSettings,
    tmp_path: Path,
    clock: Clock | None = None,
    log: RecordingLog | None = None,
    heads: Heads | None = None,
    name: str = "target",
) -> Consumer:
    clock, log = clock or SystemClock(), log or RecordingLog()

    def context(state: bytes | None) -> Context:
        return make_context(tmp_path, name=name, state=state, clock=clock, log=log)

    return Consumer(name, settings, journal, context, heads)


@asynccontextmanager
async def running(consumer: Consumer, *, crash: bool = False) -> AsyncIterator[asyncio.Task[None]]:
    """Prepared and running inside; then stopped, or cancelled so that nothing more is committed."""
    await consumer.prepare()
    task = asyncio.create_task(consumer.run(), name="consumer")
    try:
        yield task
        if not crash and not task.done():
            await consumer.stop(5.0)
            await asyncio.wait([task], timeout=10)
    finally:
        await crashed(task)
    if not task.cancelled() and (error := task.exception()):
        raise error


async def crashed(task: asyncio.Task[None]) -> None:
    """End it as a kill would: what was settled and not committed is lost."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])


async def settled(consumer: Consumer, journal: ConsumerJournal) -> bool:
    """Whether everything is delivered or dead, durably."""
    cursor = await consumer.records.cursor()
    if cursor is None:
        return False
    behind = [s for s in journal.shards if cursor.shards[s].low < journal.head(s)]
    return not behind and not await parked_rows(consumer)


async def until_settled(consumer: Consumer, journal: ConsumerJournal, deadline: float = 20.0) -> None:
    await until(lambda: settled(consumer, journal), f"settled: {consumer.status()}", deadline)


async def parked_rows(consumer: Consumer) -> dict[int, Parked]:
    return {position: parked async for _, position, parked in consumer.records.parked()}


async def dead_rows(consumer: Consumer) -> dict[int, DeadLetter]:
    return {position: letter async for _, position, letter in consumer.records.dead()}


async def cursor_of(consumer: Consumer) -> Cursor:
    cursor = await consumer.records.cursor()
    assert cursor is not None
    return cursor


async def advance(clock: FakeClock, condition: Callable[[], bool], step: float = 1.0, turns: int = 200_000) -> None:
    """Let time pass in steps until the condition holds."""
    for _ in range(turns):
        if condition():
            return
        clock.advance(step)
        for _ in range(5):
            await asyncio.sleep(0)
    raise AssertionError("never happened")


def failing(*ids: str, times: int | None = None, error: Exception | None = None) -> Answering:
    """Fails these events by name, `times` times, and skips what follows in the batch; or raises `error`."""
    left = dict.fromkeys(ids, 1 << 30 if times is None else times)

    async def answer(batch: Batch) -> Verdict | None:
        for index, event in enumerate(batch.events):
            if left.get(event.id, 0) > 0:
                left[event.id] -= 1
                if error:
                    raise error
                return Verdict(failed={batch.positions[index]: f"no {event.id}"}, skipped=batch.positions[index + 1 :])
        return None

    return answer


async def until(condition: Callable[[], Awaitable[object]], what: str, deadline: float = 10.0) -> None:
    """As `eventually`, for a condition that reads the journal."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while not await condition():
        assert loop.time() < end, f"not within {deadline} s: {what}"
        await asyncio.sleep(0.002)
