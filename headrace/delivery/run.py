"""A run: neighbouring events of one shard that are delivered as one batch, without an object per event."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from headrace.journal.block import BLOCK_BYTES, Block
from headrace.protocols import Position

RUN_BYTES: Final = BLOCK_BYTES


class Piece(NamedTuple):
    """Some events of one block, by index, in order."""

    block: Block
    indices: Sequence[int]

    @property
    def data(self) -> bytes:
        block, indices = self
        if isinstance(indices, range) and indices.step == 1:
            return block.span(indices.start, indices.stop)
        lines = block.lines
        return b"".join([lines[index] for index in indices])

    @property
    def positions(self) -> Sequence[Position]:
        first, indices = self.block.first, self.indices
        if isinstance(indices, range):
            return range(first + indices.start, first + indices.stop)
        return [first + index for index in indices]


class Run(NamedTuple):
    """One batch to be. `end` is where the cursor may stand once all of it is complete."""

    pieces: Sequence[Piece]
    end: Position

    def __bool__(self) -> bool:
        return bool(self.pieces)

    @property
    def size(self) -> int:
        return sum(len(piece.indices) for piece in self.pieces)

    @property
    def first(self) -> Position:
        return self.pieces[0].positions[0] if self.pieces else self.end

    @property
    def data(self) -> bytes:
        return self.pieces[0].data if len(self.pieces) == 1 else b"".join(piece.data for piece in self.pieces)

    @property
    def positions(self) -> Sequence[Position]:
        if len(self.pieces) == 1:
            return self.pieces[0].positions
        return [position for piece in self.pieces for position in piece.positions]

    def events(self) -> Iterator[tuple[Block, int]]:
        for piece in self.pieces:
            for index in piece.indices:
                yield piece.block, index

    def split(self) -> tuple[Run, Run]:
        """The first and the second half."""
        half, before, after = self.size // 2, list[Piece](), list[Piece]()
        for piece in self.pieces:
            size = len(piece.indices)
            left = max(0, min(size, half))
            if left:
                before.append(Piece(piece.block, piece.indices[:left]))
            if left < size:
                after.append(Piece(piece.block, piece.indices[left:]))
            half -= left
        return Run(before, Run(after, self.end).first), Run(after, self.end)


def runs_of(pieces: Sequence[Piece], size: int, end: Position) -> Iterator[Run]:
    """Pieces in runs of at most `size` events, and of about `RUN_BYTES` where blocks are small; `end` ends the last."""
    current: list[Piece] = []
    count = data = 0
    for piece in _cut(pieces, size):
        length = piece.block.raw_size * len(piece.indices) // piece.block.count
        if current and (count + len(piece.indices) > size or data + length > RUN_BYTES):
            yield Run(current, piece.positions[0])
            current, count, data = [], 0, 0
        current.append(piece)
        count += len(piece.indices)
        data += length
    if current:
        yield Run(current, end)


def _cut(pieces: Sequence[Piece], size: int) -> Iterator[Piece]:
    for block, indices in pieces:
        for start in range(0, len(indices), size):
            yield Piece(block, indices[start : start + size])
