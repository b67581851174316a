"""Follows a root that is there: hints first, then what appeared, then the comparison; asleep when there is nothing."""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack, suppress
from time import monotonic
from typing import TYPE_CHECKING, Final

from headrace.inventory import Inventory
from headrace.protocols import Context
from headrace.sources.filesystem.appeared import Appeared
from headrace.sources.filesystem.closed import Closed
from headrace.sources.filesystem.content import Reader
from headrace.sources.filesystem.entry import packer
from headrace.sources.filesystem.events import Events
from headrace.sources.filesystem.hints import WATCHES, Act, Hints
from headrace.sources.filesystem.look import Looker
from headrace.sources.filesystem.names import Visibility, path_of
from headrace.sources.filesystem.reconcile import Reconcile
from headrace.sources.filesystem.record import Recorder
from headrace.sources.filesystem.root import Root, RootLost, file_system, notifies, own_folder
from headrace.sources.filesystem.settings import FilesystemSource
from headrace.sources.filesystem.tree import Tree
from headrace.sources.filesystem.unfinished import RECHECK, Patience
from headrace.sources.filesystem.walk import Walker

if TYPE_CHECKING:
    from headrace.sources.filesystem.watch import Watcher

GROUP: Final = 256  # hints acted on before the loop is given to others
PRESENCE: Final = 1.0  # seconds between looks at the root while hints come
PRESENCE_IDLE: Final = 30.0


class Follower:
    """Raises `RootLost` when the root is no longer there, and what the journal raises."""

    def __init__(self, settings: FilesystemSource, context: Context, root: Root, inventory: Inventory) -> None:
        self._settings = settings
        self._context = context
        self._root = root
        self._inventory = inventory
        own = own_folder(root.path, context.scratch)
        self._visible = Visibility(settings.include, settings.exclude, own)
        self._pack = packer(root.device)
        self._watcher: Watcher | None = None
        self._appeared = Appeared(self._walker)
        self._closed = Closed(root.path, context.log)
        self._reconcile: Reconcile | None = None
        self._took = 0.0  # seconds that the last comparison took
        self._ended = 0.0  # when it ended, and
        self._due = 0.0  # when the next one begins, unless something only it can find is known before
        self._lost = False  # hints were lost since the last one began
        self._present_at = 0.0
        self._blind = 0

    async def run(self, stack: ExitStack) -> None:
        """Until cancelled. `stack` closes the watches, after everything that uses them has ended."""
        wake, loop = asyncio.Event(), asyncio.get_running_loop()
        self._hints = Hints(lambda: loop.call_soon_threadsafe(wake.set))
        if self._watches():
            self._watcher = stack.enter_context(self._open_watcher())
        self._tree = self._make_tree()
        try:
            while True:
                wake.clear()
                if not await self._turn():
                    await self._inventory.settle()
                    await _wait(wake, self._next_time())
        finally:
            if self._reconcile is not None:
                await self._reconcile.close()

    def _watches(self) -> bool:
        """Whether to watch. Says so where polling was not asked for."""
        settings = self._settings
        if settings.mode != "auto":
            return settings.mode == "watch"
        kind = file_system(self._root.path)
        watched = sys.platform == "linux" and notifies(kind)
        if not watched:
            self._context.log.info("polling: this file system does not notify", type=kind, every=settings.poll)
        return watched

    def _open_watcher(self) -> Watcher:
        from headrace.sources.filesystem.watch import Watcher  # inotify: Linux only

        modified = self._settings.emit_open != "never"
        return Watcher(self._root.path, self._hints, self._visible, modified=modified)

    def _make_tree(self) -> Tree:
        settings = self._settings
        emit_open = None if settings.emit_open == "never" else settings.emit_open
        recheck = RECHECK if self._watcher else settings.settle
        patience = Patience(settings.settle, emit_open, recheck)
        reader = Reader(settings.fingerprint, settings.content, settings.content_max, self._pack)
        events, clock = Events(self._context.source, self._root.path), self._context.clock
        recorder = Recorder(self._root.path, self._inventory, events, reader, clock)
        looker = Looker(self._root.path, self._pack)
        return Tree(looker, self._inventory, recorder, self._visible, patience, clock, fingerprint=settings.fingerprint)

    # One turn

    async def _turn(self) -> bool:
        """Do a part of all there is to do, so that nothing waits for a storm to end; False where there is nothing."""
        if self._hints.failure is not None:
            raise self._hints.failure
        hinted = await self._follow_hints()
        checked = await self._check_unfinished()
        listed = await self._list_appeared()
        if not hinted and not listed:
            listed = await self._tree.confirm()
        compared = await self._compare()
        if self._hints.lost_root and not hinted:
            raise RootLost("it was removed, renamed or unmounted")
        return hinted or checked or listed or compared

    async def _follow_hints(self) -> bool:
        if self._hints.take_overflow():
            self._lost_hints()
        if self._hints.remounted:
            self._remounted()
        hints = self._hints.take(GROUP)
        for hint in await self._tree.follow(hints) if hints else ():
            if hint.act is Act.ENTER or self._opened(hint.path):
                self._appear(hint.path)
        self._check_present(PRESENCE if hints else PRESENCE_IDLE)
        return bool(hints)

    def _remounted(self) -> None:
        """Look at the root at once, and compare."""
        self._hints.remounted = False
        self._tree.incomplete = True
        self._present_at = 0.0

    def _appear(self, directory: bytes) -> None:
        if not self._appeared.add(directory):
            self._lost_hints()

    def _opened(self, directory: bytes) -> bool:
        """Whether a directory can be read again. What was removed from it meanwhile could not be confirmed."""
        opened = self._visible.enters(directory) and self._closed.opened(directory)
        if opened:
            self._tree.confirm_later(directory)
        return opened

    def _check_present(self, after: float) -> None:
        """Who renames the root's parent, or points a link elsewhere that is the root, tells nobody."""
        if monotonic() - self._present_at >= after and not self._hints.lost_root:
            self._root.present()
            self._present_at = monotonic()

    def _lost_hints(self) -> None:
        """Compare again, though no sooner than the last comparison took: a flood must not bring a flood of listings."""
        if not self._lost:
            self._context.log.warning("notifications were lost in a burst: the whole tree is compared")
        self._lost = self._tree.doubtful = True
        self._due = min(self._due, monotonic() + self._took)

    async def _check_unfinished(self) -> bool:
        due = self._tree.unfinished.next_due()
        if due is None or due > monotonic():
            return False
        await self._tree.check_unfinished()
        return True

    async def _list_appeared(self) -> bool:
        """A page of the directories that appeared."""
        if not self._appeared:
            return False
        page = await asyncio.to_thread(self._appeared.page)
        self._closed.add(self._appeared.unreadable)
        self._appeared.unreadable.clear()
        # What a hint waits for is left to it, which knows more: after a burst that is most of a new directory.
        await self._tree.listed([path for key, _ in page if (path := path_of(key)) not in self._hints])
        return True

    def _walker(self, top: bytes) -> Walker:
        enter = self._watcher.watch if self._watcher else _nothing
        return Walker(self._root.path, top, self._visible, self._pack, enter, self._context.scratch)

    async def _compare(self) -> bool:
        """A part of the comparison with the whole tree, when it is due."""
        if self._reconcile is None:
            if monotonic() < self._next_comparison():
                return False
            self._begin()
        if self._reconcile is not None:
            more = await self._reconcile.step()
            self._closed.add(self._reconcile.unreadable)
            if not more:
                await self._end()
        return True

    def _begin(self) -> None:
        self._lost = self._tree.incomplete = False
        self._began = monotonic()
        self._closed.clear()
        if self._watcher is not None:
            self._watcher.begin()
        self._reconcile = Reconcile(
            self._tree,
            self._walker(b""),
            self._root.present,
            self._context.log,
            silent=self._settings.snapshot == "never",
            before=self._visible_before(),
        )

    def _visible_before(self) -> Visibility | None:
        """What the last complete comparison could see, where the settings were others."""
        before, now = self._inventory.meta.notes.get("visible"), self._patterns()
        return None if before is None or before == now else Visibility(*before)

    def _patterns(self) -> list[list[str]]:
        return [list(self._settings.include), list(self._settings.exclude)]

    async def _end(self) -> None:
        self._reconcile = None
        self._ended = monotonic()
        self._took = self._ended - self._began
        if self._watcher is not None and self._tree.doubtful:
            await asyncio.to_thread(self._watcher.sweep)
        self._tree.doubtful = self._lost
        self._note_patterns()
        self._report_blind()
        self._due = self._ended + self._pause()

    def _pause(self) -> float:
        """Seconds until the next comparison."""
        if self._lost:
            return self._took
        polled = self._watcher is None or self._blind
        return self._settings.poll if polled else self._settings.rescan

    def _next_comparison(self) -> float:
        """When it is due (monotonic seconds)."""
        return min(self._due, self._ended + self._settings.poll) if self._tree.incomplete else self._due

    def _note_patterns(self) -> None:
        if self._inventory.meta.notes.get("visible") != self._patterns():
            self._inventory.meta.notes["visible"] = self._patterns()
            self._inventory.meta_changed()

    def _report_blind(self) -> None:
        blind = self._watcher.blind if self._watcher is not None else 0
        if blind and blind != self._blind:
            self._context.log.warning("the limit of watches is reached", unwatched=blind, hint=WATCHES)
        elif self._blind and not blind:
            self._context.log.info("every directory is watched again")
        self._blind = blind

    def _next_time(self) -> float:
        held = self._tree.unfinished.next_due()
        due = min(self._next_comparison(), self._present_at + PRESENCE_IDLE)
        return due if held is None else min(due, held)


def _nothing(_: bytes) -> None:
    """No watch where it is polled."""


async def _wait(wake: asyncio.Event, until: float) -> None:
    """Until woken, or that time (monotonic seconds)."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(until - monotonic(), 0)):
            await wake.wait()
