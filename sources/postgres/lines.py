"""The lines of row events: what all events of a table and a transaction share, and any single row as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple
from zlib import crc32

from headrace.event import rfc3339, source_seed
from headrace.journal.block import Special
from headrace.sources.postgres.protocol import (
    DELETE,
    INSERT,
    NEW,
    OLD,
    UNCHANGED,
    UPDATE,
    Value,
    lsn_text,
    tuple_values,
)
from headrace.sources.postgres.relations import Field, Relation
from headrace.sources.postgres.types import TO_JSON, Kind, Unparsed, as_string, in_json, key_part, quoted_text

TYPE_PREFIX: Final = "headrace.postgres."
SCHEMA_PREFIX: Final = "urn:headrace:schema:postgres."
OPERATIONS: Final[Mapping[int, str]] = {INSERT: "insert", UPDATE: "update", DELETE: "delete"}
TUPLE: Final = 33  # where the first column of a row's first tuple stands
TUPLE_KIND: Final = 30
START: Final = b'{"specversion":"1.0","id":"'
UNTIL_SEQUENCE: Final = b'","sequence":"'
END: Final = b"false}}}\n"  # of every event of a transaction
LAST: Final = b"true}}}\n"  # of its last one


class Tx:
    """A transaction's part of its events' lines. `longer`: bytes that the line made last will grow by."""

    __slots__ = ("commit_time", "head", "head_id", "longer", "lsn", "origin", "sequence", "tail", "time", "xid")

    def __init__(self, epoch: int, lsn: int, xid: int, time: int, origin: str = "") -> None:
        """`lsn`: where the commit record starts; `time`: microseconds since 1970."""
        self.lsn = lsn
        self.xid = xid
        self.commit_time = time
        self.longer = 0
        self.origin = origin
        self.head_id = b"%d/%X/" % (epoch, lsn)
        self.sequence = b"%04d/%016X/" % (epoch, lsn)
        self.time = rfc3339(time * 1000).encode()
        self.head = b',"tx":{"id":%d,"lsn":"%b","ordinal":' % (xid, lsn_text(lsn).encode())
        named = b',"origin":%b' % quoted_text(origin.encode("utf-8", "replace")) if origin else b""
        self.tail = b',"commit_time":"%b"%b,"last":%b' % (self.time, named, END)

    def around(self, frame: Frame) -> Around:
        """What stands around the values of a line that this transaction made."""
        return Around(
            *(START + self.head_id, frame.until_time + self.time + frame.until_key),
            *(UNTIL_SEQUENCE + self.sequence, self.head, self.tail),
        )


def snapshot_tx(epoch: int, run: str, lsn: int, time: int) -> Tx:
    """What events of rows that were there share: the stream goes on from `lsn`. `run`: another one for each attempt."""
    tx = Tx(epoch, lsn, 0, time)
    tx.head_id = b"%d/snapshot-%b/" % (epoch, run.encode())
    tx.sequence = b"%04d/%016X/0000000000r" % (epoch, lsn)
    tx.head = b',"tx":{"id":null,"lsn":"%b","ordinal":0' % lsn_text(lsn).encode()
    tx.tail = b',"commit_time":null,"last":%b' % END
    return tx


@dataclass(frozen=True)
class Names:
    """What all events of a source share: its name in the settings, and their `source`."""

    name: str
    source: str

    @cached_property
    def seed(self) -> int:
        """Of the hashes of its keys."""
        return source_seed(self.name)


@dataclass(frozen=True, eq=False)
class Frame:
    """The constant parts of one operation's lines: before the time, from there to the key, and before the values.

    A relation has one for each operation, which is equal to itself only.
    """

    until_time: bytes
    until_key: bytes
    until_values: bytes


class Around(NamedTuple):
    """What all lines of a transaction and an operation share.

    It stands before the id's number, from there to the key, before the sequence's number, and around the last ordinal.
    """

    start: bytes
    until_key: bytes
    until_sequence: bytes
    head: bytes
    tail: bytes


def frame(names: Names, relation: Relation, operation: str) -> Frame:
    """What all lines of a table's operation share."""
    message = relation.message
    attributes = {
        "source": names.source,
        "type": TYPE_PREFIX + operation,
        "subject": relation.subject,
    }
    shared = b"".join(b',"%b":%b' % (name.encode(), _json(value)) for name, value in attributes.items())
    data = b'"data":{"op":"%b","schema":%b,"table":%b' % (
        operation.encode(),
        _json(message.schema),
        _json(message.table),
    )
    urn = f"{SCHEMA_PREFIX}{operation}:1".encode()
    prefix = in_json(relation.key_prefix.encode("utf-8", "surrogatepass"))
    until_key = b'","dataschema":"%b","partitionkey":"%b' % (urn, prefix)
    return Frame(b'"%b,"time":"' % shared, until_key, b'",%b' % data)


def _json(text: str) -> bytes:
    return as_string(text.encode("utf-8", "surrogateescape"))


class Row:
    """A message decoded column by column: any row, at the price of some calls per column."""

    def __init__(self, names: Names, relation: Relation) -> None:
        self._relation = relation
        self.seed = crc32(relation.key_prefix.encode("utf-8", "surrogatepass"), names.seed)
        self._names = {field.place: field.json_name for field in relation.columns}
        self.prefix = in_json(relation.key_prefix.encode("utf-8", "surrogatepass"))
        self._previous = b'"previouskey":"' + self.prefix

    def tuples(self, message: bytes) -> tuple[list[Value] | None, int, list[Value] | None]:
        """Old values, their kind and new values, as far as they were sent."""
        count, kind = len(self._relation.columns), message[TUPLE_KIND]
        values, place = tuple_values(message, TUPLE, count)
        if kind == NEW:
            return None, 0, values
        new = tuple_values(message, place + 3, count)[0] if place < len(message) else None
        return values, kind, new

    def line(self, frame: Frame, message: bytes, ordinal: int, tx: Tx) -> tuple[bytes, int, Special | None]:
        """The line, its key's hash, and what orders it further."""
        old, kind, new = self.tuples(message)
        if old is not None and new is not None:
            new = self._completed(old, kind, new)
        key = self.key(new if new is not None else old or [])
        special, renamed = None, b""
        if old is not None and new is not None and (before := self.key(old)) != key:
            special = Special(self.hash(before), None)
            renamed = b'%b%b",' % (self._previous, in_json(before))
        values = self.values(old, kind, new)
        number = b"%d" % ordinal
        start, until_key, until_sequence, head, tail = tx.around(frame)
        about = (start, number, until_key, in_json(key), until_sequence, number.rjust(10, b"0"))
        line = (*about, b'",', renamed, frame.until_values[2:], values, head, number, tail)
        return b"".join(line), self.hash(key), special

    def read(self, frame: Frame, row: list[Value], tx: Tx) -> tuple[bytes, int]:
        """The line of a row that was there already, behind its `ctid`, and its key's hash."""
        ctid, *values = row
        key = self.key(values)
        identity = in_json(key) if self._relation.key else ctid
        start, until_key, until_sequence, head, tail = tx.around(frame)
        about = (start, self.prefix, identity, until_key, in_json(key), until_sequence, frame.until_values)
        parts = (*about, self.values(None, 0, values), head, tail)
        return b"".join(part for part in parts if isinstance(part, bytes)), self.hash(key)

    def _completed(self, old: list[Value], kind: int, new: list[Value]) -> list[Value]:
        """An unchanged value is that of the old row, where all of it was sent, or at least its key."""
        known = {field.place for field in (self._relation.columns if kind == OLD else self._relation.key)}
        return [old[i] if value is UNCHANGED and i in known else value for i, value in enumerate(new)]

    def key(self, values: Sequence[Value]) -> bytes:
        """The partition key behind the table's prefix."""
        return b"/".join(key_part(self._key_value(field, values)) for field in self._relation.key)

    @staticmethod
    def _key_value(field: Field, values: Sequence[Value]) -> bytes | None:
        value = values[field.place]
        if not isinstance(value, bytes):
            return None
        return TO_JSON[Kind.HASHED](value)[1:-1] if field.kind is Kind.HASHED else value

    def hash(self, key: bytes) -> int:
        return crc32(key, self.seed) or 1

    def values(self, old: list[Value] | None, kind: int, new: list[Value] | None) -> bytes:
        """`key`, `before`, `after` and what is missing from them."""
        unparsed: list[bytes] = []
        current = new if new is not None else old or []
        key = self._object(self._relation.key, current, unparsed) if self._relation.key else b"null"
        before = self._before(old, kind, current, has_new=new is not None, unparsed=unparsed)
        after = self._object(self._relation.visible, new, unparsed) if new is not None else b"null"
        missing = [
            self._names[f.place] for f in self._relation.visible if new is not None and new[f.place] is UNCHANGED
        ]
        further = b',"unchanged":[%b]' % b",".join(missing) if missing else b""
        if unparsed:
            further += b',"unparsed":[%b]' % b",".join(dict.fromkeys(unparsed))
        return b',"key":%b,"before":%b,"after":%b%b' % (key, before, after, further)

    def _before(
        self, old: list[Value] | None, kind: int, current: list[Value], *, has_new: bool, unparsed: list[bytes]
    ) -> bytes:
        if old is None:
            return b"null"
        if kind == OLD:
            return self._object(self._relation.visible, old, unparsed)
        if has_new and self.key(old) == self.key(current):
            return b"null"  # the key was only sent because it is stored apart from its row
        return self._object(self._relation.key, old, unparsed)

    def _object(self, fields: Sequence[Field], values: Sequence[Value], unparsed: list[bytes]) -> bytes:
        parts = []
        for field in fields:
            value = values[field.place]
            if value is not UNCHANGED:
                name = self._names[field.place]
                parts.append(b"%b:%b" % (name, self._value(field, value, unparsed)))
        return b"{%b}" % b",".join(parts)

    def _value(self, field: Field, value: Value, unparsed: list[bytes]) -> bytes:
        if not isinstance(value, bytes):
            return b"null"
        try:
            return TO_JSON[field.kind](value)
        except Unparsed:
            unparsed.append(self._names[field.place])
            return as_string(value)
