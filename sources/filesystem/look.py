"""Looks at paths: what is there, and whether it is being written."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from stat import S_ISDIR
from typing import Final, TypeAlias, TypeVar

from headrace.sources.filesystem.entry import unpack
from headrace.sources.filesystem.finished import all_open_for_writing

INLINE: Final = 8  # looks that cost less than the hop to a thread

Looks: TypeAlias = Mapping[bytes, bytes | None]
"""What is there now, by path; None where there is nothing. What the system will not tell is left out."""
Written: TypeAlias = Mapping[bytes, bool | None]
"""Whether files are open for writing, by path; None where the system will not tell."""

ABSENT: Final = -1
_SLASH: Final = re.compile(b"/")
T = TypeVar("T")


class Looker:
    """Looks below one root. Many at once are looked at in a thread."""

    def __init__(self, root: bytes, pack: Callable[[os.stat_result], bytes]) -> None:
        self.root = root
        self.pack = pack

    async def look(self, paths: Iterable[bytes]) -> Looks:
        return await self._off_loop(self._look, list(paths))

    async def written(self, paths: Iterable[bytes]) -> tuple[Written, Looks]:
        """Whether they are open for writing, and a second look at those that are not: the first may be from before."""
        return await self._off_loop(self._written, list(paths))

    def _written(self, paths: Sequence[bytes]) -> tuple[Written, Looks]:
        written = all_open_for_writing(self.root, paths)
        return written, self._look(path for path, it in written.items() if it is False)

    async def devices(self, paths: Iterable[bytes]) -> Mapping[bytes, int]:
        """The device, as rows have it, of the nearest directory above each path that is there."""
        return await self._off_loop(self._devices, list(paths))

    def _devices(self, paths: Sequence[bytes]) -> Mapping[bytes, int]:
        known: dict[bytes, int | None] = {}
        return {path: device for path in paths if (device := self._device(path, known)) is not None}

    def _device(self, path: bytes, known: dict[bytes, int | None]) -> int | None:
        """None where the system will not tell."""
        device = self._device_of(b"", known)
        for parent in _parents(path):
            found = self._device_of(parent, known)
            if found == ABSENT:
                break
            device = found
        return device

    def _device_of(self, directory: bytes, known: dict[bytes, int | None]) -> int | None:
        if directory not in known:
            try:
                st = os.lstat(self.root + b"/" + directory)
                known[directory] = unpack(self.pack(st)).device if S_ISDIR(st.st_mode) else ABSENT
            except (FileNotFoundError, NotADirectoryError):
                known[directory] = ABSENT
            except OSError:
                known[directory] = None
        return known[directory]

    async def _off_loop(self, function: Callable[[Sequence[bytes]], T], paths: Sequence[bytes]) -> T:
        if len(paths) <= INLINE:
            return function(paths)
        return await asyncio.to_thread(function, paths)

    def _look(self, paths: Iterable[bytes]) -> Looks:
        looks: dict[bytes, bytes | None] = {}
        real: dict[bytes, bool] = {b"": True}
        for path in paths:
            try:
                there = self._is_real(path.rpartition(b"/")[0], real)
                looks[path] = self.pack(os.lstat(self.root + b"/" + path)) if there else None
            except (FileNotFoundError, NotADirectoryError):
                looks[path] = None
            except OSError:
                continue
        return looks

    def _is_real(self, directory: bytes, known: dict[bytes, bool]) -> bool:
        """Whether all of the path is directories: what is behind a link is not in the tree. Raises `OSError`."""
        if directory not in known:
            known[directory] = all(self._is_directory(it, known) for it in (*_parents(directory), directory))
        return known[directory]

    def _is_directory(self, path: bytes, known: dict[bytes, bool]) -> bool:
        if path not in known:
            known[path] = S_ISDIR(os.lstat(self.root + b"/" + path).st_mode)
        return known[path]


def _parents(path: bytes) -> list[bytes]:
    """The directories above, from the top."""
    return [path[: it.start()] for it in _SLASH.finditer(path)]
