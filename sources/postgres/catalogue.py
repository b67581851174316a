"""What the catalogue says of published tables: as the stream would tell it, before it tells anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import psycopg

from headrace.sources.postgres.connect import PRIMARY_KEY, rows
from headrace.sources.postgres.protocol import Column, RelationMessage
from headrace.sources.postgres.relations import Relation, key_names
from headrace.sources.postgres.settings import PostgresSource

_PUBLISHED: Final = """
SELECT c.oid::int8 AS oid, p.schemaname AS schema, p.tablename AS "table", c.relreplident::text AS identity,
  {columns} AS columns, {filter} AS filter
FROM pg_publication_tables p
JOIN pg_namespace n ON n.nspname = p.schemaname
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
WHERE p.pubname = ANY(%s) AND (%s::oid IS NULL OR c.oid = %s) ORDER BY 2, 3
"""
_COLUMNS: Final = """
SELECT a.attname AS name, a.atttypid::int8 AS type_oid, a.atttypmod AS modifier,
  EXISTS (
    SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND a.attnum = ANY(i.indkey[0:i.indnkeyatts - 1])
    AND CASE %s WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
  ) AS key
FROM pg_attribute a
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped AND (a.attgenerated = '' OR %s)
ORDER BY a.attnum
"""
_TYPES: Final = """
WITH RECURSIVE base AS (
  SELECT oid AS start, oid, typtype, typbasetype FROM pg_type WHERE oid = ANY(%s)
  UNION ALL
  SELECT b.start, t.oid, t.typtype, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.typbasetype
  WHERE b.typtype = 'd'
)
SELECT b.start::int8 AS oid, CASE n.nspname WHEN 'pg_catalog' THEN '' ELSE n.nspname END AS schema, t.typname AS name
FROM base b JOIN pg_type t ON t.oid = b.oid JOIN pg_namespace n ON n.oid = t.typnamespace WHERE b.typtype <> 'd'
"""
_LEAVES: Final = """
SELECT c.oid::int8 AS oid, n.nspname AS schema, c.relname AS "table",
  pg_relation_size(c.oid) / current_setting('block_size')::int AS pages
FROM (SELECT relid FROM pg_partition_tree(%s) WHERE isleaf UNION SELECT %s::oid::regclass) AS tree
JOIN pg_class c ON c.oid = tree.relid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' ORDER BY 1
"""
_ESTIMATED: Final = """
SELECT nullif(sum(greatest(c.reltuples, 0)), 0)::bigint AS rows
FROM pg_class c WHERE c.oid = %s OR c.oid IN (SELECT relid FROM pg_partition_tree(%s) WHERE isleaf)
"""
_BUILT_IN: Final = 10_000  # oids of types below it are the same everywhere, and never told


class Leaf(NamedTuple):
    """A table that holds rows itself: a plain one, or a partition."""

    oid: int
    schema: str
    table: str
    pages: int


class Published(NamedTuple):
    """A table of the publication; `filter`: SQL that its rows must satisfy, or None."""

    relation: Relation
    filter: str | None


async def published(
    connection: psycopg.AsyncConnection[Any],
    settings: PostgresSource,
    publications: Sequence[str],
    oid: int | None = None,
) -> list[Published]:
    """The tables that are captured; only the one with this oid where it is given."""
    lists = connection.info.server_version >= 150_000
    columns, filter_ = ("p.attnames", "p.rowfilter") if lists else ("NULL::name[]", "NULL::text")
    query = _PUBLISHED.replace("{columns}", columns).replace("{filter}", filter_)
    found: dict[int, Published] = {}
    for row in await rows(connection, query, list(publications), oid, oid):
        shown = settings.shown(row.schema, row.table)
        if shown is None or row.oid in found:
            continue
        message = await _message(connection, row)
        found[row.oid] = Published(await _relation(connection, message, settings), row.filter)
    return list(found.values())


async def _message(connection: psycopg.AsyncConnection[Any], row: Any) -> RelationMessage:
    generated = row.columns is not None and connection.info.server_version >= 180_000  # published where listed
    listed = await rows(connection, _COLUMNS, row.identity, row.oid, generated)
    names = set(row.columns) if row.columns is not None else {column.name for column in listed}
    whole = row.identity == "f"
    columns = tuple(
        Column(column.name, column.type_oid, column.modifier, whole or column.key)
        for column in listed
        if column.name in names
    )
    return RelationMessage(row.oid, row.schema, row.table, row.identity, columns)


async def _relation(
    connection: psycopg.AsyncConnection[Any], message: RelationMessage, settings: PostgresSource
) -> Relation:
    oids = [column.type_oid for column in message.columns if column.type_oid >= _BUILT_IN]
    types = {row.oid: (row.schema, row.name) for row in await rows(connection, _TYPES, oids)}
    key = [row.attname for row in await rows(connection, PRIMARY_KEY, message.oid)]
    shown = settings.shown(message.schema, message.table)
    if shown is None:
        raise ValueError(f"{message.table} is not wanted")
    return Relation(message, key_names(message, key), types, shown)


async def leaves(connection: psycopg.AsyncConnection[Any], oid: int) -> list[Leaf]:
    """The tables that hold the rows of a table, with their sizes in pages."""
    return [Leaf(row.oid, row.schema, row.table, row.pages) for row in await rows(connection, _LEAVES, oid, oid)]


async def estimated(connection: psycopg.AsyncConnection[Any], oid: int) -> int | None:
    """About how many rows a table holds, where it was ever analysed."""
    [row] = await rows(connection, _ESTIMATED, oid, oid)
    return None if row.rows is None else int(row.rows)
