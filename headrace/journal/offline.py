"""Looking after a journal while no daemon runs. Each function claims the data directory for its duration."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from headrace.errors import Permanent
from headrace.journal.block import CorruptBlock
from headrace.journal.place import claim
from headrace.journal.repair import Repair, finish, prepared
from headrace.journal.schema import damaged, open_writer
from headrace.journal.sqlite import FILE


@contextmanager
def opened(data_dir: Path) -> Iterator[Repair]:
    """The journal of a directory that no daemon uses, opened as the daemon would open it.

    Raises `Permanent` where there is none, `Fatal` where a daemon has it or it cannot be used.
    """
    path = data_dir / FILE
    if not path.exists():
        raise Permanent(f"{data_dir} holds no journal", hint="see [daemon] data_dir in the settings")
    with claim(data_dir), closing(open_writer(path)) as db:
        try:
            yield Repair(db)
        except sqlite3.DatabaseError as error:
            raise damaged(path, error) from error


def verify(data_dir: Path) -> Iterator[CorruptBlock]:
    """Every damaged block, in order; the directory is claimed until the iterator is used up or closed."""
    with opened(data_dir) as repair:
        after, more = -1, True
        while more:
            found, after, more = repair.verify(after)
            yield from found


def skip(data_dir: Path, first: int, reason: str) -> int:
    """Take the block at `first` out and record the gap; returns how many events it held."""
    with opened(data_dir) as repair:
        return repair.skip(first, reason)


def gaps(data_dir: Path) -> list[tuple[int, int, float, str]]:
    """Recorded gaps: first position, count of events, time of skipping, reason."""
    with opened(data_dir) as repair:
        return repair.gaps()


def backup(data_dir: Path, target: Path) -> None:
    """A consistent copy; the target appears only when it is complete."""
    with opened(data_dir) as repair, prepared(target) as partial:
        repair.copy(partial, lambda: None)
        finish(partial, target)
