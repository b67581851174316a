"""The tables of a stream: which are wanted, how their rows are decoded, and what changed in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeAlias

from headrace.sources.postgres.decode import Run, compiled
from headrace.sources.postgres.lines import Names
from headrace.sources.postgres.positions import KnownRelation
from headrace.sources.postgres.protocol import RelationMessage, TypeMessage
from headrace.sources.postgres.relations import Relation, Shown, key_names

Choose: TypeAlias = Callable[[str, str], Shown | None]
"""How a table (schema, name) is shown; None where it is not wanted."""

PrimaryKey: TypeAlias = Callable[[int], Sequence[str]]
"""The columns of a table's primary key, by its oid; asks the catalogue."""


@dataclass
class Table:
    """A table whose rows are wanted. `changed`: it came anew, and its next event must be compared with what is known.

    Changes committed before the LSN `since` are in its snapshot. `average` is the length of its lines, as far as known.
    """

    relation: Relation
    runs: Mapping[int, Run]
    since: int = 0
    changed: bool = True
    average: float = 512.0


def _from_the_start(_oid: int) -> int:
    return 0


class Tables:
    """What the stream said about types and tables so far."""

    def __init__(
        self,
        names: Names,
        choose: Choose,
        primary_key: PrimaryKey,
        known: Mapping[int, KnownRelation],
        since: Callable[[int], int] = _from_the_start,
    ) -> None:
        """`since` gives the LSN before which a table's changes are, or will be, part of its snapshot, by its oid."""
        self._since = since
        self._names = names
        self._choose = choose
        self._primary_key = primary_key
        self._known = dict(known)
        self._types: dict[int, tuple[str, str]] = {}
        self._tables: dict[int, Table | None] = {}

    def branch(self) -> Tables:
        """What a running transaction sees: it may be rolled back, and what it told of tables with it."""
        other = copy(self)
        other.__dict__ |= {"_types": dict(self._types), "_tables": dict(self._tables)}
        return other

    def learn_type(self, message: TypeMessage) -> None:
        self._types[message.oid] = (message.schema, message.name)

    def learn(self, message: RelationMessage) -> None:
        """A table's rows look like this from now on. Raises `Fatal` where the settings leave its key out."""
        shown = self._choose(message.schema, message.table)
        if shown is None:
            self._tables[message.oid] = None
            return
        relation = self.relation(message, shown)
        self._tables[message.oid] = Table(relation, compiled(self._names, relation), self._since(message.oid))

    def relation(self, message: RelationMessage, shown: Shown) -> Relation:
        found = self._primary_key(message.oid) if message.identity in {"f", "n"} else ()
        oids = {column.type_oid for column in message.columns}
        types = {oid: name for oid, name in self._types.items() if oid in oids}
        return Relation(message, key_names(message, found), types, shown)

    def get(self, oid: int) -> Table | None:
        """The table; None where it is not wanted. Raises `KeyError` where no message told of it."""
        return self._tables[oid]

    def difference(self, table: Table) -> tuple[KnownRelation, dict[str, Any] | None]:
        """What to keep of the table from now on, and what changed in it since its last event, if anything did."""
        table.changed = False
        relation = table.relation
        now = KnownRelation(relation.digest, relation.description)
        before = self._known.get(relation.message.oid)
        self._known[relation.message.oid] = now
        if before is None or before.digest == now.digest:
            return now, None
        return now, _difference(before.columns, now.columns)


def _difference(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    old = {column["name"]: column for column in before}
    new = {column["name"]: column for column in after}
    return {
        "columns": after,
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "retyped": [name for name in new if name in old and new[name] != old[name]],
    }
