"""Events into a file, one JSON line each, effectively once; rotated by size and age.

`deliver` appends and returns a mark: which file it wrote to, and its length since. The engine
commits the mark together with its cursor once `flush` made the lines durable. What the file holds
beyond the committed mark is delivered again, hence cut off when the sink opens: no line is missing
and none is there twice, wherever the daemon was killed.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import Field, field_validator

from headrace.protocols import Batch, Clock, Context, Sink, Verdict
from headrace.settings import BatchSize, Duration, Settings, SinkSettings, Size
from headrace.sinks.file_mark import Mark
from headrace.sinks.file_segments import Segments
from headrace.threads import finish

_INLINE: Final = 64 << 10  # a write of less costs less than a thread


class Rotate(Settings):
    """When the file is set aside as PATH.NUMBER, and how many of these stay beside the current one.

    Before a batch would make it longer than `size`, or when its first line is older than `every`.
    """

    size: Size = Field(100 << 20, ge=1)
    every: Duration | None = Field(None, gt=0)
    keep: int | Literal["all"] = 7

    @field_validator("keep")
    @classmethod
    def _at_least_one(cls, keep: int | str) -> int | str:
        if isinstance(keep, int) and keep < 1:
            raise ValueError('keep at least 1 file, or "all"')
        return keep


class FileSink(SinkSettings):
    """`[sinks.NAME]` with `type = "file"`."""

    bulk: ClassVar[bool] = True

    type: Literal["file"] = "file"
    path: Path
    rotate: Rotate | None = None
    batch: BatchSize = BatchSize(size=2_000)

    @field_validator("concurrency")
    @classmethod
    def _one_writer(cls, concurrency: int) -> int:
        if concurrency != 1:
            raise ValueError("a file has one end: concurrency is 1")
        return concurrency

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Sink]:
        path = (context.directory / self.path).resolve()
        segments = Segments(path, context.name, context.log)
        try:
            await finish(segments.open, context.state, context.clock.time())
            yield _FileTarget(segments, self.rotate, context.clock)
        finally:
            segments.close()

    def problems(self, directory: Path) -> Mapping[str, str]:
        why = _unwritable((directory / self.path).resolve())
        return {"path": why} if why else {}


def _unwritable(path: Path) -> str | None:
    if path.is_dir():
        return f"{path} is a folder; name a file in it"
    if path.exists():
        return None if os.access(path, os.W_OK) else f"{path} is not writable"
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir():
        return f"{parent} is not a folder"
    return None if os.access(parent, os.W_OK | os.X_OK) else f"{parent} is not writable"


class _FileTarget:
    """The open sink. `deliver` runs one at a time, `flush` beside it."""

    def __init__(self, segments: Segments, rotate: Rotate | None, clock: Clock) -> None:
        self._segments = segments
        self._rotate = rotate
        self._clock = clock
        self._changing = asyncio.Lock()  # of the open file: it must not be closed under a flush
        # As of the last two flushes. The engine commits between two of them at least what was delivered
        # before the earlier, so nothing older than the earlier is needed after a crash.
        self._flushed: deque[Mark] = deque(maxlen=2)
        self._prune = True

    async def deliver(self, batch: Batch) -> Verdict:
        now = self._clock.time()
        segments = self._segments
        if segments.unproven is not None or self._due(len(batch.data), now):
            async with self._changing:
                await finish(self._prepare, batch, now)
        await self._write(batch.data)
        return Verdict(state=segments.accept(batch.data, now).packed())

    async def _write(self, data: bytes) -> None:
        if len(data) <= _INLINE:
            self._segments.write(data)
            return
        try:
            await finish(self._segments.write, data)
        except asyncio.CancelledError:
            self._segments.undo()
            raise

    def _due(self, more: int, now: float) -> bool:
        rotate, mark = self._rotate, self._segments.mark
        if rotate is None or not mark.length:
            return False
        aged = rotate.every is not None and now - mark.started >= rotate.every
        return aged or mark.length + more > rotate.size

    def _prepare(self, batch: Batch, now: float) -> None:
        segments = self._segments
        with segments.explained():
            if segments.unproven is not None:
                segments.settle(batch.lines[0], now)
            if self._due(len(batch.data), now):
                segments.rotate()
                self._prune = True

    async def flush(self) -> None:
        mark = self._segments.mark
        if self._flushed and mark == self._flushed[-1]:
            return
        async with self._changing:
            await finish(self._segments.sync, self._segments.mark)
            if len(self._flushed) == 2:
                await finish(self._clean, self._flushed[0].number)
        self._flushed.append(mark)

    def _clean(self, safe: int) -> None:
        """Remove what only an earlier commit needed: the note, and old files before number `safe`."""
        with self._segments.explained():
            self._segments.drop_note()
            if self._prune and self._rotate is not None and self._rotate.keep != "all":
                self._prune = not self._segments.prune(self._rotate.keep, safe)
