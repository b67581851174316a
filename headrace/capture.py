"""One source into the journal: encoding, order, back-pressure, and state that reads see at once.

`SourceCapture` is the same in the daemon and in a child process; only the `Port` below it differs.
"""

from __future__ import annotations

import asyncio
from array import array
from asyncio import Future
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import msgspec

from headrace.errors import Fatal, Permanent, Transient
from headrace.event import Event, source_seed
from headrace.failpoints import reach
from headrace.journal.block import Lines, SealedBlock, cut, seal
from headrace.protocols import Captured, Change, Journal, Row, Store, Write

MAX_WRITES: Final = 5_000  # rows of state in one append, so that no append holds the writer for long
# Bytes handed over and not yet durable, beyond which a source waits. What others append waits for these: with 2 MiB one
# of a hundred other events was 58 ms late at a large commit, so it is 30 ms, and the commit no slower (tried).
IN_FLIGHT: Final = 512 << 10
INLINE: Final = 128 << 10  # bytes up to which compressing in the loop is cheaper than a hop to a thread


class Port(Protocol):
    """The way to the journal: directly, or over the pipe of a child process."""

    def submit(self, blocks: Sequence[SealedBlock], writes: Sequence[Write]) -> Future[None]: ...
    async def get(self, key: bytes) -> bytes | None: ...
    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]: ...
    async def scan(self, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]: ...
    async def find(self, secondaries: Sequence[bytes]) -> list[tuple[bytes, bytes]]: ...


class JournalPort:
    """The port of a source that runs in the daemon."""

    def __init__(self, journal: Journal, source: str) -> None:
        self._journal = journal
        self._store: Store = journal.store
        self._space = state_space(source)

    def submit(self, blocks: Sequence[SealedBlock], writes: Sequence[Write]) -> Future[None]:
        rows = [Row(self._space, *write) for write in writes]
        return self._journal.submit(Change(blocks, rows, intake=True))

    async def get(self, key: bytes) -> bytes | None:
        return await self._store.get(self._space, key)

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        return await self._store.get_many(self._space, keys)

    async def scan(self, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        return await self._store.scan(self._space, prefix, after, limit)

    async def find(self, secondaries: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        return await self._store.find(self._space, secondaries)


def state_space(source: str) -> str:
    """The space of a source's rows in the store."""
    return f"source:{source}"


class SourceCapture:
    """The `Capture` of one run of one source."""

    def __init__(self, port: Port, source: str, max_event: int) -> None:
        self._port = port
        self._source = source
        self._seed = source_seed(source)
        self._max_event = max_event
        self._order = asyncio.Lock()
        self._in_flight: dict[Future[None], int] = {}
        self._sealing: _Sealing | None = None
        self._settled = asyncio.Event()
        self._failed: BaseException | None = None
        self.state = Overlay(port)

    async def append(self, events: Captured, state: Sequence[Write] = ()) -> None:
        future = await self.submit(events, state)
        await asyncio.shield(future)
        reach("capture.after-append")

    async def submit(self, events: Captured, state: Sequence[Write] = ()) -> Future[None]:
        if len(state) > MAX_WRITES:
            raise Fatal(f"an append carries at most {MAX_WRITES} rows of state, not {len(state)}")
        async with self._order:
            made = self._made(events)
            await self._handed_over()
            if isinstance(made, Lines) and len(made.data) > INLINE:
                return self._seal(made, state)
            blocks = [made] if isinstance(made, SealedBlock) else [seal(self._source, part) for part in cut(made)]
            size = sum(block.size for block in blocks)
            await self._room(size)
            reach("capture.before-append")
            future: Future[None] = asyncio.get_running_loop().create_future()
            self._hand_over(_Sealing(state, self.state.submitted(state), future, blocks, size))
            return future

    async def drain(self) -> None:
        """Wait until nothing is in flight any more, whatever became of it."""
        while self._in_flight or self._sealing:
            await self._settles()

    def _made(self, events: Captured) -> Lines | SealedBlock:
        """What was handed over, encoded and within the limit."""
        if not isinstance(events, Lines | SealedBlock):
            return self._encode(events)
        if isinstance(events, SealedBlock) and any(kind.source != self._source for kind in events.kinds):
            raise Fatal(f"source {self._source} hands over a block of another one")
        return self._within_limit(events)

    def _encode(self, events: Sequence[Event]) -> Lines:
        fitted = [fit(event, self._max_event) for event in events]
        return Lines.of([event for event, _ in fitted], self._seed, [line for _, line in fitted])

    def _within_limit(self, lines: Lines | SealedBlock) -> Lines | SealedBlock:
        """The same lines; values that make one too large are left out of it."""
        if max(lines.lengths, default=0) <= self._max_event:
            return lines
        if isinstance(lines, SealedBlock):
            lines = lines.lines()
        limit = self._max_event
        fitted = [fit(Event.parse(line), limit)[1] if len(line) > limit else line for line in lines.singly()]
        return replace(lines, data=b"".join(fitted), lengths=array("I", map(len, fitted)))

    def _seal(self, lines: Lines, state: Sequence[Write]) -> Future[None]:
        """Compress in a thread, and hand over from there: meanwhile the source makes the next block."""
        loop = asyncio.get_running_loop()
        sealing = _Sealing(state, self.state.submitted(state), loop.create_future())
        self._sealing = sealing
        done = loop.run_in_executor(None, lambda: [seal(self._source, part) for part in cut(lines)])
        done.add_done_callback(lambda done: self._sealed(sealing, done))
        return sealing.future

    def _sealed(self, sealing: _Sealing, done: Future[list[SealedBlock]]) -> None:
        error = Transient("the append was given up") if done.cancelled() else done.exception()
        self._failed = self._failed or error
        if error is None:
            sealing.blocks = done.result()
            sealing.size = sum(block.size for block in sealing.blocks)
        sealing.ready = True
        self._go_on()

    def _go_on(self) -> None:
        """Hand over what is sealed, once there is room."""
        sealing = self._sealing
        if sealing is not None and sealing.ready and (self._failed or self._has_room(sealing.size)):
            self._sealing = None
            if self._failed:
                _resolve(sealing.future, self._failed)
            else:
                reach("capture.before-append")
                self._hand_over(sealing)
        self._settled.set()

    async def _settles(self) -> None:
        self._settled.clear()
        await self._settled.wait()

    async def _handed_over(self) -> None:
        """The append before is on its way. Raises what made an earlier one fail."""
        while self._sealing:
            await self._settles()
        if self._failed:
            raise self._failed

    def _has_room(self, size: int) -> bool:
        return not self._in_flight or sum(self._in_flight.values()) + size <= IN_FLIGHT

    async def _room(self, size: int) -> None:
        while not self._has_room(size) and not self._failed:
            await self._settles()
        if self._failed:
            raise self._failed

    def _hand_over(self, sealing: _Sealing) -> None:
        """The future is the source's own: cancelling it takes nothing back and is no failure."""
        inner = self._port.submit(sealing.blocks, sealing.state)
        self._in_flight[inner] = sealing.size

        def settle(done: Future[None]) -> None:
            del self._in_flight[done]
            error = Transient("the append was given up") if done.cancelled() else done.exception()
            if error is None:
                self.state.durable(sealing.number)
            else:
                self._failed = self._failed or error
            _resolve(sealing.future, error)
            self._go_on()

        inner.add_done_callback(settle)


@dataclass(slots=True)
class _Sealing:
    """An append on its way to the port; `number` is that of its writes in the overlay."""

    state: Sequence[Write]
    number: int
    future: Future[None]
    blocks: Sequence[SealedBlock] = ()
    size: int = 0
    ready: bool = False


def _resolve(future: Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
        return
    future.set_exception(error)
    future.exception()  # retrieved: who did not wait for it hears of it at the next append


class Overlay:
    """A source's state: what is durable, with what was submitted on top."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._writes: dict[bytes, tuple[int, Write]] = {}
        self._number = 0
        self._durable = 0
        self._reads = 0

    def submitted(self, writes: Iterable[Write]) -> int:
        """Lay these on top; returns the number to call `durable` with."""
        self._number += 1
        for write in writes:
            self._writes[write.key] = (self._number, write)
        return self._number

    def durable(self, number: int) -> None:
        """All writes up to this number are in the store."""
        self._durable = number
        self._forget()

    def _forget(self) -> None:
        # A read that began before a write was durable may not have seen it in the store: keep what it needs.
        if not self._reads and self._writes:
            kept = {key: it for key, it in self._writes.items() if it[0] > self._durable}
            self._writes = kept

    async def get(self, key: bytes) -> bytes | None:
        if key in self._writes:
            return self._writes[key][1].value
        return await self._port.get(key)

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        fresh = {key: self._writes[key][1].value for key in keys if key in self._writes}
        rows = await self._port.get_many(stored) if (stored := [key for key in keys if key not in fresh]) else {}
        return rows | {key: value for key, value in fresh.items() if value is not None}

    async def scan(self, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` rows; fewer only where there are no more."""
        self._reads += 1
        try:
            return await self._scan(prefix, after, limit)
        finally:
            self._reads -= 1
            self._forget()

    async def _scan(self, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        while True:
            rows = await self._port.scan(prefix, after, limit)
            last = rows[-1][0] if len(rows) == limit else None
            found += self._merged(rows, prefix, after, last)
            if last is None or len(found) >= limit:
                return found[:limit]
            after = last  # deleted rows made the page short, and more may follow

    def _merged(
        self, rows: list[tuple[bytes, bytes]], prefix: bytes, after: bytes | None, last: bytes | None
    ) -> list[tuple[bytes, bytes]]:
        """The rows behind `after` and up to `last`, as they are with what was submitted."""
        if not self._writes:
            return rows
        merged: dict[bytes, bytes | None] = dict(rows)
        for key, (_, write) in self._writes.items():
            behind = (after is None or key > after) and (last is None or key <= last)
            if behind and key.startswith(prefix):
                merged[key] = write.value
        return [(key, value) for key, value in sorted(merged.items()) if value is not None]

    async def find(self, secondaries: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        self._reads += 1
        try:
            rows, wanted = dict(await self._port.find(secondaries)), set(secondaries)
            for key, (_, write) in self._writes.items():
                rows.pop(key, None)
                if write.value is not None and write.secondary in wanted:
                    rows[key] = write.value
            return sorted(rows.items())
        finally:
            self._reads -= 1
            self._forget()


def fit(event: Event, limit: int) -> tuple[Event, bytes]:
    """The event and its line; values of `data` that make it too large are left out and named in `data.oversize`.

    The largest go first. Raises `Permanent` where the attributes alone are too large.
    """
    line = event.line()
    if len(line) <= limit:
        return event, line
    data = event.data if isinstance(event.data, dict) else {"value": event.data}
    left_out: list[str] = []
    while len(line) > limit:
        paths = _largest(data, len(line) - limit)
        if not paths:
            raise Permanent(f"event {event.id} is larger than max_event ({limit} bytes) even without its data")
        for path in paths:
            data = _without(data, path)
            left_out.append(".".join(path))
        event = msgspec.structs.replace(event, data={**data, "oversize": left_out})
        line = event.line()
    return event, line


def _largest(data: dict[str, Any], excess: int) -> list[tuple[str, ...]]:
    """The paths of the largest values, going into objects, that make up `excess` bytes, or of all there are."""
    found, size = list[tuple[str, ...]](), 0
    for length, path in sorted(_leaves(data), reverse=True):
        if size >= excess:
            break
        found.append(path)
        size += length
    return found


def _leaves(data: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[int, tuple[str, ...]]]:
    for key, value in data.items():
        path = (*above, key)
        if isinstance(value, dict) and value:
            yield from _leaves(value, path)
        elif path != ("oversize",):
            yield len(msgspec.json.encode(value)), path


def _without(data: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    first, *rest = path
    if not rest:
        return {key: value for key, value in data.items() if key != first}
    return {**data, first: _without(data[first], rest)}
