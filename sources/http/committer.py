"""From waiting requests into the journal: all that wait at one time become one durable append."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from headrace.errors import Permanent
from headrace.event import Event, source_seed
from headrace.failpoints import reach
from headrace.protocols import Capture, Clock
from headrace.sources.http.parcel import TYPES, Item, lines_of
from headrace.sources.http.refusal import Refused, busy
from headrace.sources.http.window import Window

EVENTS: Final = 2_000  # a block's worth; beyond it waiting requests make a second append
BYTES: Final = 1 << 20
SMALL: Final = 1 << 10  # bytes of a line that no max_event refuses: it goes as it is, larger ones are fitted
SWEEP: Final = 0.25  # seconds between two looks for requests that have waited too long


class _Parcel(NamedTuple):
    """The events of one request, which become durable together or not at all. `due`: when it has waited too long."""

    items: Sequence[Item]
    answer: Future[None]
    due: float

    @property
    def size(self) -> int:
        return sum(len(item.line) for item in self.items)


class Committer:
    """Takes the parcels of all requests in order, leaves out repeated ids, and answers when they are durable."""

    def __init__(self, name: str, out: Capture, window: Window, clock: Clock, patience: float) -> None:
        self._seed = source_seed(name)
        self._out = out
        self._window = window
        self._clock = clock
        self._patience = patience
        self._waiting: deque[_Parcel] = deque()
        self._writing: list[_Parcel] = []
        self._some = asyncio.Event()
        self._timer: asyncio.TimerHandle

    async def commit(self, items: Sequence[Item]) -> None:
        """Returns once the items are durable. Raises `Refused` where the journal does not take them in time."""
        loop = asyncio.get_running_loop()
        parcel = _Parcel(items, loop.create_future(), loop.time() + self._patience)
        self._waiting.append(parcel)
        self._some.set()
        await parcel.answer

    async def run(self) -> None:
        """Until cancelled, or the journal fails: whoever waits then is told to come again."""
        self._sweep()
        try:
            while True:
                await self._some.wait()
                await self._write_waiting()
        finally:
            self._timer.cancel()
            self._refuse_all()

    async def _write_waiting(self) -> None:
        self._writing = self._take()
        if not self._waiting:
            self._some.clear()
        try:
            await self._write(self._writing)
        except Permanent:
            await self._one_by_one()
        reach("http.before-answer")
        for parcel in self._writing:
            _answer(parcel)
        self._writing = []

    def _take(self) -> list[_Parcel]:
        """What waits, up to a block's worth; a parcel is never divided."""
        taken: list[_Parcel] = []
        events, size, types = 0, 0, set[str]()
        while self._waiting:
            parcel = self._waiting[0]
            events += len(parcel.items)
            size += parcel.size
            types.update(item.type for item in parcel.items)
            if taken and (events > EVENTS or size > BYTES or len(types) > TYPES):
                break
            taken.append(self._waiting.popleft())
        return taken

    async def _write(self, parcels: Sequence[_Parcel]) -> None:
        items, ids = self._new(parcels)
        if not items:
            return
        self._window.rotate(self._clock.time(), len(ids))
        writes = [*self._window.row(ids), *await self._window.forget(self._out.state)]
        fitting = all(len(item.line) <= SMALL for item in items)
        events = lines_of(items, self._seed) if fitting else [Event.parse(item.line) for item in items]
        append = await self._out.submit(events, writes)
        self._window.add(ids)  # not before: what is too large for the journal is refused by now
        await self._finished(append)

    async def _finished(self, append: Future[None]) -> None:
        """Wait for it also when cancelled, for a moment: then those who wait hear the truth."""
        try:
            await asyncio.shield(append)
        except asyncio.CancelledError:
            await asyncio.wait([append], timeout=1.0)
            if append.done() and not append.cancelled() and append.exception() is None:
                for parcel in self._writing:
                    _answer(parcel)
            raise

    def _new(self, parcels: Sequence[_Parcel]) -> tuple[list[Item], list[bytes]]:
        """The items whose ids are new, and these ids. What is known is durable: appends follow each other."""
        items: list[Item] = []
        ids: dict[bytes, None] = {}
        for parcel in parcels:
            for item in parcel.items:
                if item.identity is not None:
                    if item.identity in ids or item.identity in self._window:
                        continue
                    ids[item.identity] = None
                items.append(item)
        return items, list(ids)

    async def _one_by_one(self) -> None:
        """An event among them is too large for the journal: only its request is refused."""
        for parcel in self._writing:
            try:
                await self._write([parcel])
            except Permanent as error:
                _answer(parcel, Refused(413, error.message))

    def _sweep(self) -> None:
        """Refuse whoever waits too long. What is being written may become durable yet: a repeated id is known then."""
        loop = asyncio.get_running_loop()
        for parcel in self._writing:
            if parcel.due <= loop.time():
                _answer(parcel, busy("the journal does not take events just now", self._patience))
        while self._waiting and self._waiting[0].due <= loop.time():
            _answer(self._waiting.popleft(), busy("the journal does not take events just now", self._patience))
        self._timer = loop.call_later(SWEEP, self._sweep)

    def _refuse_all(self) -> None:
        for parcel in (*self._writing, *self._waiting):
            _answer(parcel, busy("the source is stopping", 5))
        self._waiting.clear()


def _answer(parcel: _Parcel, refusal: Refused | None = None) -> None:
    if parcel.answer.done():
        return
    if refusal is None:
        parcel.answer.set_result(None)
    else:
        parcel.answer.set_exception(refusal)
