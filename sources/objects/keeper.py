"""Turns hints and looks into rows and events. Owned by one task, as the inventory is."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from time import monotonic
from typing import Final

from headrace.event import Event
from headrace.inventory import Inventory
from headrace.protocols import Clock, Write
from headrace.sources.objects.decide import Step, Verdict, applied, judge, removes_all, seen
from headrace.sources.objects.entry import Entry, Place, versions_of
from headrace.sources.objects.events import Events
from headrace.sources.objects.records import Hint
from headrace.sources.objects.scope import Scope
from headrace.sources.objects.store import Store
from headrace.sources.objects.touched import Touched

AT_ONCE: Final = 8  # looks at the same time
RACE: Final = 2.0  # seconds within which hints of one object may come from writes at the same time
QUIET: Final = 1.0  # seconds without hints of an object, until it is looked at because of that
RECENT: Final = 50_000  # objects whose last hint is remembered
DOUBTS: Final = 20_000  # objects to be looked at; beyond it a listing is cheaper
FRESH: Final = 60.0  # seconds: an older notification from a queue is one that was held up


class Keeper:
    """`versioned` holds the buckets whose versions count, as far as they are known."""

    def __init__(
        self,
        inventory: Inventory,
        store: Store,
        events: Events,
        scope: Scope,
        clock: Clock,
        *,
        metadata: bool,
        finds_versions: bool,
    ) -> None:
        self.inventory = inventory
        self.versioned: dict[str, bool] = {}
        self.want_listing = False
        self.touched = Touched()
        self._store = store
        self._events = events
        self._scope = scope
        self._clock = clock
        self._metadata = metadata
        self._finds_versions = finds_versions
        self._recent: OrderedDict[bytes, float] = OrderedDict()
        self._doubts: dict[bytes, float] = {}

    # Hints

    async def follow(self, hints: Sequence[Hint]) -> None:
        """Apply what can be believed, look at the rest."""
        visible = [(it.place.row, it) for it in map(self._placed, hints) if it is not None]
        rows = await self.rows(key for key, _ in visible)
        looks: dict[bytes, Place] = {}
        events: list[Event] = []
        writes: list[Write] = []
        for key, hint in visible:
            row = rows.get(key)
            verdict = judge(hint, row, doubtful=self._doubtful(hint, key, row))
            if removes_all(hint):
                await self._apply(events, writes, live=True)
                events, writes = [], []
                looks |= {it.row: it for it in await self._known_versions(hint.place)}
            elif verdict is Verdict.LOOK:
                looks[key] = hint.place
            elif verdict is Verdict.APPLY and (step := applied(hint, row)):
                rows[key] = step.value
                events.append(await self._hinted(step, hint) if self._metadata else self._event(step, hint))
                writes.append(_write(step, key))
            self._remember(hint, key)
        await self._apply(events, writes, live=True)
        if looks:
            await self.look(looks.values())

    def _placed(self, hint: Hint) -> Hint | None:
        """The hint with the place of the row that it is about; None where that is out of sight."""
        place = hint.place
        if not self._scope.shows(place):
            return None
        versioned = self.versioned.get(place.bucket)
        if versioned is None:
            self.want_listing = True  # a bucket that appeared: its listing finds this
            return None
        if place.version and not versioned and self._finds_versions:
            self.versioned[place.bucket] = self.want_listing = True  # just switched on
        elif place.version and not versioned:
            return self._unversioned(hint)
        return hint

    def _unversioned(self, hint: Hint) -> Hint:
        """Where versions do not count, a delete marker is a deletion, and that of an old version needs a look."""
        place = Place(hint.place.bucket, hint.place.key)
        if hint.entry is not None and not hint.entry.marker:
            return hint._replace(place=place)
        name = hint.name if hint.entry is not None else "s3:look"
        return hint._replace(place=place, entry=None, name=name)

    def _doubtful(self, hint: Hint, key: bytes, row: Entry | None) -> bool:
        if hint.ordered:  # a version comes once; that it is gone may have been told, or seen, before that it came
            return bool(hint.place.version) and row is None and key in self._recent
        late = self._clock.time() - hint.time / 1000 > FRESH
        return late or (row is None and key in self._recent)

    def _remember(self, hint: Hint, key: bytes) -> None:
        """Hints of one object in short order: their order may not be that of the writes. Look once it is quiet."""
        if hint.place.version and hint.entry is not None and key not in self._recent:
            return  # a version is written once
        now = monotonic()
        before = self._recall(key)
        if before is not None and now - before < RACE:
            self._doubts[key] = now + QUIET
            if len(self._doubts) > DOUBTS:
                self._doubts.clear()
                self.want_listing = True

    def _recall(self, key: bytes) -> float | None:
        """Remember this object as recent; when it was before (monotonic seconds)."""
        before = self._recent.pop(key, None)
        self._recent[key] = monotonic()
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        return before

    def now(self) -> int:
        """Milliseconds since 1970."""
        return int(self._clock.time() * 1000)

    async def _hinted(self, step: Step, hint: Hint) -> Event:
        return self._event(step, hint, await self._metadata_of(step, hint.metadata))

    def _event(self, step: Step, hint: Hint, metadata: Mapping[str, str] | None = None) -> Event:
        return self._events.event(
            step,
            self.inventory.number(),
            time=hint.time,
            recovered=False,
            sequencer=hint.sequencer,
            metadata=metadata,
        )

    # Looks

    def next_look(self) -> float | None:
        """When the next doubt is due (monotonic seconds)."""
        return min(self._doubts.values(), default=None)

    async def look_again(self) -> bool:
        """Look at what is due."""
        now = monotonic()
        due = [key for key, at in self._doubts.items() if at <= now]
        for key in due:
            del self._doubts[key]
        if due:
            await self.look([Place.of(key) for key in due])
        return bool(due)

    async def look(self, places: Collection[Place], *, live: bool = True) -> None:
        """Ask the origin about each; what it says counts, whatever was said before."""
        found = await self._look_at_all(places)
        rows = await self.rows(it.row for it in found)
        steps = [step for place, now in found.items() if (step := seen(place, rows.get(place.row), now))]
        await self.recover(steps, live=live)

    async def _look_at_all(self, places: Collection[Place]) -> dict[Place, Entry | None]:
        """Without those of buckets that are gone: what was in them is told once they are there again."""
        gate = asyncio.Semaphore(AT_ONCE)
        found: dict[Place, Entry | None] = {}

        async def look(place: Place) -> None:
            async with gate:
                found[place] = await self._store.look(place, versions=self.versioned.get(place.bucket, False))

        async with asyncio.TaskGroup() as group:
            for place in places:
                group.create_task(look(place), name="look")
        empty = {place.bucket for place, now in found.items() if now is None}
        missing = {bucket for bucket in empty if not await self._store.exists(bucket)}
        return {place: found[place] for place in places if place.bucket not in missing}

    # What a look or a listing says

    async def recover(self, steps: Iterable[Step], *, live: bool) -> None:
        for step in steps:
            if not step.name:
                await self._apply((), [_write(step, step.place.row)], live=live)
                continue
            metadata = await self._metadata_of(step, None)
            time = step.entry.time if step.value is not None else 0
            if step.value is None and step.place.version:
                self._recall(step.place.row)
            # A deletion, or a delete marker that was looked at, has no time of its own.
            event = self._events.event(
                step, self.inventory.number(), time=time or self.now(), recovered=True, metadata=metadata
            )
            await self._apply([event], [_write(step, step.place.row)], live=live)

    async def _metadata_of(self, step: Step, told: Mapping[str, str] | None) -> Mapping[str, str] | None:
        if not self._metadata or step.name != "created":
            return None
        return user_metadata(told if told is not None else await self._store.metadata(step.place))

    # Rows

    async def _apply(self, events: Sequence[Event], writes: Sequence[Write], *, live: bool) -> None:
        if live:
            self.touched.add(write.key for write in writes)
        await self.inventory.apply(events, writes)

    async def rows(self, keys: Iterable[bytes]) -> dict[bytes, Entry | None]:
        """The rows that there are for these keys, as they are now."""
        found = await self.inventory.lookup(keys)
        return {key: Entry.unpack(value) for key, value in found.items()}

    async def _known_versions(self, place: Place) -> list[Place]:
        prefix, after, found = versions_of(place.bucket, place.key), None, list[Place]()
        while rows := await self.inventory.scan(prefix, after, 1_000):
            after = rows[-1][0]
            found += [Place.of(key) for key, _ in rows]
        return found


def _write(step: Step, key: bytes) -> Write:
    return Write(key, None if step.value is None else step.value.pack())


def user_metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """The user's own, by lower-case name without `x-amz-meta-`."""
    named = {name.lower(): value for name, value in headers.items()}
    return {name.removeprefix("x-amz-meta-"): value for name, value in named.items() if name.startswith("x-amz-meta-")}
