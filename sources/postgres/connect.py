"""Connections: for replication, for the catalogue, and what the server says of itself."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import namedtuple_row

from headrace.errors import Fatal
from headrace.protocols import Context
from headrace.settings import Secret
from headrace.sources.postgres.failures import explained
from headrace.sources.postgres.protocol import lsn_number
from headrace.sources.postgres.settings import PostgresSource
from headrace.sources.postgres.types import SETTINGS

OLDEST: Final = 14
STANDBYS: Final = 16  # the first version whose standbys decode
TIMEOUT: Final = 10  # seconds to connect, and for a look at the catalogue

PRIMARY_KEY: Final = """
SELECT a.attname FROM pg_index i
CROSS JOIN LATERAL unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k(attnum, place)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = %s AND i.indisprimary ORDER BY k.place
"""


class System(NamedTuple):
    """What `IDENTIFY_SYSTEM` answers."""

    system: str
    timeline: int
    position: int
    database: str


class Connections:
    """Opens connections as the settings say."""

    def __init__(self, settings: PostgresSource, context: Context) -> None:
        self._settings = settings
        self._name = context.name

    def conninfo(self, dsn: Secret | None = None) -> str:
        """With what the settings give apart from the DSN."""
        given = (dsn or self._settings.dsn).get_secret_value()
        more: dict[str, Any] = {"application_name": f"headrace_{self._name}"}
        if self._settings.password is not None:
            more["password"] = self._settings.password.get_secret_value()
        known = conninfo_to_dict(given)
        if "connect_timeout" not in known:
            more["connect_timeout"] = TIMEOUT
        return make_conninfo(given, **more)

    @property
    def has_primary(self) -> bool:
        return self._settings.primary_dsn is not None

    @property
    def user(self) -> str:
        return str(conninfo_to_dict(self._settings.dsn.get_secret_value()).get("user") or "ROLE")

    @asynccontextmanager
    async def open(
        self, *, replication: bool = False, primary: bool = False
    ) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A connection in autocommit whose texts are those that `types` expects."""
        conninfo = self.conninfo(self._settings.primary_dsn if primary else None)
        options: dict[str, Any] = {"replication": "database"} if replication else {}
        with explained(self.user):
            connection = await _connected(conninfo, options)
            try:
                for name, value in SETTINGS.items():
                    await connection.execute(sql.SQL("SET {} TO {}").format(sql.Identifier(name), sql.Literal(value)))
                yield connection
            finally:
                await connection.close()

    def primary_key(self, oid: int) -> Sequence[str]:
        """The columns of a primary key, for a table whose rows do not tell. Blocks: only for a process of its own."""
        with explained(self.user), psycopg.connect(self.conninfo(), autocommit=True) as connection:
            return [name for (name,) in connection.execute(PRIMARY_KEY, (oid,))]


async def _connected(conninfo: str, options: dict[str, Any]) -> psycopg.AsyncConnection[Any]:
    try:
        return await psycopg.AsyncConnection.connect(conninfo, autocommit=True, **options)
    except asyncio.CancelledError as error:
        # The half-made connection hangs on the frames of the traceback: it would stay open until they are collected.
        traceback.clear_frames(error.__traceback__)
        raise


async def identify(replication: psycopg.AsyncConnection[Any]) -> System:
    """The server behind a replication connection."""
    row = await (await replication.execute("IDENTIFY_SYSTEM")).fetchone()
    if row is None:
        raise Fatal("Postgres: IDENTIFY_SYSTEM gave nothing")
    return System(row[0], int(row[1]), lsn_number(row[2]), row[3])


async def forks(replication: psycopg.AsyncConnection[Any], timeline: int) -> dict[int, int]:
    """Where each earlier timeline ended on the way to this one."""
    if timeline == 1:
        return {}
    row = await (await replication.execute(sql.SQL("TIMELINE_HISTORY {}").format(sql.Literal(timeline)))).fetchone()
    text = row[1] if row else ""
    history = text.decode() if isinstance(text, bytes) else text
    lines = (line.split("\t") for line in history.splitlines() if line[:1].isdigit())
    return {int(number): lsn_number(lsn) for number, lsn, *_ in lines}


async def rows(connection: psycopg.AsyncConnection[Any], query: str, *arguments: Any) -> list[Any]:
    """The rows of a query, with their columns by name."""
    async with connection.cursor(row_factory=namedtuple_row) as cursor:
        await cursor.execute(query.encode(), arguments)
        return await cursor.fetchall()
