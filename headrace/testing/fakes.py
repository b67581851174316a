"""What an adapter is opened with and runs against when no daemon is there."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

from headrace.clock import SystemClock
from headrace.errors import Fatal
from headrace.event import Event, lines_of
from headrace.journal.block import Lines, SealedBlock
from headrace.protocols import Batch, Captured, Clock, Context, Logger, State, Write

MAX_WRITES: Final = 5_000


class FakeClock:
    """Time that passes only by `advance`."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._order = count()
        self._sleepers: list[tuple[float, int, Future[None]]] = []

    def time(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        wake: Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._sleepers, (self._now + seconds, next(self._order), wake))
        await wake

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; sleepers whose time has come wake in its order."""
        self._now += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now:
            wake = heappop(self._sleepers)[2]
            if not wake.done():
                wake.set_result(None)


class RecordingLog:
    """A `Logger` that keeps what it was told, also through `bind`: (level, event, fields)."""

    def __init__(self, **bound: Any) -> None:
        self.records: list[tuple[str, str, dict[str, Any]]] = []
        self._bound = bound

    def bind(self, **fields: Any) -> Self:
        bound = type(self)(**self._bound | fields)
        bound.records = self.records
        return bound

    def debug(self, event: str, **fields: Any) -> None:
        self._keep("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._keep("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._keep("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._keep("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        self._keep("exception", event, fields)

    def _keep(self, level: str, event: str, fields: dict[str, Any]) -> None:
        self.records.append((level, event, self._bound | fields))


def make_context(
    directory: Path,
    *,
    name: str = "under_test",
    state: bytes | None = None,
    clock: Clock | None = None,
    log: Logger | None = None,
) -> Context:
    """A `Context` whose settings file would stand in `directory`; the scratch folder is made, and is empty at first."""
    scratch = directory / ".headrace-scratch" / name
    scratch.mkdir(parents=True, exist_ok=True)
    return Context(name, state, directory, scratch, log or RecordingLog(), clock or SystemClock())


def make_batch(events: Sequence[Event], first: int = 0, *, shard: str = "0", attempt: int = 1) -> Batch:
    """`events` as the batch that has them from position `first` on."""
    return Batch(shard, range(first, first + len(events)), lines_of(events), attempt)


class SimulatedCrash(NamedTuple):
    """The daemon dies at the `number`-th append (from 1): `before` it is durable, or `after`."""

    number: int
    when: Literal["before", "after"]


class _Rows:
    """A source's state: byte keys in order."""

    def __init__(self) -> None:
        self._rows: dict[bytes, tuple[bytes, bytes | None]] = {}

    def apply(self, writes: Sequence[Write]) -> None:
        for key, value, secondary in writes:
            if value is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = (value, secondary)

    def copy(self) -> _Rows:
        other = _Rows()
        other._rows = dict(self._rows)
        return other

    async def get(self, key: bytes) -> bytes | None:
        found = self._rows.get(key)
        return found[0] if found else None

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        return {key: self._rows[key][0] for key in keys if key in self._rows}

    async def scan(self, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        wanted = (key for key in self._rows if key.startswith(prefix) and (after is None or key > after))
        return [(key, self._rows[key][0]) for key in sorted(wanted)[:limit]]

    async def find(self, secondaries: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        wanted = set(secondaries)
        return [(key, row[0]) for key, row in sorted(self._rows.items()) if row[1] in wanted]


class _Submitted(NamedTuple):
    events: list[Event]
    writes: Sequence[Write]
    done: Future[None]


class MemoryCapture:
    """A `Capture` in memory. What is submitted becomes durable in order, a turn of the event loop later.

    `events` and the surviving state are what is durable. At the simulated crash nothing returns any more and `crashed`
    is set: cancel the source then, and give `survivor()` to the next run. `fail_with` is raised by every append.
    """

    def __init__(self, *, crash: SimulatedCrash | None = None, fail_with: Exception | None = None) -> None:
        self.events: list[Event] = []
        self.appends = 0
        self.crashed = asyncio.Event()
        self._crash = crash
        self._fail_with = fail_with
        self._seen = _Rows()
        self._durable = _Rows()
        self._queue: deque[_Submitted] = deque()

    @property
    def state(self) -> State:
        return self._seen

    def survivor(self, *, crash: SimulatedCrash | None = None, fail_with: Exception | None = None) -> MemoryCapture:
        """What the next run finds: the same events and state; what was in flight only where there was no crash."""
        while self._queue:
            self._commit()
        other = MemoryCapture(crash=crash, fail_with=fail_with)
        other.events = list(self.events)
        other._durable = self._durable.copy()
        other._seen = self._durable.copy()
        return other

    def has(self, subject: str) -> bool:
        """Whether an event of this subject is durable."""
        return any(event.subject == subject for event in self.events)

    async def append(self, events: Captured, state: Sequence[Write] = ()) -> None:
        await asyncio.shield(await self.submit(events, state))

    async def submit(self, events: Captured, state: Sequence[Write] = ()) -> Future[None]:
        if self._fail_with is not None:
            raise self._fail_with
        if len(state) > MAX_WRITES:
            raise Fatal(f"an append carries at most {MAX_WRITES} rows of state, not {len(state)}")
        submitted = _Submitted(typed(events), tuple(state), asyncio.get_running_loop().create_future())
        self.appends += 1
        if not self.crashed.is_set():
            self._accept(submitted)
        return submitted.done

    def _accept(self, submitted: _Submitted) -> None:
        self._seen.apply(submitted.writes)
        if self._crash is None or self.appends < self._crash.number:
            self._queue.append(submitted)
            asyncio.get_running_loop().call_soon(self._commit)
            return
        if self._crash.when == "after":
            self._queue.append(submitted)
            while self._queue:
                self._store(self._queue.popleft())
        self._queue.clear()
        self.crashed.set()

    def _commit(self) -> None:
        if self._queue:
            submitted = self._queue.popleft()
            self._store(submitted)
            if not submitted.done.done():
                submitted.done.set_result(None)

    def _store(self, submitted: _Submitted) -> None:
        self.events += submitted.events
        self._durable.apply(submitted.writes)


def typed(events: Captured) -> list[Event]:
    """As a consumer would read them: every event goes through its line. Raises `ValueError` where it cannot."""
    lines = events.lines() if isinstance(events, SealedBlock) else events
    data = lines.data if isinstance(lines, Lines) else lines_of(lines)
    return [Event.parse(line) for line in data.splitlines()]
