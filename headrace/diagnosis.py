"""What `doctor` finds around the daemon itself: SQLite, the data directory, the journal."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from headrace.journal.place import file_system, is_remote
from headrace.journal.schema import APPLICATION_ID, STEPS
from headrace.journal.sqlite import FILE
from headrace.protocols import Finding
from headrace.settings import Config

# https://sqlite.org/wal.html#walresetbug: two writers at once, which the data directory's lock keeps out.
FIXED: Final = (3, 51, 3)
OLDEST: Final = (3, 37, 0)
FREE: Final = 1 << 30  # bytes on the disk below which a warning comes


def diagnose(settings: Config) -> Iterator[Finding]:
    """Everything, the good as well; nothing is changed and no daemon is needed."""
    yield sqlite_version(sqlite3.sqlite_version_info)
    yield from data_dir(settings.data_dir)
    yield from journal(settings.data_dir / FILE)
    yield from unusable(settings)


def sqlite_version(version: tuple[int, ...]) -> Finding:
    """Whether the library that Python brings is new enough."""
    shown = ".".join(map(str, version))
    if version < OLDEST:
        return Finding("error", f"SQLite {shown} is too old", "use a Python that brings SQLite 3.37 or newer")
    if version < FIXED:
        what = f"SQLite {shown}: before 3.51.3 a second program that writes to the journal could corrupt it"
        return Finding("ok", f"{what}; the daemon keeps to one writer, so leave the file alone while it runs")
    return Finding("ok", f"SQLite {shown}")


def data_dir(folder: Path) -> Iterator[Finding]:
    """Rights, type of file system and room of the data directory, or of the folder in which it would be made."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding("error", f"{there} is not writable", "set [daemon] data_dir to a folder that this user may write")
    kind = file_system(there)
    if is_remote(kind):
        what = f"data directory {folder} is on a network file system ({kind}), where the journal is not safe"
        yield Finding("error", what, "set [daemon] data_dir to a local disk")
    elif kind == "tmpfs":
        yield Finding("warning", f"data directory {folder} is in memory (tmpfs): a restart of the machine loses it")
    else:
        yield Finding("ok", f"data directory {folder} is on {kind or 'a local disk'}")
    free = shutil.disk_usage(there).free
    if free < FREE:
        yield Finding("warning", f"{free >> 20} MiB are free for {folder}", "make room, or lower [journal] max_size")


def journal(path: Path) -> Iterator[Finding]:
    """Looked at without taking a lock: a daemon may be using it."""
    if not path.exists():
        yield Finding("ok", f"no journal yet at {path}")
        return
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            [application] = db.execute("PRAGMA application_id").fetchone()
            [version] = db.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        yield Finding("error", f"{path} cannot be read: {error}", "see `headrace journal verify`")
        return
    if application != APPLICATION_ID:
        yield Finding("error", f"{path} is no journal of Headrace", "set [daemon] data_dir to another folder")
    elif version > len(STEPS):
        yield Finding("error", f"{path} was written by a newer Headrace (format {version})", "install that version")
    else:
        yield Finding("ok", f"journal of format {version}, {path.stat().st_size >> 20} MiB")


def unusable(settings: Config) -> Iterator[Finding]:
    """What `check` says of consumers; sources tell of themselves."""
    for section in ("handlers", "sinks"):
        for name, each in getattr(settings, section).items():
            for key, message in each.problems(settings.directory).items():
                yield Finding("error", f"{section}.{name}.{key}: {message}")
