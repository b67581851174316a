"""Transactions that the server sends while they run: kept on disk until they are committed or rolled back.

Their rows are decoded and sealed as they come, with marks for what only the commit tells: then nothing is left to do
but to hand the blocks over with what it told. Nothing here needs to survive a crash: the server sends again whatever
was not acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

import msgspec

from headrace.errors import Transient
from headrace.journal.block import seal
from headrace.sources.postgres import protocol
from headrace.sources.postgres.lines import OPERATIONS, Names
from headrace.sources.postgres.pages import DraftTx, Page, Run, Xids
from headrace.sources.postgres.portion import Block
from headrace.sources.postgres.protocol import ORIGIN, TAG, stream_xid, without_xid
from headrace.sources.postgres.tables import Table, Tables

_RECORD: Final = Struct("<BI")  # kind, length
_RAW, _PAGE = range(2)
_BUFFER: Final = 1 << 18
RUNS: Final = 2_000  # of a page
AT_ONCE: Final = 8  # running transactions that may each keep a page in memory while others have their turn
COUNTED: Final = 1_000  # sub-transactions whose rows are counted
_XID: Final = Struct("<I")


class Raw(NamedTuple):
    """A message that is no row."""

    xid: int
    message: bytes


@contextmanager
def _kept(path: Path) -> Iterator[None]:
    """Raises `Transient` where the file cannot be made, written or read."""
    try:
        yield
    except OSError as error:
        hint = (
            "free some space there, or set `streaming = false`: the server then keeps the transaction until its commit"
        )
        raise Transient(f"a running transaction cannot be kept in {path.parent}: {error}", hint=hint) from error


class Running:
    """One running transaction: a file of what it did, and which of its parts were rolled back."""

    def __init__(self, path: Path, xid: int, names: Names, tables: Tables) -> None:
        self._path = path
        with _kept(path):
            self._file = path.open("wb", 0)
        self._names = names
        self._tables = tables.branch()
        self._xid = xid
        self._origin = ""
        self._tx = DraftTx(xid, "")
        self._ordinal = 0
        self._block = Block()
        self._runs: list[Run] = []
        self.rows = 0  # of the page, in memory
        self._counts: dict[int, int] = {}  # rows of the latest sub-transactions
        self.aborted = Xids()

    def add(self, message: bytes) -> None:
        """The next message of the transaction, from inside its stream, that is no row."""
        self.flush()
        self._other(message)

    def abort(self, xid: int) -> None:
        """A part of it was rolled back. Where its rows were counted, what follows is numbered without them."""
        self.flush()
        self.aborted.add(xid)
        self._ordinal -= self._counts.pop(xid, 0)

    def take(self, messages: Sequence[bytes], first: int) -> int:
        """Decode the rows from index `first` on; returns the index of the first message that is none."""
        while first < len(messages):
            head = messages[first][TAG : TAG + 9]  # letter, (sub-)transaction and table
            if not head or head[0] not in OPERATIONS:
                break
            first = self._take(messages, first, head)
        return first

    def _take(self, messages: Sequence[bytes], first: int, head: bytes) -> int:
        """Rows of one operation, table and sub-transaction, as many as the page has room for."""
        xid, oid = int.from_bytes(head[1:5]), int.from_bytes(head[5:])
        table = self._tables.get(oid)
        if table is None:
            reached = first + 1
            while reached < len(messages) and messages[reached].startswith(head, TAG):
                reached += 1
        else:
            reached = self._draft(table, messages, first, head[1:5])
        rows = reached - first
        self._runs.append(Run(xid, oid, None if table is None else self._tx.latest, rows))
        self.rows += rows
        self._count(xid, rows)
        if len(self._runs) >= RUNS:
            self.flush()
        return reached

    def _draft(self, table: Table, messages: Sequence[bytes], first: int, xid: bytes) -> int:
        room = self._block.room(table.average)
        if self._tx.full or (room < 1 and self._block.lines):
            self.flush()
            room = self._block.room(table.average)
        stop = min(len(messages), first + max(room, 1))
        return self._block.take(table, messages, first, stop, self._ordinal + self.rows, self._tx, xid)

    def _count(self, xid: int, rows: int) -> None:
        if xid == self._xid:
            return
        self._counts[xid] = self._counts.get(xid, 0) + rows
        if len(self._counts) > COUNTED:
            del self._counts[next(iter(self._counts))]

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
                self._origin = protocol.origin(message)
                self._tx = DraftTx(self._xid, self._origin)
            case protocol.TRUNCATE:
                self._pass(xid, len(protocol.truncate(message).relations))
            case protocol.MESSAGE:
                self._pass(xid, 1)
        self._write(_RAW, _XID.pack(xid) + message)

    def _pass(self, xid: int, ordinals: int) -> None:
        self._ordinal += ordinals
        self._count(xid, ordinals)

    def _write(self, kind: int, payload: bytes) -> None:
        record = memoryview(_RECORD.pack(kind, len(payload)) + payload)
        with _kept(self._path):
            while record:
                record = record[self._file.write(record) :]

    def flush(self) -> None:
        """Seal the rows that came to a page."""
        if not self._runs:
            return
        lines, _ = self._block.finish(len(self._block.lines))
        renamed = any(special.previous for special in lines.special.values())
        frames = [(frame.until_time, frame.until_key) for frame in self._tx.frames]
        page = Page(self._ordinal, self._runs, frames, renamed, seal(self._names.name, lines))
        self._write(_PAGE, msgspec.msgpack.encode(page))
        self._ordinal += self.rows
        self._block, self._runs, self.rows = Block(), [], 0
        self._tx = DraftTx(self._xid, self._origin)

    def records(self) -> Iterator[Page | Raw]:
        """All of it, in order."""
        self.flush()
        decode = msgspec.msgpack.Decoder(Page).decode
        with _kept(self._path), self._path.open("rb", _BUFFER) as file:
            while head := file.read(_RECORD.size):
                kind, length = _RECORD.unpack(head)
                payload = file.read(length)
                if kind == _PAGE:
                    yield decode(payload)
                else:
                    yield Raw(_XID.unpack_from(payload)[0], payload[_XID.size :])

    def close(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


class Spool:
    """All running transactions of a stream, below a folder of its own."""

    def __init__(self, folder: Path, names: Names) -> None:
        self._folder = folder
        self._names = names
        self._running: dict[int, Running] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.tx"):
            left.unlink()

    def start(self, xid: int, tables: Tables) -> Running:
        """The transaction whose part follows."""
        if xid not in self._running:
            self._running[xid] = Running(self._folder / f"{xid}.tx", xid, self._names, tables)
        return self._running[xid]

    def pause(self, running: Running) -> None:
        """Its part ends; others may follow. What few transactions collected stays in memory."""
        if len(self._running) > AT_ONCE:
            running.flush()

    def abort(self, xid: int, subxid: int) -> None:
        """Drop a transaction (`subxid == xid`), or a part of it."""
        if xid == subxid:
            self.drop(xid)
        elif xid in self._running:
            self._running[xid].abort(subxid)

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
