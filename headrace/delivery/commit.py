"""Making a consumer's progress durable: what was settled, in one transaction, soon after and again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec

from headrace.delivery.cursor import Cursor, dead_space, parked_space
from headrace.delivery.flow import Flow
from headrace.delivery.records import Records
from headrace.event import Event, source_seed
from headrace.failpoints import reach
from headrace.journal.block import Lines, seal
from headrace.protocols import Change, ConsumerJournal, Flushes, Position, Row, Sink

SKIPPED_COMMIT: Final = 1.0  # seconds until a cursor that only skipped is committed
HOPS: Final = 16  # returned events may lead to returned events this often


class Committer:
    """Commits the flows of one run. `state` is the sink's, as of the last settled batch."""

    def __init__(
        self,
        journal: ConsumerJournal,
        records: Records,
        flows: Mapping[str, Flow],
        sink: Sink,
        state: bytes | None,
        interval: float,
    ) -> None:
        self.state = state
        self._journal = journal
        self._records = records
        self._flows = flows
        self._sink = sink
        self._interval = interval
        self._dirty = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self._returned: list[Event] = []

    def touch(self) -> None:
        """Something was settled."""
        self._dirty.set()

    def touch_later(self) -> None:
        """Something was skipped: cheap to do again, so not worth a commit of its own at once."""
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(SKIPPED_COMMIT, self._dirty.set)

    def emit(self, event: Event) -> None:
        """An event that a handler returned: it enters the journal together with the cursor."""
        self._returned.append(event)
        self.touch()

    async def run(self) -> None:
        while True:
            await self._dirty.wait()
            await self.commit()
            await asyncio.sleep(self._interval)

    async def commit(self) -> None:
        """Durable on return: all that was settled before the call."""
        self._dirty.clear()
        if self._later:
            self._later.cancel()
            self._later = None
        change, cursor, parked = self._change()
        if isinstance(self._sink, Flushes):
            await self._sink.flush()
        reach("delivery.before-commit")
        await asyncio.shield(self._journal.submit(change))
        reach("delivery.after-commit")
        for shard, at in cursor.shards.items():
            self._journal.hold(self._records.consumer, shard, at.low)
            self._flows[shard].stored(parked[shard])

    def _change(self) -> tuple[Change, Cursor, Mapping[str, list[Position]]]:
        """Everything as of now: nothing may be settled between the rows, the cursor and the state."""
        name, rows = self._records.consumer, list[Row]()
        parked: dict[str, list[Position]] = {}
        for shard, flow in self._flows.items():
            parked[shard], changed, dead = flow.take_rows()
            rows += [Row(parked_space(name), key, value) for key, value in changed.items()]
            rows += [Row(dead_space(name), key, value) for key, value in dead.items()]
        cursor = Cursor({shard: flow.cursor() for shard, flow in self._flows.items()}, self.state)
        rows.append(self._records.cursor_row(cursor))
        returned, self._returned = self._returned, []
        blocks = [seal(name, Lines.of(returned, source_seed(name)))] if returned else []
        return Change(blocks, rows), cursor, parked


def child_event(parent: Event, event: Event, consumer: str, index: int, origin: str) -> Event | None:
    """A returned event with its identity from its parent; None where it went round too often."""
    hops = int(parent.extensions.get("headracehops", 0)) + 1
    if hops > HOPS:
        return None
    return msgspec.structs.replace(
        event,
        id=f"{parent.id}/{consumer}/{index}",
        source=f"{origin}{consumer}",
        traceparent=event.traceparent or parent.traceparent,
        extensions={**event.extensions, "headracehops": hops},
    )
