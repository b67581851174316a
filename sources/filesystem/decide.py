"""From hints, rows and looks to changes: decisions only, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from headrace.sources.filesystem.entry import LINKED, identity, is_directory, is_file, same_but_device, untouched
from headrace.sources.filesystem.hints import CHANGED, DELETED, FINISHED, Act, Hint


class Step(NamedTuple):
    """One change of one row, and the event that says so; `name` is `""` where nothing visible changed.

    `value` is the row's new value, of a deleted one its last.
    """

    name: str
    path: bytes
    value: bytes
    previous: bytes | None = None


class Decisions:
    """Decides on a group of hints. `rows` and `looks` hold what is known and what is there now, by path.

    `written` tells of files without a close whether they are open for writing (None: unknown).

    With `fingerprint`, a file that was closed and looks as before counts as modified, until its content tells.

    Results: `steps` in order; `held`, files that are not finished, with the look at them; `released`, files that are
    not held any longer; `linked`, identities whose other names changed as well; `unseen`, new names at which there was
    nothing to look at.
    """

    def __init__(
        self,
        rows: Mapping[bytes, bytes],
        looks: Mapping[bytes, bytes | None],
        written: Mapping[bytes, bool | None],
        shows: Callable[[bytes], bool],
        settled: Callable[[bytes], bool],
        *,
        fingerprint: bool = False,
    ) -> None:
        self._rows: dict[bytes, bytes | None] = dict(rows)
        self._looks = looks
        self._written = written
        self._shows = shows
        self._settled = settled
        self._fingerprint = fingerprint
        self.steps: list[Step] = []
        self.held: dict[bytes, bytes] = {}
        self.released: set[bytes] = set()
        self.linked: set[bytes] = set()
        self.unseen: set[bytes] = set()

    def decide(self, hints: Sequence[Hint]) -> None:
        last = {path: index for index, it in enumerate(hints) for path in (it.path, it.to)}
        for index, hint in enumerate(hints):
            if hint.act is Act.MOVED:
                self._moved(hint.path, hint.to, last=last[hint.to] == index)
            elif self._shows(hint.path):
                self._look(hint.path, hint.flags)

    def _look(self, path: bytes, flags: int) -> None:
        if path not in self._looks:
            return  # the system will not tell: what is known stays
        row, now = self._rows.get(path), self._looks[path]
        if now is None:
            if flags & DELETED:
                self._gone(path, row)
        elif now == row:
            self._release(path)
            if self._fingerprint and flags & FINISHED and is_file(now):
                self._step("modified", path, now)
        elif self._unfinished(path, flags, now):
            self._hold(path, flags, row, now)
        else:
            self._release(path)
            self._change(path, flags, row, now)

    def _unfinished(self, path: bytes, flags: int, now: bytes) -> bool:
        if flags & FINISHED or not is_file(now):
            return False
        written = self._written.get(path)
        return not self._settled(now) if written is None else written

    def _hold(self, path: bytes, flags: int, row: bytes | None, now: bytes) -> None:
        if row is not None and flags & DELETED and identity(row) != identity(now):
            self._step("deleted", path, row)
        self.held[path] = now
        self.released.discard(path)

    def _release(self, path: bytes) -> None:
        self.released.add(path)
        self.held.pop(path, None)

    def _gone(self, path: bytes, row: bytes | None) -> None:
        self._release(path)
        if row is not None:
            self._step("deleted", path, row)

    def _change(self, path: bytes, flags: int, row: bytes | None, now: bytes) -> None:
        if row is None:
            self._step("created", path, now)
        elif is_directory(row) and is_directory(now) and not flags & DELETED:
            self._step("", path, now)
        elif flags & DELETED or row[0] != now[0]:
            self._step("deleted", path, row)
            self._step("created", path, now)
        elif (flags == CHANGED and untouched(row, now)) or same_but_device(row, now):
            self._step("", path, now)
        else:
            self._step("modified", path, now)

    def _moved(self, path: bytes, to: bytes, *, last: bool) -> None:
        row = self._rows.get(path) if self._shows(path) else None
        if row is not None and not self._shows(to):
            self._gone(path, row)
        elif row is not None and not self._came_later(path, to, row):
            self._renamed(path, to, row, last=last)
        elif self._shows(to):
            if row is None:
                self._release(path)
            self._look(to, FINISHED)

    def _came_later(self, path: bytes, to: bytes, row: bytes) -> bool:
        """Whether the row is of another thing than the one renamed: one that came there after it."""
        old, new = self._looks.get(path), self._looks.get(to)
        return old is not None and identity(old) == identity(row) and new is not None and identity(new) != identity(row)

    def _renamed(self, path: bytes, to: bytes, row: bytes, *, last: bool) -> None:
        """Told by the row, not by the look, which may be from after the next rename already."""
        now = self._looks.get(to)
        fresh = now is not None and untouched(row, now)
        self._release(path)
        self._step("moved", to, now if fresh and now is not None else row, path)
        if now is None:
            self.unseen.add(to)
        elif last or identity(now) == identity(row):
            self._look(to, FINISHED)

    def _step(self, name: str, path: bytes, value: bytes, previous: bytes | None = None) -> None:
        self.steps.append(Step(name, path, value, previous))
        self._rows[path] = None if name == "deleted" else value
        if previous is not None:
            self._rows[previous] = None
        if value[1] & LINKED:
            self.linked.add(identity(value))
