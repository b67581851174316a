"""From steps to events and rows in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from headrace.event import Event
from headrace.inventory import Inventory
from headrace.protocols import Clock, Write
from headrace.sources.filesystem.content import NOTHING, Reader, Reading, digest_of
from headrace.sources.filesystem.decide import Step
from headrace.sources.filesystem.entry import identity
from headrace.sources.filesystem.events import Events
from headrace.sources.filesystem.names import key_of


class Recorder:
    """Takes up steps for the journal's next append; a step's event and its rows are never parted."""

    def __init__(self, root: bytes, inventory: Inventory, events: Events, reader: Reader, clock: Clock) -> None:
        self._root = root + b"/"
        self._inventory = inventory
        self._events = events
        self._reader = reader
        self._clock = clock

    async def record(self, steps: Sequence[Step], rows: Mapping[bytes, bytes], *, recovered: bool = False) -> None:
        """`rows` is what was known of the paths before."""
        if self._reader.reads:
            await self._record_read(steps, rows, recovered=recovered)
            return
        for step in steps:
            await self._apply(step, step.value, None, recovered=recovered)

    async def _record_read(self, steps: Sequence[Step], rows: Mapping[bytes, bytes], *, recovered: bool) -> None:
        readings = await asyncio.to_thread(self._read, steps)
        digests = {path: digest_of(value) for path, value in rows.items()}
        for step, reading in zip(steps, readings, strict=True):
            known = digests.get(step.path if step.previous is None else step.previous, b"")
            same = bool(known) and known == reading.digest and step.name == "modified"
            digest = reading.digest or (known if step.name in {"moved", ""} else b"")
            digests[step.path] = digest
            value = step.value + digest
            await self._apply(step._replace(name="") if same else step, value, reading.data, recovered=recovered)

    def _read(self, steps: Sequence[Step]) -> Sequence[Reading]:
        read = self._reader.read
        return [read(self._root + it.path, it.value) if it.name in {"created", "modified"} else NOTHING for it in steps]

    async def _apply(self, step: Step, value: bytes, content: Mapping[str, object] | None, *, recovered: bool) -> None:
        events = [self._event(step, content, recovered=recovered)] if step.name else ()
        await self._inventory.apply(events, _writes(step, value))

    def _event(self, step: Step, content: Mapping[str, object] | None, *, recovered: bool) -> Event:
        change = self._inventory.number()
        return self._events.event(step, change, now=self._clock.time(), recovered=recovered, content=content)


def _writes(step: Step, value: bytes) -> Sequence[Write]:
    key = key_of(step.path)
    if step.name == "deleted":
        return [Write(key, None)]
    row = Write(key, value, identity(value))
    return [row] if step.previous is None else [Write(key_of(step.previous), None), row]
