"""Rows of a transaction that still runs, decoded and sealed, and what becomes of them at its commit."""

from __future__ import annotations

from array import array
from typing import Final, NamedTuple

import msgspec

from headrace.journal.block import MARKS, Lines, SealedBlock, Special, filled
from headrace.sources.postgres.lines import START, UNTIL_SEQUENCE, Around, Frame, Tx

# What a line of a running transaction has in place of what surrounds its values; one of `_KEYS` for each frame.
_START, _SEQUENCE, _HEAD, _TAIL, *_KEYS = MARKS
_SHARED: Final = 4  # of them in every line
_UNKNOWN: Final = 96  # bytes of what only the commit tells, at most


class DraftTx(Tx):
    """A transaction that still runs: marks stand for what surrounds the values of its lines, all of which is constant.

    `frames` are those that were used, with their numbers; `latest` is that of the last one.
    """

    __slots__ = ("frames", "latest")

    def __init__(self, xid: int, origin: str) -> None:
        super().__init__(0, 0, xid, 0, origin)
        self.frames: dict[Frame, int] = {}
        self.latest = 0

    @property
    def full(self) -> bool:
        """Whether there may be no mark left."""
        return len(self.frames) == len(_KEYS)

    def around(self, frame: Frame) -> Around:
        self.latest = self.frames.setdefault(frame, len(self.frames))
        told = (START, UNTIL_SEQUENCE, self.head, self.tail, frame.until_time, frame.until_key)
        self.longer = sum(map(len, told)) + _UNKNOWN
        return Around(_START, _KEYS[self.latest], _SEQUENCE, _HEAD, _TAIL)


class Run(NamedTuple):
    """Neighbouring rows of one (sub-)transaction and table. `frame`: number of their lines' frame, if they have any."""

    xid: int
    oid: int
    frame: int | None
    rows: int


class Chosen(NamedTuple):
    """Lines of a page that count, the ordinal of the last one, their tables, and the ordinal of the last row."""

    lines: Lines | SealedBlock
    last: int
    used: set[int]
    ordinal: int


class Page(msgspec.Struct, array_like=True):
    """Rows of a running transaction, decoded. `before`: the ordinal in front of it, as far as known when it was made.

    `frames`: what is constant of what stands before the keys, around the time. `renamed`: some rows got another key.
    """

    before: int
    runs: list[Run]
    frames: list[tuple[bytes, bytes]]
    renamed: bool
    block: SealedBlock

    def texts(self, tx: Tx) -> tuple[bytes, ...]:
        """What the marks stand for, now that the commit told it."""
        keys = [before + tx.time + behind for before, behind in self.frames]
        return START + tx.head_id, UNTIL_SEQUENCE + tx.sequence, tx.head, tx.tail, *keys

    def whole(self, tx: Tx) -> Chosen:
        """All of it."""
        texts, drafted, lengths = self.texts(tx), self.block.lengths, array("I")
        shared, keys = texts[:_SHARED], texts[_SHARED:]
        ordinal, last = self.before, 0
        for run in self.runs:
            ordinal += run.rows
            if run.frame is not None:
                longer = sum(len(text) - 1 for text in (*shared, keys[run.frame]))
                place, last = len(lengths), ordinal
                lengths.extend([length + longer for length in drafted[place : place + run.rows]])
        used = {run.oid for run in self.runs if run.frame is not None}
        return Chosen(self.block.sharing(texts, lengths), last, used, ordinal)


def renumbered(line: bytes, old: int, new: int) -> bytes:
    """A drafted line with another ordinal."""
    line = line.replace(b"%b%d" % (_START, old), b"%b%d" % (_START, new))
    line = line.replace(b"%b%010d" % (_SEQUENCE, old), b"%b%010d" % (_SEQUENCE, new))
    return line.replace(b"%b%d%b" % (_HEAD, old, _TAIL), b"%b%d%b" % (_HEAD, new, _TAIL))


def chosen(page: Page, aborted: Xids, early: set[int], tx: Tx, ordinal: int, skip: int) -> Chosen:
    """What counts of a page whose rows follow `ordinal`: not rolled back, not of tables still to be read (`early`).

    The first `skip` ordinals of the transaction are in the journal already, all of them where it is -1.
    """
    drafted, texts = page.block.lines(), page.texts(tx)
    given = drafted.singly()
    lines: list[bytes] = []
    places: list[int] = []
    specials: dict[int, Special] = {}
    index, number, last, used = -1, page.before, 0, set[int]()
    for xid, oid, frame, rows in page.runs:
        for _ in range(rows):
            number += 1
            index += frame is not None
            if xid in aborted:
                continue
            ordinal += 1
            if frame is None or oid in early or skip == -1 or ordinal <= skip:
                continue
            if index in drafted.special:
                specials[len(lines)] = drafted.special[index]
            lines.append(filled(renumbered(given[index], number, ordinal), texts))
            places.append(index)
            used.add(oid)
            last = ordinal
    found = Lines(
        *(b"".join(lines), array("I", map(len, lines)), drafted.types, bytes(drafted.kinds[i] for i in places)),
        *(array("I", [drafted.keys[i] for i in places]), specials),
    )
    return Chosen(found, last, used, ordinal)


class Xids:
    """A set of transaction ids, a bit for each: a transaction may have millions of sub-transactions."""

    def __init__(self) -> None:
        self._parts: dict[int, bytearray] = {}

    def add(self, xid: int) -> None:
        part = self._parts.setdefault(xid >> 13, bytearray(1 << 10))
        part[xid >> 3 & 0x3FF] |= 1 << (xid & 7)

    def __contains__(self, xid: int) -> bool:
        part = self._parts.get(xid >> 13)
        return part is not None and bool(part[xid >> 3 & 0x3FF] >> (xid & 7) & 1)
