"""Room on the disk: the reserve file that keeps the journal able to recover, and the journal's own limits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.protocols import Logger

RESERVE: Final = 64 << 20
HEADROOM: Final = 8 << 20
WARN_AT: Final = (0.5, 0.8, 0.95)  # of `max_size`, taken by what consumers have yet to read
INTAKE_SHARE: Final = 0.95  # the rest of `max_size` is for cursors, dead letters and returned events


@dataclass(frozen=True, slots=True)
class Limits:
    """`retention` in seconds, `max_size` in bytes."""

    retention: float
    max_size: int

    @property
    def intake(self) -> int:
        """The size above which no source may append."""
        return int(self.max_size * INTAKE_SHARE)


@dataclass(frozen=True, slots=True)
class Usage:
    """How full the journal is. `stopped` says why intake waits, `""` where it does not.

    `events` counts those between the oldest and the head. `blockers` are the consumers that need the oldest, by the
    position they hold.
    """

    size: int
    max_size: int
    wal: int
    events: int
    oldest: int
    stopped: str
    blockers: Mapping[str, int]


class Reserve:
    """A file that only takes space. Given up when the disk is full; made again before intake resumes."""

    def __init__(self, path: Path, size: int = RESERVE) -> None:
        self._path = path
        self._size = size
        self.held = False

    @property
    def size(self) -> int:
        return self._size

    def take(self, beside: int = 0) -> bool:
        """Make the file, leaving `HEADROOM` and `beside` bytes free. False where the disk has no room for it."""
        if not self.held:
            self.held = self._exists() or self._make(beside)
        return self.held

    def _exists(self) -> bool:
        with suppress(OSError):
            return self._path.stat().st_blocks * 512 >= self._size
        return False

    def _make(self, beside: int) -> bool:
        try:
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize < self._size + HEADROOM + beside:
                return False
            self._allocate()
        except OSError:
            self.give_up()
            return False
        return True

    def _allocate(self) -> None:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, self._size)
        finally:
            os.close(file)

    def give_up(self) -> None:
        self.held = False
        with suppress(OSError):
            self._path.unlink()


class LagWarning:
    """Warns once each time what consumers still need passes one of `WARN_AT`, and names them."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._passed = 0

    def check(self, share: float, blockers: Mapping[str, int]) -> None:
        """`share` of `max_size` is taken by what some consumer still needs."""
        passed = sum(share >= mark for mark in WARN_AT)
        if passed > self._passed:
            percent = int(WARN_AT[passed - 1] * 100)
            self._log.warning("journal fills up", percent=percent, needed_by=sorted(blockers))
        self._passed = passed
