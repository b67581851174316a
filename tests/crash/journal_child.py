"""A process to be killed: it appends numbered events, and prints each number once it is acknowledged.

`journal_child.py append DIR [TOTAL]` appends on its own, several at once. `… serve DIR` keeps one process that forks an
appender for each line on its stdin (importing costs more than a round of the test) and prints its process id.
`… obey DIR` appends one event for each line on its stdin, and prints `ok N` or the error. `… tidy DIR` merges and
copies, `… drop DIR` deletes.
"""

import asyncio
import itertools
import os
import sys
import time
from collections import deque
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.journal.offline import backup
from headrace.journal.schema import open_writer
from headrace.journal.space import Limits
from headrace.journal.sqlite import FILE, SHARD, SqliteJournal, open_journal
from headrace.journal.upkeep import Upkeep, merge_small
from headrace.protocols import Change, Row
from headrace.testing.fakes import RecordingLog
from headrace.testing.journal import make_block

IN_FLIGHT = 5


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def numbered(number: int) -> Change:
    """Event and row tell the same number, so that a torn transaction shows."""
    return Change([make_block("a", [str(number)], size=number % 7 * 300)], [Row("a", b"last", b"%d" % number)])


def opened(folder: str) -> AbstractAsyncContextManager[SqliteJournal]:
    return open_journal(Path(folder), Limits(604_800.0, 1 << 30), RecordingLog(), reserve=1 << 20)


async def append(folder: str, total: int = sys.maxsize) -> None:
    async with opened(folder) as journal:
        start, flying = journal.head(SHARD), deque[tuple[int, asyncio.Future[None]]]()
        for number in itertools.count(start):
            flying.append((number, journal.submit(numbered(number))))
            if len(flying) > IN_FLIGHT:
                done, future = flying.popleft()
                await future
                say(str(done))
            if number - start >= total:
                break


async def obey(folder: str) -> None:
    async with opened(folder) as journal:
        say("ready")
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if line == "stop":
                break
            try:
                await journal.submit(numbered(journal.head(SHARD)))
                say(f"ok {journal.head(SHARD) - 1}")
            except HeadraceError as error:
                say(f"{type(error).__name__} {error}")


def serve(folder: str) -> None:
    for _ in sys.stdin:
        process = os.fork()
        if not process:
            asyncio.run(append(folder))
        say(f"pid {process}")
        os.waitpid(process, 0)
        say("dead")


def tidy(folder: Path) -> None:
    """Merge all that can be, and make a copy."""
    with closing(open_writer(folder / FILE)) as db:
        start, more = 0, True
        while more:
            start, more = merge_small(db, start, time.time() + 1_000)
    backup(folder, folder / "copy")


def drop(folder: Path) -> None:
    """Delete all but the last 50 events."""
    with closing(open_writer(folder / FILE)) as db:
        upkeep = Upkeep(db, Limits(-1_000.0, 1 << 30), RecordingLog())
        upkeep.holds = {("c", SHARD): upkeep.head - 50}
        upkeep.retaining = True
        while upkeep.round():
            pass


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["append", where]:
            asyncio.run(append(where))
        case ["append", where, count]:
            asyncio.run(append(where, int(count)))
        case ["obey", where]:
            asyncio.run(obey(where))
        case ["serve", where]:
            serve(where)
        case ["tidy", where]:
            tidy(Path(where))
        case ["drop", where]:
            drop(Path(where))
