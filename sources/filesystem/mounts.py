"""What is mounted at a directory and below it, and when that changes. Linux only."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_ESCAPED: Final = re.compile(rb"[ \t\n\\]")


class Mounts:
    """The table of mounts, as proc_pid_mountinfo(5) has it. Its descriptor polls as `POLLPRI` when it changed.

    Raises `OSError` where there is none.
    """

    def __init__(self, directory: bytes, mountinfo: Path = _MOUNTINFO) -> None:
        self._top = _ESCAPED.sub(lambda it: b"\\%03o" % it[0][0], directory)
        self._file = mountinfo.open("rb", buffering=0)
        self._known = self._here()

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def changed(self) -> bool:
        """Whether what is mounted here is other than at the last call."""
        before, self._known = self._known, self._here()
        return before != self._known

    def _here(self) -> list[bytes]:
        """The lines of what is mounted here."""
        self._file.seek(os.SEEK_SET)
        return [line for line in self._file.readall().splitlines() if self._within(line.split(b" ", 5)[4])]

    def _within(self, point: bytes) -> bool:
        return point == self._top or point.startswith(self._top + b"/")
