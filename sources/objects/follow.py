"""Follows the buckets: hints first, then doubts, then the comparison; asleep when there is nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final

from headrace.inventory import Inventory
from headrace.protocols import Logger
from headrace.sources.objects.errors import BucketMissing
from headrace.sources.objects.hints import Hints
from headrace.sources.objects.keeper import Keeper
from headrace.sources.objects.reconcile import Reconcile, note_compared
from headrace.sources.objects.scope import Scope
from headrace.sources.objects.store import Store

GROUP: Final = 500  # hints acted on before the loop is given to others
POLL: Final = 5.0  # seconds between comparisons where the server holds notifications back
ABSENT: Final = 5.0  # seconds between looks for a bucket that is not there


class Follower:
    """Raises what the store and the journal raise, and `BucketMissing` while no bucket is there."""

    def __init__(
        self,
        inventory: Inventory,
        keeper: Keeper,
        store: Store,
        scope: Scope,
        hints: Hints,
        log: Logger,
        *,
        relist: float,
        silent: bool,
        versions: bool | None,
    ) -> None:
        self._inventory = inventory
        self._keeper = keeper
        self._store = store
        self._scope = scope
        self._hints = hints
        self._log = log
        self._relist = relist
        self._silent = silent
        self._versions = versions
        self._reconcile: Reconcile | None = None
        self._due = 0.0  # when the next comparison begins
        self._took = 0.0  # seconds the last one took
        self._done: list[Callable[[], None]] = []
        self._missing: list[str] = []
        self._look_due = 0.0  # when the missing buckets are looked for
        self._overflows = 0
        self._found = False

    async def run(self) -> None:
        try:
            while True:
                self._hints.woken.clear()
                if not await self._turn():
                    await self._durable()
                    await _wait(self._hints.woken, self._next_time())
        finally:
            if self._reconcile is not None:
                await self._reconcile.close()

    async def _turn(self) -> bool:
        """Do what is to be done next; False where there is nothing."""
        hinted = await self._follow_hints()
        looked = await self._keeper.look_again()
        listed = await self._compare()
        if self._done:
            await self._durable()
        return hinted or looked or listed

    async def _durable(self) -> None:
        await self._inventory.settle()
        done, self._done = self._done, []
        for call in done:
            call()

    async def _follow_hints(self) -> bool:
        if self._hints.take_listing() or self._keeper.want_listing:
            self._keeper.want_listing = False
            self._want_listing()
        if not self._found:
            return False  # which buckets there are is known with the first comparison
        taken = self._hints.take(GROUP)
        if taken.hints:
            await self._keeper.follow(taken.hints)
            await self._inventory.flush()
        self._done += taken.done
        return bool(taken.hints)

    def _want_listing(self) -> None:
        """No sooner than the last one took: a flood must not bring a flood of listings."""
        if self._hints.overflows > self._overflows:
            self._overflows = self._hints.overflows
            self._log.warning("notifications were lost in a burst: the buckets are compared")
        self._due = min(self._due, monotonic() + self._took)

    # The comparison

    async def _compare(self) -> bool:
        if self._reconcile is None:
            await self._look_for_missing()
            if monotonic() < self._due or not self._hints.connected:
                return False
            self._due = monotonic() + self._interval()
            await self._begin()
        if self._reconcile is not None and not await self._reconcile.step():
            self._end(self._reconcile)
        return True

    def _interval(self) -> float:
        """Seconds between two comparisons; fewer where the server tells late."""
        if not self._hints.held_back:
            return self._relist
        return min(self._relist, max(POLL, 10 * self._took))

    async def _begin(self) -> None:
        self._began = monotonic()
        buckets = await self._find()
        silent = self._silent
        self._reconcile = Reconcile(self._keeper, self._store, self._scope, buckets, self._log, silent=silent)

    async def _find(self) -> list[str]:
        """The buckets that are there, and which of them have versions."""
        names = set(self._scope.named)
        if self._scope.discovers:
            names |= {it for it in await self._store.buckets() if self._scope.takes(it)}
        found, missing = [], []
        for name in sorted(names, key=str.encode):
            try:
                self._keeper.versioned[name] = await self._has_versions(name)
                found.append(name)
            except BucketMissing:
                missing.append(name)
        self._tell_missing(missing)
        self._found = True
        if not found and not self._scope.discovers:
            note_compared(self._inventory, self._scope)  # what is put into it, once it is made, is new
            await self._inventory.settle()
            raise BucketMissing(missing[0])
        return found

    async def _has_versions(self, bucket: str) -> bool:
        """Raises `BucketMissing`."""
        known = self._keeper.versioned.get(bucket) if self._versions is None else self._versions
        if self._versions is None and not known:  # once switched on, versioning can only be suspended
            return await self._store.versioned(bucket)
        if not await self._store.exists(bucket):
            raise BucketMissing(bucket)
        return bool(known)

    def _tell_missing(self, missing: list[str]) -> None:
        if missing and missing != self._missing:
            self._log.warning("there is no such bucket; it is waited for", buckets=missing)
        self._missing = missing
        self._look_due = monotonic() + ABSENT

    async def _look_for_missing(self) -> None:
        """One that appeared brings the next comparison; until then the others are not listed again because of it."""
        if not self._missing or monotonic() < self._look_due:
            return
        self._look_due = monotonic() + ABSENT
        for bucket in self._missing:
            if await self._store.exists(bucket):
                self._due = min(self._due, monotonic())

    def _end(self, ended: Reconcile) -> None:
        self._reconcile = None
        self._took = monotonic() - self._began
        if ended.missing:  # gone meanwhile: the next comparison tells
            self._due = min(self._due, monotonic() + max(self._took, 1.0))

    def _next_time(self) -> float:
        look = self._keeper.next_look()
        times = [
            *([self._due] if self._hints.connected else []),
            *([self._look_due] if self._missing else []),
            *([look] if look is not None else []),
        ]
        return min(times, default=monotonic() + 60)


async def _wait(wake: asyncio.Event, until: float) -> None:
    """Until woken, or that time (monotonic seconds)."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(until - monotonic(), 0)):
            await wake.wait()
