"""Transactions that the server sends while they run: kept on disk until they are committed or rolled back.

Their rows are decoded as they come, with marks for what only the commit tells: little is left to do then. Nothing here
needs to survive a crash: the server sends again whatever was not acknowledged.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from pathlib import Path
from struct import Struct
from typing import IO, Final, NamedTuple

import lz4.block
import msgspec

from headrace.journal.block import Lines, Special
from headrace.sources.postgres import protocol
from headrace.sources.postgres.lines import OPERATIONS, TYPE_PREFIX, Tx
from headrace.sources.postgres.protocol import ORIGIN, TAG, stream_xid, without_xid
from headrace.sources.postgres.tables import Tables

_RECORD: Final = Struct("<BI")  # kind, length
_RAW, _PAGE = range(2)
_BUFFER: Final = 1 << 18
PAGE_ROWS: Final = 1_000  # rows of a page: several copies of its lines are in memory while it is finished
_BYTES: Final = 1 << 19  # of a page's messages
# What a line of a running transaction has in place of what its commit tells. JSON has no control characters.
_ID, _TIME, _SEQUENCE, _LSN = b"\x01", b"\x02", b"\x03", b"\x04"
_XID: Final = Struct("<I")
_HEAD: Final = itemgetter(slice(TAG, TAG + 9))  # letter, (sub-)transaction and table of a row from inside a stream


class DraftTx(Tx):
    """A transaction that still runs, with marks for what is not known."""

    __slots__ = ()

    def __init__(self, xid: int, origin: str) -> None:
        super().__init__(0, 0, xid, 0, origin)
        self.tail = self.tail.replace(self.time, _TIME)
        self.head_id, self.time, self.sequence = _ID, _TIME, _SEQUENCE
        self.head = b',"tx":{"id":%d,"lsn":"%b","ordinal":' % (xid, _LSN)


class Page(msgspec.Struct, array_like=True):
    """Rows of a running transaction, decoded.

    Of every row: its table, its (sub-)transaction, and whether it has a line. Of every line: length, key, kind.
    `before`: ordinals in front of the page, as if nothing was rolled back.
    """

    before: int
    oids: bytes
    xids: bytes
    shown: bytes
    lengths: bytes
    keys: bytes
    kinds: bytes
    types: list[str]
    specials: dict[int, Special]
    size: int
    data: bytes

    def lines(self) -> list[bytes]:
        data = lz4.block.decompress(self.data, uncompressed_size=self.size)
        ends = [0, *accumulate(array("I", self.lengths))]
        return [data[start:end] for start, end in pairwise(ends)]

    def whole(self, tx: Tx) -> tuple[bytes, array[int]]:
        """All lines with what the commit told, and their lengths."""
        data: bytes = lz4.block.decompress(self.data, uncompressed_size=self.size)
        lengths = array("I", self.lengths)
        if not lengths:
            return b"", lengths
        data = finished(data, tx)
        longer = (len(data) - self.size) // len(lengths)  # the same for each, as each has the same marks
        return data, array("I", [length + longer for length in lengths])


def finished(data: bytes, tx: Tx) -> bytes:
    """Drafted lines with what the commit told."""
    lsn = protocol.lsn_text(tx.lsn).encode()
    data = data.replace(_ID, tx.head_id).replace(_SEQUENCE, tx.sequence)
    return data.replace(_TIME, tx.time).replace(_LSN, lsn)


def renumbered(line: bytes, old: int, new: int) -> bytes:
    """A drafted line with another ordinal."""
    line = line.replace(b'%b%d"' % (_ID, old), b'%b%d"' % (_ID, new), 1)
    line = line.replace(b"%b%010d" % (_SEQUENCE, old), b"%b%010d" % (_SEQUENCE, new), 1)
    mark = b',"commit_time":"' + _TIME
    head, _, rest = line.rpartition(b'"ordinal":%d%b' % (old, mark))
    return b'%b"ordinal":%d%b%b' % (head, new, mark, rest)


class Chosen(NamedTuple):
    """Lines of a page that count, the ordinal of the last one, their tables, and the ordinal of the last row."""

    lines: Lines
    last: int
    used: set[int]
    ordinal: int


def chosen(page: Page, aborted: set[int], early: set[int], tx: Tx, ordinal: int, skip: int) -> Chosen:
    """What counts of a page whose rows follow `ordinal`: not rolled back, not of tables still to be read (`early`).

    The first `skip` ordinals of the transaction are in the journal already, all of them where it is -1.
    """
    given, keys = page.lines(), array("I", page.keys)
    lines: list[bytes] = []
    places: list[int] = []
    specials: dict[int, Special] = {}
    index, last, used = -1, 0, set[int]()
    rows = zip(array("I", page.oids), array("I", page.xids), page.shown, strict=True)
    for number, (oid, xid, shown) in enumerate(rows, page.before + 1):
        index += shown
        if xid in aborted:
            continue
        ordinal += 1
        if not shown or oid in early or skip == -1 or ordinal <= skip:
            continue
        if index in page.specials:
            specials[len(lines)] = page.specials[index]
        lines.append(finished(renumbered(given[index], number, ordinal), tx))
        places.append(index)
        used.add(oid)
        last = ordinal
    found = Lines(
        *(b"".join(lines), array("I", map(len, lines)), tuple(page.types), bytes(page.kinds[i] for i in places)),
        *(array("I", [keys[i] for i in places]), specials),
    )
    return Chosen(found, last, used, ordinal)


class Raw(NamedTuple):
    """A message that is no row."""

    xid: int
    message: bytes


class Running:
    """One running transaction: a file of what it did, and which of its parts were rolled back."""

    def __init__(self, path: Path, xid: int, tables: Tables) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("w+b", _BUFFER)
        self.aborted: set[int] = set()
        self._tables = tables.branch()
        self._xid = xid
        self._tx = DraftTx(xid, "")
        self._ordinal = 0
        self._rows: list[bytes] = []
        self._xids = array("I")
        self._oids = array("I")
        self._bytes = 0

    def add(self, message: bytes) -> None:
        """The next message of the transaction, from inside its stream, that is no row."""
        self._flush()
        self._other(message)

    def take(self, messages: Sequence[bytes]) -> int:
        """The rows that the messages begin with; returns how many."""
        count = 0
        for head, found in groupby(messages, _HEAD):
            if not head or head[0] not in OPERATIONS:
                break
            rows = list(found)
            count += len(rows)
            xid, oid = int.from_bytes(head[1:5]), int.from_bytes(head[5:])
            while rows:
                taken = self._take(rows, xid, oid)
                rows = rows[taken:]
        return count

    def _take(self, rows: Sequence[bytes], xid: int, oid: int) -> int:
        """Into the page, as many as it has room for."""
        rows = rows[: PAGE_ROWS - len(self._rows)]
        size = sum(map(len, rows))
        if size > _BYTES:
            rows = rows[: max(1, len(rows) * _BYTES // size)]
        self._rows += [row[: TAG + 1] + row[TAG + 5 :] for row in rows]  # `without_xid`, a call per row less
        self._xids.extend(array("I", [xid]) * len(rows))
        self._oids.extend(array("I", [oid]) * len(rows))
        self._bytes += size
        if len(self._rows) >= PAGE_ROWS or self._bytes > _BYTES:
            self._flush()
        return len(rows)

    def _other(self, message: bytes) -> None:
        xid = 0
        if message[TAG] != ORIGIN:  # the one message that names no transaction
            xid, message = stream_xid(message), without_xid(message)
        match message[TAG]:
            case protocol.RELATION:
                self._tables.learn(protocol.relation(message))
            case protocol.TYPE:
                self._tables.learn_type(protocol.type_(message))
            case protocol.ORIGIN:
                self._tx = DraftTx(self._xid, protocol.origin(message))
            case protocol.TRUNCATE:
                self._ordinal += len(protocol.truncate(message).relations)
            case protocol.MESSAGE:
                self._ordinal += 1
        self._write(_RAW, _XID.pack(xid) + message)

    def _write(self, kind: int, payload: bytes) -> None:
        self._file.write(_RECORD.pack(kind, len(payload)))
        self._file.write(payload)

    def _flush(self) -> None:
        """Decode the rows that came, to a page."""
        if not self._rows:
            return
        page = self._page(self._rows)
        self._write(_PAGE, msgspec.msgpack.encode(page))
        self._ordinal += len(self._rows)
        self._rows, self._xids, self._oids, self._bytes = [], array("I"), array("I"), 0

    def _page(self, rows: list[bytes]) -> Page:
        lines: list[bytes] = []
        keys: list[int] = []
        specials: dict[int, Special] = {}
        types: dict[str, int] = {}
        kinds, shown = bytearray(), bytearray()
        index = 0
        while index < len(rows):
            letter = rows[index][TAG]
            table = self._tables.get(self._oids[index])
            if table is None:
                shown.append(0)
                index += 1
                continue
            first = len(lines)
            index = table.runs[letter](
                *(rows, index, len(rows), self._ordinal + index, self._tx), *(lines, keys, specials)
            )
            count = len(lines) - first
            kinds += bytes((types.setdefault(TYPE_PREFIX + OPERATIONS[letter], len(types)),)) * count
            shown += b"\1" * count
        data = b"".join(lines)
        return Page(
            *(self._ordinal, self._oids.tobytes(), self._xids.tobytes(), bytes(shown)),
            *(array("I", map(len, lines)).tobytes(), array("I", keys).tobytes(), bytes(kinds)),
            types=list(types),
            specials=specials,
            size=len(data),
            data=lz4.block.compress(data, store_size=False),
        )

    def records(self) -> Iterator[Page | Raw]:
        """All of it, in order."""
        self._flush()
        self._file.seek(0)
        while head := self._file.read(_RECORD.size):
            kind, length = _RECORD.unpack(head)
            payload = self._file.read(length)
            if kind == _PAGE:
                yield msgspec.msgpack.decode(payload, type=Page)
            else:
                yield Raw(_XID.unpack_from(payload)[0], payload[_XID.size :])

    def close(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


class Spool:
    """All running transactions of a stream, below a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[int, Running] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.tx"):
            left.unlink()

    def start(self, xid: int, tables: Tables) -> Running:
        """The transaction whose part follows."""
        if xid not in self._running:
            self._running[xid] = Running(self._folder / f"{xid}.tx", xid, tables)
        return self._running[xid]

    def abort(self, xid: int, subxid: int) -> None:
        """Drop a transaction (`subxid == xid`), or a part of it."""
        if xid == subxid:
            self.drop(xid)
        elif xid in self._running:
            self._running[xid].aborted.add(subxid)

    def committed(self, xid: int) -> Running:
        """Raises `KeyError` where none of it was sent."""
        return self._running[xid]

    def drop(self, xid: int) -> None:
        found = self._running.pop(xid, None)
        if found is not None:
            found.close()

    def close(self) -> None:
        for xid in list(self._running):
            self.drop(xid)
