"""The embedded journal: how fast it is appended to and read, and whether it stays within its bounds.

`--quick` takes a tenth of the events. Events are lines of 450 bytes. Within the timing of an append: the queue to the
writer, the transaction with its fsync, and the acknowledgement on the event loop; "seal and append" also compresses
each block of 2,000 lines, which a source in a child process does there. With several blocks in flight one transaction
may hold more than one. Outside: making the lines, and their lengths and keys, which is the source's work.
Within the timing of the read: SQLite, checksums, decompression, and cutting each block into lines.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from benchmarks.report import report
from headrace.event import Event, key_hash, source_seed
from headrace.journal.block import BLOCK_EVENTS, Kind, Lines, SealedBlock, seal
from headrace.journal.space import Limits
from headrace.journal.sqlite import FILE, SHARD, SqliteJournal, open_journal
from headrace.protocols import Change, Row
from headrace.testing.fakes import RecordingLog

LINE: Final = 450
IN_FLIGHT: Final = 4
VARIANTS: Final = 16  # different blocks that are appended in turn
WEEK: Final = 604_800.0
SEED: Final = source_seed("orders")

Rows = list[tuple[str, float, str]]


def line(number: int) -> bytes:
    """One row of eight columns, as Postgres would give it, padded to 450 bytes."""
    row = {
        "id": number,
        "customer": random.randrange(10**6),
        "status": random.choice(["new", "paid", "sent"]),
        "amount": f"{random.randrange(10**5) / 100}",
        "placed": f"2026-01-{number % 28 + 1:02}T12:{number % 60:02}:00Z",
    }
    event = Event(
        id=f"1/0/{number:x}",
        source="headrace:orders",
        type="headrace.postgres.insert",
        subject="public.orders",
        time="2026-01-01T12:00:00.000000Z",
        partitionkey=f"public.orders/{number}",
        data={"op": "insert", "schema": "public", "table": "orders", "after": row, "note": ""},
    )
    text = event.line()
    missing = LINE - len(text)
    padding = f"{random.getrandbits(4 * missing):0{missing}x}".encode()
    return text.replace(b'"note":""', b'"note":"%s"' % padding)


def make_lines(start: int, count: int = BLOCK_EVENTS, type_: str = "headrace.postgres.insert") -> Lines:
    lines = [line(number) for number in range(start, start + count)]
    keys = array("I", [key_hash(SEED, f"public.orders/{number}") for number in range(start, start + count)])
    return Lines(b"".join(lines), array("I", map(len, lines)), (type_,), bytes(count), keys)


@asynccontextmanager
async def journal(folder: str, max_size: int = 1 << 40, retention: float = WEEK) -> AsyncIterator[SqliteJournal]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        async with open_journal(Path(place), Limits(retention, max_size), RecordingLog(), reserve=1 << 20) as opened:
            opened.begin_retention()
            yield opened


async def append(
    to: SqliteJournal,
    blocks: Sequence[Callable[[], SealedBlock]],
    count: int,
    in_flight: int = IN_FLIGHT,
    watch: Callable[[], None] | None = None,
) -> float:
    """Append `count` blocks in turn; seconds until the last is acknowledged. Sealing runs beside the commits."""
    started = time.perf_counter()
    flying: deque[asyncio.Future[None]] = deque()
    for number in range(count):
        flying.append(to.submit(Change([await asyncio.to_thread(blocks[number % len(blocks)])], intake=True)))
        if len(flying) >= in_flight:
            await flying.popleft()
        if watch:
            watch()
    await asyncio.gather(*flying)
    return time.perf_counter() - started


async def append_sealed(to: SqliteJournal, blocks: Sequence[SealedBlock], count: int) -> float:
    """As `append`, one at a time, of blocks that a child process has sealed already."""
    started = time.perf_counter()
    for number in range(count):
        await to.submit(Change([blocks[number % len(blocks)]], intake=True))
    return time.perf_counter() - started


async def read(of: SqliteJournal, wanted: Callable[[Sequence[Kind]], bool]) -> tuple[int, float]:
    """Lines read from the file, and seconds."""
    of._tail.clear()  # noqa: SLF001 -- what is measured is the file, not the blocks kept in memory
    lines, start, started = 0, 0, time.perf_counter()
    while start < of.head(SHARD):
        page = await of.read(SHARD, start, wanted)
        lines += sum(len(block.lines) for block in page.blocks)
        start = page.next
    return lines, time.perf_counter() - started


def sealers(type_: str = "headrace.postgres.insert") -> list[Callable[[], SealedBlock]]:
    made = [make_lines(number * BLOCK_EVENTS, type_=type_) for number in range(VARIANTS)]
    return [lambda lines=lines: seal("orders", lines) for lines in made]  # type: ignore[misc]


async def rates(folder: str, events: int) -> Rows:
    """Appending, reading, and reading past what is not wanted."""
    blocks, count = sealers(), events // BLOCK_EVENTS
    one = blocks[0]()
    rows: Rows = [("full block, stored, per event", one.size / one.count, "bytes")]
    async with journal(folder) as used:
        sealed = [block() for block in blocks]
        seconds = await append_sealed(used, sealed, count)
        rows.append(("append of sealed blocks, an fsync for every block", count * BLOCK_EVENTS / seconds, "events/s"))
        seconds = await append(used, blocks, count, in_flight=1)
        rows.append(("seal and append, an fsync for every block", count * BLOCK_EVENTS / seconds, "events/s"))
        seconds = await append(used, blocks, count)
        rows.append(("seal and append, up to 4 blocks in flight", count * BLOCK_EVENTS / seconds, "events/s"))
        lines, seconds = await read(used, lambda _: True)
        rows.append(("read, one consumer", lines / seconds, "events/s"))
        _, alone = await read(used, lambda kinds: any(kind.source == "other" for kind in kinds))
        rows.append(("pass an unwanted block", alone / (3 * count) * 1e6, "µs"))
        rows.append(("the same as a share of reading it", alone / seconds * 100, "%"))
    return rows


async def bystanders(folder: str, events: int) -> Rows:
    """Appending while ten consumers of other sources follow, against appending alone."""
    blocks, count = sealers(), events // BLOCK_EVENTS

    async def follow(used: SqliteJournal) -> None:
        start = used.head(SHARD)
        while True:
            await used.grown(SHARD, start)
            page = await used.read(SHARD, start, lambda kinds: any(kind.source == "other" for kind in kinds))
            start = page.next

    async def measure(consumers: int) -> tuple[float, float]:
        async with journal(folder) as used:
            await append(used, blocks, count // 10)
            followers = [asyncio.ensure_future(follow(used)) for _ in range(consumers)]
            spent = time.process_time()
            seconds = await append(used, blocks, count)
            spent = time.process_time() - spent
            for follower in followers:
                follower.cancel()
            await asyncio.gather(*followers, return_exceptions=True)
            return seconds, spent

    alone, with_ten = [], []
    for _ in range(3):
        alone.append(await measure(0))
        with_ten.append(await measure(10))
    wall = [statistics.median(run[0] for run in runs) for runs in (alone, with_ten)]
    cpu = [statistics.median(run[1] for run in runs) for runs in (alone, with_ten)]
    return [
        ("seal and append, alone", count * BLOCK_EVENTS / wall[0], "events/s"),
        ("seal and append, followed by ten consumers of other sources", count * BLOCK_EVENTS / wall[1], "events/s"),
        ("processor time per block and such consumer", max(0.0, cpu[1] - cpu[0]) / count / 10 * 1e6, "µs"),
    ]


async def bounds(folder: str, events: int) -> Rows:
    """The largest that file and log become, while one consumer follows and `max_size` deletes behind it."""
    limit = 256 << 20
    blocks, count = sealers(), events // BLOCK_EVENTS
    file, log = 0, 0
    async with journal(folder, max_size=limit) as used:
        path = str(used._path)  # noqa: SLF001 -- looked at from outside

        def watch() -> None:
            nonlocal file, log
            file = max(file, os.stat(path).st_size)
            log = max(log, os.stat(f"{path}-wal").st_size)

        async def follow() -> None:
            start = 0
            while True:
                await used.grown(SHARD, start)
                start = (await used.read(SHARD, start, lambda _: True)).next
                used.hold("follower", SHARD, start)

        used.hold("follower", SHARD, 0)
        follower = asyncio.ensure_future(follow())
        seconds = await append(used, blocks, count, watch=watch)
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
    return [
        ("events through a journal of 256 MiB", count * BLOCK_EVENTS, "events"),
        ("the same, appended, read and deleted", count * BLOCK_EVENTS / seconds, "events/s"),
        (f"largest {FILE}", file / (1 << 20), "MiB"),
        (f"largest {FILE}-wal", log / (1 << 20), "MiB"),
    ]


async def latency(folder: str, commits: int) -> Rows:
    """One event and its cursor per commit, one after the other."""
    lines = [make_lines(number, 1) for number in range(100)]
    seconds: list[float] = []
    async with journal(folder) as used:
        for number in range(commits):
            started = time.perf_counter()
            block = seal("orders", lines[number % 100])
            await used.submit(Change([block], [Row("sink", b"cursor", b"%064d" % number)], intake=True))
            seconds.append(time.perf_counter() - started)
    hundredths = statistics.quantiles(seconds, n=100)
    return [
        ("commit of one event and its cursor, p50", hundredths[49] * 1e3, "ms"),
        ("the same, p99", hundredths[98] * 1e3, "ms"),
        ("one-event block, stored", seal("orders", lines[0]).size, "bytes"),
    ]


async def measured(folder: str, scale: int) -> Rows:
    rows: Rows = []
    rows += await rates(folder, 1_000_000 // scale)
    rows += await bystanders(folder, 1_000_000 // scale)
    rows += await latency(folder, 5_000 // scale)
    rows += await bounds(folder, 10_000_000 // scale)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of the embedded journal.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the events")
    parser.add_argument("--dir", default=".", help="where to put the journals: the disk that is measured")
    options = parser.parse_args(sys.argv[1:])
    random.seed(1)
    rows = asyncio.run(measured(options.dir, 10 if options.quick else 1))
    report("journal", {f"{what}, {unit}": _rounded(figure) for what, figure, unit in rows})


def _rounded(figure: float) -> float:
    """To three digits, for what is measured is no more exact."""
    return int(figure) if figure >= 1_000 else float(f"{figure:.3g}")


if __name__ == "__main__":
    main()
