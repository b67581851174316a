"""Whether a file is still being written, as the kernel tells."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterable, Mapping
from typing import Final

# O_NONBLOCK: what looked like a file may be a FIFO by now, and opening one would wait for its other end.
OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def open_for_writing(path: bytes) -> bool | None:
    """Whether anyone has the file open for writing; None where the kernel does not tell, or the file is gone.

    A read lease is granted only while nobody has (fcntl(2)), to the file's owner and to CAP_LEASE. It is given back at
    once. Who opens the file for writing in between waits until then, and the kernel signals us: by one that is ignored
    unless somebody asks for it, instead of SIGIO, which kills.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:
        descriptor = os.open(path, OPEN)
    except OSError:
        return None
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    finally:
        os.close(descriptor)
    return False


def all_open_for_writing(root: bytes, paths: Iterable[bytes]) -> Mapping[bytes, bool | None]:
    """`open_for_writing` of each path below the root."""
    return {path: open_for_writing(root + b"/" + path) for path in paths}
