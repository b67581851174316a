"""The file of a file sink and those rotated from it, on disk: every call blocks.

The current segment is PATH; a rotated one is PATH.NUMBER, and numbers only grow. A `Mark` names a segment by its inode
and says how long it was. The mark that the engine committed decides at the next start: its segment is cut to its
length and stands at PATH again, and segments begun after it are removed, because all their lines come again. So no
step of a rotation needs to be undone by whoever comes after a crash: each leaves the committed segment at PATH or at
one number, whole.

Only the very first commit has no mark before it. A *note* beside the file, `.NAME.first`, holds where the sink began.
It is believed only if the first line to be delivered is the one that stands there: `consumer forget` also leads to a
start without a mark, and what was written before it must stay.

Removal of old segments (`keep`) waits until the mark of a later segment was committed, hence the `safe` below.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from zlib import crc32

from headrace.errors import Fatal, Transient
from headrace.failpoints import reach
from headrace.protocols import Logger
from headrace.sinks.file_mark import VERSION, Mark, failure, unpack

_NUMBER: Final = re.compile(r"[0-9]{6}|[1-9][0-9]{6,}")
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC


class Segments:
    """The current file, open for appending, its mark, and the numbers of the rotated ones."""

    def __init__(self, path: Path, name: str, log: Logger) -> None:
        """Only one thread at a time may call, but for `sync` beside `write`."""
        self.path = path
        self._log = log
        self._hint = (
            f"restore the file as it was, or give up what it held beyond: "
            f"`headrace consumer forget {name}` starts anew after its end"
        )
        self._note_path = path.with_name(f".{path.name}.first")
        self._fd = -1
        self.mark = Mark(VERSION, 0, 0, 0, 1, 0.0)
        self.unproven: Mark | None = None

    def open(self, state: bytes | None, now: float) -> None:
        """Stand where the last commit stood. Raises `Fatal` where the file is not what was committed.

        `now` counts as the time of the first line of a file that was there before.
        """
        with self.explained():
            self._open(state, now)

    def _open(self, state: bytes | None, now: float) -> None:
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if state is not None:
            self._restore(unpack(state))
            self.drop_note()
            return
        self._take(os.open(self._regular(self.path), _FLAGS | os.O_CREAT, 0o640), now)
        self.unproven = self._read_note()
        if self.unproven is None:
            self._adopt(now)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Errors of the system inside are raised as what they mean for the consumer."""
        try:
            yield
        except OSError as error:
            raise failure(self.path, error) from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # --- starting -------------------------------------------------------------------------------

    def _regular(self, path: Path) -> Path:
        if path.exists() and not path.is_file():
            raise Fatal(
                f"{path} is not a regular file",
                hint='choose another path; `type = "stdout"` writes to the terminal or a pipe',
            )
        return path

    def _take(self, fd: int, now: float) -> None:
        """The open file is the current segment from now on."""
        self.close()
        self._fd = fd
        self._lock()
        there = os.fstat(fd)
        place = (there.st_dev, there.st_ino, there.st_size)
        self.mark = Mark(VERSION, *place, self._next_number(), now)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Not for ever: the lock of a killed daemon was once seen to outlive it by a moment.
            raise Transient(
                f"{self.path} is being written by another sink or daemon",
                hint="give each sink a file of its own",
            ) from None

    def _adopt(self, now: float) -> None:
        """Go on after whatever is there; a last line without its end gets one."""
        if self.mark.length and self._bytes(self.path, self.mark.length - 1, 1) != b"\n":
            self.write(b"\n")
            self._log.warning("file had no newline at its end", path=str(self.path))
            self.accept(b"\n", now)
        self._write_note()

    def settle(self, first: bytes, now: float) -> None:
        """Cut off what a first run wrote that ended before its first commit, now that its first line came again."""
        note, self.unproven = self.unproven, None
        found = self._find(note) if note else None
        written = self._bytes(found, note.length, len(first)) if note and found else b""
        if note and written and first.startswith(written):
            self._restore(note)
        else:
            self._adopt(now)

    def _read_note(self) -> Mark | None:
        try:
            return unpack(self._note_path.read_bytes())
        except (FileNotFoundError, Fatal):
            return None

    def _write_note(self) -> None:
        fd = os.open(self._note_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            os.write(fd, self.mark.packed())
            os.fsync(fd)
        finally:
            os.close(fd)
        self._sync_folder()
        reach("file.after-note")

    def drop_note(self) -> None:
        self._note_path.unlink(missing_ok=True)

    # --- after a crash --------------------------------------------------------------------------

    def _restore(self, mark: Mark) -> None:
        """Make the marked segment the current one, at its length. May be killed anywhere and run again."""
        found = self._find(mark) or self._refuse_missing(mark)
        self._take(os.open(found, _FLAGS), mark.started)
        self._verify(found, mark)
        excess = os.stat(found).st_size - mark.length
        if excess:
            os.ftruncate(self._fd, mark.length)
            self._log.info("cut off uncommitted lines", path=str(found), bytes=excess)
            reach("file.restore-after-truncate")
        if found != self.path:
            self._put_back(found)
        self.mark = mark

    def _put_back(self, found: Path) -> None:
        numbers = self.rotated()
        own = next(number for number, path in numbers.items() if path == found)
        for number in sorted(numbers, reverse=True):
            if number > own:
                numbers[number].unlink()
                reach("file.restore-after-remove")
        self._sync_folder()
        os.replace(found, self.path)
        reach("file.restore-after-rename")
        self._sync_folder()
        self._log.info("undid an uncommitted rotation", path=str(self.path))

    def _find(self, mark: Mark) -> Path | None:
        for path in (self.path, *self.rotated().values()):
            if path.is_file() and os.stat(path).st_ino == mark.inode:
                return path
        return None

    def _refuse_missing(self, mark: Mark) -> Path:
        expected = f"the file with inode {mark.inode} and at least {mark.length} bytes"
        if not self.path.exists():
            raise Fatal(f"{self.path} is gone; expected {expected}", hint=self._hint)
        found = os.stat(self.path)
        there = f"inode {found.st_ino} with {found.st_size} bytes"
        raise Fatal(f"{self.path} was replaced: expected {expected}, found {there}", hint=self._hint)

    def _verify(self, found: Path, mark: Mark) -> None:
        size = os.stat(found).st_size
        if size < mark.length:
            said = f"{found} was truncated: expected at least {mark.length} bytes, found {size}"
            raise Fatal(said, hint=self._hint)
        if crc32(self._bytes(found, mark.length - mark.tail, mark.tail)) != mark.check:
            said = f"{found} was changed: the line before byte {mark.length} is not the delivered"
            raise Fatal(said, hint=self._hint)

    @staticmethod
    def _bytes(path: Path, start: int, count: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(count)

    # --- writing --------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Append all of it or nothing; the mark stays until `accept`."""
        reach("file.before-write")
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.undo()
            raise failure(self.path, error) from error
        reach("file.after-write")

    def undo(self) -> None:
        """Take back what was appended beyond the mark."""
        try:
            os.ftruncate(self._fd, self.mark.length)
        except OSError as error:
            raise Fatal(f"{self.path}: a partial line stays: {error.strerror}") from error

    def accept(self, data: bytes, now: float) -> Mark:
        """`data` counts as delivered."""
        self.mark = self.mark.after(data, now)
        return self.mark

    def sync(self, mark: Mark) -> None:
        """Everything up to `mark` is durable on return, in the file at PATH. Raises `Fatal`."""
        reach("file.before-flush")
        self._sync(mark)
        reach("file.after-flush")

    def _sync(self, mark: Mark) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:  # the kernel has dropped the pages: no second try can succeed
            raise Fatal(
                f"{self.path}: not durable: {error.strerror}",
                hint="see to the disk, then start again: undurable lines are delivered again",
            ) from error
        self._require_in_place(mark)

    def _require_in_place(self, mark: Mark) -> None:
        try:
            there = os.stat(self.path)
        except OSError as error:
            raise Fatal(
                f"{self.path} was removed or renamed while it was written: {error.strerror}",
                hint=f"`rotate` replaces logrotate; {self._hint}",
            ) from error
        if there.st_ino != mark.inode or there.st_size < mark.length:
            raise Fatal(
                f"{self.path} was replaced or truncated while it was written",
                hint=f"`rotate` replaces logrotate; {self._hint}",
            )

    # --- rotating -------------------------------------------------------------------------------

    def rotate(self) -> None:
        """Move the current file to its number and begin a new one. Raises `Transient` where it can be tried again."""
        self._sync(self.mark)
        mode = stat.S_IMODE(os.fstat(self._fd).st_mode)
        target = self._numbered(self._next_number())
        reach("file.rotate-before-rename")
        os.rename(self.path, target)
        reach("file.rotate-after-rename")
        self._create(mode, target)
        reach("file.rotate-after-create")
        self._sync_folder()
        reach("file.rotate-after-sync")

    def _create(self, mode: int, rotated: Path) -> None:
        try:
            fd = os.open(self.path, _FLAGS | os.O_CREAT | os.O_EXCL, mode)
        except OSError:
            os.rename(rotated, self.path)
            raise
        os.fchmod(fd, mode)
        self._take(fd, 0.0)

    def rotated(self) -> dict[int, Path]:
        """The rotated segments by number, oldest first."""
        prefix = f"{self.path.name}."
        names = [name for name in os.listdir(self.path.parent) if name.startswith(prefix)]
        ends = [name.removeprefix(prefix) for name in names]
        numbers = sorted(int(end) for end in ends if _NUMBER.fullmatch(end))
        return {number: self._numbered(number) for number in numbers}

    def prune(self, keep: int, safe: int) -> bool:
        """Remove the oldest beyond `keep`, but none from `safe` on; false while some of them must still wait."""
        excess = list(self.rotated().items())[:-keep]
        for number, path in excess:
            if number < safe:
                path.unlink(missing_ok=True)
                reach("file.prune-after-remove")
        return all(number < safe for number, _ in excess)

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number:06d}")

    def _next_number(self) -> int:
        return max(self.mark.number, 1 + max(self.rotated(), default=0))

    def _sync_folder(self) -> None:
        fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
