"""Events on the daemon's standard output: as JSON lines for a pipe, or as short text for a reader.

Delivered at least once: what a pipe took cannot be taken back. A line is always written whole,
also when its delivery is cancelled in the middle.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar, Final, Literal

from pydantic import field_validator

from headrace.errors import Fatal, HeadraceError, Transient
from headrace.event import Event, event_name
from headrace.protocols import Batch, Context, Sink, Verdict
from headrace.settings import BatchSize, SinkSettings
from headrace.threads import finish

_STDOUT: Final = 1
_CHUNK: Final = select.PIPE_BUF  # a pipe that polls as writable takes so much without blocking
_NEWLINE: Final = ord("\n")
_TICK: Final = 100  # milliseconds until a blocked write notices that it was cancelled


class StdoutSink(SinkSettings):
    """`[sinks.NAME]` with `type = "stdout"`."""

    bulk: ClassVar[bool] = True

    type: Literal["stdout"] = "stdout"
    format: Literal["json", "text"] = "json"
    batch: BatchSize = BatchSize(size=500)

    @field_validator("concurrency")
    @classmethod
    def _one_writer(cls, concurrency: int) -> int:
        if concurrency != 1:
            raise ValueError("standard output is one stream: concurrency is 1")
        return concurrency

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Sink]:
        yield _StdoutTarget(self.format, context.origin)


class _StdoutTarget:
    """The open sink. Writes in a thread, because a pipe that nobody reads blocks."""

    def __init__(self, format_: Literal["json", "text"], origin: str) -> None:
        self._format = format_
        self._origin = origin
        self._rest = b""  # of a line that an earlier delivery began

    async def deliver(self, batch: Batch) -> Verdict:
        data = self._rest + (batch.data if self._format == "json" else self._text(batch))
        stop = threading.Event()
        try:
            await finish(self._write, data, stop, interrupt=stop.set)
        except OSError as error:
            raise _failure(error) from error
        return Verdict()

    def _text(self, batch: Batch) -> bytes:
        return "".join(text_line(event, self._origin) for event in batch.events).encode()

    def _write(self, data: bytes, stop: threading.Event) -> None:
        poll = select.poll()
        poll.register(_STDOUT, select.POLLOUT)
        done = 0
        try:
            while done < len(data) and not stop.is_set():
                if poll.poll(_TICK):
                    done += os.write(_STDOUT, data[done : done + _CHUNK])
        finally:
            self._rest = self._unfinished(data, done)

    def _unfinished(self, data: bytes, done: int) -> bytes:
        """The end of the line that was begun, or nothing between two lines."""
        if done == 0:
            return self._rest
        return b"" if data[done - 1] == _NEWLINE else data[done : data.index(b"\n", done) + 1]


def text_line(event: Event, origin: str) -> str:
    """`12:00:01 uploads created incoming/a.csv`, the time in UTC; what could steer a terminal is escaped."""
    time = (event.time or "")[11:19] or "--:--:--"
    parts = (time, event.source.removeprefix(origin), event_name(event.type), event.subject or "")
    line = " ".join(parts).rstrip()
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in line) + "\n"


def _failure(error: OSError) -> HeadraceError:
    said = f"standard output: {error.strerror}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EAGAIN}:
        return Transient(said)
    if error.errno == errno.EPIPE:
        return Fatal(said, hint="what read it has ended; start the daemon with a reader again")
    return Fatal(said, hint="start the daemon with its standard output open")
