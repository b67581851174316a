"""What the tests of the Postgres source share: running it, and rebuilding tables from its events."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from headrace.event import Event
from headrace.sources.postgres import PostgresSource
from headrace.testing import MemoryCapture, RecordingLog, make_context
from headrace.testing.leaks import cancelled, eventually
from tests.fixtures.postgres import Database, wait_for


def settings(database: Database, **options: Any) -> PostgresSource:
    given = {"type": "postgres", "dsn": database.dsn, "snapshot": "never", "slot": database.name, **options}
    return PostgresSource.model_validate(given)


@asynccontextmanager
async def running(
    source: PostgresSource, tmp_path: Path, capture: MemoryCapture, log: RecordingLog | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """The source at work, once it streams."""
    log = log or RecordingLog()
    context = make_context(tmp_path, log=log)
    async with source.open(context) as opened, asyncio.TaskGroup() as group:
        task = group.create_task(opened.run(capture), name="the source")
        await eventually(lambda: task.done() or any(event == "streaming" for _, event, _ in log.records), "it streams")
        try:
            yield task
        finally:
            if not task.done():
                await cancelled(task)


class Stall:
    """Commits that wait for a standby that is not there: the stream has them, other sessions do not see them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._threads: list[threading.Thread] = []

    def begin(self) -> None:
        """From its return on all commits wait; the server notices the setting a moment after it was told."""
        self._told("missing")
        wait_for(self._probed)

    def _probed(self) -> bool:
        """Whether commits wait; one that wrote nothing never does."""
        self._start("CREATE TEMP TABLE probe (a int)")
        time.sleep(0.05)
        return bool(self._waiting())

    def commit(self, statement: str) -> None:
        """Returns once its commit waits."""
        self._start(statement)
        wait_for(lambda: statement in self._waiting())

    def end(self) -> None:
        """Returns once all of them are committed."""
        self._told("")
        for thread in self._threads:
            thread.join()

    def _told(self, name: str) -> None:
        self._database.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'", "SELECT pg_reload_conf()")

    def _start(self, statement: str) -> None:
        self._threads.append(threading.Thread(target=self._database.execute, args=(statement,)))
        self._threads[-1].start()

    def _waiting(self) -> list[str]:
        query = f"SELECT query FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = '{self._database.name}'"
        return [text for (text,) in self._database.execute(query)]


async def until(capture: MemoryCapture, condition: Callable[[list[Event]], bool], what: str = "the events") -> None:
    await eventually(lambda: condition(capture.events), what, 30)


def capture(
    database: Database, tmp_path: Path, *statements: str, count: int, before: Iterable[str] = (), **options: Any
) -> list[Event]:
    """The events of statements that are run while the source streams."""

    async def main() -> list[Event]:
        found = MemoryCapture()
        database.execute(*before)
        async with running(settings(database, **options), tmp_path, found):
            await asyncio.to_thread(database.execute, *statements)
            await until(found, lambda events: len(events) >= count, f"{count} events")
        return found.events

    return asyncio.run(main())
