"""Python functions of the user's, called in workers that run the user's own Python: what contracts have in common."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

from pydantic import field_validator

from headrace.errors import HeadraceError, Permanent, Transient
from headrace.event import Event
from headrace.handlers.calls import Outcome, WorkerSettings
from headrace.handlers.environment import ProcessHandlerSettings
from headrace.handlers.link import WorkerProcess, starter
from headrace.handlers.pool import AHEAD, Limits, Pool, open_pool
from headrace.handlers.returned import children
from headrace.protocols import Batch, Context, Position, Sink, Verdict
from headrace.silence import SilentLog

_TRIES: Final = 3
_CHECK_TIMEOUT: Final = 20.0


class PythonHandler(ProcessHandlerSettings):
    """`function = "thumbs.py:make"` (a file, from the settings file's folder) or `"package.module:function"`.

    The function is plain or async and takes `event` or `event, context`; one whose first parameter is named `events`
    takes a list of up to `batch.size`. It returns None, an event or a list of events. `timeout` is per call.
    `python` runs it: by default `.venv/bin/python` beside the settings file, else the daemon's own Python.
    """

    function: str
    python: Path | None = None

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: str) -> str:
        place, colon, name = value.rpartition(":")
        if not (colon and place and all(part.isidentifier() for part in name.split("."))):
            raise ValueError('write it as "file.py:function" or "package.module:function"')
        return value

    @property
    def in_flight(self) -> int:
        """A quick worker has the next delivery already while it works on one."""
        return AHEAD * self.concurrency

    def problems(self, directory: Path) -> Mapping[str, str]:
        """What can be told without running anything; `verify` runs the import."""
        found = {}
        if self.python is not None and not (directory / self.python).is_file():
            found["python"] = f"{self.python} does not exist"
        place = self.function.rpartition(":")[0]
        if place.endswith(".py") and not (directory / place).is_file():
            found["function"] = f"{place} does not exist"
        return found

    async def verify(self, directory: Path) -> list[str]:
        """Load the function in a worker, as a delivery would, and end it: what is wrong, or nothing."""
        settings = self.worker_settings("check", directory)
        try:
            async with open_pool(starter(settings, SilentLog()), Limits(1), SilentLog()):
                return []
        except HeadraceError as error:
            return [str(error)]

    def open(self, context: Context) -> AbstractAsyncContextManager[Sink]:
        return self._open(context)

    @asynccontextmanager
    async def _open(self, context: Context) -> AsyncIterator[Sink]:
        settings = self.worker_settings(context.name, context.directory)
        # Where `event.open()` asks for an object's address; scratch folders lie two levels below the data directory.
        settings.environment["HEADRACE_LINKS"] = str(context.scratch.absolute().parents[1] / "links.sock")
        async with open_pool(starter(settings, context.log), self.limits(), context.log) as pool:
            yield FunctionSink(pool, context.source, self.together())

    def together(self) -> Callable[[Batch], bool] | None:
        """For contracts: which batches the function gets in one call."""
        return None

    def worker_settings(self, name: str, directory: Path) -> WorkerSettings:
        directory = directory.absolute()
        return WorkerSettings(
            name=name,
            function=self.function,
            python=self._interpreter(directory),
            directory=directory,
            environment=self.environment(),
            timeout=self.timeout,
        )

    def _interpreter(self, directory: Path) -> str:
        if self.python is not None:
            return str(directory / self.python)
        beside = directory / ".venv" / "bin" / "python"
        return str(beside) if beside.exists() else sys.executable


class FunctionSink:
    """Delivers by calling the function: all lines of a batch in one frame, the verdict event by event."""

    def __init__(self, pool: Pool[WorkerProcess], source: str, together: Callable[[Batch], bool] | None = None) -> None:
        """`together` tells which batches are given to the function in one call, where the function does not say so."""
        self._pool = pool
        self._source = source
        self._together = together

    async def deliver(self, batch: Batch) -> Verdict:
        together = self._together is not None and self._together(batch)
        for _ in range(_TRIES):
            worker = await self._pool.take()
            try:
                outcome = await worker.call(batch, together=together)
            finally:
                self._pool.give(worker, len(batch))
            if outcome.begun:
                return self._verdict(batch, outcome, whole=together or worker.batch)
        raise Transient("workers die before they take an event", hint="something kills them; is memory short?")

    def _verdict(self, batch: Batch, outcome: Outcome, *, whole: bool) -> Verdict:
        if not (outcome.failed or outcome.returned) and outcome.finished == len(batch):
            return Verdict()
        if whole and not outcome.partial:
            return self._whole(batch, outcome)
        failed = {batch.positions[index]: why for index, why in outcome.failed.items()}
        events: list[tuple[Position, Event]] = []
        for index, returned in sorted(outcome.returned.items()):
            try:
                events += self._children(batch, index, returned)
            except ValueError as error:
                failed[batch.positions[index]] = f"the function returned no event: {error}"
        skipped = [position for position in batch.positions[outcome.finished :] if position not in failed]
        return Verdict(failed=failed, skipped=skipped, events=events)

    def _whole(self, batch: Batch, outcome: Outcome) -> Verdict:
        """For a function that takes a list: it fails as a whole, and its events count as the last one's."""
        if outcome.failed:
            raise Permanent(outcome.failed[0])
        try:
            children = self._children(batch, len(batch) - 1, outcome.returned.get(0, b"[]"))
        except ValueError as error:
            raise Permanent(f"the function returned no event: {error}") from error
        return Verdict(events=children)

    def _children(self, batch: Batch, index: int, returned: bytes) -> list[tuple[Position, Event]]:
        parent = Event.parse(batch.lines[index])
        position = batch.positions[index]
        return [(position, event) for event in children(parent, returned, self._source)]
