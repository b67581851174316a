"""The publication: created where it is missing, never so that it breaks the application's writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from headrace.errors import Fatal
from headrace.sources.postgres.connect import rows
from headrace.sources.postgres.settings import PostgresSource

# A partitioned table is published as one; its partitions are not listed.
_TABLES: Final = """
SELECT n.nspname AS schema, c.relname AS "table", c.relreplident::text AS identity,
  EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AS has_key,
  EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident) AS has_index
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%%'
ORDER BY 1, 2
"""
INSERTS_ONLY: Final = "_inserts"  # what the name of the second publication ends in


_PATTERN: Final = re.compile(r"[*?\[]")


class Candidate(NamedTuple):
    """A table, and whether its updates and deletes could be captured."""

    schema: str
    table: str
    identified: bool

    @property
    def name(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.table)


async def candidates(connection: psycopg.AsyncConnection[Any], settings: PostgresSource) -> list[Candidate]:
    """The tables that the settings choose, as they are now."""
    return [
        Candidate(row.schema, row.table, _identified(row))
        for row in await rows(connection, _TABLES)
        if settings.shown(row.schema, row.table) is not None
    ]


def _identified(row: Any) -> bool:
    if row.identity == "d":
        return bool(row.has_key)
    return row.identity == "f" or (row.identity == "i" and bool(row.has_index))


async def existing(connection: psycopg.AsyncConnection[Any], names: Sequence[str]) -> list[str]:
    """Those of the publications that are there."""
    found = await rows(connection, "SELECT pubname FROM pg_publication WHERE pubname = ANY(%s)", list(names))
    return [row.pubname for row in found]


async def ensure(connection: psycopg.AsyncConnection[Any], settings: PostgresSource, name: str) -> list[str]:
    """The publications to stream, created where they are missing. Raises `Fatal` with the SQL that mends it."""
    wanted = [name, name + INSERTS_ONLY]
    found = await existing(connection, wanted)
    if name in found:
        await _complete(connection, settings, found)
        return found
    tables = await candidates(connection, settings)
    keyless = [table for table in tables if not table.identified]
    if keyless and settings.keyless == "refuse":
        raise _no_identity(connection, keyless)
    if not settings.create:
        raise Fatal(f"publication {name} is not there", hint=_text(connection, _create(name, tables)))
    if not tables:
        raise Fatal("no table matches `tables`", hint="see `tables` in the settings, and the rights of the role")
    made = [await _created(connection, _create(name, [table for table in tables if table.identified]), name)]
    if keyless:
        second = _create(name + INSERTS_ONLY, keyless, "insert, truncate")
        made.append(await _created(connection, second, name + INSERTS_ONLY))
    return made


_LISTED: Final = 'SELECT schemaname AS schema, tablename AS "table" FROM pg_publication_tables WHERE pubname = ANY(%s)'


async def _complete(
    connection: psycopg.AsyncConnection[Any], settings: PostgresSource, publications: Sequence[str]
) -> None:
    """Raises `Fatal` where the publication lacks a table that the settings name; patterns take what there is."""
    listed = {f"{row.schema}.{row.table}" for row in await rows(connection, _LISTED, list(publications))}
    exact = [name for name in settings.tables if not _PATTERN.search(name)]
    missing = [name for name in exact if name not in listed]
    if missing:
        table = sql.Identifier(*missing[0].split(".", 1))
        add = sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(sql.Identifier(publications[0]), table)
        raise Fatal(f"publication {publications[0]} lacks {missing[0]}", hint=f"{_text(connection, add)};")


async def _created(connection: psycopg.AsyncConnection[Any], statement: sql.Composed, name: str) -> str:
    try:
        await connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege as error:
        hint = f"as the owner of the tables: {_text(connection, statement)};"
        raise Fatal(f"publication {name} cannot be created: {error.diag.message_primary}", hint=hint) from error
    return name


def _create(name: str, tables: Sequence[Candidate], publish: str = "") -> sql.Composed:
    options: list[sql.Composable] = [sql.SQL("publish_via_partition_root = true")]
    if publish:
        options.append(sql.SQL("publish = {}").format(sql.Literal(publish)))
    listed = sql.SQL(" FOR TABLE ") + sql.SQL(", ").join(table.name for table in tables) if tables else sql.SQL("")
    create = sql.SQL("CREATE PUBLICATION {}").format(sql.Identifier(name))
    return create + listed + sql.SQL(" WITH ({})").format(sql.SQL(", ").join(options))


def _text(connection: psycopg.AsyncConnection[Any], statement: sql.Composable) -> str:
    return statement.as_string(connection)


def _no_identity(connection: psycopg.AsyncConnection[Any], tables: Sequence[Candidate]) -> Fatal:
    names = [_text(connection, table.name) for table in tables]
    mends = " ".join(f"ALTER TABLE {name} REPLICA IDENTITY FULL;" for name in names)
    return Fatal(
        f"publishing {', '.join(names)} would make the application's updates fail: no primary key or replica identity",
        hint=f'{mends} or set keyless = "insert-only", or leave them out of `tables`',
    )
