"""What every sink must keep, as a suite that a subclass applies to one sink."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar, Final
from unittest import SkipTest

from headrace.errors import Transient
from headrace.event import Event
from headrace.protocols import Batch, Clock, Flushes, Sink, Verdict
from headrace.settings import SinkSettings
from headrace.testing.fakes import make_batch, make_context
from headrace.testing.leaks import cancelled, nothing_left

_MAX_STATE: Final = 64 << 10  # a state is committed with every cursor
_TURNS: Final = (0, 1, 2, 3, 5, 8, 13, 50)  # of the event loop, until a delivery is cancelled


class SinkConformance:
    """Subclass it, override `settings` and `delivered`, and pytest finds the tests.

    `effectively_once` says that a line delivered again does not stand at the target twice; without it, it may.
    """

    effectively_once: ClassVar[bool] = False

    def settings(self, tmp_path: Path) -> SinkSettings:
        """The sink under test; everything it makes is below `tmp_path`."""
        raise NotImplementedError

    def delivered(self, tmp_path: Path) -> Sequence[bytes]:
        """The events at the target, as the lines that were delivered, in their order."""
        raise NotImplementedError

    def outage(self, tmp_path: Path) -> AbstractContextManager[None]:
        """While inside, the target is away. Optional."""
        raise SkipTest("no outage() given")

    def clock(self) -> Clock | None:
        """Another clock than the system's, where time matters. Optional."""
        return None

    @asynccontextmanager
    async def opened(self, tmp_path: Path, state: bytes | None = None) -> AsyncIterator[Sink]:
        """The sink as the engine opens it, with the state of its last commit."""
        context = make_context(tmp_path, state=state, clock=self.clock())
        async with self.settings(tmp_path).open(context) as sink:
            yield sink

    # --- the suite ------------------------------------------------------------------------------

    def test_delivers_every_event_in_order(self, tmp_path: Path) -> None:
        batches = [batch_of(0, 3), batch_of(3, 1), batch_of(4, 40)]
        asyncio.run(self._deliver_all(tmp_path, batches))
        self._require(tmp_path, batches)

    def test_keeps_large_and_unusual_events(self, tmp_path: Path) -> None:
        batch = make_batch([an_event(0, "ä\n\r\u2028\u0000\U0001f30a"), an_event(1, "x" * 300_000), an_event(2, "")])
        asyncio.run(self._deliver_all(tmp_path, [batch]))
        self._require(tmp_path, [batch])

    def test_goes_on_after_its_committed_state(self, tmp_path: Path) -> None:
        batches = [batch_of(number * 5, 5) for number in range(4)]
        state: bytes | None = None
        for batch in batches:
            state = asyncio.run(self._deliver_all(tmp_path, [batch], state))
        self._require(tmp_path, batches)

    def test_uncommitted_deliveries_come_again(self, tmp_path: Path) -> None:
        first, lost, again = batch_of(0, 10), batch_of(10, 7), [batch_of(10, 4), batch_of(14, 11)]
        state = asyncio.run(self._deliver_all(tmp_path, [first]))
        asyncio.run(self._deliver_all(tmp_path, [lost], state, flush=False))
        asyncio.run(self._deliver_all(tmp_path, again, state))
        self._require(tmp_path, [first, *again])

    def test_first_delivery_uncommitted_comes_again(self, tmp_path: Path) -> None:
        asyncio.run(self._deliver_all(tmp_path, [batch_of(0, 6), batch_of(6, 2)], flush=False))
        batches = [batch_of(0, 3), batch_of(3, 9)]
        asyncio.run(self._deliver_all(tmp_path, batches))
        self._require(tmp_path, batches)

    def test_cancelled_delivery_leaves_no_gap(self, tmp_path: Path) -> None:
        before = batch_of(0, 5)
        batch = make_batch([an_event(number, "x" * 500) for number in range(5, 605)], 5)

        async def run() -> None:
            async with self.opened(tmp_path) as sink:
                await complete(sink, before)
                for turns in _TURNS:
                    if await interrupted(sink, batch, turns):
                        return
                await complete(sink, batch)

        asyncio.run(run())
        self._require(tmp_path, [before, batch])

    def test_outage_is_transient(self, tmp_path: Path) -> None:
        batches = [batch_of(0, 4), batch_of(4, 4)]

        async def run() -> None:
            async with self.opened(tmp_path) as sink:
                await complete(sink, batches[0])
                with self.outage(tmp_path):
                    await refuses(sink, batches[1])
                await complete(sink, batches[1])

        asyncio.run(run())
        self._require(tmp_path, batches)

    def test_flush_may_be_called_at_any_time(self, tmp_path: Path) -> None:
        async def run() -> None:
            async with self.opened(tmp_path) as sink:
                if not isinstance(sink, Flushes):
                    raise SkipTest("the sink does not flush")
                await sink.flush()
                await complete(sink, batch_of(0, 2))
                await asyncio.gather(sink.flush(), sink.deliver(batch_of(2, 2)), sink.flush())
                await sink.flush()

        asyncio.run(run())
        self._require(tmp_path, [batch_of(0, 4)])

    def test_leaves_no_task_and_no_file_behind(self, tmp_path: Path) -> None:
        async def run() -> None:
            state = await self._deliver_all(tmp_path, [batch_of(0, 2)])
            async with nothing_left():
                await self._deliver_all(tmp_path, [batch_of(2, 2)], state)

        asyncio.run(run())

    # --- how ------------------------------------------------------------------------------------

    async def _deliver_all(
        self, tmp_path: Path, batches: Sequence[Batch], state: bytes | None = None, *, flush: bool = True
    ) -> bytes | None:
        """Deliver as the engine does; the state to commit, which an end without `flush` leaves uncommitted."""
        async with self.opened(tmp_path, state) as sink:
            for batch in batches:
                verdict = await complete(sink, batch, flush=flush)
                state = state if verdict.state is None else verdict.state
        return state

    def _require(self, tmp_path: Path, batches: Sequence[Batch]) -> None:
        expected = [line for batch in batches for line in batch.lines]
        found = [line if line.endswith(b"\n") else line + b"\n" for line in self.delivered(tmp_path)]
        repeated = len(found) - len(set(found))
        missing = [line for line in expected if line not in set(found)]
        assert not missing, f"{len(missing)} of {len(expected)} events never arrived, the first: {missing[0]!r}"
        assert not repeated or not self.effectively_once, f"{repeated} events arrived again"
        assert list(dict.fromkeys(found)) == expected, "the events arrived changed or out of order"


def an_event(number: int, text: str = "") -> Event:
    """An event with every attribute a consumer may look at."""
    return Event(
        id=f"1/{number}",
        source="headrace:under_test",
        type="headrace.filesystem.created",
        subject=f"file-{number % 7}",
        time="2026-01-02T03:04:05.678901Z",
        partitionkey=f"file-{number % 7}",
        data={"number": number, "text": text},
    )


def batch_of(first: int, count: int) -> Batch:
    """`count` events from number and position `first` on."""
    return make_batch([an_event(number) for number in range(first, first + count)], first)


async def complete(sink: Sink, batch: Batch, *, flush: bool = True) -> Verdict:
    """Deliver all of it, also what the sink skipped; make it durable."""
    verdict = await sink.deliver(batch)
    positions = set(batch.positions)
    assert not verdict.failed, f"good events failed: {dict(verdict.failed)}"
    assert set(verdict.skipped) <= positions, "the verdict skips events of another batch"
    assert all(parent in positions for parent, _ in verdict.events), "new events have a parent of another batch"
    assert len(verdict.state or b"") <= _MAX_STATE, "the state is too large to be committed with every cursor"
    if flush and isinstance(sink, Flushes):
        await sink.flush()
    if verdict.skipped:
        return await complete(sink, part(batch, set(verdict.skipped)), flush=flush)
    return verdict


def part(batch: Batch, wanted: set[int]) -> Batch:
    """The events of a batch that are at the wanted positions."""
    chosen = [index for index, position in enumerate(batch.positions) if position in wanted]
    data = b"".join(batch.lines[index] for index in chosen)
    return Batch(batch.shard, [batch.positions[index] for index in chosen], data)


async def interrupted(sink: Sink, batch: Batch, turns: int) -> bool:
    """Begin a delivery and cancel it `turns` turns later; true when it was quicker."""

    async def deliver() -> None:
        await sink.deliver(batch)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(deliver(), name="the delivery")
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():
            return True
        await cancelled(task)
        return not task.cancelled()


async def refuses(sink: Sink, batch: Batch) -> None:
    """The delivery must raise `Transient`."""
    try:
        await sink.deliver(batch)
    except Transient:
        return
    raise AssertionError("the target is away, and deliver() did not raise Transient")
