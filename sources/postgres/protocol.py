"""The messages of `pgoutput`, protocol versions 1 to 4: parsing only, no I/O.

https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html and …/protocol-replication.html.
A message is what one CopyData holds; rows are left as they are and decoded block by block (`decode`). All integers are
big-endian, all texts end with NUL.
"""

from __future__ import annotations

from struct import Struct, unpack_from
from typing import Final, NamedTuple, TypeAlias

XLOG_DATA: Final = ord("w")
KEEPALIVE: Final = ord("k")
HEADER: Final = 25  # of XLogData: its letter, start of the WAL data, end of the WAL, the server's clock
TAG: Final = HEADER  # where the letter of the pgoutput message stands

BEGIN, COMMIT, ORIGIN, RELATION, TYPE = b"BCORY"
INSERT, UPDATE, DELETE, TRUNCATE, MESSAGE = b"IUDTM"
STREAM_START, STREAM_STOP, STREAM_COMMIT, STREAM_ABORT = b"SEcA"

NEW, KEY, OLD = b"NKO"  # the kinds of tuples
NULL, _UNCHANGED, TEXT = b"nut"  # the kinds of values

_POSTGRES_EPOCH: Final = 946_684_800 * 10**6  # 2000-01-01 in microseconds since 1970
_U64: Final = Struct(">Q")
_STATUS: Final = Struct(">cQQQqB")


class Unchanged:
    """The type of `UNCHANGED`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = Unchanged()
"""A TOAST value that the change did not touch, and that was not sent."""

Value: TypeAlias = bytes | Unchanged | None


class Begin(NamedTuple):
    """A transaction begins; `lsn` is where its commit record starts. `time`: microseconds since 1970."""

    lsn: int
    time: int
    xid: int


class Commit(NamedTuple):
    """A transaction ends; `end` is the LSN behind its commit record."""

    lsn: int
    end: int
    time: int


class StreamCommit(NamedTuple):
    """A transaction that was sent while it ran is committed."""

    xid: int
    lsn: int
    end: int
    time: int


class StreamAbort(NamedTuple):
    """A transaction that was sent while it ran (`subxid == xid`), or a part of it, was rolled back."""

    xid: int
    subxid: int


class StreamStart(NamedTuple):
    """What follows, until the stream stops, belongs to a transaction that still runs."""

    xid: int
    first: bool


class Column(NamedTuple):
    """A column as the publication sends it. `key`: part of the replica identity."""

    name: str
    type_oid: int
    modifier: int
    key: bool


class RelationMessage(NamedTuple):
    """A table as it looks for the rows that follow. `identity`: `d`efault, `n`othing, `f`ull, `i`ndex."""

    oid: int
    schema: str
    table: str
    identity: str
    columns: tuple[Column, ...]


class TypeMessage(NamedTuple):
    """A type that is not built in. Of a domain, `name` is that of the type below it; `pg_catalog` is sent as `""`."""

    oid: int
    schema: str
    name: str


class Truncate(NamedTuple):
    """Tables that were emptied together."""

    relations: tuple[int, ...]
    cascade: bool
    restart_identity: bool


class LogicalMessage(NamedTuple):
    """What `pg_logical_emit_message` wrote; `lsn` is its own."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


class Keepalive(NamedTuple):
    """All WAL up to `end` was looked at; `reply`: the server wants to hear from us at once."""

    end: int
    reply: bool


class Malformed(ValueError):
    """A message that no supported server sends."""


class _Reader:
    """Walks over a message."""

    __slots__ = ("_data", "_place")

    def __init__(self, data: bytes, place: int) -> None:
        self._data = data
        self._place = place

    def take(self, layout: str) -> tuple[int, ...]:
        layout = ">" + layout
        values = unpack_from(layout, self._data, self._place)
        self._place += Struct(layout).size
        return values

    def text(self) -> str:
        end = self._data.index(0, self._place)
        text = self._data[self._place : end].decode("utf-8", "surrogateescape")
        self._place = end + 1
        return text

    def bytes(self, count: int) -> bytes:
        self._place += count
        return self._data[self._place - count : self._place]


def begin(message: bytes) -> Begin:
    """`B`."""
    lsn, time, xid = unpack_from(">QqI", message, TAG + 1)
    return Begin(lsn, time + _POSTGRES_EPOCH, xid)


def commit(message: bytes) -> Commit:
    """`C`."""
    _, lsn, end, time = unpack_from(">BQQq", message, TAG + 1)
    return Commit(lsn, end, time + _POSTGRES_EPOCH)


def stream_start(message: bytes) -> StreamStart:
    """`S`."""
    xid, first = unpack_from(">IB", message, TAG + 1)
    return StreamStart(xid, bool(first))


def stream_commit(message: bytes) -> StreamCommit:
    """`c`."""
    xid, _, lsn, end, time = unpack_from(">IBQQq", message, TAG + 1)
    return StreamCommit(xid, lsn, end, time + _POSTGRES_EPOCH)


def stream_abort(message: bytes) -> StreamAbort:
    """`A`."""
    return StreamAbort(*unpack_from(">II", message, TAG + 1))


def keepalive(message: bytes) -> Keepalive:
    """A message of the walsender itself."""
    end, _, reply = unpack_from(">QqB", message, 1)
    return Keepalive(end, bool(reply))


def origin(message: bytes) -> str:
    """`O`: the name of the origin."""
    reader = _Reader(message, TAG + 1)
    reader.take("Q")
    return reader.text()


def relation(message: bytes) -> RelationMessage:
    """`R`."""
    reader = _Reader(message, TAG + 1)
    (oid,) = reader.take("I")
    schema, table = reader.text() or "pg_catalog", reader.text()
    identity, count = reader.take("BH")
    return RelationMessage(oid, schema, table, chr(identity), tuple(_column(reader) for _ in range(count)))


def _column(reader: _Reader) -> Column:
    (flags,) = reader.take("B")
    name = reader.text()
    type_oid, modifier = reader.take("Ii")
    return Column(name, type_oid, modifier, bool(flags & 1))


def type_(message: bytes) -> TypeMessage:
    """`Y`."""
    reader = _Reader(message, TAG + 1)
    (oid,) = reader.take("I")
    return TypeMessage(oid, reader.text(), reader.text())


def truncate(message: bytes) -> Truncate:
    """`T`."""
    reader = _Reader(message, TAG + 1)
    count, options = reader.take("IB")
    return Truncate(reader.take(f"{count}I"), bool(options & 1), bool(options & 2))


def logical_message(message: bytes) -> LogicalMessage:
    """`M`."""
    reader = _Reader(message, TAG + 1)
    flags, lsn = reader.take("BQ")
    prefix = reader.text()
    (length,) = reader.take("I")
    return LogicalMessage(bool(flags & 1), lsn, prefix, reader.bytes(length))


def tuple_values(message: bytes, place: int, count: int) -> tuple[list[Value], int]:
    """The values of a tuple whose first column stands at `place`, and the place behind it."""
    values: list[Value] = []
    for _ in range(count):
        kind = message[place]
        if kind == TEXT:
            length = int.from_bytes(message[place + 1 : place + 5])
            place += 5
            values.append(message[place : place + length])
            place += length
        elif kind in (NULL, _UNCHANGED):
            values.append(None if kind == NULL else UNCHANGED)
            place += 1
        else:
            raise Malformed(f"a column of kind {chr(kind)!r}")
    return values, place


def without_xid(message: bytes) -> bytes:
    """A message from inside a stream as it would stand outside one."""
    return message[: TAG + 1] + message[TAG + 5 :]


def stream_xid(message: bytes) -> int:
    """The (sub-)transaction that a message from inside a stream belongs to."""
    return int.from_bytes(message[TAG + 1 : TAG + 5])


def status_update(lsn: int, time: float, *, reply: bool = False) -> bytes:
    """What tells the server that everything up to `lsn` is durable here. `time`: seconds since 1970."""
    return _STATUS.pack(b"r", lsn, lsn, lsn, int(time * 10**6) - _POSTGRES_EPOCH, reply)


def lsn_text(lsn: int) -> str:
    """As Postgres writes it: `16/B374D848`."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_number(text: str) -> int:
    """The number that `lsn_text` writes."""
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)
