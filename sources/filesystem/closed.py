"""Directories that cannot be read: told of, and remembered until their rights change."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from stat import S_ISDIR
from typing import Final

from headrace.protocols import Logger

LIMIT: Final = 10_000  # remembered; what is in further ones is found by the next comparison


class Closed:
    """Of one root. What is in such a directory stays as it was known."""

    def __init__(self, root: bytes, log: Logger) -> None:
        self._root = root + b"/"
        self._log = log
        self._paths: set[bytes] = set()

    def clear(self) -> None:
        """A comparison begins, which meets all of them."""
        self._paths.clear()

    def add(self, unreadable: Mapping[bytes, OSError]) -> None:
        """As a listing found them."""
        for path, error in unreadable.items():
            if path not in self._paths:
                self._add(path, error.strerror)

    def _add(self, path: bytes, reason: str | None) -> None:
        if len(self._paths) < LIMIT:
            self._paths.add(path)
        self._log.warning(
            "a directory cannot be read, what is in it is left as it was",
            path=path.decode(errors="backslashreplace"),
            error=reason,
            hint="give the daemon's user read and search permission",
        )

    def opened(self, path: bytes) -> bool:
        """Whether one that could not be read can be now. Tells of one that could be and cannot be any more."""
        known = path in self._paths
        if os.access(self._root + path, os.R_OK | os.X_OK, effective_ids=True, follow_symlinks=False):
            self._paths.discard(path)
            return known
        if not known and self._is_directory(path):
            self._add(path, os.strerror(errno.EACCES))
        return False

    def _is_directory(self, path: bytes) -> bool:
        try:
            return S_ISDIR(os.lstat(self._root + path).st_mode)
        except OSError:
            return False
