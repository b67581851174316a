"""Delivery inside the daemon: what the engine costs per event, with a sink in the process that does nothing.

`--quick` takes a tenth of the events; `--profile` prints where the time of the keyed path goes. Events are lines of
about 200 bytes in blocks of 2,000, in the embedded journal, spread over 1,000 keys. Within the timing: reading,
ordering, calling the sink, settling and committing. Outside: appending. "parsed" decodes every event in the sink.

"where" is the whole read path with a pattern that one event in ten matches, by processor time. "at the head":
consumers whose patterns match nothing while blocks are appended, all events by the processor time of all. "of ten":
eight consumers that count while events are appended, first alone and then beside one whose target is away and one that
takes 20 ms for each event.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from benchmarks.report import report
from headrace.delivery.consumer import Consumer
from headrace.delivery.heads import Heads
from headrace.errors import Transient
from headrace.event import Event, source_seed
from headrace.journal.block import Lines, SealedBlock, seal
from headrace.journal.space import Limits
from headrace.journal.sqlite import SHARD, SqliteJournal, open_journal
from headrace.protocols import Batch, Change, Context, Sink, Verdict
from headrace.settings import BatchSize, SinkSettings
from headrace.testing import RecordingLog, make_context

BLOCK: Final = 2_000
KEYS: Final = 1_000
MISSES: Final[Mapping[str, Callable[[int], Mapping[str, Any]]]] = {
    "text": lambda n: {"subject": [f"nothing-{n}"]},
    "number in data": lambda n: {"data": {"after": {"id": [-1 - n]}}},
    "wildcard": lambda n: {"partitionkey": [{"wildcard": f"public.*s/{n}x*"}]},
}


class Nothing:
    """A sink that counts, and may look at each event."""

    def __init__(self, *, parse: bool) -> None:
        self.parse = parse
        self.count = 0

    async def deliver(self, batch: Batch) -> Verdict:
        if self.parse:
            _ = batch.events
        self.count += len(batch.positions)
        return Verdict()


class KeyedSettings(SinkSettings):
    """Opens the given sink."""

    type: str = "nothing"
    sink: Any
    start: Any = "earliest"

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Sink]:
        yield self.sink


class BulkSettings(KeyedSettings):
    """The same, in whole batches."""

    bulk: ClassVar[bool] = True
    batch: BatchSize = BatchSize(size=BLOCK)


def a_block() -> SealedBlock:
    events = [
        Event(
            id=f"1/{number}",
            source="headrace:rows",
            type="headrace.postgres.insert",
            subject="public.orders",
            partitionkey=f"public.orders/{number % KEYS}",
            data={"op": "insert", "after": {"id": number, "text": "x" * 40}},
        )
        for number in range(BLOCK)
    ]
    return seal("rows", Lines.of(events, source_seed("rows")))


class Away(Nothing):
    """A target that is not there."""

    async def deliver(self, batch: Batch) -> Verdict:
        raise Transient("away")


class Slow(Nothing):
    """A target that takes its time for each event."""

    async def deliver(self, batch: Batch) -> Verdict:
        await asyncio.sleep(0.02)
        return Verdict()


@asynccontextmanager
async def delivering(
    journal: SqliteJournal, consumers: Mapping[str, KeyedSettings], folder: Path
) -> AsyncIterator[list[Consumer]]:
    """These, running inside, with what they decode in common as in the daemon."""
    heads, made = Heads(journal), []
    for name, settings in consumers.items():
        context = make_context(folder, name=name)
        made.append(Consumer(name, settings, journal, lambda _state, it=context: it, heads))  # type: ignore[misc]
        await made[-1].prepare()
    watching = asyncio.create_task(heads.run())
    tasks = [asyncio.create_task(each.run()) for each in made]
    try:
        yield made
    finally:
        await asyncio.gather(*(each.stop(10) for each in made))
        await asyncio.gather(*tasks)
        watching.cancel()
        for each in made:
            await each.records.forget()
            journal.release(each.name)


async def all_read(consumers: Sequence[Consumer]) -> None:
    while any(each.status().lag for each in consumers):  # noqa: ASYNC110 -- nothing to wait on
        await asyncio.sleep(0.02)


async def patterns(journal: SqliteJournal, folder: Path) -> dict[str, int]:
    """Events per second that patterns have looked at, from the journal on disk and from its newest blocks."""
    figures: dict[str, int] = {}
    wheres: Mapping[str, Mapping[str, Any]] = {
        "attributes": {"partitionkey": [{"suffix": "7"}]},
        "data": {"data": {"after": {"id": [{"numeric": [">=", BLOCK - BLOCK // 10]}]}}},
    }
    for what, where in wheres.items():
        for kind in (KeyedSettings, BulkSettings):
            settings = kind(sink=Nothing(parse=False), where=where)
            taken = 1e9
            for _ in range(3):
                started = time.process_time()
                async with delivering(journal, {"where": settings}, folder) as made:
                    await all_read(made)
                    taken = min(taken, time.process_time() - started)
            name = "in bulk" if kind is BulkSettings else "one by one"
            figures[f"where on {what}, {name}, events/s of a core"] = round(journal.head(SHARD) / taken)
    return figures


async def misses(journal: SqliteJournal, folder: Path, blocks: int) -> dict[str, int]:
    figures: dict[str, int] = {}
    block = a_block()
    for count in (1, 10, 50):
        for what, pattern in MISSES.items():
            consumers = {
                f"miss-{n}": BulkSettings(sink=Nothing(parse=False), start="latest", where=pattern(n))
                for n in range(count)
            }
            async with delivering(journal, consumers, folder) as made:
                taken = 1e9
                for _ in range(3):
                    started = time.process_time()
                    for _ in range(blocks):
                        await journal.submit(Change([block]))
                    await all_read(made)
                    taken = min(taken, time.process_time() - started)
            key = f"at the head, {count} whose {what} matches nothing, events/s of a core"
            figures[key] = round(blocks * BLOCK / taken)
    return figures


async def ten(journal: SqliteJournal, folder: Path, blocks: int) -> dict[str, float]:
    """The eight with and without the other two, and what that does to appending."""
    figures: dict[str, float] = {}
    others = {"dead": KeyedSettings(sink=Away(parse=False), start="latest")}
    others |= {"slow": KeyedSettings(sink=Slow(parse=False), start="latest")}
    rates: dict[bool, list[float]] = {False: [], True: []}
    appends: dict[bool, list[float]] = {False: [], True: []}
    costs: dict[bool, list[float]] = {False: [], True: []}
    for beside in (False, True) * 3:
        eight = {f"good-{n}": KeyedSettings(sink=Nothing(parse=False), start="latest") for n in range(8)}
        async with delivering(journal, eight | (others if beside else {}), folder) as made:
            await all_read(made[:8])
            block = a_block()
            started, used = time.perf_counter(), time.process_time()
            for _ in range(blocks):
                await journal.submit(Change([block]))
            appends[beside].append(blocks * BLOCK / (time.perf_counter() - started))
            await all_read(made[:8])
            rates[beside].append(blocks * BLOCK / (time.perf_counter() - started))
            costs[beside].append(time.process_time() - used)
    for beside, what in ((False, "alone"), (True, "of ten with one dead and one slow")):
        figures[f"eight {what}, events/s each"] = round(max(rates[beside]))
        figures[f"eight {what}, appended meanwhile, events/s"] = round(max(appends[beside]))
    figures["eight of ten, share of their rate alone"] = round(max(rates[True]) / max(rates[False]), 3)
    figures["eight of ten, processor time alone of that beside the two"] = round(
        min(costs[False]) / min(costs[True]), 3
    )
    figures["memory at the peak, MiB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return figures


async def rate(journal: SqliteJournal, name: str, settings: KeyedSettings, folder: Path) -> int:
    """Events delivered and committed per second."""
    context = make_context(folder, name=name)
    consumer = Consumer(name, settings, journal, lambda _state: context)
    await consumer.prepare()
    started = time.perf_counter()
    task = asyncio.create_task(consumer.run())
    while consumer.counts.delivered < journal.head(SHARD) and not task.done():  # noqa: ASYNC110 -- nothing to wait on
        await asyncio.sleep(0.01)
    await consumer.stop(10)
    await task
    return round(journal.head(SHARD) / (time.perf_counter() - started))


async def measure(blocks: int, *, profiled: bool) -> dict[str, float]:
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        async with open_journal(folder, Limits(86_400.0, 4 << 30), RecordingLog(), reserve=1 << 20) as journal:
            block = a_block()
            for _ in range(blocks):
                await journal.submit(Change([block]))
            profile = cProfile.Profile()
            if profiled:
                profile.enable()
            keyed = KeyedSettings(sink=Nothing(parse=False))
            figures["one by one, events/s"] = await rate(journal, "one", keyed, folder)
            profile.disable()
            if profiled:
                pstats.Stats(profile).sort_stats("tottime").print_stats(25)
            keyed = KeyedSettings(sink=Nothing(parse=True))
            figures["one by one, parsed, events/s"] = await rate(journal, "parsed", keyed, folder)
            keyed = KeyedSettings(sink=Nothing(parse=False), concurrency=8)
            figures["one by one, 8 at once, events/s"] = await rate(journal, "eight", keyed, folder)
            keyed = KeyedSettings(sink=Nothing(parse=False), batch=BatchSize(size=100))
            figures["by key in batches of 100, events/s"] = await rate(journal, "hundred", keyed, folder)
            bulk = BulkSettings(sink=Nothing(parse=False))
            figures["in bulk, events/s"] = await rate(journal, "bulk", bulk, folder)
            figures |= await patterns(journal, folder)
            figures |= await misses(journal, folder, max(100, blocks))
            figures |= await ten(journal, folder, max(2, blocks // 15))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    report("delivery", asyncio.run(measure(15 if arguments.quick else 150, profiled=arguments.profile)))


if __name__ == "__main__":
    main()
