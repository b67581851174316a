"""Which events a consumer asked for: `on` and a pattern's `type` by a block's head alone, the rest of `where` after."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from headrace.event import event_name
from headrace.journal.block import Block, Kind
from headrace.pattern import Pattern, Rows
from headrace.pattern_columns import Guard, Place, literals_of

INDEXES: Final = 256  # kept for blocks with other kinds


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

    @property
    def wants_all(self) -> bool:
        """Whether there is nothing that it does not want."""
        return self._on is None and self._where is None

    @property
    def guards(self) -> Sequence[Guard]:
        """What rules out a whole block, by its values."""
        return () if self._where is None else self._where.guards

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


class Index:
    """The selections that want events of some kinds, by what such an event must have.

    Those that ask for one of some values in a field are found by the values that a block has there, so that any number
    of them costs the same. The others cost a look each, at the values of the whole block.
    """

    def __init__(self, kinds: Sequence[Kind], selections: Iterable[Selection], rows: Rows) -> None:
        self._rows = rows
        self._literals: defaultdict[Place, defaultdict[Any, list[Selection]]] = defaultdict(lambda: defaultdict(list))
        self._guarded: list[tuple[Selection, Sequence[Guard]]] = []
        selections = [each for each in selections if each.wants(kinds)]
        inside = [each for each in selections if each.looks_inside]
        self._decoded = [number for number, kind in enumerate(kinds) if any(each.wants_kind(kind) for each in inside)]
        for each in selections:
            self._add(each)

    def _add(self, selection: Selection) -> None:
        guards = self._rows.shared(selection.guards)
        for place, leaf in guards:
            if literals := literals_of(leaf):
                for literal in literals:
                    self._literals[place][literal].append(selection)
                return
        self._guarded.append((selection, guards))

    def of(self, block: Block) -> Iterator[Selection]:
        """Those that may want something of a block, some of them twice."""
        self._rows.keep(block, sum(map(block.kind_of.count, self._decoded)))
        for place, by_value in self._literals.items():
            column = self._rows.column(block, place)
            found = column.values & by_value.keys() if column and column.plain else by_value
            for value in found:
                yield from by_value[value]
        for selection, guards in self._guarded:
            if not guards or self._rows.may_match(block, guards):
                yield selection


class Selections:
    """Those of one daemon: consumers that ask for the same share one, and all patterns share the decoded rows."""

    def __init__(self) -> None:
        self._rows = Rows()
        self._made: WeakValueDictionary[tuple[frozenset[str] | None, str], Selection] = WeakValueDictionary()
        self._indexes: dict[tuple[Kind, ...], Index] = {}

    def of(self, on: Sequence[str] | None, where: Mapping[str, Any] | None) -> Selection:
        """Raises `PatternError`."""
        key = (None if on is None else frozenset(on), json.dumps(where))
        made = self._made.get(key)
        if made is None:
            made = Selection(on, None if where is None else Pattern(where, self._rows))
            self._made[key] = made
            self._indexes.clear()
        return made

    def wanting(self, block: Block) -> Iterator[Selection]:
        """All selections that may want something of a block, some of them twice: many fewer than there are."""
        return self._index(block.kinds).of(block)

    def _index(self, kinds: tuple[Kind, ...]) -> Index:
        index = self._indexes.get(kinds)
        if index is None:
            if len(self._indexes) >= INDEXES:
                self._indexes.clear()
            index = self._indexes[kinds] = Index(kinds, self._made.values(), self._rows)
        return index
