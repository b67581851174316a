"""How far a file is delivered, as the engine keeps it for the file sink; and what an error of the file means."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from headrace.errors import Fatal, HeadraceError, Transient

VERSION: Final = 1
_TAIL: Final = 256
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_BUSY: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """How far a file is delivered. `check` is the CRC-32 of the `tail` bytes before `length`.

    An inode number is used again after a deletion, and a file can be rewritten in place: the bytes tell. `device` is
    kept for the reader alone, since it may change when the machine starts anew. `number` is the segment's once
    rotated, `started` when its first line was written, in seconds since 1970.
    """

    version: int
    device: int
    inode: int
    length: int
    number: int
    started: float
    tail: int = 0
    check: int = 0

    def after(self, data: bytes, now: float) -> Mark:
        """The mark once `data` was appended."""
        tail = data[-_TAIL:]
        started = self.started if self.length else now
        place = (self.version, self.device, self.inode, self.length + len(data), self.number)
        return Mark(*place, started, len(tail), crc32(tail))

    def packed(self) -> bytes:
        return msgspec.msgpack.encode(self)


def unpack(state: bytes) -> Mark:
    """Raises `Fatal` where this version did not write it."""
    try:
        mark = msgspec.msgpack.decode(state, type=Mark)
    except msgspec.MsgspecError:
        mark = None
    if mark is None or mark.version != VERSION:
        raise Fatal("the state of this file sink is of another version of headrace")
    return mark


def failure(path: Path, error: OSError) -> HeadraceError:
    """What a failed call on the file means for the consumer."""
    said = f"{path}: {error.strerror}"
    if error.errno in _FULL:
        return Transient(f"disk full: {said}", hint="free some space; delivery then goes on")
    if error.errno in _BUSY:
        return Transient(said)
    if error.errno in _DENIED:
        return Fatal(said, hint="let the daemon's user write the file and its folder")
    return Fatal(said, hint="see to the disk, then start again")
