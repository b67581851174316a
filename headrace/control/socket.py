"""The daemon's sockets in `DATA_DIR`: reached by whoever may enter it, the daemon's user.

`control.sock` takes every command; `links.sock` only gives addresses of objects, and is all that workers are told of.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from headrace.errors import Fatal

NAME: Final = "control.sock"
LINKS: Final = "links.sock"
LONGEST: Final = 103  # bytes of a socket's path on macOS; Linux takes 107
BACKLOG: Final = 64


def listen(data_dir: Path, name: str = NAME) -> socket.socket:
    """A listening socket with mode 0600. The directory must be claimed: what is left of a killed daemon is replaced.

    Raises `Fatal`.
    """
    path = data_dir / name
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | _CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            with _address(path) as address:
                server.bind(address)
        finally:
            os.umask(before)
        server.listen(BACKLOG)
        server.settimeout(0)
    except OSError as error:
        server.close()
        raise Fatal(f"control socket {path}: {error.strerror or error}", hint="see [daemon] data_dir") from error
    return server


def connect(data_dir: Path) -> socket.socket:
    """A connected socket. Raises `OSError`."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | _CLOEXEC)
    try:
        with _address(data_dir / NAME) as address:
            client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


_CLOEXEC: Final = getattr(socket, "SOCK_CLOEXEC", 0)


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """What to bind or connect to: a path longer than an address may be is reached through its open folder."""
    if len(os.fsencode(path)) <= LONGEST:
        yield str(path)
        return
    if not os.path.isdir("/proc/self/fd"):
        raise OSError(f"the path is longer than the {LONGEST} bytes that a socket's may have; shorten it")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
