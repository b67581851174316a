"""Files that are not finished: when to look at them again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final

from headrace.sources.filesystem.entry import identity

LIMIT: Final = 10_000  # files followed one by one; beyond it the next listing finds them
RECHECK: Final = 30.0  # seconds between looks at a file that is open and whose close will be told


@dataclass(slots=True)
class Held:
    """When to look again (monotonic seconds), and how it looked."""

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


class Unfinished:
    """The files whose change waits until they are finished. What is lost with the process, the next listing finds."""

    def __init__(self, patience: Patience, now: Callable[[], float] = monotonic) -> None:
        self._patience = patience
        self._now = now
        self._held: dict[bytes, Held] = {}

    def hold(self, path: bytes, value: bytes, *, written: bool | None) -> bool:
        """Wait for the file. False where too many wait already."""
        held = self._held.get(path)
        if held is not None and written:
            held.value = value  # and due as before: a file written all the time has its turn too
        elif held is not None or len(self._held) < LIMIT:
            self._held[path] = Held(self._now() + self._wait(written=written), value)
        else:
            return False
        return True

    def _wait(self, *, written: bool | None) -> float:
        patience = self._patience
        return patience.settle if written is None else patience.emit_open or patience.recheck

    def __contains__(self, path: bytes) -> bool:
        return path in self._held

    def release(self, path: bytes) -> None:
        self._held.pop(path, None)

    def rename(self, path: bytes, to: bytes) -> None:
        """A directory was renamed."""
        prefix = path + b"/"
        for old in [it for it in self._held if it.startswith(prefix)]:
            self._held[to + old[len(path) :]] = self._held.pop(old)

    def named(self, identities: Collection[bytes]) -> Iterator[bytes]:
        """The paths of files with one of these identities."""
        return (path for path, it in self._held.items() if identity(it.value) in identities)

    def next_due(self) -> float | None:
        return min((it.due for it in self._held.values()), default=None)

    def take_due(self) -> Mapping[bytes, bytes]:
        """The files whose time has come, with how they looked. They wait no longer."""
        now = self._now()
        due = {path: it.value for path, it in self._held.items() if it.due <= now}
        for path in due:
            del self._held[path]
        return due

    def finished(self, before: bytes, now: bytes | None, *, written: bool | None) -> bool:
        """Whether a file whose time has come is told of now."""
        if written is None:
            return now == before
        return not written or self._patience.emit_open is not None
