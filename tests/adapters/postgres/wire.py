"""pgoutput messages as a server would write them, for tests without one."""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack

from headrace.sources.postgres.protocol import UNCHANGED, Value, lsn_text

EPOCH = 946_684_800 * 10**6

__all__ = ["lsn_text"]


def data(body: bytes) -> bytes:
    return b"w" + pack(">QQq", 0, 0, 0) + body


def keepalive(end: int, *, reply: bool = False) -> bytes:
    return b"k" + pack(">QqB", end, 0, reply)


def begin(lsn: int, xid: int, time: int = EPOCH) -> bytes:
    return data(b"B" + pack(">QqI", lsn, time - EPOCH, xid))


def commit(lsn: int, time: int = EPOCH) -> bytes:
    return data(b"C" + pack(">BQQq", 0, lsn, lsn + 48, time - EPOCH))


def text(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape") + b"\0"


Columns = Sequence[tuple[str, int, bool]]


def relation(oid: int, table: str, columns: Columns, identity: str = "d", xid: int | None = None) -> bytes:
    described = b"".join(pack(">B", key) + text(name) + pack(">Ii", type_, -1) for name, type_, key in columns)
    head = pack(">I", oid) + text("public") + text(table) + identity.encode() + pack(">H", len(columns))
    return data(b"R" + _xid(xid) + head + described)


def values(row: Sequence[Value]) -> bytes:
    parts = [pack(">H", len(row))]
    for value in row:
        if isinstance(value, bytes):
            parts.append(b"t" + pack(">I", len(value)) + value)
        else:
            parts.append(b"u" if value is UNCHANGED else b"n")
    return b"".join(parts)


def insert(oid: int, row: Sequence[Value], xid: int | None = None) -> bytes:
    return data(b"I" + _xid(xid) + pack(">I", oid) + b"N" + values(row))


def update(
    oid: int, row: Sequence[Value], old: Sequence[Value] | None = None, kind: bytes = b"K", xid: int | None = None
) -> bytes:
    before = b"" if old is None else kind + values(old)
    return data(b"U" + _xid(xid) + pack(">I", oid) + before + b"N" + values(row))


def delete(oid: int, old: Sequence[Value], kind: bytes = b"K", xid: int | None = None) -> bytes:
    return data(b"D" + _xid(xid) + pack(">I", oid) + kind + values(old))


def truncate(oids: Sequence[int], xid: int | None = None) -> bytes:
    return data(b"T" + _xid(xid) + pack(f">IB{len(oids)}I", len(oids), 0, *oids))


def message(lsn: int, prefix: str, content: bytes, *, transactional: bool, xid: int | None = None) -> bytes:
    head = pack(">BQ", transactional, lsn) + text(prefix) + pack(">I", len(content))
    return data(b"M" + _xid(xid) + head + content)


def stream_start(xid: int, *, first: bool) -> bytes:
    return data(b"S" + pack(">IB", xid, first))


def stream_stop() -> bytes:
    return data(b"E")


def stream_commit(xid: int, lsn: int, time: int = EPOCH) -> bytes:
    return data(b"c" + pack(">IBQQq", xid, 0, lsn, lsn + 48, time - EPOCH))


def stream_abort(xid: int, subxid: int) -> bytes:
    return data(b"A" + pack(">II", xid, subxid))


def _xid(xid: int | None) -> bytes:
    return b"" if xid is None else pack(">I", xid)
