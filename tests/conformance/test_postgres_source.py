"""The Postgres source keeps what every source must."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.settings import SourceSettings
from headrace.sources.postgres import PostgresSource
from headrace.testing import SourceConformance
from tests.fixtures.postgres import Database, Server, Servers, database, newest_postgres, postgres, postgres_servers

__all__ = ["database", "newest_postgres", "postgres", "postgres_servers"]


@pytest.mark.postgres
class TestPostgresSource(SourceConformance):
    """One table, in a database of its own for each test, a slot for each folder."""

    server: Server
    database: Database

    @pytest.fixture(autouse=True)
    def _database(self, postgres_servers: Servers, newest_postgres: Server) -> Iterator[None]:
        with newest_postgres.database() as made:
            self.database = made
            made.execute("CREATE PUBLICATION p FOR ALL TABLES")
            yield

    def settings(self, tmp_path: Path) -> SourceSettings:
        slot = f"{self.database.name}_{tmp_path.name}"[-60:].lower().replace("-", "_")
        given = {"type": "postgres", "dsn": self.database.dsn, "snapshot": "never", "slot": slot, "publication": "p"}
        return PostgresSource.model_validate(given)

    def change(self, tmp_path: Path, number: int) -> str:
        table = self._table(tmp_path, number)
        self.database.execute(f"CREATE TABLE {table} (a int PRIMARY KEY, n int)", f"INSERT INTO {table} VALUES (1)")
        return f"public.{table}"

    def change_again(self, tmp_path: Path, number: int) -> None:
        self.database.execute(f"UPDATE {self._table(tmp_path, number)} SET n = 1")

    @staticmethod
    def _table(tmp_path: Path, number: int) -> str:
        folder = "".join(it for it in tmp_path.name if it.isalnum())
        return f"t_{folder[-40:].lower()}_{number}"

    @contextmanager
    def outage(self, tmp_path: Path) -> Iterator[None]:
        self.database.server.stop(signal.SIGQUIT)
        try:
            yield
        finally:
            self.database.server.start()
