"""What the inventory keeps of a path, and how two looks at it differ."""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable
from os import stat_result
from typing import Final, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["file", "directory", "symlink", "other"]
KINDS: Final[tuple[Kind, ...]] = ("file", "directory", "symlink", "other")
FILE, DIRECTORY, SYMLINK, OTHER = range(4)

LINKED: Final = 1  # flag: the file has further names

# kind, flags, device, inode, size, mtime and ctime in ns since 1970
_ROW: Final = struct.Struct("<BBQQQqq")
ROW_SIZE: Final = _ROW.size  # a fingerprint may follow
_KIND_OF: Final = {stat.S_IFREG: FILE, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: SYMLINK}
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1


class Entry(NamedTuple):
    """A path as a row holds it. `device` is 0 on the root's own file system: device numbers change between boots.

    Of a directory only kind, device and inode are kept: its size and times follow from what is in it.
    """

    kind: int
    flags: int
    device: int
    inode: int
    size: int
    mtime: int
    ctime: int


def packer(root_device: int) -> Callable[[stat_result], bytes]:
    """What turns a look at a path into the row's value."""
    pack = _ROW.pack

    def packed(st: stat_result) -> bytes:
        device = 0 if st.st_dev == root_device else st.st_dev
        kind = _KIND_OF.get(st.st_mode & 0o170000, OTHER)
        if kind == DIRECTORY:
            return pack(DIRECTORY, 0, device, st.st_ino, 0, 0, 0)
        flags, inode, size = LINKED if st.st_nlink > 1 else 0, st.st_ino, st.st_size
        try:
            return pack(kind, flags, device, inode, size, st.st_mtime_ns, st.st_ctime_ns)
        except struct.error:
            return pack(kind, flags, device, inode, size, _time(st.st_mtime_ns), _time(st.st_ctime_ns))

    return packed


def _time(nanoseconds: int) -> int:
    """Within the row's 64 bits: years 1678 to 2262."""
    return min(max(nanoseconds, _LEAST), _MOST)


def unpack(value: bytes) -> Entry:
    """The row's value, read."""
    return Entry(*_ROW.unpack_from(value))


def identity(value: bytes) -> bytes:
    """Device and inode: the row's secondary key."""
    return value[2:18]


def is_directory(value: bytes | None) -> bool:
    """Whether there is something, and it is a directory."""
    return value is not None and value[0] == DIRECTORY


def is_file(value: bytes | None) -> bool:
    """Whether there is something, and it is a regular file."""
    return value is not None and value[0] == FILE


def untouched(one: bytes, other: bytes) -> bool:
    """Whether two looks differ in ctime and count of names at most, as after a rename, a link, a change of rights.

    At two paths it tells a rename from an inode that was reused: size and mtime must agree as well.
    """
    return one[0] == other[0] and one[2:34] == other[2:34]


def same_but_device(one: bytes, other: bytes) -> bool:
    """Whether only the device's number changed, as between two boots."""
    return one[:2] == other[:2] and one[10:ROW_SIZE] == other[10:ROW_SIZE]
