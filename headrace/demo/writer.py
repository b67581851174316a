"""What changes the demo's folder: files are created, modified, renamed, moved out and deleted, a few each second."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path


class Writer:
    """Changes one thing per `step`, and keeps when each path was last changed (seconds since 1970)."""

    def __init__(self, inbox: Path, outside: Path) -> None:
        self._inbox = inbox
        self._outside = outside
        self._steps = self._story()
        self.changed: dict[str, float] = {}
        self.count = 0

    def step(self) -> None:
        """Do the next change."""
        now = time.time()  # before: the handler may be faster than this process
        self.changed[next(self._steps)] = now
        self.count += 1

    def _story(self) -> Iterator[str]:
        yield self._folder("notes")
        yield self._folder("done")
        number = 0
        while True:
            number += 1
            note, done = f"notes/{number}.txt", f"done/{number}.txt"
            yield self._write(note, "w", f"note {number}\n")
            yield self._write(note, "a", "one more line\n")
            yield self._write(f"notes/{number}-draft.txt", "w", "draft\n")
            yield self._rename(note, done)
            yield self._delete(f"notes/{number}-draft.txt")
            if number % 3 == 0:
                yield self._leave(done)

    def _folder(self, path: str) -> str:
        (self._inbox / path).mkdir()
        return path

    def _write(self, path: str, mode: str, text: str) -> str:
        with (self._inbox / path).open(mode) as file:
            file.write(text)
        return path

    def _rename(self, old: str, new: str) -> str:
        os.rename(self._inbox / old, self._inbox / new)
        return new

    def _delete(self, path: str) -> str:
        (self._inbox / path).unlink()
        return path

    def _leave(self, path: str) -> str:
        self._outside.mkdir(exist_ok=True)
        os.rename(self._inbox / path, self._outside / Path(path).name)
        return path
