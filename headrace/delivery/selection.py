"""Which events a consumer asked for: `on` and a pattern's `type` by a block's head alone, the rest of `where` after."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from headrace.event import event_name
from headrace.journal.block import Block, Kind
from headrace.pattern import Pattern, Rows


class Selection:
    """An entry of `on` is SOURCE or SOURCE.EVENT; EVENT is the last segment of the type, or the whole type.

    What `where` found in a block is kept as long as the block is, for all consumers that share the selection.
    """

    def __init__(self, on: Sequence[str] | None, where: Pattern | None = None) -> None:
        self._on = None if on is None else frozenset(on)
        self._where = where
        self._known: dict[Kind, bool] = {}
        self._found: WeakKeyDictionary[Block, Sequence[int]] = WeakKeyDictionary()

    @property
    def looks_inside(self) -> bool:
        """Whether lines are looked at, which takes its time."""
        return self._where is not None

    def wants_kind(self, kind: Kind) -> bool:
        """Whether events of this kind may be wanted."""
        known = self._known.get(kind)
        if known is None:
            known = self._known[kind] = self._decide(kind)
        return known

    def asks_for(self, kind: Kind) -> bool:
        """Whether `on` names the kind."""
        names = (kind.source, f"{kind.source}.{event_name(kind.type)}", f"{kind.source}.{kind.type}")
        return self._on is None or not self._on.isdisjoint(names)

    def _decide(self, kind: Kind) -> bool:
        return self.asks_for(kind) and (self._where is None or self._where.may_match_type(kind.type))

    def wants(self, kinds: Sequence[Kind]) -> bool:
        """Whether a block with these kinds may hold anything to deliver."""
        return any(map(self.wants_kind, kinds))

    def indices(self, block: Block, start: int) -> Sequence[int]:
        """The indices of the wanted events of a block from index `start` on; a range where all are wanted."""
        if self._where is None:
            return self._of_kind(block, start)
        found = self._found.get(block)
        if found is None:
            found = self._found[block] = self._where.indices(block, self._of_kind(block, 0))
        return found[bisect_left(found, start) :] if start else found

    def _of_kind(self, block: Block, start: int) -> Sequence[int]:
        wanted = [self.wants_kind(kind) for kind in block.kinds]
        if all(wanted):
            return range(start, block.count)
        if not any(wanted):
            return ()
        kind_of = block.kind_of
        return [index for index in range(start, block.count) if wanted[kind_of[index]]]


class Selections:
    """Those of one daemon: consumers that ask for the same share one, and all patterns share the decoded rows."""

    def __init__(self) -> None:
        self._rows = Rows()
        self._made: WeakValueDictionary[tuple[frozenset[str] | None, str], Selection] = WeakValueDictionary()

    def of(self, on: Sequence[str] | None, where: Mapping[str, Any] | None) -> Selection:
        """Raises `PatternError`."""
        key = (None if on is None else frozenset(on), json.dumps(where))
        made = self._made.get(key)
        if made is None:
            made = Selection(on, None if where is None else Pattern(where, self._rows))
            self._made[key] = made
        return made
