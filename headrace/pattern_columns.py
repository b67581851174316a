"""What a whole block has in one field, so that a pattern that nothing in it can match costs a look and no loop.

Made only for fields that several patterns name: the cost of a block is then nearly the same however many consumers
want nothing of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any, Final

import msgspec

from headrace.pattern_code import STRUCT, Row, field_name
from headrace.pattern_operators import Test
from headrace.pattern_syntax import Fields, Leaf

Place = tuple[str, ...]

_GUARDED: Final = frozenset({"literal", "prefix", "suffix", "numeric"})
_SIMPLE: Final = frozenset({str, int, float, type(None), msgspec.UnsetType})


def guards_of(tree: Fields, place: Place = ()) -> Iterator[tuple[Place, Leaf]]:
    """The leaves that must match and that a column can rule out, by their places."""
    for key, node in tree.fields.items():
        if isinstance(node, Fields):
            yield from guards_of(node, (*place, key))
        elif all(test.operator in _GUARDED and not isinstance(test.argument, bool) for test in node.tests):
            yield (*place, key), node


class Column:
    """The values of a field in the rows of a block. Where some are not plain ones, everything may match."""

    def __init__(self, rows: Sequence[Row], place: Place) -> None:
        self._plain = True
        try:
            self._values = frozenset(self._collected(rows, place))
        except (AttributeError, TypeError):  # lists, objects, rows that were decoded another way
            self._plain, self._values = False, frozenset()
        self._plain = self._plain and {value.__class__ for value in self._values} <= _SIMPLE

    @staticmethod
    def _collected(rows: Sequence[Row], place: Place) -> Iterator[Any]:
        *around, name = map(field_name, place)
        at: Sequence[Any] = rows
        for field in around:
            inner = [*map(attrgetter(field), at)]
            at = [row for row in inner if row.__class__.__class__ is STRUCT]
            if not {row.__class__ for row in inner if row.__class__.__class__ is not STRUCT} <= _SIMPLE:
                raise TypeError
        return map(attrgetter(name), at)

    def may_match(self, leaf: Leaf) -> bool:
        """False where no value of the column matches."""
        return not self._plain or any(self._possible(test) for test in leaf.tests)

    def _possible(self, test: Test) -> bool:
        return _POSSIBLE[test.operator](self, test.argument)

    @cached_property
    def _texts(self) -> list[str]:
        return sorted(value for value in self._values if value.__class__ is str)

    @cached_property
    def _reversed(self) -> list[str]:
        return sorted(text[::-1] for text in self._texts)

    @cached_property
    def _range(self) -> tuple[float, float] | None:
        numbers = [value for value in self._values if value.__class__ in {int, float}]
        return (min(numbers), max(numbers)) if numbers else None

    # Whether some value can pass a test, by its operator.

    def has(self, value: Any) -> bool:
        return value in self._values

    def has_prefix(self, prefix: str) -> bool:
        return _begins(self._texts, prefix)

    def has_suffix(self, suffix: str) -> bool:
        return _begins(self._reversed, suffix[::-1])

    def has_number(self, bounds: Sequence[tuple[str, float]]) -> bool:
        return self._range is not None and all(_reaches(*self._range, *bound) for bound in bounds)


_POSSIBLE: Final[Mapping[str, Callable[[Column, Any], bool]]] = {
    "literal": Column.has,
    "prefix": Column.has_prefix,
    "suffix": Column.has_suffix,
    "numeric": Column.has_number,
}


def _begins(texts: Sequence[str], prefix: str) -> bool:
    """Whether one of the sorted texts begins so."""
    at = bisect_left(texts, prefix)
    return at < len(texts) and texts[at].startswith(prefix)


def _reaches(low: float, high: float, operator: str, bound: float) -> bool:
    """Whether the comparison holds for some number from `low` to `high`."""
    if operator == "=":
        return low <= bound <= high
    if operator[0] == ">":
        return high > bound or (high == bound and operator == ">=")
    return low < bound or (low == bound and operator == "<=")
