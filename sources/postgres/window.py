"""What the stream did to a table while chunks of it are read, and which rows of a chunk are news. No socket here.

A chunk is read in a snapshot of its own and joins the stream at its watermark, a message written after the reading. A
transaction that the stream delivered before the watermark is either visible in that snapshot, so that the chunk's row
is as new as its change, or it is not: then the stream's row wins. Deciding by the snapshot, and not by the place
between two watermarks (DBLog, https://arxiv.org/abs/2010.12597), holds as well where a commit is delivered long before
other sessions see it, as with a synchronous standby that is missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, Self

from headrace.journal.block import Lines
from headrace.protocols import Write
from headrace.sources.postgres.decode import unescaped
from headrace.sources.postgres.protocol import DELETE, INSERT, NEW, OLD, UNCHANGED, Value, tuple_values
from headrace.sources.postgres.relations import Relation

WATERMARK: Final = "headrace.watermark"  # the prefix of the logical messages at which chunks join the stream
MOST: Final = 100_000  # rows of one transaction remembered; beyond, chunks wait until it is visible
_HALF: Final = 1 << 31
_KIND, _TUPLE = 30, 33  # places in a row's message

Key = tuple[Value, ...]


class Joined(NamedTuple):
    """Rows that join the stream at a watermark, with the columns that the table has there."""

    relation: Relation
    lines: Lines
    writes: Sequence[Write]


class Watch(Protocol):
    """What follows the changes of one table in the stream, and puts rows into it at watermarks."""

    @property
    def oid(self) -> int: ...
    def rows(self, relation: Relation, messages: Sequence[bytes], xid: int) -> Sequence[Write]:
        """Rows of a transaction came; what is returned is kept together with them."""

    def page(self, xid: int, *, renamed: bool) -> Sequence[Write]:
        """Rows of a large transaction came that are encoded already; `renamed`: some of them got another key."""

    def truncated(self, xid: int) -> None: ...
    def reached(self, content: bytes, lsn: int) -> Joined | None:
        """A watermark came."""


class Visible(NamedTuple):
    """A snapshot as `pg_current_snapshot()` tells it: transactions below `xmax` and not `running` are seen."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Self:
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(map(int, running.split(","))) if running else frozenset())

    def sees(self, xid: int) -> bool:
        """Whether it sees a transaction, given by the 32 bits that the stream tells."""
        full = (self.xmax & ~0xFFFFFFFF) | xid
        if full >= self.xmax + _HALF:
            full -= 1 << 32
        elif full < self.xmax - _HALF:
            full += 1 << 32
        return full < self.xmax and full not in self.running


class _Change(NamedTuple):
    """What a transaction did to a row: its new values where some of them were not sent, else None."""

    xid: int
    values: list[Value] | None


class Window:
    """The changes of one table that chunks may not see."""

    def __init__(self) -> None:
        self._changes: dict[Key, list[_Change]] = defaultdict(list)
        self._rows: dict[int, int] = defaultdict(int)  # by transaction
        self._truncated: set[int] = set()

    def row(self, relation: Relation, message: bytes, xid: int) -> Key | None:
        """Remember a row; returns its key where it got a new one and values that were not sent."""
        self._rows[xid] += 1
        count = len(relation.columns)
        first, place = tuple_values(message, _TUPLE, count)
        kind, letter = message[_KIND], message[25]
        if letter in {DELETE, INSERT} or kind == NEW:
            missing = letter != DELETE and UNCHANGED in first
            self._put(key_of(relation, first), _Change(xid, first if missing else None))
            return None
        new, _ = tuple_values(message, place + 3, count)
        if kind == OLD:  # the whole old row was sent
            new = [old if value is UNCHANGED else value for old, value in zip(first, new, strict=True)]
        old_key, new_key = key_of(relation, first), key_of(relation, new)
        self._put(new_key, _Change(xid, new if UNCHANGED in new else None))
        if old_key == new_key:
            return None
        self._put(old_key, _Change(xid, None))
        return new_key if UNCHANGED in new else None

    def _put(self, key: Key, change: _Change) -> None:
        if self._rows[change.xid] <= MOST:
            self._changes[key].append(change)

    def truncated(self, xid: int) -> None:
        self._truncated.add(xid)

    def unknown(self, xid: int) -> None:
        """A transaction changed rows of which nothing is remembered."""
        self._rows[xid] = MOST + 1

    def too_much(self, visible: Visible) -> bool:
        """Whether a transaction that the snapshot does not see was too large to remember: read the chunk again."""
        return any(count > MOST and not visible.sees(xid) for xid, count in self._rows.items())

    def news(
        self, relation: Relation, rows: Sequence[bytes], visible: Visible
    ) -> tuple[list[bytes], list[list[Value]]]:
        """The rows of a chunk that count as they are, and others with what the stream brought since laid over them.

        Changes that the chunk does not see were made with the columns that it has: altering a table waits for others.
        """
        if any(not visible.sees(xid) for xid in self._truncated):
            return [], []
        if not self._changes:
            return list(rows), []
        plain: list[bytes] = []
        merged: list[list[Value]] = []
        for row in rows:
            values = row_values(row)
            unseen = self.unseen(key_of(relation, values[1:]), visible)
            if not unseen:
                plain.append(row)
            elif all(change.values is not None for change in unseen):
                merged.append(_merged(values, unseen))
        return plain, merged

    def unseen(self, key: Key, visible: Visible) -> list[_Change]:
        """What transactions that the snapshot does not see did to a row, in order."""
        return [change for change in self._changes.get(key, ()) if not visible.sees(change.xid)]

    def forget(self, visible: Visible) -> None:
        """Changes that this snapshot sees are seen by all later ones."""
        for key in list(self._changes):
            left = [change for change in self._changes[key] if not visible.sees(change.xid)]
            if left:
                self._changes[key] = left
            else:
                del self._changes[key]
        self._truncated = {xid for xid in self._truncated if not visible.sees(xid)}
        for xid in [xid for xid in self._rows if visible.sees(xid)]:
            del self._rows[xid]


def key_of(relation: Relation, values: Sequence[Value]) -> Key:
    """The key of a row, as the server wrote it."""
    return tuple(values[field.place] for field in relation.key)


def row_values(row: bytes) -> list[Value]:
    """The values of a row of a COPY."""
    return [None if v == b"\\N" else unescaped(v) if b"\\" in v else v for v in row[:-1].split(b"\t")]


def _merged(values: list[Value], changes: Sequence[_Change]) -> list[Value]:
    """What none of the changes sent is as it was; the `ctid` stays that of the chunk."""
    found = list(values)
    for change in changes:
        for place, value in enumerate(change.values or ()):
            if value is not UNCHANGED:
                found[place + 1] = value
    return found
