"""The watched directory itself: whether it is there, what it is mounted on, where Headrace's own folder lies."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import Final

# No notification of what other machines, or the far side of a mount, do.
SILENT: Final = frozenset(
    {"9p", "afs", "ceph", "cifs", "coda", "davfs", "fuse", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"ocfs2", "prl_fs", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"}
)
_MARK: Final = "journal.db"


class RootLost(Exception):
    """The root is gone, or something else is in its place."""


@dataclass(frozen=True, slots=True)
class Root:
    """The root as it was found: its bytes path and identity."""

    path: bytes
    device: int
    inode: int

    @classmethod
    def find(cls, path: bytes) -> Root:
        """Raises `RootLost` where there is no directory."""
        try:
            st = os.stat(path)
        except OSError as error:
            raise RootLost(error.strerror) from error
        if not S_ISDIR(st.st_mode):
            raise RootLost("not a directory")
        return cls(path, st.st_dev, st.st_ino)

    def present(self) -> None:
        """Raises `RootLost` where the root is no longer this one."""
        if Root.find(self.path) != self:
            raise RootLost("another directory took its place")

    @property
    def identity(self) -> list[int]:
        return [self.device, self.inode]

    def empty(self) -> bool:
        with os.scandir(self.path) as entries:
            return next(entries, None) is None


def file_system(path: bytes, mountinfo: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that holds the path; `""` where the system does not say."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mountinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    types = [line.partition(" - ")[2].split(" ", 1)[0] for line in lines if line.split(" ", 3)[2] == number]
    return types[-1] if types else ""


def notifies(kind: str) -> bool:
    """Whether inotify tells of every change on this type of file system."""
    return kind.partition(".")[0] not in SILENT


def own_folder(root: bytes, scratch: Path) -> bytes | None:
    """Headrace's data directory as a path below the root, or None where it is elsewhere."""
    data = next((it for it in scratch.parents if (it / _MARK).exists()), scratch.parent)
    inside = os.path.relpath(os.path.realpath(os.fsencode(data)), os.path.realpath(root))
    return None if inside == b"." or inside.split(b"/")[0] == b".." else inside
