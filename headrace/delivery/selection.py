"""Which events a consumer asked for with `on`, decided from a block's head alone."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.event import event_name
from headrace.journal.block import Block, Kind


class Selection:
    """`on` compiled. An entry is SOURCE or SOURCE.EVENT; EVENT is the last segment of the type, or the whole type."""

    def __init__(self, on: Sequence[str] | None) -> None:
        self._on = None if on is None else frozenset(on)
        self._known: dict[Kind, bool] = {}

    def wants_kind(self, kind: Kind) -> bool:
        known = self._known.get(kind)
        if known is None:
            known = self._known[kind] = self._decide(kind)
        return known

    def _decide(self, kind: Kind) -> bool:
        names = (kind.source, f"{kind.source}.{event_name(kind.type)}", f"{kind.source}.{kind.type}")
        return self._on is None or not self._on.isdisjoint(names)

    def wants(self, kinds: Sequence[Kind]) -> bool:
        """Whether a block with these kinds holds anything to deliver."""
        return self._on is None or any(map(self.wants_kind, kinds))

    def indices(self, block: Block, start: int) -> Sequence[int]:
        """The indices of the wanted events of a block from index `start` on; a range where all are wanted."""
        wanted = [self.wants_kind(kind) for kind in block.kinds]
        if all(wanted):
            return range(start, block.count)
        kind_of = block.kind_of
        return [index for index in range(start, block.count) if wanted[kind_of[index]]]
