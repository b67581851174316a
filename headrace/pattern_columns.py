"""What a whole block has in one field, so that a pattern that nothing in it can match costs a look and no loop.

Made only for fields that several patterns name: the cost of a block is then nearly the same however many consumers
want nothing of it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any, Final

import msgspec

from headrace.pattern_code import STRUCT, Row, address, field_name
from headrace.pattern_operators import Network, Test, Wildcard
from headrace.pattern_syntax import Fields, Leaf

Place = tuple[str, ...]
Guard = tuple[Place, Leaf]

SHARED: Final = 3  # from so many patterns that name a field on, its column is made
_SIMPLE: Final = frozenset({str, int, float, type(None), msgspec.UnsetType})


def guards_of(tree: Fields, place: Place = ()) -> Iterator[Guard]:
    """The leaves that must match and that a column can rule out, by their places."""
    for key, node in tree.fields.items():
        if isinstance(node, Fields):
            yield from guards_of(node, (*place, key))
        elif all(test.operator in _POSSIBLE and not isinstance(test.argument, bool) for test in node.tests):
            yield (*place, key), node


def literals_of(leaf: Leaf) -> frozenset[Any]:
    """The values of which an event must have one, where only such are asked for; else none."""
    plain = all(test.operator == "literal" for test in leaf.tests)
    return frozenset(test.argument for test in leaf.tests) if plain else frozenset()


class Column:
    """The values of a field in the rows of a block. Where some are not `plain` ones, everything may match."""

    def __init__(self, rows: Sequence[Row], place: Place) -> None:
        try:
            self.values = frozenset(self._collected(rows, place))
            self.plain = {value.__class__ for value in self.values} <= _SIMPLE
        except (AttributeError, TypeError):  # lists, objects, rows that were decoded another way
            self.values, self.plain = frozenset(), False

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
        return not self.plain or any(_POSSIBLE[test.operator](self, test.argument) for test in leaf.tests)

    @cached_property
    def _texts(self) -> list[str]:
        return sorted(value for value in self.values if value.__class__ is str)

    @cached_property
    def _reversed(self) -> list[str]:
        return sorted(text[::-1] for text in self._texts)

    @cached_property
    def _folded(self) -> list[str]:
        return sorted(text.casefold() for text in self._texts)

    @cached_property
    def _folded_reversed(self) -> list[str]:
        return sorted(text[::-1] for text in self._folded)

    @cached_property
    def _joined(self) -> str:
        return "\n".join(self._texts)

    @cached_property
    def _numbers(self) -> list[float]:
        return sorted(value for value in self.values if value.__class__ in {int, float})

    @cached_property
    def _addresses(self) -> Mapping[int, list[int]]:
        found: dict[int, list[int]] = {4: [], 6: []}
        for version, number in filter(None, map(address, self._texts)):
            found[version].append(number)
        return {version: sorted(numbers) for version, numbers in found.items()}

    # Whether some value can pass a test, by its operator.

    def has(self, value: Any) -> bool:
        return value in self.values

    def has_any(self, _: None) -> bool:
        return bool(self.values - {msgspec.UNSET})

    def has_other(self, tests: Sequence[Test]) -> bool:
        """`anything-but`. A number equals a truth value in a set, so only what is told apart for sure counts."""
        if not all(test.operator == "literal" and isinstance(test.argument, str) for test in tests):
            return True
        return bool(self.values - {test.argument for test in tests} - {msgspec.UNSET})

    def has_prefix(self, prefix: str) -> bool:
        return _begins(self._texts, prefix)

    def has_suffix(self, suffix: str) -> bool:
        return _begins(self._reversed, suffix[::-1])

    def has_folded(self, text: str) -> bool:
        at = bisect_left(self._folded, text)
        return at < len(self._folded) and self._folded[at] == text

    def has_folded_prefix(self, prefix: str) -> bool:
        return _begins(self._folded, prefix)

    def has_folded_suffix(self, suffix: str) -> bool:
        return _begins(self._folded_reversed, suffix[::-1])

    def has_wildcard(self, wildcard: Wildcard) -> bool:
        first, *between = wildcard.pieces
        if not between:
            return first in self.values
        *between, last = between
        return self.has_prefix(first) and self.has_suffix(last) and all(piece in self._joined for piece in between)

    def has_number(self, bounds: Sequence[tuple[str, float]]) -> bool:
        low, high = 0, len(self._numbers)
        for operator, bound in bounds:
            if operator[0] != "<":
                low = max(low, (bisect_right if operator == ">" else bisect_left)(self._numbers, bound))
            if operator[0] != ">":
                high = min(high, (bisect_left if operator == "<" else bisect_right)(self._numbers, bound))
        return low < high

    def has_address(self, network: Network) -> bool:
        numbers = self._addresses[network.version]
        at = bisect_left(numbers, network.first)
        return at < len(numbers) and numbers[at] & network.mask == network.first


_POSSIBLE: Final[Mapping[str, Callable[[Column, Any], bool]]] = {
    "literal": Column.has,
    "exists": Column.has_any,
    "anything-but": Column.has_other,
    "prefix": Column.has_prefix,
    "suffix": Column.has_suffix,
    "equals-ignore-case": Column.has_folded,
    "prefix-ignore-case": Column.has_folded_prefix,
    "suffix-ignore-case": Column.has_folded_suffix,
    "wildcard": Column.has_wildcard,
    "numeric": Column.has_number,
    "cidr": Column.has_address,
}


def _begins(texts: Sequence[str], prefix: str) -> bool:
    """Whether one of the sorted texts begins so."""
    at = bisect_left(texts, prefix)
    return at < len(texts) and texts[at].startswith(prefix)
