"""Wiring and life cycle: all parts are opened in order, watched, changed by a reload, and stopped in two phases."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from headrace import systemd
from headrace.capture import JournalPort, SourceCapture
from headrace.child import ChildSource, backfill
from headrace.clock import SystemClock
from headrace.delivery.consumer import Consumer
from headrace.delivery.heads import Heads
from headrace.delivery.records import Records, known_consumers
from headrace.errors import Permanent, Transient
from headrace.journal.block import SealedBlock
from headrace.journal.place import claim
from headrace.journal.space import Limits, Usage
from headrace.journal.sqlite import SqliteJournal, open_journal
from headrace.protocols import Clock, Context, Logger, Write
from headrace.settings import Config, SourceSettings
from headrace.settings_changes import Changes, changed
from headrace.suggest import did_you_mean, listed
from headrace.supervisor import Supervised
from headrace.tasks import first_of

WATCH: Final = 1.0  # seconds between two looks at the journal's size


@asynccontextmanager
async def open_daemon(config: Config, log: Logger, clock: Clock | None = None) -> AsyncIterator[Daemon]:
    """A daemon with its journal open, nothing running yet. Raises `Fatal` where the data directory cannot be used."""
    with claim(config.data_dir) as data_dir:
        limits = Limits(config.journal.retention, config.journal.max_size)
        async with open_journal(data_dir, limits, log) as journal:
            yield Daemon(config, journal, log, clock or SystemClock())


class Daemon:
    """The running whole. `sources` and `consumers` are by name, as the settings have them now."""

    def __init__(self, config: Config, journal: SqliteJournal, log: Logger, clock: Clock) -> None:
        self.config = config
        self.journal = journal
        self.log = log
        self.clock = clock
        self.started = clock.time()
        self.sources: dict[str, Supervised] = {}
        self.consumers: dict[str, Consumer] = {}
        self.running: dict[str, Supervised] = {}
        self.orphans: dict[str, int] = {}
        self._backfills: dict[str, Callable[[str], Awaitable[None]]] = {}  # of the sources that run now
        self.captured: Counter[str] = Counter()  # durable events of each source since the daemon started
        self.up = False
        self._heads = Heads(journal)
        self._watched = Supervised("heads", self._heads.run, clock, log)
        self._captures: dict[str, SourceCapture] = {}
        self._group: asyncio.TaskGroup
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until `stop`. Raises `JournalFailed` where going on would not be safe."""
        try:
            async with asyncio.TaskGroup() as self._group:
                await self._start()
                watching = self._group.create_task(self._watch())
                self.up = True
                systemd.notify("READY=1", f"STATUS={len(self.sources)} sources, {len(self.consumers)} consumers")
                await self._stop.wait()
                self.up = False
                systemd.notify("STOPPING=1")
                watching.cancel()
                await self._stop_all()
        finally:
            self.log.info("stopped")

    def stop(self) -> None:
        """Begin to stop: first what comes in, then what goes out, within `[daemon] grace`."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    # Starting: every cursor is made before any source starts.

    async def _start(self) -> None:
        self._watched.start(self._group)
        for name in self.config.consumers:
            await self._prepare(name)
        await self._hold_orphans()
        self.journal.begin_retention()
        for name in self.config.consumers:
            self._start_consumer(name)
        for name in self.config.sources:
            self._start_source(name)
        self.log.info("running", sources=len(self.sources), consumers=len(self.consumers))

    async def _prepare(self, name: str) -> None:
        settings = self.config.consumers[name]
        consumer = Consumer(name, settings, self.journal, partial(self.context, name), self._heads)
        await consumer.prepare()
        self.consumers[name] = consumer
        self.orphans.pop(name, None)

    async def _hold_orphans(self) -> None:
        """A cursor whose consumer left the settings keeps its blocks, and is reported, until it is forgotten."""
        for name in await known_consumers(self.journal):
            if name in self.consumers or name in self.orphans:
                continue
            cursor = await Records(self.journal, name).cursor()
            if cursor is None:
                continue
            for shard, at in cursor.shards.items():
                self.journal.hold(name, shard, cursor.needs(shard))
                self.orphans[name] = at.low
            hint = f"put it back, or `headrace consumer forget {name}`, or `headrace consumer rename {name} NEW`"
            self.log.warning("consumer is not in the settings and keeps its events", consumer=name, hint=hint)

    def _start_consumer(self, name: str) -> None:
        consumer = self.consumers[name]
        log = self.log.bind(consumer=name)
        self.running[name] = Supervised(name, consumer.run, self.clock, log)
        self.running[name].start(self._group)

    def _start_source(self, name: str) -> None:
        settings = self.config.sources[name]
        context = self.context(name, None)
        run = partial(self._run_child if settings.child else self._run_source, settings, context)
        self.sources[name] = Supervised(name, run, self.clock, context.log)
        self.sources[name].start(self._group)

    async def _run_source(self, settings: SourceSettings, context: Context) -> None:
        if before := self._captures.get(context.name):
            await before.drain()  # a run must find in the state all that the one before it submitted
        capture = SourceCapture(self._port(context.name), context.name, self.config.journal.max_event)
        self._captures[context.name] = capture
        _empty(context.scratch)
        try:
            async with settings.open(context) as source:
                self._backfills[context.name] = partial(backfill, source)
                await source.run(capture)
        finally:
            self._backfills.pop(context.name, None)

    async def _run_child(self, settings: SourceSettings, context: Context) -> None:
        _empty(context.scratch)
        child = ChildSource(settings, context, self._port(context.name), self.config.journal.max_event)
        self._backfills[context.name] = child.backfill
        try:
            await child.run()
        finally:
            self._backfills.pop(context.name, None)

    def _port(self, name: str) -> JournalPort:
        return _CountingPort(self.journal, name, self.captured)

    def context(self, name: str, state: bytes | None) -> Context:
        """What an adapter of this name is opened with."""
        config = self.config
        log = self.log.bind(name=name)
        scratch = config.data_dir / "scratch" / name
        return Context(name, state, config.directory, scratch, log, self.clock, config.daemon.origin)

    # Stopping.

    async def _stop_all(self) -> None:
        for source in self.sources.values():
            await source.cancel()
        await asyncio.gather(*(self._stop_consumer(name) for name in self.consumers))
        await self._watched.cancel()

    async def _stop_consumer(self, name: str) -> None:
        await self.consumers[name].stop(self.config.daemon.grace)
        task = self.running[name].task
        if task:
            await asyncio.wait([task], timeout=self.config.daemon.grace)
        await self.running[name].cancel()

    # Reloading.

    async def reload(self, config: Config) -> Changes:
        """Apply what changed. Raises `Permanent`, and changes nothing, where that needs a restart."""
        changes = changed(self.config, config)
        if changes.daemon or changes.journal:
            raise Permanent("[daemon] and [journal] changed", hint="restart the daemon to apply them")
        systemd.reloading()
        for name in (*changes.sources.removed, *changes.sources.changed):
            await self.sources.pop(name).cancel()
        for name in (*changes.consumers.removed, *changes.consumers.changed):
            await self._stop_consumer(name)
            del self.consumers[name], self.running[name]
        self.config = config
        for name in (*changes.consumers.added, *changes.consumers.changed):
            await self._prepare(name)
            self._start_consumer(name)
        await self._hold_orphans()
        for name in (*changes.sources.added, *changes.sources.changed):
            self._start_source(name)
        systemd.notify("READY=1")
        self.log.info("reloaded")
        return changes

    # What the operator does to sources.

    async def backfill(self, name: str, what: str) -> None:
        """Have a source capture again what is there; accepted on return. Raises what the source raises."""
        if name not in self.sources:
            known = did_you_mean(name, self.sources) or f"; there are {listed(self.sources)}"
            raise Permanent(f"no source {name}{known}")
        if name not in self._backfills:
            raise Transient(f"source {name} is not running", hint="`headrace status` tells why")
        await self._backfills[name](what)

    # What the operator does to consumers.

    async def resume(self, name: str) -> None:
        """Let a paused consumer go on; start a consumer or a source again that stopped until the operator acts."""
        if name in self.consumers:
            await self.consumers[name].resume()
            if self.running[name].state == "failed":
                self._start_consumer(name)
        elif name in self.sources:
            if self.sources[name].state == "failed":
                self._start_source(name)
        else:
            raise Permanent(f"nothing is called {name}", hint="`headrace status` lists sources and consumers")

    async def forget(self, name: str) -> None:
        """Drop the cursor, the parked events and the dead letters of a consumer that left the settings."""
        self._orphan(name)
        await Records(self.journal, name).forget()
        self.journal.release(name)
        del self.orphans[name]

    async def rename(self, old: str, new: str) -> None:
        """Give a consumer's rows to a new name, before or after that name is in the settings."""
        self._orphan(old)
        if new in self.consumers:
            await self._stop_consumer(new)
        elif new in self.orphans:
            raise Permanent(f"consumer {new} has a cursor of its own", hint=f"`headrace consumer forget {new}` first")
        await Records(self.journal, old).rename(new)
        self.journal.release(old)
        del self.orphans[old]
        if new in self.consumers:
            await self._prepare(new)
            self._start_consumer(new)
        else:
            await self._hold_orphans()

    def _orphan(self, name: str) -> None:
        if name in self.consumers:
            raise Permanent(f"consumer {name} is in the settings", hint="take it out and `headrace reload` first")
        if name not in self.orphans:
            raise Permanent(f"no consumer {name} is known")

    # Watching the journal.

    async def _watch(self) -> None:
        pulse = systemd.watchdog_interval()
        while True:
            await first_of(self.clock.sleep(min(WATCH, pulse or WATCH)), self._stop.wait())
            usage = await self.journal.usage()
            if pulse:
                systemd.notify("WATCHDOG=1")  # the journal's writer has just answered
            if usage.stopped:
                await self._detach(usage)

    async def _detach(self, usage: Usage) -> None:
        for name in usage.blockers:
            consumer = self.consumers.get(name)
            if consumer and consumer.settings.on_lag == "detach" and not consumer.control.detached:
                self.log.error("consumer detached: what it needs must go", consumer=name, why=usage.stopped)
                await consumer.detach(f'on_lag is "detach", and {usage.stopped}')


class _CountingPort(JournalPort):
    """Counts what became durable."""

    def __init__(self, journal: SqliteJournal, source: str, counts: Counter[str]) -> None:
        super().__init__(journal, source)
        self._name = source
        self._counts = counts

    def submit(self, blocks: Sequence[SealedBlock], writes: Sequence[Write]) -> asyncio.Future[None]:
        future = super().submit(blocks, writes)
        future.add_done_callback(partial(self._settled, sum(block.count for block in blocks)))
        return future

    def _settled(self, count: int, future: asyncio.Future[None]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._counts[self._name] += count


def _empty(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True, mode=0o700, exist_ok=True)
