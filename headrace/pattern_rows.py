"""Decoded rows of blocks: only the fields that patterns name, decoded at most once for all of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import msgspec

from headrace.journal.block import Block
from headrace.pattern_code import Row, field_name
from headrace.pattern_columns import SHARED, Column, Guard, Place, guards_of
from headrace.pattern_syntax import Fields, Leaf

Shape: TypeAlias = Mapping[str, "Shape | None"]
"""The fields to decode: None stands for a whole value, a shape for an object of which only these fields count."""

_FEW: Final = 4  # where fewer than one line in so many is wanted, only these are decoded
_PLAIN: Final = list[Any] | str | int | float | bool | None


def shape_of(tree: Fields) -> Shape:
    """What a pattern names."""
    shape: dict[str, Shape | None] = {}
    for key, node in tree.fields.items():
        shape = _joined(shape, {key: None if isinstance(node, Leaf) else shape_of(node)})
    for choice in tree.choices:
        for one in choice:
            shape = _joined(shape, shape_of(one))
    return shape


def _joined(one: Shape, two: Shape) -> dict[str, Shape | None]:
    """Both; a field that is a value in one and an object in the other is decoded whole."""
    joined = {**one, **two}
    for key in one.keys() & two.keys():
        first, second = one[key], two[key]
        joined[key] = None if first is None or second is None else _joined(first, second)
    return joined


def _struct(shape: Shape) -> type[msgspec.Struct]:
    fields: list[tuple[str, Any, Any]] = []
    for key, below in shape.items():
        kind: Any = Any if below is None else _struct(below) | _PLAIN
        fields.append((field_name(key), kind, msgspec.UNSET))
    rename = {field_name(key): key for key in shape}
    return msgspec.defstruct("Row", fields, rename=rename, gc=False)


class _Kept:
    """What is known of one block."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self._columns: dict[Place, Column] = {}

    def column(self, place: Place) -> Column:
        if place not in self._columns:
            self._columns[place] = Column(self.rows, place)
        return self._columns[place]


class Rows:
    """Decodes for several patterns at once: blocks are read by many consumers, and decoding costs more than testing.

    Rows of a block are kept as long as the block is.
    """

    def __init__(self) -> None:
        self._shape: Shape = {}
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_struct({}))
        self._named: Counter[Place] = Counter()
        self._kept: WeakKeyDictionary[Block, _Kept] = WeakKeyDictionary()

    def require(self, tree: Fields) -> None:
        """From now on rows have the fields of this pattern, too."""
        self._named.update(place for place, _ in guards_of(tree))
        joined = _joined(self._shape, shape_of(tree))
        if joined != self._shape:
            self._shape, self._decoder = joined, msgspec.json.Decoder(_struct(joined))
            self._kept.clear()

    def row(self, line: bytes) -> Row:
        """One line. What is no JSON to the decoder (a number beyond all floats) is decoded by the standard library."""
        try:
            return self._decoder.decode(line)
        except msgspec.MsgspecError:
            return _lenient(line)

    def of(self, block: Block, indices: Sequence[int]) -> Sequence[Row] | Mapping[int, Row]:
        """The rows of a block, by index: at least those at `indices`."""
        if self.keep(block, len(indices)):
            return self._kept[block].rows
        return {index: self.row(block.line(index)) for index in indices}

    def keep(self, block: Block, count: int) -> bool:
        """Decode all of a block, for this look and all later ones, where so many of its events are worth it."""
        if block not in self._kept:
            if count * _FEW < block.count:
                return False
            self._kept[block] = _Kept(self._all(block))
        return True

    def column(self, block: Block, place: Place) -> Column | None:
        """What the block has in a field, where its rows are kept."""
        kept = self._kept.get(block)
        return None if kept is None else kept.column(place)

    def may_match(self, block: Block, guards: Sequence[Guard]) -> bool:
        """False where no row of the block, which is kept, can match all of the guards."""
        kept = self._kept.get(block)
        if kept is None:
            return True
        return all(kept.column(place).may_match(leaf) for place, leaf in self.shared(guards))

    def shared(self, guards: Sequence[Guard]) -> list[Guard]:
        """Those on fields that several patterns name, of which alone columns are made."""
        return [guard for guard in guards if self._named[guard[0]] >= SHARED]

    def _all(self, block: Block) -> list[Row]:
        try:
            rows: list[Row] = self._decoder.decode_lines(block.data)
        except msgspec.MsgspecError:
            rows = []
        return rows if len(rows) == block.count else [*self._each(block.lines)]

    def _each(self, lines: Iterable[bytes]) -> Iterable[Row]:
        return map(self.row, lines)


def _lenient(line: bytes) -> Any:
    """Plain Python values; None, which has no field at all, where it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
