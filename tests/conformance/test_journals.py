"""Both engines keep what every journal must keep."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from headrace.journal.memory import MemoryJournal
from headrace.journal.space import Limits
from headrace.journal.sqlite import open_journal
from headrace.testing.fakes import RecordingLog
from headrace.testing.journal import Engine, JournalConformance

LIMITS = Limits(retention=604_800.0, max_size=1 << 30)


class TestSqlite(JournalConformance):
    """The embedded engine."""

    @asynccontextmanager
    async def open(self, tmp_path: Path) -> AsyncIterator[Engine]:
        async with open_journal(tmp_path, LIMITS, RecordingLog(), reserve=1 << 20) as journal:
            journal.begin_retention()
            yield journal


class TestMemory(JournalConformance):
    """The engine for tests."""

    @asynccontextmanager
    async def open(self, tmp_path: Path) -> AsyncIterator[Engine]:
        yield MemoryJournal(shards=3)
