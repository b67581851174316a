"""What can be asked of notifications: Postgres forgets those that nobody hears, so catching up cannot."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from unittest import SkipTest

import pytest

from headrace.settings import SourceSettings
from headrace.sources.postgres_notify import PostgresNotifySource
from headrace.testing import MemoryCapture, SourceConformance
from headrace.testing.leaks import eventually
from tests.fixtures.postgres import Database, Server, newest_postgres, postgres_servers

__all__ = ["newest_postgres", "postgres_servers"]

FORGOTTEN = "Postgres keeps no notification for later"


@pytest.mark.postgres
class TestPostgresNotifySource(SourceConformance):
    """One channel; a change is a notification."""

    one_event_each = False

    @pytest.fixture(autouse=True)
    def _server(self, newest_postgres: Server) -> Iterator[None]:
        with newest_postgres.database() as self._database:
            yield

    _database: Database

    def settings(self, tmp_path: Path) -> SourceSettings:
        settings = {"type": "postgres-notify", "dsn": self._database.dsn, "channels": ["jobs"]}
        return PostgresNotifySource.model_validate(settings)

    @asynccontextmanager
    async def running(self, tmp_path: Path, capture: MemoryCapture) -> AsyncIterator[None]:
        """Only what is sent while it listens can be captured: so wait until it does."""
        before = capture.appends
        async with super().running(tmp_path, capture):
            await eventually(lambda: capture.appends > before, "it listens")
            yield

    def change(self, tmp_path: Path, number: int) -> str:
        self._database.execute(f"NOTIFY jobs, '{number}'")
        return "jobs"

    def change_again(self, tmp_path: Path, number: int) -> None:
        self._database.execute(f"NOTIFY jobs, '{number} again'")

    @contextmanager
    def outage(self, tmp_path: Path) -> Iterator[None]:
        self._database.server.stop()
        yield
        self._database.server.start()

    def test_resumes_after_its_position(self, tmp_path: Path) -> None:
        raise SkipTest(FORGOTTEN)

    def test_a_crash_at_any_append_loses_and_repeats_nothing(self, tmp_path: Path) -> None:
        raise SkipTest(FORGOTTEN)
