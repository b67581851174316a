"""The publication: created where it is missing, never so that it breaks the application's writes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
_MADE: Final = "made by Headrace, which adds the tables that its settings name"
INSERTS_ONLY: Final = "_inserts"  # what the name of the second publication ends in


_PATTERN: Final = re.compile(r"[*?\[]")


class Candidate(NamedTuple):
    """A table, and whether its updates and deletes could be captured."""

    schema: str
    table: str
    identified: bool

    @property
    def shown(self) -> str:
        return f"{self.schema}.{self.table}"

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
    there = {row.pubname for row in found}
    return [name for name in names if name in there]


async def ensure(connection: psycopg.AsyncConnection[Any], settings: PostgresSource, name: str) -> list[str]:
    """The publications to stream, created where they are missing. Raises `Fatal` with the SQL that mends it."""
    wanted = [name, name + INSERTS_ONLY]
    found = await existing(connection, wanted)
    tables = await candidates(connection, settings)
    keyless = [table for table in tables if not table.identified]
    if name in found:
        if keyless and settings.keyless == "insert-only" and name + INSERTS_ONLY not in found:
            found += await _second(connection, settings, name, keyless)
        await extend(connection, settings, found)
        await _complete(connection, settings, found)
        return found
    if keyless and settings.keyless == "refuse":
        raise _no_identity(connection, keyless)
    if not settings.create:
        raise Fatal(f"publication {name} is not there", hint=_text(connection, _create(name, tables)))
    if not tables:
        raise Fatal("no table matches `tables`", hint="see `tables` in the settings, and the rights of the role")
    made = [await _created(connection, _create(name, [table for table in tables if table.identified]), name)]
    if keyless:
        made.append(await _created(connection, *_inserts(name, keyless)))
    return made


def _inserts(name: str, keyless: Sequence[Candidate]) -> tuple[sql.Composed, str]:
    return _create(name + INSERTS_ONLY, keyless, "insert, truncate"), name + INSERTS_ONLY


async def _second(
    connection: psycopg.AsyncConnection[Any], settings: PostgresSource, name: str, keyless: Sequence[Candidate]
) -> list[str]:
    """The publication of keyless tables, where the first one is ours and lists none of them yet."""
    listed = await _listed(connection, [name])
    new = [table for table in keyless if table.shown not in listed]
    if not new or not settings.create or not await _ours(connection, name):
        return []
    return [await _created(connection, *_inserts(name, new))]


class Extended(NamedTuple):
    """Tables that were added to the publications, and others with what the operator may do to have them added."""

    added: Sequence[str]
    refused: Mapping[str, str]


async def extend(
    connection: psycopg.AsyncConnection[Any], settings: PostgresSource, publications: Sequence[str]
) -> Extended:
    """Add what the settings choose and is not published yet; only where the publication was made by Headrace."""
    added: list[str] = []
    refused: dict[str, str] = {}
    if settings.create and await _ours(connection, publications[0]):
        listed = await _listed(connection, publications)
        for table in await candidates(connection, settings):
            if table.shown not in listed:
                remedy = await _added(connection, table, publications)
                if remedy:
                    refused[table.shown] = remedy
                else:
                    added.append(table.shown)
    return Extended(added, refused)


async def _added(connection: psycopg.AsyncConnection[Any], table: Candidate, publications: Sequence[str]) -> str | None:
    """What mends it, where it was not added."""
    if not table.identified and len(publications) < 2:
        name = _text(connection, table.name)
        return f'ALTER TABLE {name} REPLICA IDENTITY FULL; or set keyless = "insert-only" and restart'
    publication = sql.Identifier(publications[0 if table.identified else 1])
    add = sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(publication, table.name)
    try:
        with suppress(psycopg.errors.DuplicateObject):  # somebody has just done it
            await connection.execute(add)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable):
        return f"as the table's owner: {_text(connection, add)};"
    return None


async def _ours(connection: psycopg.AsyncConnection[Any], publication: str) -> bool:
    query = "SELECT obj_description(oid, 'pg_publication') = %s AS ours FROM pg_publication WHERE pubname = %s"
    return any(row.ours for row in await rows(connection, query, _MADE, publication))


async def _listed(connection: psycopg.AsyncConnection[Any], publications: Sequence[str]) -> set[str]:
    return {f"{row.schema}.{row.table}" for row in await rows(connection, _LISTED, list(publications))}


_LISTED: Final = 'SELECT schemaname AS schema, tablename AS "table" FROM pg_publication_tables WHERE pubname = ANY(%s)'


async def _complete(
    connection: psycopg.AsyncConnection[Any], settings: PostgresSource, publications: Sequence[str]
) -> None:
    """Raises `Fatal` where the publication lacks a table that the settings name; patterns take what there is."""
    listed = await _listed(connection, publications)
    exact = [name for name in settings.tables if not _PATTERN.search(name)]
    missing = [name for name in exact if name not in listed]
    for candidate in await candidates(connection, settings) if missing else ():
        if candidate.shown in missing and not candidate.identified:  # to add it would break the application
            raise _no_identity(connection, [candidate])
    if missing:
        table = sql.Identifier(*missing[0].split(".", 1))
        add = sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(sql.Identifier(publications[0]), table)
        raise Fatal(f"publication {publications[0]} lacks {missing[0]}", hint=f"{_text(connection, add)};")


async def _created(connection: psycopg.AsyncConnection[Any], statement: sql.Composed, name: str) -> str:
    about = sql.SQL("COMMENT ON PUBLICATION {} IS {}").format(sql.Identifier(name), sql.Literal(_MADE))
    try:
        async with connection.transaction():
            await connection.execute(statement)
            await connection.execute(about)
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
