"""The source: one task listens, one task owns the inventory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from headrace.inventory import Inventory
from headrace.protocols import Capture, Context, Finding
from headrace.sources.objects.doctor import Doctor
from headrace.sources.objects.entry import Place
from headrace.sources.objects.events import Events, schemas
from headrace.sources.objects.follow import Follower
from headrace.sources.objects.hints import Hints
from headrace.sources.objects.keeper import Keeper
from headrace.sources.objects.settings import ObjectSettings
from headrace.sources.objects.store import Store, Stream


class Objects:
    """Buckets of one server. Also `Describes` and `Diagnoses`."""

    def __init__(
        self, settings: ObjectSettings, context: Context, store: Store, stream: Stream | None, doctor: Doctor
    ) -> None:
        self._settings = settings
        self._context = context
        self._store = store
        self._stream = stream
        self._doctor = doctor
        self.scope = settings.scope

    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        return schemas()

    def diagnose(self) -> AsyncIterator[Finding]:
        return self._doctor.findings()

    async def link(self, place: Place, seconds: int) -> str:
        """An address that reads the object for that long."""
        return await self._store.link(place, seconds)

    async def run(self, out: Capture) -> None:
        inventory = await Inventory.open(out)
        hints = Hints()
        async with asyncio.TaskGroup() as group:
            if self._stream is not None:
                hints.expect(self._stream)
                group.create_task(self._stream.run(hints), name="listen")
            group.create_task(self._follower(inventory, hints).run(), name="follow")

    def _follower(self, inventory: Inventory, hints: Hints) -> Follower:
        settings, context, scope = self._settings, self._context, self.scope
        keeper = Keeper(
            inventory,
            self._store,
            Events(context.source),
            scope,
            context.clock,
            metadata=settings.metadata,
            finds_versions=settings.versions == "auto",
        )
        return Follower(
            inventory,
            keeper,
            self._store,
            scope,
            hints,
            context.log,
            relist=settings.listing_interval,
            silent=settings.snapshot == "never",
            versions=None if settings.versions == "auto" else settings.versions,
        )
