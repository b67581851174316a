"""Which events a consumer asked for: `on` and a pattern's `type` by a block's head alone, the rest of `where` after."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.event import event_name
from headrace.journal.block import Block, Kind
from headrace.pattern import Pattern


class Selection:
    """`on` and `where` compiled.

    An entry of `on` is SOURCE or SOURCE.EVENT; EVENT is the last segment of the type, or the whole type.
    """

    def __init__(self, on: Sequence[str] | None, where: Pattern | None = None) -> None:
        self._on = None if on is None else frozenset(on)
        self._where = where
        self._known: dict[Kind, bool] = {}

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
        wanted = [self.wants_kind(kind) for kind in block.kinds]
        if all(wanted):
            found: Sequence[int] = range(start, block.count)
        else:
            kind_of = block.kind_of
            found = [index for index in range(start, block.count) if wanted[kind_of[index]]]
        return found if self._where is None else self._where.indices(block, found)
