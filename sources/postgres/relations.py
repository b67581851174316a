"""What is known of a table: its columns as they are shown, and its key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import msgspec

from headrace.errors import Fatal
from headrace.event import encode_key, encode_text
from headrace.sources.postgres.protocol import RelationMessage
from headrace.sources.postgres.types import Kind, kind_of

NO_KEY: Final[tuple[int, ...]] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """What a table's events leave out (`exclude`) or show as a hash (`hash`): names of columns."""

    exclude: frozenset[str] = frozenset()
    hash: frozenset[str] = frozenset()


EVERYTHING: Final = Shown()


@dataclass(frozen=True, slots=True)
class Field:
    """A column, at its place in the rows as the server sends them."""

    place: int
    name: str
    kind: Kind

    @property
    def json_name(self) -> bytes:
        """The name as a JSON string."""
        return msgspec.json.encode(self.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


@dataclass(frozen=True)
class Relation:
    """A table as the rows after its relation message have it.

    `key` are places of the columns that make the partition key: those of the replica identity, or of the primary key
    where the identity is the whole row; empty where there is none.
    """

    message: RelationMessage
    key_names: Sequence[str]
    types: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    shown: Shown = EVERYTHING
    unsafe: bool = False

    def __post_init__(self) -> None:
        """Raises `Fatal` where a column is left out that the order of the events needs."""
        hidden = sorted(self.shown.exclude & set(self.key_names))
        if hidden:
            raise Fatal(
                f"column {hidden[0]} of {self.name} is excluded, but it is part of the key that orders the events",
                hint="hash it instead of excluding it: columns.hash",
            )

    @property
    def name(self) -> str:
        return f"{self.message.schema}.{self.message.table}"

    @property
    def subject(self) -> str:
        """`schema.table`, percent-encoded; injective: a dot in the schema's name is encoded too."""
        schema, table = self.message.schema, self.message.table
        return f"{encode_text(schema).replace('.', '%2E')}.{encode_text(table)}"

    @property
    def key_prefix(self) -> str:
        """What every partition key of the table starts with, and the barrier of an event about all of it."""
        return encode_table(self.message.schema, self.message.table) + "/"

    @cached_property
    def columns(self) -> tuple[Field, ...]:
        """All columns, also those that are not shown."""
        columns = enumerate(self.message.columns)
        return tuple(Field(i, column.name, self._kind(column.name, column.type_oid)) for i, column in columns)

    def _kind(self, name: str, oid: int) -> Kind:
        return Kind.HASHED if name in self.shown.hash else kind_of(oid, self.types.get(oid))

    @cached_property
    def visible(self) -> tuple[Field, ...]:
        return tuple(field for field in self.columns if field.name not in self.shown.exclude)

    @cached_property
    def key(self) -> tuple[Field, ...]:
        by_name = {field.name: field for field in self.columns}
        fields = [by_name[name] for name in self.key_names if name in by_name]
        return tuple(fields) if len(fields) == len(self.key_names) else ()

    @cached_property
    def description(self) -> list[dict[str, Any]]:
        """The shown columns for a `schema` event, and for the comparison with what is known."""
        found = []
        for shown in self.visible:
            column = self.message.columns[shown.place]
            schema, name = self.types.get(column.type_oid, ("", ""))
            described: dict[str, Any] = {"name": column.name, "type_oid": column.type_oid, "modifier": column.modifier}
            if name:
                described["type"] = f"{schema}.{name}" if schema else name
            found.append({**described, "key": shown in self.key})
        return found

    @cached_property
    def digest(self) -> str:
        """Changes with the name, the columns or the key."""
        data = msgspec.json.encode([self.message.schema, self.message.table, self.description])
        return hashlib.sha256(data).hexdigest()[:16]


def encode_table(schema: str, table: str) -> str:
    """A table as the first part of a partition key; `/` and the schema's dots are encoded."""
    return f"{encode_key([schema]).replace('.', '%2E')}.{encode_key([table])}"


def key_names(message: RelationMessage, primary_key: Sequence[str]) -> tuple[str, ...]:
    """Which columns order the events of a table.

    With `full` and `nothing` the message marks no key, or all columns: there the primary key of the catalogue counts.
    """
    if message.identity in {"d", "i"}:
        return tuple(column.name for column in message.columns if column.key)
    return tuple(primary_key)
