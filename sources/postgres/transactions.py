"""Transactions that the server sends while they run: kept on disk until they are committed or rolled back.

Nothing here needs to survive a crash: the server sends again whatever was not acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import IO, Final

from headrace.sources.postgres.protocol import HEADER, ORIGIN, TAG, stream_xid, without_xid

_RECORD: Final = Struct("<II")  # length, (sub-)transaction
_BUFFER: Final = 1 << 18
_PAGE: Final = 1 << 20


class Spooled:
    """One running transaction: a file of its messages, and which of its parts were rolled back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("w+b", _BUFFER)
        self._aborted: set[int] = set()

    def add(self, message: bytes) -> None:
        xid = 0
        if message[TAG] != ORIGIN:  # the one message that names no transaction
            xid, message = stream_xid(message), without_xid(message)
        self._file.write(_RECORD.pack(len(message) - HEADER, xid))
        self._file.write(message[HEADER:])

    def abort(self, subxid: int) -> None:
        self._aborted.add(subxid)

    def pages(self) -> Iterator[list[bytes]]:
        """The messages that count, as they would be outside a stream, in portions of about a megabyte."""
        self._file.seek(0)
        rest = b""
        while page := self._file.read(_PAGE):
            rest += page
            messages, place = self._messages(rest)
            rest = rest[place:]
            yield messages

    def _messages(self, data: bytes) -> tuple[list[bytes], int]:
        found: list[bytes] = []
        place, size, aborted = 0, _RECORD.size, self._aborted
        while place + size <= len(data):
            length, xid = _RECORD.unpack_from(data, place)
            end = place + size + length
            if end > len(data):
                break
            if xid not in aborted:
                found.append(_BLANK + data[place + size : end])
            place = end
        return found, place

    def close(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


_BLANK: Final = b"w" + bytes(HEADER - 1)


class Spool:
    """All running transactions of a stream, below a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[int, Spooled] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.tx"):
            left.unlink()

    def start(self, xid: int) -> Spooled:
        """The transaction whose part follows."""
        if xid not in self._running:
            self._running[xid] = Spooled(self._folder / f"{xid}.tx")
        return self._running[xid]

    def abort(self, xid: int, subxid: int) -> None:
        """Drop a transaction (`subxid == xid`), or a part of it."""
        if xid == subxid:
            self.drop(xid)
        elif xid in self._running:
            self._running[xid].abort(subxid)

    def committed(self, xid: int) -> Spooled:
        """Raises `KeyError` where none of it was sent."""
        return self._running[xid]

    def drop(self, xid: int) -> None:
        found = self._running.pop(xid, None)
        if found is not None:
            found.close()

    def close(self) -> None:
        for xid in list(self._running):
            self.drop(xid)
