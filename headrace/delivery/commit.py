"""Making a consumer's progress durable: what was settled, in one transaction, soon after and again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec

from headrace.delivery.cursor import Cursor, Replay, ShardCursor, dead_space, parked_space
from headrace.delivery.flow import Flow
from headrace.delivery.records import Records
from headrace.delivery.replay import ReplayFlow
from headrace.errors import Fatal, JournalFailed
from headrace.event import Event, source_seed
from headrace.failpoints import reach
from headrace.journal.block import Lines, SealedBlock, cut, seal
from headrace.protocols import Change, ConsumerJournal, Flushes, Position, Row, Sink

SKIPPED_COMMIT: Final = 1.0  # seconds until a cursor that only skipped is committed
HOPS: Final = 16  # returned events may lead to returned events this often
OWN: Final = frozenset({"headraceredrive", "headracereplay"})  # said of one delivery: no child inherits it
TYPES: Final = 256  # distinct types that fit one block
EARLY: Final = 16  # events settled since the last commit that make the next one come at once
UNCOMMITTED: Final = 64  # the same, beyond which no further event is delivered: what a crash may repeat


class Returned(NamedTuple):
    """An event that a handler returned, encoded."""

    event: Event
    line: bytes


class Committer:
    """Commits the flows of one run. `state` is the sink's, as of the last settled batch.

    `hold` keeps a shard's blocks from a position on; `committed` is called after each commit. A commit that is
    cancelled, or whose flush fails, loses nothing: the next one writes it.
    """

    def __init__(
        self,
        journal: ConsumerJournal,
        records: Records,
        flows: Mapping[str, Flow],
        sink: Sink,
        state: bytes | None,
        interval: float,
        hold: Callable[[str, Position], None],
    ) -> None:
        self.state = state
        self.committed: Callable[[], None] = lambda: None
        self._journal = journal
        self._records = records
        self._flows = flows
        self._sink = sink
        self._interval = interval
        self._hold = hold
        self._one = asyncio.Lock()
        self._dirty = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self._rows: dict[tuple[str, bytes], bytes | None] = {}  # taken from the flows, not handed over yet
        self._parked: dict[str, list[Position]] = {shard: [] for shard in flows}
        self._returned: list[Returned] = []
        self._settled_returns = 0
        self._settled = 0
        self._collected = 0
        self._now = asyncio.Event()
        self._fewer = asyncio.Event()

    def touch(self, events: int = 0) -> None:
        """Something was settled; `events` of it would be delivered again after a crash now."""
        self._settled += events
        self._dirty.set()
        if self._settled >= EARLY:
            self._now.set()

    async def bounded(self) -> None:
        """Wait until fewer than `UNCOMMITTED` settled events are not durable."""
        while self._settled >= UNCOMMITTED:
            self._fewer.clear()
            await self._fewer.wait()

    def touch_later(self) -> None:
        """Something was skipped: cheap to do again, so not worth a commit of its own at once."""
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(SKIPPED_COMMIT, self._dirty.set)

    def emit(self, returned: Returned) -> None:
        """An event that a handler returned: it enters the journal together with the cursor."""
        self._returned.append(returned)
        self.touch()

    async def run(self) -> None:
        """Until cancelled; then one more `commit` is due."""
        try:
            while True:
                await self._dirty.wait()
                await self.commit()
                await self._pause()
        finally:
            self._not_later()

    async def _pause(self) -> None:
        self._now.clear()
        timer = asyncio.get_running_loop().call_later(self._interval, self._now.set)
        try:
            await self._now.wait()
        finally:
            timer.cancel()

    async def commit(self) -> None:
        """Durable on return: all that was settled before the call."""
        async with self._one:
            self._dirty.clear()
            self._not_later()
            cursor = self._collect()
            if isinstance(self._sink, Flushes):
                await self._sink.flush()
            reach("delivery.before-commit")
            await self._write(cursor)
            reach("delivery.after-commit")
        self._settled -= self._collected
        self._fewer.set()
        self.committed()

    async def rows_durable(self) -> None:
        """Parked events and dead letters are durable on return; nothing is done where they already are."""
        if self._rows or self._one.locked() or any(flow.rows or flow.dead for flow in self._flows.values()):
            await self.commit()

    def _not_later(self) -> None:
        if self._later:
            self._later.cancel()
            self._later = None

    def _collect(self) -> Cursor:
        """Everything as of now: nothing may be settled between the rows, the cursor and the state."""
        name = self._records.consumer
        for shard, flow in self._flows.items():
            parked, changed, dead = flow.take_rows()
            self._parked[shard] += parked
            self._rows |= {(parked_space(name), key): value for key, value in changed.items()}
            self._rows |= {(dead_space(name), key): value for key, value in dead.items()}
        self._settled_returns = len(self._returned)
        self._collected = self._settled
        shards, replays = dict[str, ShardCursor](), dict[str, Replay]()
        for flow in self._flows.values():
            if not isinstance(flow, ReplayFlow):
                shards[flow.shard] = flow.cursor()
            elif not flow.finished:
                replays[flow.journal_shard] = flow.stored_form()
        return Cursor(shards, self.state, replays=replays)

    async def _write(self, cursor: Cursor) -> None:
        rows = [Row(space, key, value) for (space, key), value in self._rows.items()]
        future = self._journal.submit(Change(self._sealed(), [*rows, self._records.cursor_row(cursor)]))
        # Handed over: the journal writes it in order, whether or not anybody waits for it here.
        self._rows, parked = {}, self._parked
        self._parked = {shard: [] for shard in self._flows}
        try:
            await asyncio.shield(future)
        except Fatal as error:
            raise JournalFailed(error.message, hint=error.hint) from error
        for shard in cursor.shards:
            self._hold(shard, cursor.needs(shard))
        for name, flow in self._flows.items():
            flow.stored(parked[name])

    def _sealed(self) -> list[SealedBlock]:
        """What was returned by the time of the cursor, and only that."""
        returned, name = self._returned[: self._settled_returns], self._records.consumer
        del self._returned[: self._settled_returns]
        blocks = []
        for start in range(0, len(returned), TYPES):
            part = returned[start : start + TYPES]
            lines = Lines.of([it.event for it in part], source_seed(name), [it.line for it in part])
            blocks += [seal(name, each) for each in cut(lines)]
        return blocks


def child_of(parent: Event, event: Event, consumer: str, index: int, origin: str) -> Returned | None:
    """A returned event with its identity from its parent; None where it went round too often.

    `index` counts the events of this parent. The operator who redrives one lets it go round again. Raises
    `ValueError` where the event is not JSON.
    """
    hops = 1 if "headraceredrive" in parent.extensions else _hops(parent) + 1
    if hops > HOPS:
        return None
    made = msgspec.structs.replace(
        event,
        id=f"{parent.id}/{consumer}/{index}",
        source=f"{origin}{consumer}",
        traceparent=event.traceparent or parent.traceparent,
        extensions={key: value for key, value in event.extensions.items() if key not in OWN} | {"headracehops": hops},
    )
    return Returned(made, made.line())


def _hops(event: Event) -> int:
    hops = event.extensions.get("headracehops")
    return hops if isinstance(hops, int) else 0
