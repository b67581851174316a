"""What the tests of the embedded engine share."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from headrace.journal.space import Limits
from headrace.journal.sqlite import SqliteJournal, open_journal
from headrace.protocols import Change
from headrace.testing.fakes import RecordingLog
from headrace.testing.journal import make_block

WEEK = 604_800.0


@asynccontextmanager
async def journal_in(
    folder: Path, *, max_size: int = 1 << 30, retention: float = WEEK, log: RecordingLog | None = None
) -> AsyncIterator[SqliteJournal]:
    limits = Limits(retention, max_size)
    async with asyncio.timeout(60), open_journal(folder, limits, log or RecordingLog(), reserve=1 << 20) as journal:
        journal.begin_retention()
        yield journal


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def noise(number: int, size: int = 50_000) -> Change:
    """An intake of one event that does not compress."""
    return Change([make_block("a", [f"{number}:{os.urandom(size // 2).hex()}"])], intake=True)


def numbers(ids: list[str]) -> list[int]:
    return [int(one.partition(":")[0]) for one in ids]


def execute(path: Path, statement: str, *values: object) -> list[Any]:
    """On the closed file, as nobody else may."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        return db.execute(statement, values).fetchall()


def failed_log(log: RecordingLog, event: str) -> list[dict[str, Any]]:
    return [fields for _, name, fields in log.records if name == event]
