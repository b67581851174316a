"""What an origin is known to hold, and the changes found by comparing it with what the origin says.

Shared by the sources that list: files and buckets. Such a source keeps one row per thing (path, object) in its state,
under keys whose byte order is the order of the origin's listing. A change is numbered when its row changes, and the
event, the row and the number reach the journal in one append.
"""

from __future__ import annotations

from asyncio import Future
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from operator import itemgetter
from secrets import token_hex
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from headrace.event import Event
from headrace.failpoints import reach
from headrace.protocols import Capture, Write

EVENTS: Final = 500  # of one append: a group that size costs its fsync little, and holds the writer briefly
WRITES: Final = 4_000  # of one append, beside the meta row; the protocol allows 5,000
IN_FLIGHT: Final = 4  # appends submitted and not yet durable
PAGE: Final = 2_000

META: Final = b"m"

Found: TypeAlias = tuple[bytes, bytes]
"""A key and what stands under it, in a listing or in the inventory."""

_key = itemgetter(0)


class Change(NamedTuple):
    """The number of a change, as the envelope carries it. Ids are unique, sequences sort as text."""

    id: str
    sequence: str


class Meta(msgspec.Struct):
    """What the source knows beside its rows.

    `incarnation` tells this inventory from one made anew; `changes` is the last number given. `listed`: the first
    listing is complete; until then it reached `marker`. `notes` are the source's own.
    """

    incarnation: str
    changes: int = 0
    listed: bool = False
    marker: bytes = b""
    notes: dict[str, Any] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Meta).decode


class Difference(NamedTuple):
    """What two sorted pages do not share, each in the order of the keys. `changed` holds key, known, listed."""

    added: Sequence[Found]
    changed: Sequence[tuple[bytes, bytes, bytes]]
    removed: Sequence[Found]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


NO_DIFFERENCE: Final = Difference([], [], [])


def difference(listed: Sequence[Found], known: Sequence[Found]) -> Difference:
    """Compare a page of a listing with the rows of the same range of keys. Equal pages cost one comparison."""
    if listed == known:
        return NO_DIFFERENCE
    rows, things = dict(known), dict(listed)
    return Difference(
        [it for it in listed if it[0] not in rows],
        [(key, rows[key], value) for key, value in listed if key in rows and rows[key] != value],
        [it for it in known if it[0] not in things],
    )


Pages: TypeAlias = Callable[[], Awaitable[Sequence[Found]]]
"""The next page of a listing in the order of its keys; an empty one ends it."""
Scan: TypeAlias = Callable[[bytes, bytes | None, int], Awaitable[Sequence[Found]]]
"""`State.scan`: prefix, after, limit."""


async def compare(pages: Pages, scan: Scan, prefix: bytes) -> AsyncGenerator[Difference, None]:
    """A whole listing against all rows under `prefix`, page by page, also where a page holds no difference.

    Rows are read when their page is compared: what the caller wrote between two steps is seen. Memory is bounded by
    the pages.
    """
    after: bytes | None = None
    while listed := await pages():
        while listed:
            rows = await scan(prefix, after, len(listed))
            listed, now, after = _aligned(listed, rows)
            yield difference(*now)
    while rows := await scan(prefix, after, PAGE):
        after = rows[-1][0]
        yield difference((), rows)


def _aligned(
    listed: Sequence[Found], rows: Sequence[Found]
) -> tuple[Sequence[Found], tuple[Sequence[Found], Sequence[Found]], bytes]:
    """Cut both pages at the last key up to which both are known: the rest of the listing, both cuts, that key."""
    last = listed[-1][0]
    if len(rows) < len(listed) or rows[-1][0] >= last:
        return (), (listed, rows[: bisect_right(rows, last, key=_key)]), last
    bound = rows[-1][0]
    cut = bisect_right(listed, bound, key=_key)
    return listed[cut:], (listed[:cut], rows), bound


class Inventory:
    """The rows of one source, and its changes on their way into the journal. Owned by one task.

    Reads see everything applied. Nothing applied is durable before `settle` returns.
    """

    def __init__(self, out: Capture, meta: Meta) -> None:
        self._out = out
        self._state = out.state
        self._events: list[Event] = []
        self._writes: dict[bytes, Write] = {}
        self._by_secondary: dict[bytes, set[bytes]] = {}
        self._in_flight: deque[Future[None]] = deque()
        self._meta_changed = False
        self.meta = meta

    @classmethod
    async def open(cls, out: Capture) -> Inventory:
        """As the state has it; an incarnation of its own where the state is empty."""
        stored = await out.state.get(META)
        if stored is not None:
            return cls(out, _decode(stored))
        inventory = cls(out, Meta(token_hex(8)))
        inventory.meta_changed()
        return inventory

    def number(self) -> Change:
        """The next change. It counts once the event that carries it is applied."""
        self.meta.changes += 1
        self._meta_changed = True
        return Change(f"{self.meta.incarnation}/{self.meta.changes}", f"{self.meta.changes:020}")

    def meta_changed(self) -> None:
        """`meta` goes with the next append."""
        self._meta_changed = True

    async def apply(self, events: Sequence[Event], writes: Sequence[Write]) -> None:
        """Take events and the rows they stand for, which stay together. Waits while the journal is slow."""
        self._events += events
        for write in writes:
            self._writes[write.key] = write
            if write.secondary is not None:
                self._by_secondary.setdefault(write.secondary, set()).add(write.key)
        if len(self._events) >= EVENTS or len(self._writes) >= WRITES:
            await self.flush()

    async def flush(self) -> None:
        """Hand everything applied to the journal, in order; waits while too much is in flight."""
        if not (self._writes or self._events or self._meta_changed):
            return
        writes = list(self._writes.values())
        if self._meta_changed:
            writes.append(Write(META, _encode(self.meta)))
        events, self._events = self._events, []
        self._writes, self._by_secondary, self._meta_changed = {}, {}, False
        reach("inventory.append")
        self._in_flight.append(await self._out.submit(events, writes))
        while len(self._in_flight) > IN_FLIGHT:
            await self._in_flight.popleft()
        reach("inventory.submitted")

    async def settle(self) -> None:
        """Everything applied is durable on return. Raises what the journal raised."""
        await self.flush()
        while self._in_flight:
            await self._in_flight.popleft()

    async def get(self, key: bytes) -> bytes | None:
        write = self._writes.get(key)
        return await self._state.get(key) if write is None else write.value

    async def scan(self, prefix: bytes, after: bytes | None, limit: int) -> list[Found]:
        await self.flush()
        return await self._state.scan(prefix, after, limit)

    async def find(self, secondaries: Collection[bytes]) -> list[Found]:
        """The rows with one of these secondary keys."""
        wanted = sorted(set(secondaries))
        stored = [it for it in await self._state.find(wanted) if it[0] not in self._writes]
        applied = {key: self._writes[key] for one in wanted for key in self._by_secondary.get(one, ())}
        fresh = [(key, it.value) for key, it in applied.items() if it.value is not None and it.secondary in wanted]
        return sorted(stored + fresh)

    async def lookup(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The rows that there are for these keys."""
        wanted = set(keys)
        applied = {it: self._writes[it].value for it in wanted if it in self._writes}
        stored = sorted(wanted - applied.keys())
        rows = await self._state.get_many(stored) if stored else {}
        return rows | {key: value for key, value in applied.items() if value is not None}
