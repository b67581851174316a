"""Patterns (`where`) compiled once to predicates over encoded lines.

The semantics are Amazon EventBridge's, over the envelope; `pattern_syntax` has the grammar, `pattern_code` the
semantics in full. A pattern on attributes never decodes `data`; one on `data` decodes only the fields it names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from headrace.journal.block import Block
from headrace.pattern_code import any_leaf, any_object, compile_tree
from headrace.pattern_columns import guards_of
from headrace.pattern_rows import Rows
from headrace.pattern_syntax import Fields, Leaf, Path, PatternError, load, parse

__all__ = ["Mismatch", "Pattern", "PatternError", "Rows"]

_SHOWN: Final = 80


class Mismatch(NamedTuple):
    """A part of a pattern that an event does not match. `found` is the value there, as JSON; empty where none is."""

    path: Path
    found: str

    def __str__(self) -> str:
        place = ".".join(map(str, self.path))
        return f"{place} is {self.found}" if self.found else f"{place} is not there"


class Pattern:
    """One compiled pattern. Patterns that share `rows` decode each block once together.

    `guards` are the parts of it that must match and that a look at the values of a whole block can rule out.
    """

    def __init__(self, source: Mapping[str, Any] | str, rows: Rows | None = None) -> None:
        """`source` is a table, or a JSON text. Raises `PatternError` with all mistakes."""
        self._tree = parse(load(source))
        self._rows = rows or Rows()
        self._rows.require(self._tree)
        kinds = self._tree.fields.get("type")
        self._type = any_leaf(kinds) if isinstance(kinds, Leaf) else None
        self.guards = tuple(guards_of(self._tree))
        self._match, self._select = compile_tree(self._tree)

    def may_match_type(self, type_: str) -> bool:
        """False where no event of this type matches."""
        return self._type is None or self._type(type_)

    def matches(self, line: bytes) -> bool:
        """Whether the event in an encoded line matches. A damaged line matches what an empty event does."""
        return self._match(self._rows.row(line))

    def indices(self, block: Block, indices: Sequence[int]) -> list[int]:
        """Those of the indices whose events match, in the order given."""
        if not indices:
            return []
        rows = self._rows.of(block, indices)
        return self._select(rows, indices) if self._rows.may_match(block, self.guards) else []

    def mismatches(self, line: bytes) -> list[Mismatch]:
        """Why an event does not match: the parts that failed; empty where it matches."""
        return _mismatches(self._tree, json.loads(line), ())


def _mismatches(tree: Fields, value: Any, path: Path) -> list[Mismatch]:
    if any_object(tree)(value):
        return []
    table = value if isinstance(value, dict) else {}
    if isinstance(value, list):  # which entry was meant cannot be told
        return [Mismatch(path, _shown(value))]
    found = []
    for key, node in tree.fields.items():
        if isinstance(node, Fields):
            found += _mismatches(node, table.get(key), (*path, key))
        elif not any_leaf(node)(table.get(key, [])):
            found.append(Mismatch((*path, key), _shown(table[key]) if key in table else ""))
    for choice in tree.choices:
        if not any(any_object(one)(table) for one in choice):
            found += [mismatch for one in choice for mismatch in _mismatches(one, table, path)]
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
