"""The embedded engine's file: how it is opened, what is set and read back, and its formats."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from headrace.errors import Fatal, JournalFailed
from headrace.failpoints import reach

APPLICATION_ID: Final = 0x48524A31  # "HRJ1"
# A commit of one event and its cursor writes 18 KB in pages of this size and 55 KB in pages of 16 KiB, equally fast;
# full blocks are appended a fifth slower, still far beyond what any source delivers (measured).
PAGE_SIZE: Final = 4_096
# 4 MiB between checkpoints, which all that is to be committed waits for: while a backlog drained at full rate, 16 MiB
# made one of a hundred other events 90 ms late, 4 MiB 21 ms, and the backlog no slower (measured). On a full disk the
# reserve must hold what the log still has to bring to the file: no more than this and what was free when a checkpoint
# first failed for want of as much.
WAL_PAGES: Final = 1_024
WAL_LIMIT: Final = 64 << 20
BUSY: Final = 1.0  # seconds to wait for a stranger with a lock on the file

STEPS: Final = (
    """
    CREATE TABLE block (
        first INTEGER PRIMARY KEY,
        count INTEGER NOT NULL,
        appended REAL NOT NULL,
        head BLOB NOT NULL,
        idx BLOB NOT NULL,
        body BLOB NOT NULL
    );
    CREATE TABLE state (
        space TEXT NOT NULL,
        key BLOB NOT NULL,
        value BLOB NOT NULL,
        secondary BLOB,
        PRIMARY KEY (space, key)
    ) WITHOUT ROWID;
    CREATE INDEX state_secondary ON state (space, secondary) WHERE secondary IS NOT NULL;
    CREATE TABLE head (position INTEGER NOT NULL);
    INSERT INTO head VALUES (0);
    """,
    """
    CREATE TABLE gap (
        first INTEGER PRIMARY KEY,
        count INTEGER NOT NULL,
        skipped REAL NOT NULL,
        reason TEXT NOT NULL
    );
    """,
)
"""Step N brings a file of format N to format N + 1; a new file takes them all."""

RESTORE: Final = (
    "stop the daemon, keep the damaged file aside, put the newest `headrace journal backup` in its place and start; "
    "sources then catch up from their origins as far as these reach"
)


def open_writer(path: Path) -> sqlite3.Connection:
    """The one connection that writes and checkpoints; everything recovered is durable when it is returned.

    Raises `Fatal` for a file of a newer format, one that is not a journal, and one that is damaged.
    """
    try:
        return _open_writer(path)
    except sqlite3.DatabaseError as error:
        raise damaged(path, error) from error


def _open_writer(path: Path) -> sqlite3.Connection:
    fresh = not path.exists() or not path.stat().st_size  # empty: killed before its first page was written
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY)
    try:
        _prepare(db, path, fresh=fresh)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path, *, fresh: bool) -> None:
    if fresh:
        db.execute(f"PRAGMA page_size={PAGE_SIZE}")
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
    _refuse_strangers(db, path)
    _set(db, "journal_mode", "wal")
    _set(db, "auto_vacuum", 2)
    _set(db, "synchronous", 2)
    _set(db, "secure_delete", 0)
    _set(db, "wal_autocheckpoint", WAL_PAGES)
    _set(db, "journal_size_limit", WAL_LIMIT)
    _set(db, "mmap_size", 0)
    _set(db, "cache_size", -4_096)
    # Recovery itself syncs nothing: what the last run wrote may be in the page cache only, until this has succeeded.
    reach("journal.before-recovery")
    busy, *_ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise Fatal(f"{path}: another process uses the journal", hint="stop it; a journal has one user")
    _upgrade(db)


def _set(db: sqlite3.Connection, name: str, value: int | str) -> None:
    """Set a pragma and read it back: SQLite ignores what it does not like, and some builds override."""
    db.execute(f"PRAGMA {name}={value}")
    row = db.execute(f"PRAGMA {name}").fetchone()
    if row is not None and row[0] != value:
        raise Fatal(f"SQLite {sqlite3.sqlite_version} refused {name}={value} and has {row[0]}")


def _refuse_strangers(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and tables:
        raise Fatal(f"{path} is not a Headrace journal", hint="set [daemon] data_dir to another folder")
    if version > len(STEPS):
        raise Fatal(
            f"{path} has journal format {version}; this program knows formats up to {len(STEPS)}",
            hint="run the newer version of Headrace that wrote it",
        )


def _upgrade(db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    for number, step in enumerate(STEPS[version:], start=version + 1):
        db.executescript(
            f"BEGIN IMMEDIATE; {step} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={number}; COMMIT;"
        )
        reach("journal.after-upgrade")


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that can only read."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA query_only=1")
    db.execute("PRAGMA mmap_size=0")
    db.execute("PRAGMA cache_size=-2048")
    return db


def attach(db: sqlite3.Connection) -> None:
    """Hold the file open as a user of its log, so that closing the writer is no reason for SQLite to checkpoint."""
    db.execute("SELECT position FROM head").fetchone()


_MEANING: Final = {
    sqlite3.SQLITE_FULL: ("the disk is full", "free space on its file system, then start again"),
    sqlite3.SQLITE_READONLY: ("it is not writable", "give the daemon's user write access to the file and its folder"),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "give the daemon's user access to the file and its folder"),
    sqlite3.SQLITE_IOERR: (
        "its disk failed",
        "look at the disk and the kernel's log, then start again: all that was acknowledged is recovered at start",
    ),
    sqlite3.SQLITE_BUSY: ("another process uses it", "stop that one; a journal has one user"),
}


def error_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code: https://sqlite.org/rescode.html."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def disk_full(error: sqlite3.Error) -> bool:
    """Also where the index of the log cannot grow, which lives beside the file."""
    shared_memory = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE
    return shared_memory or error_code(error) == sqlite3.SQLITE_FULL


def damaged(path: Path, error: sqlite3.Error) -> JournalFailed:
    """What a failing database means, and the way out."""
    why, hint = _MEANING.get(error_code(error), (str(error), RESTORE))
    return JournalFailed(f"the journal {path} cannot be used: {why}", hint=hint)
