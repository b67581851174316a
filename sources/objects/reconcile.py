"""The whole of the buckets compared with the inventory, a page at a time between hints."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from time import monotonic

from headrace.failpoints import reach
from headrace.inventory import PAGE, Difference, Found, Inventory, compare
from headrace.protocols import Logger, Write
from headrace.sources.objects.decide import Step, seen
from headrace.sources.objects.entry import MISSED, ROWS, Entry, Place, below
from headrace.sources.objects.errors import BucketMissing
from headrace.sources.objects.keeper import Keeper
from headrace.sources.objects.scope import Scope
from headrace.sources.objects.store import Store
from headrace.tasks import advanced


def note_compared(inventory: Inventory, scope: Scope) -> None:
    """All that the scope shows is known: what is met from now on is new. It counts with the next append."""
    meta = inventory.meta
    if not meta.listed or meta.notes.get("scope") != scope.note:
        meta.listed, meta.marker, meta.notes["scope"] = True, b"", scope.note
        inventory.meta_changed()


class Reconcile:
    """One pass. `step` does a part and says whether there is more; memory is bounded by the pages.

    What a listing does not meet is only noted, and the origin asked about it at the end. With `silent`, what the
    settings had not shown before makes rows without events: everything, at the very first listing.
    """

    def __init__(
        self, keeper: Keeper, store: Store, scope: Scope, buckets: Sequence[str], log: Logger, *, silent: bool
    ) -> None:
        self._keeper = keeper
        self._inventory = keeper.inventory
        self._store = store
        self._scope = scope
        self._buckets = buckets
        self._log = log
        meta = self._inventory.meta
        self._before = Scope.of_note(meta.notes["scope"]) if "scope" in meta.notes else None
        self._silent = silent
        self._first = not meta.listed
        self._marker = meta.marker
        self._since = self._asked()
        self._parts = self._run()
        self._began = monotonic()
        self._last_change = meta.changes
        self.missing: list[str] = []
        keeper.touched.begin()

    def _asked(self) -> int:
        """When what the settings show was first asked for, in ms since 1970: what was written later is new.

        By the clock of this machine. Where the server's is behind, what was written in its first seconds, and met by a
        listing before its notification or after a crash, counts as old.
        """
        meta = self._inventory.meta
        scope, since = meta.notes.get("since", (None, 0))
        if scope == self._scope.note:
            return int(since)
        now = self._keeper.now()
        meta.notes["since"] = (self._scope.note, now)
        self._inventory.meta_changed()
        return now

    async def step(self) -> bool:
        return await advanced(self._parts)

    async def close(self) -> None:
        await self._parts.aclose()

    async def _run(self) -> AsyncGenerator[None]:
        await self._inventory.flush()
        for bucket in self._buckets:
            try:
                async with aclosing(self._bucket(bucket)) as parts:
                    async for _ in parts:
                        yield
            except BucketMissing:
                self.missing.append(bucket)
        async for _ in self._sweep():
            yield
        self._keeper.touched.end()
        note_compared(self._inventory, self._scope)
        await self._inventory.settle()
        reach("objects.compared")
        changes = self._inventory.meta.changes - self._last_change
        seconds = round(monotonic() - self._began, 3)
        self._log.info("compared with the buckets", seconds=seconds, changes=changes)

    async def _bucket(self, bucket: str) -> AsyncGenerator[None]:
        versions = self._keeper.versioned[bucket]
        async with aclosing(self._store.pages(bucket, self._scope, versions=versions)) as pages:

            async def page() -> Sequence[Found]:
                async for rows in pages:
                    return rows
                return ()

            async for difference in compare(page, self._inventory.scan, below(bucket)):
                await self._differ(difference)
                reach("objects.page")
                yield

    async def _differ(self, difference: Difference) -> None:
        if not difference:
            return
        touched = self._keeper.touched
        listed = dict(difference.added) | {key: now for key, _, now in difference.changed}
        listed = {key: now for key, now in listed.items() if key not in touched}
        if touched.overflowed:  # any of them may have changed since
            await self._keeper.look([Place.of(key) for key in listed])
            listed = {}
        rows = await self._keeper.rows(listed)  # a listing out of order shows what is known as new
        kept: list[Write] = []
        steps: list[Step] = []
        for key, value in listed.items():
            place = Place.of(key)
            row, now = rows.get(key), Entry.unpack(value)
            if self._adopts(place, key, row, now):
                kept.append(Write(key, value))
            elif step := seen(place, row, now):
                steps.append(step)
        if kept and self._first:
            self._inventory.meta.marker = max(self._inventory.meta.marker, kept[-1].key)
            self._inventory.meta_changed()
        await self._inventory.apply((), kept)
        await self._keeper.recover(steps, live=False)
        missed = [self._missed(key) for key, _ in difference.removed if key not in touched]
        await self._inventory.apply((), missed)

    def _adopts(self, place: Place, key: bytes, row: Entry | None, now: Entry) -> bool:
        """Whether it was there before anybody asked for it."""
        if not self._silent or row is not None or now.time > self._since:
            return False
        if self._first:
            return key > self._marker
        return self._before is not None and not self._before.shows(place)

    def _missed(self, key: bytes) -> Write:
        """A row that the settings hide by now is dropped without a word; another waits for the end."""
        return Write(MISSED + key[len(ROWS) :], b"") if self._shows(Place.of(key)) else Write(key, None)

    def _shows(self, place: Place) -> bool:
        return self._scope.shows(place) and (not place.version or self._keeper.versioned[place.bucket])

    async def _sweep(self) -> AsyncIterator[None]:
        """Ask about what was not met, and tell what is gone."""
        after: bytes | None = None
        while rows := await self._inventory.scan(MISSED, after, PAGE // 4):
            after = rows[-1][0]
            places = [Place.of(ROWS + key[len(MISSED) :]) for key, _ in rows]
            await self._keeper.look(places, live=False)
            await self._inventory.apply((), [Write(key, None) for key, _ in rows])
            reach("objects.swept")
            yield
