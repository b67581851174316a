"""Delivery inside the daemon: what the engine costs per event, with a sink in the process that does nothing.

`--quick` takes a tenth of the events; `--profile` prints where the time of the keyed path goes. Events are lines of
about 200 bytes in blocks of 2,000, in the embedded journal, spread over 1,000 keys. Within the timing: reading,
ordering, calling the sink, settling and committing. Outside: appending. "parsed" decodes every event in the sink.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

sys.path.insert(0, str(Path(__file__).parent))

from report import report

from headrace.delivery.consumer import Consumer
from headrace.event import Event, source_seed
from headrace.journal.block import Lines, SealedBlock, seal
from headrace.journal.space import Limits
from headrace.journal.sqlite import SHARD, SqliteJournal, open_journal
from headrace.protocols import Batch, Change, Context, Sink, Verdict
from headrace.settings import BatchSize, SinkSettings
from headrace.testing import RecordingLog, make_context

BLOCK: Final = 2_000
KEYS: Final = 1_000


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


async def measure(blocks: int, *, profiled: bool) -> dict[str, int]:
    figures: dict[str, int] = {}
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
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    report("delivery", asyncio.run(measure(15 if arguments.quick else 150, profiled=arguments.profile)))


if __name__ == "__main__":
    main()
