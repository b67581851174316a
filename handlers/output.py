"""What user code prints, as bounded lines of the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from headrace.protocols import Logger

LINE_LIMIT: Final = 4_096
LINES_A_SECOND: Final = 1_000


class OutputLines:
    """One stream of a process. Lines are cut at `LINE_LIMIT` bytes, and beyond `LINES_A_SECOND` only counted.

    `event` tells whose output a line is; a line that starts with `mark` is no output and names it from then on.
    """

    def __init__(self, write: Callable[..., Any], event: Callable[[bytes], str | None], mark: bytes = b"") -> None:
        self._write = write
        self._event = event
        self._mark = mark
        self._name = b""
        self._tail = b""
        self._cut = 0
        self._window = time.monotonic()
        self._lines = 0
        self._dropped = 0
        self.last = ""

    def feed(self, data: bytes) -> None:
        if self._flooded():
            self._drop(data)
            return
        lines = (self._tail + data).split(b"\n")
        self._tail = lines.pop()
        for line in lines:
            self._line(line)
        if len(self._tail) > LINE_LIMIT:
            self._cut += len(self._tail) - LINE_LIMIT
            self._tail = self._tail[:LINE_LIMIT]

    def close(self) -> None:
        """What came without a newline is a line, too."""
        if self._tail or self._cut:
            self._line(self._tail)
        self._tail = b""
        self._report_dropped()

    def _line(self, line: bytes) -> None:
        if self._mark and self._mark in line:
            line, _, self._name = line.partition(self._mark)
            if not line:
                return
        cut = self._cut + max(0, len(line) - LINE_LIMIT)
        self._cut = 0
        text = line[:LINE_LIMIT].decode("utf-8", "replace").rstrip("\r")
        if cut:
            text += f"… ({cut} bytes more)"
        if text.strip():
            self.last = text.strip()
        self._log(text)

    def _log(self, text: str) -> None:
        self._lines += 1
        if self._lines > LINES_A_SECOND:
            self._dropped += 1
            return
        event = self._event(self._name)
        if event is None:
            self._write("output", line=text)
        else:
            self._write("output", line=text, event_id=event)

    def _flooded(self) -> bool:
        now = time.monotonic()
        if now - self._window >= 1:
            self._window = now
            self._report_dropped()
            self._lines = 0
        return self._lines >= LINES_A_SECOND

    def _drop(self, data: bytes) -> None:
        """Count without splitting: a flood of short lines must not hold the loop."""
        self._dropped += data.count(b"\n") - (data.count(self._mark) if self._mark else 0)
        _, newline, tail = data.rpartition(b"\n")
        if not newline:
            self._cut += len(tail)
            return
        if self._mark and (found := data.rfind(self._mark)) >= 0:
            self._name = data[found + len(self._mark) :].partition(b"\n")[0]
        self._tail, self._cut = tail[:LINE_LIMIT], max(0, len(tail) - LINE_LIMIT)

    def _report_dropped(self) -> None:
        if self._dropped:
            self._write("output dropped", lines=self._dropped, limit=f"{LINES_A_SECOND} lines/s")
            self._dropped = 0


class ProcessOutput:
    """Both streams of a process: descriptor 1 is logged as information, 2 as a warning."""

    def __init__(self, log: Logger, event: Callable[[bytes], str | None], mark: bytes = b"") -> None:
        self._streams = {1: OutputLines(log.info, event, mark), 2: OutputLines(log.warning, event, mark)}

    def feed(self, descriptor: int, data: bytes) -> None:
        self._streams[descriptor].feed(data)

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()

    @property
    def last_error(self) -> str:
        """The last line of stderr that is not blank."""
        return self._streams[2].last
