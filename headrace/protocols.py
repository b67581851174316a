"""The ports: what a source, a sink and a journal are to the rest, and the powers that only some of them have.

A source sees only its `Capture`; a sink sees only its `Batch`. A further power is a protocol of its own, asked for with
`isinstance` once after opening.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from headrace.event import Event
from headrace.journal.block import Block, Kind, Lines, SealedBlock

if TYPE_CHECKING:
    from headrace.delivery.cursor import Cursor

__all__ = [
    "Backfills",
    "Batch",
    "Block",
    "Bounds",
    "Capture",
    "Captured",
    "Change",
    "Clock",
    "ConsumerJournal",
    "Context",
    "Describes",
    "Diagnoses",
    "Finding",
    "Flushes",
    "Journal",
    "Kind",
    "Lines",
    "Logger",
    "Page",
    "Position",
    "Retains",
    "Row",
    "Sink",
    "Source",
    "State",
    "Store",
    "StoresCursor",
    "Verdict",
    "Write",
]

Position: TypeAlias = int
"""Where an event stands within its shard: it sorts, and only the engine does arithmetic beyond a block with it."""


class Write(NamedTuple):
    """One change of a source's state: `value` None deletes. `secondary` is the one other key to find the row by."""

    key: bytes
    value: bytes | None
    secondary: bytes | None = None


class State(Protocol):
    """A source's own rows, ordered by key. Reads see submitted writes, also those that are not durable yet."""

    async def get(self, key: bytes) -> bytes | None: ...
    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The rows that there are for these keys: one read, where a read is a hop to another thread."""

    async def scan(self, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` rows whose key starts with `prefix` and is greater than `after`, in order: one short read."""

    async def find(self, secondaries: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """The rows with one of these secondary keys, in order of their keys."""


Captured: TypeAlias = Sequence[Event] | Lines | SealedBlock
"""What a source hands over: typed events; from a fast one, encoded lines, or a block that it sealed before."""


class Capture(Protocol):
    """All that a source sees of the rest. An append is durable and atomic with its state when it returns.

    Waiting is the back-pressure: while the journal is slow or full, `append` and `submit` wait. An append carries at
    most 5,000 writes. A failed append fails all later ones of this run.
    """

    @property
    def state(self) -> State: ...
    async def append(self, events: Captured, state: Sequence[Write] = ()) -> None: ...
    async def submit(self, events: Captured, state: Sequence[Write] = ()) -> Future[None]:
        """Hand over in order and return at once; the future is done when all of it is durable."""


class Source(Protocol):
    """What watches one origin."""

    async def run(self, out: Capture) -> None:
        """Until cancelled. `Transient` restarts it with back-off, `Fatal` stops it until the operator acts."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a batch. Events named nowhere were delivered.

    A sink in bulk that names a failure also names all later events of the same keys, failed or skipped: they wait for
    it. A sink that `StoresCursor` names none, it fails as a whole: what it stored of a batch could not be told apart.

    `failed` says why, by position: each spends an attempt. `skipped` were not tried, because an earlier one ended the
    delivery: they come again and spend none. `state` is kept for the sink and committed together with the cursor.
    `events` are new ones, by the position of their parent, committed with the cursor.
    """

    failed: Mapping[Position, str] = field(default_factory=dict)
    skipped: Sequence[Position] = ()
    state: bytes | None = None
    events: Sequence[tuple[Position, Event]] = ()


@dataclass(frozen=True)
class Batch:
    """Events to deliver, in order, of one shard: encoded lines with their positions; typed events on demand.

    `data` is all lines joined, each with its newline. `attempt` counts from 1 and is that of the most tried event.
    `cursor` is given to a sink that `StoresCursor`: where it will stand once all of the batch is stored.
    """

    shard: str
    positions: Sequence[Position]
    data: bytes
    attempt: int = 1
    cursor: Cursor | None = None

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def lines(self) -> list[bytes]:
        return self.data.splitlines(keepends=True)

    @cached_property
    def events(self) -> list[Event]:
        return [Event.parse(line) for line in self.lines]


class Sink(Protocol):
    """What delivers to one target. The engine owns cursors, order, retries and dead letters."""

    async def deliver(self, batch: Batch) -> Verdict:
        """Deliver in order, or raise.

        `Transient`: the target is away, nothing is spent. `Permanent`: the batch failed as a whole and is split until
        the culprit stands alone. `Fatal`: the consumer stops until the operator acts. Cancelled on time-out or stop.
        """


@runtime_checkable
class Flushes(Protocol):
    """A sink whose `deliver` returns before its target is durable."""

    async def flush(self) -> None:
        """Everything delivered before the call is durable on return; its cursor is committed only after."""


@runtime_checkable
class StoresCursor(Protocol):
    """A sink that keeps the cursor with its data; asked once after opening."""

    async def position(self) -> Cursor | None: ...


class Finding(NamedTuple):
    """One line of `doctor`: what was seen, and the remedy where something is wrong."""

    level: Literal["ok", "warning", "error"]
    what: str
    remedy: str = ""


@runtime_checkable
class Diagnoses(Protocol):
    """An adapter that can say what is wrong around it, for `doctor` and `check --connect`."""

    def diagnose(self) -> AsyncIterator[Finding]: ...


@runtime_checkable
class Backfills(Protocol):
    """A source that can capture again what is there, on demand."""

    async def backfill(self, what: str) -> None:
        """Read what is there again, as events beside the live ones."""


@runtime_checkable
class Describes(Protocol):
    """An adapter that knows the shape of its events' data."""

    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        """JSON Schemas of `data`, by `dataschema` URN."""


class Row(NamedTuple):
    """One row of the local ordered store; `value` None deletes. A space belongs to one source, consumer or purpose."""

    space: str
    key: bytes
    value: bytes | None
    secondary: bytes | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What one transaction writes: blocks in order, and rows. Only `intake` waits while the journal is full."""

    blocks: Sequence[SealedBlock] = ()
    rows: Sequence[Row] = ()
    intake: bool = False


class Page(NamedTuple):
    """The blocks found, in order, and the position to go on from: everything before it has been seen or skipped."""

    blocks: Sequence[Block]
    next: Position


class Store(Protocol):
    """The local ordered store: durable rows by (space, key). Every read is short."""

    async def get(self, space: str, key: bytes) -> bytes | None: ...
    async def get_many(self, space: str, keys: Sequence[bytes]) -> dict[bytes, bytes]: ...
    async def scan(self, space: str, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]: ...
    async def find(self, space: str, secondaries: Sequence[bytes]) -> list[tuple[bytes, bytes]]: ...


class Journal(Protocol):
    """An ordered durable log of blocks in one or more shards, with a local store committed together with it."""

    @property
    def shards(self) -> Sequence[str]: ...
    @property
    def store(self) -> Store: ...
    def head(self, shard: str) -> Position:
        """The position that the next event of the shard will have."""

    def submit(self, change: Change) -> Future[None]:
        """Durable and atomic when the future is done; changes become durable in the order of the calls.

        Raises `Fatal` through the future where the journal can no longer be trusted.
        """

    async def read(self, shard: str, start: Position, wanted: Callable[[Sequence[Kind]], bool]) -> Page:
        """The next blocks that end after `start` and whose kinds are wanted: one short read. Raises `CorruptBlock`."""

    async def grown(self, shard: str, position: Position) -> None:
        """Returns once the shard's head is beyond `position`."""


class Bounds(Protocol):
    """A journal's reach: from where it can still be read."""

    async def oldest(self, shard: str) -> Position: ...
    async def at(self, shard: str, time: float) -> Position:
        """The first position of the block appended at or after `time` (seconds since 1970), else the head."""


class Retains(Protocol):
    """A journal that deletes what no consumer needs any more."""

    def hold(self, consumer: str, shard: str, position: Position) -> None:
        """Keep everything from `position` on for this consumer, until it holds a later one or is released."""

    def release(self, consumer: str) -> None: ...


class ConsumerJournal(Journal, Bounds, Retains, Protocol):
    """What delivery needs of an engine."""


class Clock(Protocol):
    """Time as adapters see it, so that tests can turn it."""

    def time(self) -> float:
        """Seconds since 1970."""

    async def sleep(self, seconds: float) -> None: ...


class Logger(Protocol):
    """The part of structlog's bound logger that adapters use: a short event and its fields."""

    def debug(self, event: str, **fields: Any) -> Any: ...
    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def error(self, event: str, **fields: Any) -> Any: ...
    def exception(self, event: str, **fields: Any) -> Any: ...
    def bind(self, **fields: Any) -> Logger: ...


@dataclass(frozen=True, slots=True)
class Context:
    """What an adapter is opened with.

    `state` is the sink's last committed `Verdict.state`. `directory` is the settings file's folder, where relative
    paths start. `scratch` is a folder of the adapter's own below the data directory, emptied at every start.
    `origin` is the prefix of the CloudEvents `source` attribute (`headrace:`).
    """

    name: str
    state: bytes | None
    directory: Path
    scratch: Path
    log: Logger
    clock: Clock
    origin: str = "headrace:"

    @property
    def source(self) -> str:
        """The CloudEvents `source` of this adapter's events."""
        return self.origin + self.name
