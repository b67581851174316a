"""The one owner of a tree's rows: takes hints and listings, looks, and records what changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from headrace.failpoints import reach
from headrace.inventory import PAGE, Inventory
from headrace.protocols import Clock
from headrace.sources.filesystem.decide import Decisions, Step
from headrace.sources.filesystem.entry import ROW_SIZE, identity, is_directory, is_file, unpack
from headrace.sources.filesystem.hints import CHANGED, CREATED, DELETED, FINISHED, Act, Hint
from headrace.sources.filesystem.look import Looker, Looks, Written
from headrace.sources.filesystem.names import Visibility, below, key_of, path_of
from headrace.sources.filesystem.record import Recorder
from headrace.sources.filesystem.unfinished import Patience, Unfinished

UNCONFIRMED: Final = 10_000  # paths to be looked at later, beyond which a comparison is cheaper


class Tree:
    """Raises what the journal raises. All of it runs in one task.

    `doubtful`: hints may have been lost, and the tree was not compared since. `incomplete`: there is something
    that only another comparison finds.
    """

    def __init__(
        self,
        looker: Looker,
        inventory: Inventory,
        recorder: Recorder,
        visible: Visibility,
        patience: Patience,
        clock: Clock,
        *,
        fingerprint: bool = False,
    ) -> None:
        self.looker = looker
        self.inventory = inventory
        self.visible = visible
        self._recorder = recorder
        self._patience = patience
        self._clock = clock
        self._fingerprint = fingerprint
        self.unfinished = Unfinished(patience)
        self._unseen: set[bytes] = set()
        self._unconfirmed: set[bytes] = set()
        self.doubtful = True
        self.incomplete = False

    async def follow(self, hints: Sequence[Hint]) -> list[Hint]:
        """Act on hints, in order. Returns those about directories that may have to be listed."""
        group: list[Hint] = []
        directories: list[Hint] = []
        for hint in hints:
            if hint.flags == CHANGED and hint.path in self.unfinished:
                continue  # written to, and looked at when its time comes
            if hint.act in {Act.LOOK, Act.MOVED}:
                group.append(hint)
            elif hint.act in {Act.ENTER, Act.RIGHTS}:
                directories.append(hint)
            else:
                await self.files(group)
                group = []
                await self._directory(hint)
        await self.files(group)
        return directories

    async def _directory(self, hint: Hint) -> None:
        if hint.act is Act.LEFT:
            await self._left(hint.path)
        else:
            await self._moved_directory(hint.path, hint.to)

    async def listed(self, paths: Iterable[bytes]) -> None:
        """What a directory that appeared holds. It is looked at again: the directory may be a link by now."""
        await self.files([Hint(Act.LOOK, path, CREATED) for path in paths])

    async def files(self, hints: Sequence[Hint], looks: Looks | None = None, *, recovered: bool = False) -> None:
        """Look at what the hints name, unless `looks` has it, and record what changed."""
        linked = await self._files(hints, looks, recovered=recovered) if hints else ()
        if linked:
            others = {path_of(key) for key, _ in await self.inventory.find(linked)}
            others.update(self.unfinished.named(linked))
            await self._files([Hint(Act.LOOK, it, CHANGED) for it in others], None, recovered=recovered)

    async def _files(self, hints: Sequence[Hint], looks: Looks | None, *, recovered: bool) -> set[bytes]:
        """The same for the names themselves. Returns the identities whose further names may have changed."""
        shown = {path for it in hints for path in (it.path, it.to) if path and self.visible.shows(path)}
        looks = await self.looker.look(shown) if looks is None else looks
        written, again = await self._written(hints, looks)
        looks = {**looks, **again}
        gone = {it.path for it in hints if it.flags & DELETED}
        known = await self._known(path for path in shown if path in gone or not written.get(path))
        rows = {path: value[:ROW_SIZE] for path, value in known.items()}
        decisions = Decisions(rows, looks, written, self.visible.shows, self._settled, fingerprint=self._fingerprint)
        decisions.decide(hints)
        await self._recorder.record(decisions.steps, known, recovered=recovered)
        self._keep(decisions, written)
        self._doubt(decisions.unseen)
        return decisions.linked

    async def _written(self, hints: Sequence[Hint], looks: Looks) -> tuple[Written, Looks]:
        """Whether the files are open for writing of whose close nothing was heard.

        Asked before the rows are read: most files are first heard of when they are made, and it costs less.
        """
        closed = {path for it in hints if it.act is Act.MOVED or it.flags & FINISHED for path in (it.path, it.to)}
        return await self.looker.written(
            it.path for it in hints if it.path not in closed and is_file(looks.get(it.path))
        )

    async def _known(self, paths: Iterable[bytes]) -> dict[bytes, bytes]:
        rows = await self.inventory.lookup(map(key_of, paths))
        return {path_of(key): value for key, value in rows.items()}

    def _settled(self, value: bytes) -> bool:
        """Whether a file was left alone for long enough, by its mtime; one from the future was not."""
        return self.age(value) >= self._patience.settle

    def age(self, value: bytes) -> float:
        """Seconds since the file was written; negative where its mtime lies ahead."""
        return self._clock.time() - unpack(value).mtime / 1e9

    # Directories

    async def _moved_directory(self, path: bytes, to: bytes) -> None:
        """The directory's own event, then one for all that is in it. The listing of `to` corrects what differs."""
        row = await self.inventory.get(key_of(path)) if self.visible.shows(path) else None
        if row is not None and self.visible.shows(to):
            await self._record([Step("moved", to, row, path)])
        self.unfinished.rename(path, to)
        after = None
        while rows := await self.inventory.scan(below(path), after, PAGE):
            after = rows[-1][0]
            await self._record([self._moved_with(path, to, key, value) for key, value in rows])
            reach("filesystem.moving")
        self._doubt([to])
        self.confirm_later(to)
        if row is not None and not self.visible.shows(to):
            await self._record([Step("deleted", path, row)])

    async def _record(self, steps: Sequence[Step]) -> None:
        """Steps made of rows, which may carry a fingerprint."""
        known = {it.path if it.previous is None else it.previous: it.value for it in steps}
        await self._recorder.record([it._replace(value=it.value[:ROW_SIZE]) for it in steps], known)

    def _moved_with(self, directory: bytes, to: bytes, key: bytes, value: bytes) -> Step:
        path = path_of(key)
        new = to + path[len(directory) :]
        return Step("moved", new, value, path) if self.visible.shows(new) else Step("deleted", path, value)

    def _doubt(self, paths: Iterable[bytes]) -> None:
        """New names that no look confirmed. As long as hints may be missing, so may the hint of what came next."""
        if self.doubtful:
            self._unseen.update(paths)
        self._bound(self._unseen)

    def _bound(self, paths: set[bytes]) -> None:
        if len(paths) > UNCONFIRMED:
            paths.clear()
            self.incomplete = True

    def confirm_later(self, directory: bytes) -> None:
        """What is known to be in it may not be, and no hint will tell."""
        self._unconfirmed.add(directory)
        self._bound(self._unconfirmed)

    async def confirm(self) -> bool:
        """Once no hint waits: whether what is known of one directory is in it. False where there was nothing to do.

        A look may be from after the next hint: rows of a directory may be those of one that took its name since.
        """
        if not self._unconfirmed:
            return False
        await self._confirm(self._unconfirmed.pop())
        return True

    async def _confirm(self, path: bytes) -> None:
        row, before = await self.inventory.get(key_of(path)), await self.looker.look([path])
        now = before.get(path)
        if now is None or not is_directory(now) or (row is not None and identity(row) != identity(now)):
            return  # a hint of what came next will follow
        after = None
        while rows := await self.inventory.scan(below(path), after, PAGE):
            after = rows[-1][0]
            looks = await self.looker.look([path_of(key) for key, _ in rows])
            if await self.looker.look([path]) != before:
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

    def _keep(self, decisions: Decisions, written: Written) -> None:
        for path in decisions.released:
            self.unfinished.release(path)
        for path, value in decisions.held.items():
            if not self.unfinished.hold(path, value, written=written.get(path)):
                self.incomplete = True

    async def check_unfinished(self) -> None:
        """Look again at the files whose time has come."""
        due = self.unfinished.take_due()
        looks = await self.looker.look(due)
        written, again = await self.looker.written(it for it in due if is_file(looks.get(it)))
        looks = {**looks, **again}
        hints = []
        for path, before in due.items():
            told = self.unfinished.finished(before, looks.get(path), written=written.get(path))
            hints.append(Hint(Act.LOOK, path, FINISHED if told else CREATED))
        await self.files(hints, looks)
