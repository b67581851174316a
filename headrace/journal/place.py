"""The data directory: private, on a local file system, used by one daemon at a time."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from headrace.errors import Fatal

# SQLite's WAL needs shared memory and working locks, which these cannot give: https://sqlite.org/wal.html
_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"})
_REMOTE_FUSE: Final = frozenset({"fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse"})

_OCTAL: Final = re.compile(r"\\([0-7]{3})")  # how the kernel writes blanks and backslashes in a path


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that holds `path`; `""` where the system does not tell (not Linux)."""
    try:
        table = os.fsdecode(mounts.read_bytes())
    except OSError:
        return ""
    best, kind = "", ""
    real = os.path.realpath(path)
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), left.split()[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def is_remote(kind: str) -> bool:
    """Whether a type of file system is one of a network, where the journal is not safe."""
    return kind in _REMOTE or kind in _REMOTE_FUSE


@contextmanager
def claim(data_dir: Path) -> Iterator[Path]:
    """The data directory, made with mode 0700 where it is missing, and locked for as long as the context lasts.

    Raises `Fatal` where it cannot be made, is not writable, is remote, or another daemon has it.
    """
    try:
        _make(data_dir)
        lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "set [daemon] data_dir to a folder that this user may write"
        raise Fatal(f"data directory {data_dir}: {error.strerror}", hint=hint) from error
    try:
        _refuse_remote(data_dir)
        _lock(lock, data_dir)
        _make_private(data_dir)
        yield data_dir
    finally:
        os.close(lock)


def _make(folder: Path, mode: int = 0o700) -> None:
    """The folder with its parents, each of them durable in the one above."""
    if folder.is_dir():
        return
    _make(folder.parent, 0o777)
    folder.mkdir(mode=mode, exist_ok=True)
    parent = os.open(folder.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _refuse_remote(data_dir: Path) -> None:
    kind = file_system(data_dir)
    if is_remote(kind):
        raise Fatal(
            f"data directory {data_dir} is on a network file system ({kind}), where the journal is not safe",
            hint="set [daemon] data_dir to a local disk",
        )


def _lock(lock: int, data_dir: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "?"
        raise Fatal(
            f"data directory {data_dir} is in use by another daemon (process {owner})",
            hint="stop that one, or give this one its own [daemon] data_dir",
        ) from None
    with suppress(OSError):  # only for the message above; a full disk is reported where it matters
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _make_private(data_dir: Path) -> None:
    if data_dir.stat().st_mode & 0o077:
        try:
            data_dir.chmod(0o700)
        except OSError as error:
            hint = f"chmod 700 {data_dir}"
            raise Fatal(f"data directory {data_dir} is open to others: {error.strerror}", hint=hint) from error
