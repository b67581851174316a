"""The one owner of a tree's rows: takes hints and listings, looks, and records what changed."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from stat import S_ISDIR
from time import monotonic
from typing import Final, TypeAlias, TypeVar

from headrace.event import Event
from headrace.failpoints import reach
from headrace.inventory import PAGE, Found, Inventory
from headrace.protocols import Clock, Write
from headrace.sources.filesystem.decide import Decisions, Step
from headrace.sources.filesystem.entry import identity, is_directory, is_file, unpack
from headrace.sources.filesystem.events import Events
from headrace.sources.filesystem.finished import all_open_for_writing
from headrace.sources.filesystem.hints import CHANGED, CREATED, DELETED, FINISHED, Act, Hint
from headrace.sources.filesystem.names import Visibility, below, key_of, path_of

INLINE: Final = 8  # looks that cost less than the hop to a thread
UNSEEN: Final = 10_000
HELD: Final = 10_000  # unfinished files followed one by one; beyond it the next listing finds them
SLASH: Final = re.compile(b"/")
RECHECK: Final = 30.0  # seconds between looks at a file that is open and whose close will be told

Looks: TypeAlias = Mapping[bytes, bytes | None]
"""What is there now, by path; None where there is nothing. What the system will not tell is left out."""
T = TypeVar("T")


@dataclass(slots=True)
class Held:
    """A file that is not finished: when to look again (monotonic seconds), and how it looked."""

    due: float
    value: bytes


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `settle`: without change, counts as finished where the kernel does not tell.

    `emit_open`: a file that stays open is told of all the same after this long, or None. `recheck`: between looks at
    one that is open.
    """

    settle: float
    emit_open: float | None
    recheck: float = RECHECK


class Tree:
    """Raises what the journal raises. All of it runs in one task.

    `doubtful`: hints may have been lost, and the tree was not compared since. `incomplete`: something had to be
    dropped that only another comparison finds.
    """

    def __init__(
        self,
        root: bytes,
        inventory: Inventory,
        events: Events,
        visible: Visibility,
        pack: Callable[[os.stat_result], bytes],
        patience: Patience,
        clock: Clock,
    ) -> None:
        self.root = root
        self.inventory = inventory
        self.visible = visible
        self.pack = pack
        self._events = events
        self._patience = patience
        self._clock = clock
        self._held: dict[bytes, Held] = {}
        self._unseen: set[bytes] = set()
        self._moved: set[bytes] = set()
        self.doubtful = True
        self.incomplete = False

    async def follow(self, hints: Sequence[Hint]) -> list[bytes]:
        """Act on hints, in order. Returns the directories to list, because they appeared."""
        group: list[Hint] = []
        appeared: list[bytes] = []
        for hint in hints:
            if hint.act in {Act.LOOK, Act.MOVED}:
                group.append(hint)
            elif hint.act is Act.ENTER:
                appeared.append(hint.path)
            else:
                await self.files(group)
                group = []
                await self._directory(hint)
        await self.files(group)
        return appeared

    async def _directory(self, hint: Hint) -> None:
        if hint.act is Act.LEFT:
            await self._left(hint.path)
        else:
            await self._moved_directory(hint.path, hint.to)

    async def listed(self, page: Sequence[Found]) -> None:
        """A page of a directory that appeared. It is looked at again: the directory may be a link by now."""
        await self.files([Hint(Act.LOOK, path_of(key), CREATED) for key, _ in page])

    async def files(self, hints: Sequence[Hint], looks: Looks | None = None, *, recovered: bool = False) -> None:
        """Look at what the hints name, unless `looks` has it, and record what changed."""
        linked = await self._files(hints, looks, recovered=recovered) if hints else ()
        if linked:
            rows = [row for it in linked for row in await self.inventory.find(it)]
            others = {path_of(key) for key, _ in rows}
            others |= {path for path, it in self._held.items() if identity(it.value) in linked}
            await self._files([Hint(Act.LOOK, it, CHANGED) for it in others], None, recovered=recovered)

    async def _files(self, hints: Sequence[Hint], looks: Looks | None, *, recovered: bool) -> set[bytes]:
        """The same for the names themselves. Returns the identities whose further names may have changed."""
        shown = {path for it in hints for path in (it.path, it.to) if path and self.visible.shows(path)}
        found = await self.inventory.lookup(map(key_of, shown))
        rows = {path_of(key): value for key, value in found.items()}
        if looks is None:
            looks = await self.look(shown)
        written = await self._written(hints, rows, looks)
        decisions = Decisions(rows, looks, written, self.visible.shows, self._settled)
        decisions.decide(hints)
        await self.record(decisions.steps, recovered=recovered)
        self._keep(decisions, written)
        self._doubt(decisions.unseen)
        return decisions.linked

    async def _written(self, hints: Sequence[Hint], rows: Looks, looks: Looks) -> Mapping[bytes, bool | None]:
        """Whether the files that differ, and of whose close nothing was heard, are open for writing."""
        unsure = [it.path for it in hints if it.act is Act.LOOK and not it.flags & FINISHED]
        differing = [it for it in unsure if is_file(now := looks.get(it)) and now != rows.get(it)]
        return await self._off_loop(all_open_for_writing, differing)

    async def look(self, paths: Iterable[bytes]) -> Looks:
        return await self._off_loop(self._look, list(paths))

    def _look(self, root: bytes, paths: Iterable[bytes]) -> Looks:
        looks: dict[bytes, bytes | None] = {}
        real: dict[bytes, bool] = {b"": True}
        for path in paths:
            try:
                there = _is_real(root, path.rpartition(b"/")[0], real)
                looks[path] = self.pack(os.lstat(root + b"/" + path)) if there else None
            except (FileNotFoundError, NotADirectoryError):
                looks[path] = None
            except OSError:
                continue
        return looks

    async def _off_loop(self, function: Callable[[bytes, Sequence[bytes]], T], paths: Sequence[bytes]) -> T:
        if len(paths) <= INLINE:
            return function(self.root, paths)
        return await asyncio.to_thread(function, self.root, paths)

    def _settled(self, value: bytes) -> bool:
        """Whether a file was left alone for long enough, by its mtime; one from the future was not."""
        return self.age(value) >= self._patience.settle

    def age(self, value: bytes) -> float:
        """Seconds since the file was written; negative where its mtime lies ahead."""
        return self._clock.time() - unpack(value).mtime / 1e9

    # Recording

    async def record(self, steps: Iterable[Step], *, recovered: bool = False) -> None:
        """Take up events and rows for the journal's next append; a step's event and its rows are never parted."""
        for step in steps:
            events = [self._event(step, recovered=recovered)] if step.name else ()
            await self.inventory.apply(events, writes_of(step))

    def _event(self, step: Step, *, recovered: bool) -> Event:
        change = self.inventory.number()
        return self._events.event(step, change, now=self._clock.time(), recovered=recovered)

    async def _moved_directory(self, path: bytes, to: bytes) -> None:
        """The directory's own event, then one for all that is in it. The listing of `to` corrects what differs."""
        row = await self.inventory.get(key_of(path)) if self.visible.shows(path) else None
        if row is not None and self.visible.shows(to):
            await self.record([Step("moved", to, row, path)])
        self._rename_held(path, to)
        after = None
        while rows := await self.inventory.scan(below(path), after, PAGE):
            after = rows[-1][0]
            await self.record(self._moved_with(path, to, key, value) for key, value in rows)
            reach("filesystem.moving")
        self._doubt([to])
        self._moved.add(to)
        if row is not None and not self.visible.shows(to):
            await self.record([Step("deleted", path, row)])

    def _moved_with(self, directory: bytes, to: bytes, key: bytes, value: bytes) -> Step:
        path = path_of(key)
        new = to + path[len(directory) :]
        return Step("moved", new, value, path) if self.visible.shows(new) else Step("deleted", path, value)

    def _doubt(self, paths: Iterable[bytes]) -> None:
        """New names that no look confirmed. As long as hints may be missing, so may the hint of what came next."""
        if self.doubtful:
            self._unseen.update(paths)
        if len(self._unseen) > UNSEEN:
            self._unseen.clear()
            self.incomplete = True

    async def confirm_moved(self) -> bool:
        """Once no hint waits: whether what moved with a directory is in it. False where there was nothing to do.

        A look may be from after the next hint: rows of a directory may be those of one that took its name since.
        """
        moved, self._moved = self._moved, set()
        for path in moved:
            await self._confirm(path)
        return bool(moved)

    async def _confirm(self, path: bytes) -> None:
        row, before = await self.inventory.get(key_of(path)), await self.look([path])
        now = before.get(path)
        if now is None or not is_directory(now) or (row is not None and identity(row) != identity(now)):
            return  # a hint of what came next will follow
        after = None
        while rows := await self.inventory.scan(below(path), after, PAGE):
            after = rows[-1][0]
            looks = await self.look([path_of(key) for key, _ in rows])
            if await self.look([path]) != before:
                return
            await self.files([Hint(Act.LOOK, it, DELETED) for it, look in looks.items() if look is None], looks)

    async def recheck(self) -> None:
        """At the end of a comparison: what was renamed during it may have been left behind where it no longer is."""
        unseen, self._unseen = self._unseen, set()
        for path in unseen:
            await self._left(path)

    async def _left(self, path: bytes) -> None:
        """A directory is gone with all that was in it: each confirmed, the directory's own event last."""
        after = None
        while rows := await self.inventory.scan(below(path), after, PAGE):
            after = rows[-1][0]
            await self.files([Hint(Act.LOOK, path_of(key), DELETED) for key, _ in rows])
        await self.files([Hint(Act.LOOK, path, DELETED)])

    # Files that are not finished

    def _keep(self, decisions: Decisions, written: Mapping[bytes, bool | None]) -> None:
        for path in decisions.released:
            self._held.pop(path, None)
        for path, value in decisions.held.items():
            self._hold(path, value, open_=written.get(path))

    def _hold(self, path: bytes, value: bytes, *, open_: bool | None) -> None:
        patience = self._patience
        wait = patience.settle if open_ is None else patience.emit_open or patience.recheck
        held = self._held.get(path)
        if held is not None and open_:
            held.value = value
        elif held is not None or len(self._held) < HELD:
            self._held[path] = Held(monotonic() + wait, value)
        else:
            self.incomplete = True

    def _rename_held(self, path: bytes, to: bytes) -> None:
        prefix = path + b"/"
        for old in [it for it in self._held if it.startswith(prefix)]:
            self._held[to + old[len(path) :]] = self._held.pop(old)

    def next_check(self) -> float | None:
        """When `check_held` has something to do (monotonic seconds)."""
        return min((it.due for it in self._held.values()), default=None)

    async def check_held(self) -> None:
        """Look again at the files whose time has come."""
        now = monotonic()
        due = {path: it for path, it in self._held.items() if it.due <= now}
        looks = await self.look(due)
        written = await self._off_loop(all_open_for_writing, [it for it in due if is_file(looks.get(it))])
        for path in due:
            del self._held[path]
        hints = [self._again(path, it, looks.get(path), written.get(path)) for path, it in due.items()]
        await self.files(hints, looks)

    def _again(self, path: bytes, held: Held, now: bytes | None, open_: bool | None) -> Hint:  # noqa: FBT001
        quiet = open_ is None and now == held.value
        told = open_ is True and self._patience.emit_open is not None
        return Hint(Act.LOOK, path, FINISHED if quiet or told or open_ is False else CREATED)


def _is_real(root: bytes, directory: bytes, known: dict[bytes, bool]) -> bool:
    """Whether all of the path is directories: behind a link in its place nothing is in the tree. Raises `OSError`."""
    if directory not in known:
        parents = [directory[: it.start()] for it in SLASH.finditer(directory)]
        known[directory] = all(_is_directory(root, it, known) for it in (*parents, directory))
    return known[directory]


def _is_directory(root: bytes, path: bytes, known: dict[bytes, bool]) -> bool:
    if path not in known:
        known[path] = S_ISDIR(os.lstat(root + b"/" + path).st_mode)
    return known[path]


def writes_of(step: Step) -> list[Write]:
    """The rows of a step."""
    key = key_of(step.path)
    if step.name == "deleted":
        return [Write(key, None)]
    row = Write(key, step.value, identity(step.value))
    return [row] if step.previous is None else [Write(key_of(step.previous), None), row]
