"""The source: waits for its root, then follows it by hints and comparisons until the root is lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from typing import Any, Final

from headrace.errors import Transient
from headrace.inventory import Inventory
from headrace.protocols import Capture, Context, Finding
from headrace.sources.filesystem.diagnose import findings
from headrace.sources.filesystem.events import schemas
from headrace.sources.filesystem.follow import Follower
from headrace.sources.filesystem.names import ROWS
from headrace.sources.filesystem.root import Root, RootLost
from headrace.sources.filesystem.settings import FilesystemSource

ABSENT: Final = 1.0  # seconds between looks for a root that is not there


class Filesystem:
    """One watched directory. Also `Describes` and `Diagnoses`."""

    def __init__(self, settings: FilesystemSource, context: Context) -> None:
        self._settings = settings
        self._context = context
        self._path = os.path.abspath(os.fsencode(context.directory / settings.path))

    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        return schemas()

    async def diagnose(self) -> AsyncIterator[Finding]:
        for finding in await asyncio.to_thread(lambda: list(findings(self._settings, self._path))):
            yield finding

    async def run(self, out: Capture) -> None:
        inventory = await Inventory.open(out)
        while True:
            root = await self._root(inventory)
            try:
                await self._follow(root, inventory)
            except RootLost as lost:
                await inventory.settle()
                self._context.log.warning("the watched directory is gone", path=self._shown, reason=str(lost))
            except OSError as error:
                hint = "it is tried again; check the disk and the daemon's data directory"
                raise Transient(f"{self._shown} cannot be followed: {error}", hint=hint) from error

    @property
    def _shown(self) -> str:
        return self._path.decode(errors="backslashreplace")

    async def _root(self, inventory: Inventory) -> Root:
        """The root, once it is there. Waits also where an empty directory stands in for one that was not."""
        told = ""
        while True:
            try:
                root = Root.find(self._path)
                if not (why := await self._suspicious(root, inventory)):
                    return root
            except (RootLost, OSError) as error:
                why = str(error)
            if why != told:
                self._context.log.warning("waiting for the watched directory", path=self._shown, reason=why)
                told = why
            await self._context.clock.sleep(ABSENT)

    async def _suspicious(self, root: Root, inventory: Inventory) -> str:
        """A mount point without its mount looks like a directory from which everything was deleted."""
        known = inventory.meta.notes.get("root")
        replaced = known is not None and known != root.identity
        if replaced and root.empty() and await inventory.scan(ROWS, None, 1):
            return "an empty directory is in its place, perhaps a mount is missing; it counts once it holds anything"
        return ""

    async def _follow(self, root: Root, inventory: Inventory) -> None:
        inventory.meta.notes["root"] = root.identity
        inventory.meta_changed()
        with ExitStack() as stack:
            follower = Follower(self._settings, self._context, root, inventory)
            await follower.run(stack)
