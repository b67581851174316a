"""What the inventory keeps of an object or version, and how two looks at it differ."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from struct import Struct
from typing import Final, NamedTuple

ROWS: Final = b"o\0"
MISSED: Final = b"p\0"  # keys that the running listing did not meet, to be confirmed at its end
NULL: Final = "null"  # S3's name for the version written while versioning was off

MARKER: Final = 1  # a delete marker
SECOND: Final = 2  # the time is cut to seconds, as HTTP dates are
LOOSE: Final = 4  # the time is that of a notification, which follows the object's own

LATE: Final = 60_000  # ms by which a notification's time may differ from the object's own

_ROW: Final = Struct("<Bqq")  # flags, time in ms since 1970, size; the ETag follows, then "\0" and the sequencer
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)


class Place(NamedTuple):
    """An object, or a version of it. `version` is empty where versions do not count, and for S3's "null"."""

    bucket: str
    key: str
    version: str = ""

    @property
    def row(self) -> bytes:
        return b"".join((below(self.bucket), self.key.encode(), b"\0", self.version.encode()))

    @classmethod
    def of(cls, row: bytes) -> Place:
        bucket, rest = row[len(ROWS) :].split(b"\0", 1)
        key, _, version = rest.rpartition(b"\0")
        return cls(bucket.decode(), key.decode(), version.decode())


@lru_cache(1_000)
def below(bucket: str) -> bytes:
    """The prefix of the keys of a bucket's rows. Their order is that of buckets, keys and versions, as bytes."""
    return b"".join((ROWS, bucket.encode(), b"\0"))


def versions_of(bucket: str, key: str) -> bytes:
    """The prefix of the rows of one key's versions."""
    return b"".join((below(bucket), key.encode(), b"\0"))


def version_text(version: str | None) -> str:
    """The version as a row has it."""
    return "" if not version or version == NULL else version


class Entry(NamedTuple):
    """An object as a row holds it. `time` is LastModified in ms since 1970, as far as the flags say it is exact."""

    flags: int
    time: int
    size: int
    etag: str
    sequencer: str = ""

    @property
    def marker(self) -> bool:
        return bool(self.flags & MARKER)

    def pack(self) -> bytes:
        text = f"{self.etag}\0{self.sequencer}" if self.sequencer else self.etag
        return _ROW.pack(self.flags, self.time, self.size) + text.encode()

    @classmethod
    def unpack(cls, value: bytes) -> Entry:
        etag, _, sequencer = value[_ROW.size :].decode().partition("\0")
        flags, time, size = _ROW.unpack_from(value)
        return cls(flags, time, size, etag, sequencer)


def listed(moment: datetime | None, size: int | None, etag: str | None) -> bytes:
    """The row's value of an object in a listing."""
    return _ROW.pack(0, milliseconds(moment), size or 0) + (etag or "").strip('"').encode()


def listed_marker(moment: datetime | None) -> bytes:
    """The row's value of a delete marker in a listing."""
    return _ROW.pack(MARKER, milliseconds(moment), 0)


def milliseconds(moment: datetime | None) -> int:
    """Since 1970, cut as MinIO cuts them."""
    return 0 if moment is None else (moment - _EPOCH) // _MS


def same(version: str, one: Entry, other: Entry) -> bool:
    """Whether both are looks at one and the same write. A version with an id of its own is written once."""
    if one.marker != other.marker:
        return False
    if version:
        return True
    return one.size == other.size and one.etag == other.etag and _same_time(one, other)


def _same_time(one: Entry, other: Entry) -> bool:
    flags = one.flags | other.flags
    if flags & LOOSE:
        return abs(one.time - other.time) <= LATE
    if flags & SECOND:
        return one.time // 1000 == other.time // 1000
    return one.time == other.time
