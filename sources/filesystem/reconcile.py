"""The whole tree compared with the inventory, a page at a time between hints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from time import monotonic
from typing import Final

from headrace.failpoints import reach
from headrace.inventory import PAGE, Difference, Found, compare
from headrace.protocols import Logger, Write
from headrace.sources.filesystem.entry import ROW_SIZE, identity, is_file, unpack, untouched
from headrace.sources.filesystem.hints import CREATED, DELETED, Act, Hint
from headrace.sources.filesystem.names import GONE, ROWS, Visibility, below, path_of
from headrace.sources.filesystem.tree import Tree
from headrace.sources.filesystem.walk import Walker
from headrace.tasks import advanced

RECENT: Final = 60.0  # seconds: at the very first listing, only files this young are asked whether they are open


class Reconcile:
    """One pass. `step` does a part and says whether there is more; memory is bounded by the pages.

    What a listing does not meet is only noted, and confirmed at the end: by then a renamed thing was met under its new
    name and paired by its inode. `present` raises where the root is gone: what is missing with its root is not deleted.
    With `silent`, the first listing makes rows without events, and so does what was hidden by the settings `before`.

    The listing may be older than the rows: each difference is looked at again before it counts.
    """

    def __init__(
        self,
        tree: Tree,
        walker: Walker,
        present: Callable[[], None],
        log: Logger,
        *,
        silent: bool,
        before: Visibility | None,
    ) -> None:
        self._tree = tree
        self._inventory = tree.inventory
        self._walker = walker
        self._present = present
        self._log = log
        self._silent = silent
        self._before = before
        self._listed = self._inventory.meta.listed
        self._marker = self._inventory.meta.marker
        self._away = 0
        self._parts = self._run()
        self._began = monotonic()
        self._last_change = self._inventory.meta.changes

    async def step(self) -> bool:
        return await advanced(self._parts)

    @property
    def unreadable(self) -> Mapping[bytes, OSError]:
        """Directories met so far that could not be read."""
        return self._walker.unreadable

    async def close(self) -> None:
        """Give up where it is."""
        await self._parts.aclose()

    async def _run(self) -> AsyncGenerator[None, None]:
        async with aclosing(compare(self._page, self._rows, ROWS)) as differences:
            async for difference in differences:
                await self._differ(difference)
                reach("filesystem.page")
                yield
        async with aclosing(self._sweep()) as swept:
            async for _ in swept:
                yield
        await self._tree.recheck()
        if not self._inventory.meta.listed:
            self._inventory.meta.listed, self._inventory.meta.marker = True, b""
            self._inventory.meta_changed()
        await self._inventory.settle()
        self._report()

    async def _page(self) -> Sequence[Found]:
        return await asyncio.to_thread(self._walker.page)

    async def _rows(self, prefix: bytes, after: bytes | None, limit: int) -> Sequence[Found]:
        """Rows as a listing gives them: without fingerprints."""
        rows = await self._inventory.scan(prefix, after, limit)
        if all(len(value) == ROW_SIZE for _, value in rows):
            return rows
        return [(key, value[:ROW_SIZE]) for key, value in rows]

    async def _differ(self, difference: Difference) -> None:
        added = await self._adopt(difference.added)
        moves = await self._moves(added)
        hints = [moves.get(key) or Hint(Act.LOOK, path_of(key), CREATED) for key, _ in added]
        hints += [Hint(Act.LOOK, path_of(key)) for key, _, _ in difference.changed]
        await self._tree.files(hints, recovered=True)
        await self._inventory.apply((), [self._missed(key) for key, _ in difference.removed])

    def _missed(self, key: bytes) -> Write:
        """A row that the settings hide by now is dropped without a word; another waits for the end."""
        visible = self._tree.visible.shows(path_of(key))
        return Write(GONE + key[len(ROWS) :], b"") if visible else Write(key, None)

    async def _adopt(self, added: Sequence[Found]) -> Sequence[Found]:
        """Take as known what is no news. Returns the rest: what has an event."""
        old = [it for it in added if self._silent and self._is_old(it[0])]
        if not old:
            return added
        young = [path_of(key) for key, value in old if is_file(value) and self._young(value)]
        busy, looks = await self._tree.looker.written(young)
        kept = {key: looks.get(path_of(key)) or value for key, value in old if busy.get(path_of(key)) is not True}
        if not self._listed:
            self._inventory.meta.marker = added[-1][0]
            self._inventory.meta_changed()
        await self._inventory.apply((), [Write(key, value, identity(value)) for key, value in kept.items()])
        return [it for it in added if it[0] not in kept]

    def _is_old(self, key: bytes) -> bool:
        """Whether it may have been there before anyone looked: not listed yet, or hidden until now."""
        first = not self._listed and key > self._marker
        return first or (self._before is not None and not self._before.shows(path_of(key)))

    def _young(self, value: bytes) -> bool:
        return self._tree.age(value) < RECENT

    async def _moves(self, added: Sequence[Found]) -> dict[bytes, Hint]:
        """The new names of known things: the same inode, untouched, and gone from where it was."""
        if not added or (not self._listed and not self._marker):
            return {}
        paths = await self._known_as(added)
        looks = await self._tree.looker.look({path for them in paths.values() for path in them})
        moves: dict[bytes, Hint] = {}
        taken: set[bytes] = set()
        for key, them in paths.items():
            gone = [it for it in them if it not in taken and it in looks and looks[it] is None]
            if gone:
                taken.add(gone[0])
                moves[key] = Hint(Act.MOVED, gone[0], 0, path_of(key))
        return moves

    async def _known_as(self, added: Sequence[Found]) -> Mapping[bytes, Sequence[bytes]]:
        """Where the inventory has the same thing, untouched, by the key that it is listed under now."""
        known: dict[bytes, list[Found]] = {}
        for row in await self._inventory.find({identity(value) for _, value in added}):
            known.setdefault(identity(row[1]), []).append(row)
        same = {
            key: [path_of(it) for it, row in known.get(identity(value), ()) if it != key and untouched(row, value)]
            for key, value in added
        }
        return {key: paths for key, paths in same.items() if paths}

    async def _sweep(self) -> AsyncGenerator[None, None]:
        """Confirm what was not met, and tell that it is gone."""
        after: bytes | None = None
        while rows := await self._inventory.scan(GONE, after, PAGE):
            after = rows[-1][0]
            paths = await self._mounted([ROWS + it[len(GONE) :] for it, _ in rows])
            looks = await self._tree.looker.look(paths)
            self._present()
            await self._tree.files([Hint(Act.LOOK, it, DELETED) for it in paths], looks, recovered=True)
            await self._inventory.apply((), [Write(it, None) for it, _ in rows])
            reach("filesystem.swept")
            yield

    async def _mounted(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """The paths of those whose directory can be read, on the file system that they were on."""
        unknown = tuple(below(it) for it in self._walker.unreadable)
        known = await self._inventory.lookup(it for it in keys if not unknown or not it.startswith(unknown))
        rows = {path_of(key): value for key, value in known.items()}
        devices = await self._tree.looker.devices(rows)
        here = [path for path, value in rows.items() if devices.get(path) == unpack(value).device]
        self._away += len(rows) - len(here)
        return here

    def _report(self) -> None:
        changes = self._inventory.meta.changes - self._last_change
        self._log.info("compared with the tree", seconds=round(monotonic() - self._began, 3), changes=changes)
        if self._away:
            self._log.warning(
                "a file system below the directory is not mounted, what was on it is left as it was",
                paths=self._away,
                hint="mount it again",
            )
