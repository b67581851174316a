"""What is journaled together: lines on their way into one block, and the position behind them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final, NamedTuple

from headrace.journal.block import BLOCK_BYTES, BLOCK_EVENTS, Lines, SealedBlock, Special
from headrace.protocols import Write
from headrace.sources.postgres.lines import OPERATIONS, TYPE_PREFIX, Tx
from headrace.sources.postgres.positions import Position
from headrace.sources.postgres.protocol import TAG
from headrace.sources.postgres.tables import Table

_FULL: Final = BLOCK_BYTES - (1 << 14)


class Portion(NamedTuple):
    """What is journaled together: lines, the position behind them, and further rows of state."""

    lines: Lines | SealedBlock
    position: Position
    writes: tuple[Write, ...]


class Block:
    """Lines on their way into one block."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.keys: list[int] = []
        self.specials: dict[int, Special] = {}
        self.writes: list[Write] = []
        self.kinds = bytearray()
        self.size = 0
        self._types: dict[str, int] = {}

    def kind(self, type_: str) -> int:
        return self._types.setdefault(type_, len(self._types))

    def added(self, count: int, kind: int, longer: int = 0) -> int:
        """Account for the last `count` lines, which will each grow by `longer` bytes; returns their bytes."""
        size = len(self.lines[-1]) if count == 1 else sum(map(len, self.lines[-count:]))
        size += count * longer
        self.kinds += bytes((kind,)) * count
        self.size += size
        return size

    def room(self, average: float) -> int:
        """How many more lines of this length fit."""
        return min(BLOCK_EVENTS - len(self.lines), int((_FULL - self.size) / average))

    def take(
        self, table: Table, messages: Sequence[bytes], first: int, stop: int, ordinal: int, tx: Tx, xid: bytes = b""
    ) -> int:
        """Decode rows of one table and operation, from `first` on and before `stop`; returns the index reached.

        `ordinal`: that before the first; `xid`: the bytes of the (sub-)transaction, where they come inside a stream.
        """
        letter = messages[first][TAG]
        reached = table.runs[letter](messages, first, stop, ordinal, tx, xid, self.lines, self.keys, self.specials)
        size = self.added(reached - first, self.kind(TYPE_PREFIX + OPERATIONS[letter]), tx.longer)
        table.average = size / (reached - first)
        return reached

    def finish(self, count: int) -> tuple[Lines, Block]:
        """The first `count` lines, and a block that begins with the rest."""
        specials = {index: it for index, it in self.specials.items() if index < count}
        lines = self.lines[:count]
        whole = Lines(
            *(b"".join(lines), array("I", map(len, lines)), tuple(self._types), bytes(self.kinds[:count])),
            *(array("I", self.keys[:count]), specials),
        )
        return whole, self._rest(count)

    def _rest(self, count: int) -> Block:
        rest, types = Block(), list(self._types)
        rest.specials = {index - count: it for index, it in self.specials.items() if index >= count}
        for index in range(count, len(self.lines)):
            rest.lines.append(self.lines[index])
            rest.keys.append(self.keys[index])
            rest.added(1, rest.kind(types[self.kinds[index]]))
        return rest
