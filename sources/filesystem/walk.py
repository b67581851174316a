"""A tree, listed in the order of the inventory's keys, page by page, in bounded memory."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Final

from headrace.inventory import PAGE, Found
from headrace.sources.filesystem.entry import DIRECTORY
from headrace.sources.filesystem.names import Visibility, key_of

CHUNK: Final = 50_000  # names of one directory held at once, about 5 MB; more are sorted through a temporary file
BLOCK: Final = 1 << 16


class Walker:
    """Lists what is visible below `top`, and `top` itself. Blocking: every call belongs into a thread.

    `enter` is called with each directory before it is read, so that a watch misses nothing that the listing does.
    Directories that could not be read are in `unreadable`: nothing is known of what is in them.
    """

    def __init__(
        self,
        root: bytes,
        top: bytes,
        visible: Visibility,
        pack: Callable[[os.stat_result], bytes],
        enter: Callable[[bytes], None],
        scratch: Path,
    ) -> None:
        self._root = root + b"/"
        self._visible = visible
        self._pack = pack
        self._enter = enter
        self._scratch = scratch
        self._stack: list[tuple[bytes, Iterator[bytes]]] = [(b"", iter((top,)))] if top else []
        self._begun = bool(top)
        self.unreadable: dict[bytes, OSError] = {}

    def page(self, limit: int = PAGE) -> list[Found]:
        """The next entries, sorted by key; none at the end."""
        if not self._begun:
            self._begun = self._descend(b"") or True
        page: list[Found] = []
        while self._stack and len(page) < limit:
            parent, names = self._stack[-1]
            if not self._fill(page, parent, names, limit):
                self._stack.pop()
        return page

    def _fill(self, page: list[Found], parent: bytes, names: Iterator[bytes], limit: int) -> bool:
        """Take names until a directory is entered or the page is full (True), or until there are none (False)."""
        pack, shows, everything = self._pack, self._visible.shows, self._visible.all
        lstat, folder, keys = os.lstat, self._root + parent, key_of(parent)
        for name in names:
            try:
                value = pack(lstat(folder + name))
            except FileNotFoundError:
                continue
            except OSError as error:  # a directory that may be read and not searched, a disk that fails
                self.unreadable[parent[:-1]] = error
                continue
            if everything or shows(parent + name):
                page.append((keys + name, value))
            if (value[0] == DIRECTORY and self._descend(parent + name)) or len(page) >= limit:
                return True
        return False

    def _descend(self, path: bytes) -> bool:
        if not self._visible.enters(path):
            return False
        try:
            self._enter(path)
            names = self._names(self._root + path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            self.unreadable[path] = error
            return False
        self._stack.append((path + b"/" if path else b"", names))
        return True

    def _names(self, directory: bytes) -> Iterator[bytes]:
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in islice(entries, CHUNK))
            if len(names) < CHUNK:
                return iter(names)
            return _spilled(names, (entry.name for entry in entries), self._scratch)


def _spilled(names: list[bytes], rest: Iterator[bytes], scratch: Path) -> Iterator[bytes]:
    """All names in order, through a temporary file of sorted runs, each name ended by a NUL."""
    file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 -- closed by the iterator that reads it
    runs: list[tuple[int, int]] = []
    while names:
        start = file.tell()
        file.write(b"\0".join(names) + b"\0")
        runs.append((start, file.tell()))
        names = sorted(islice(rest, CHUNK))
    return _merged(file, runs)


def _merged(file: IO[bytes], runs: list[tuple[int, int]]) -> Iterator[bytes]:
    """Merge sorted runs a block of each at a time: sorting what is already in runs costs a merge, at the speed of C."""
    readers = [_Run(file, start, end) for start, end in runs]
    with file:
        while readers := [it for it in readers if it.fill()]:
            bound = min(it.names[-1] for it in readers)
            yield from sorted(name for it in readers for name in it.upto(bound))


class _Run:
    """One sorted run of a spilled directory."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self._file, self._at, self._end = file, start, end
        self.names: list[bytes] = []

    def fill(self) -> bool:
        """Have names, unless the run is at its end."""
        if not self.names and self._at < self._end:
            self._file.seek(self._at)
            block = self._file.read(min(BLOCK, self._end - self._at))
            block = block[: block.rindex(b"\0") + 1]
            self._at += len(block)
            self.names = block[:-1].split(b"\0")
        return bool(self.names)

    def upto(self, bound: bytes) -> list[bytes]:
        cut = bisect_right(self.names, bound)
        taken, self.names = self.names[:cut], self.names[cut:]
        return taken
