"""What the kernel says has happened, on its way to the task that looks: bounded, in order, and coalesced."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

LIMIT: Final = 100_000  # hints waiting, some 20 MB; beyond it a listing is cheaper

WATCHES: Final = "raise it: sysctl fs.inotify.max_user_watches=1048576; until then what is not watched is polled"

CREATED: Final = 1
FINISHED: Final = 2  # closed after writing, or moved in: what is there is complete
CHANGED: Final = 4  # attributes, or written to and still open
DELETED: Final = 8


class Act(Enum):
    """What to do about a path."""

    LOOK = auto()  # at a file, link or special file: `flags` say why
    MOVED = auto()  # renamed from `path` to `to`
    MOVED_DIRECTORY = auto()
    ENTER = auto()  # a directory appeared: look at all that is in it
    LEFT = auto()  # a directory disappeared, removed or moved out
    RIGHTS = auto()  # of a directory changed, or its times; `b""` is the root


class Hint:
    """One hint. Hints to look at the same path are one, as long as no rename lies between them."""

    __slots__ = ("act", "flags", "path", "to")

    def __init__(self, act: Act, path: bytes, flags: int = 0, to: bytes = b"") -> None:
        self.act = act
        self.path = path
        self.flags = flags
        self.to = to

    def __repr__(self) -> str:
        return f"Hint({self.act.name}, {self.path!r}, {self.flags}, {self.to!r})"


class Hints:
    """Filled by the watcher's thread, emptied by the task that owns the inventory.

    `wake` is called from the filling thread when there is something after there was nothing. When hints were lost,
    here or in the kernel, `take_overflow` is true once: only a listing can tell what has happened.
    """

    def __init__(self, wake: Callable[[], object], limit: int = LIMIT) -> None:
        self._wake = wake
        self._limit = limit
        self._lock = threading.Lock()
        self._hints: deque[Hint] = deque()
        self._looks: dict[bytes, Hint] = {}
        self._overflow = False
        self.lost_root = False
        self.remounted = False
        self.failure: BaseException | None = None

    def look(self, path: bytes, flag: int) -> None:
        """Look at the path. What is deleted need not be finished; what is there again keeps that it was deleted."""
        with self._lock:
            hint = self._look(path)
            hint.flags = DELETED if flag == DELETED else hint.flags | flag

    def was_gone(self, path: bytes) -> None:
        """The path left before whatever else is known of it."""
        with self._lock:
            self._look(path).flags |= DELETED

    def _look(self, path: bytes) -> Hint:
        hint = self._looks.get(path)
        if hint is None:
            self._looks[path] = hint = Hint(Act.LOOK, path)
            self._add(hint)
        return hint

    def add(self, hint: Hint) -> None:
        """A rename or a directory: looks at the paths it names do not cross it."""
        with self._lock:
            if hint.act is Act.MOVED:
                self._looks.pop(hint.path, None)
                self._looks.pop(hint.to, None)
            elif hint.act is Act.MOVED_DIRECTORY:
                self._looks.clear()
            self._add(hint)

    def _add(self, hint: Hint) -> None:
        if len(self._hints) >= self._limit:
            self._hints, self._looks, self._overflow = deque(), {}, True
        self._hints.append(hint)
        if len(self._hints) == 1:
            self._wake()

    def overflow(self) -> None:
        with self._lock:
            self._overflow = True
        self._wake()

    def lose_root(self) -> None:
        """The root was removed, renamed or unmounted: nothing more will come."""
        self.lost_root = True
        self._wake()

    def remount(self) -> None:
        """Something was mounted or unmounted, at the root or below it."""
        self.remounted = True
        self._wake()

    def fail(self, error: BaseException) -> None:
        """The filling thread ended by an error."""
        self.failure = error
        self._wake()

    def take(self, limit: int) -> list[Hint]:
        with self._lock:
            taken = [self._hints.popleft() for _ in range(min(limit, len(self._hints)))]
            for hint in taken:
                if self._looks.get(hint.path) is hint:
                    del self._looks[hint.path]
            return taken

    def take_overflow(self) -> bool:
        with self._lock:
            overflow, self._overflow = self._overflow, False
            return overflow

    def __contains__(self, path: bytes) -> bool:
        """Whether a look at the path waits."""
        return path in self._looks

    def __len__(self) -> int:
        return len(self._hints)
