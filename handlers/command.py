"""Gives events to a program: one process for each, or one that stays and takes line after line."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from headrace import failpoints
from headrace.errors import Fatal, HeadraceError
from headrace.event import Event
from headrace.handlers.calls import event_id
from headrace.handlers.environment import ProcessHandlerSettings
from headrace.handlers.lines import LinesProcess, starter
from headrace.handlers.output import ProcessOutput
from headrace.handlers.pool import Pool, open_pool
from headrace.handlers.process import Launch, Process, exit_text, memory_file
from headrace.handlers.returned import children
from headrace.protocols import Batch, Context, Logger, Position, Sink, Verdict

_ERROR_LIMIT: Final = 500


class CommandHandler(ProcessHandlerSettings):
    """`command = ["./audit.sh", "--all"]`, run without a shell in the settings file's folder.

    A program named with a `/` starts at that folder, one without is found on the PATH. `mode = "exec"`: one process
    per event, the event's line on its standard input, exit code 0 for success. `mode = "lines"`: the program stays,
    reads a line per event, and writes a verdict per event to descriptor 3.
    """

    contract: str = "command"
    command: tuple[str, ...] = Field(min_length=1)
    mode: Literal["exec", "lines"] = "exec"

    def problems(self, directory: Path) -> Mapping[str, str]:
        try:
            self._launch(directory)
        except Fatal as error:
            return {"command": str(error)}
        return {}

    def open(self, context: Context) -> AbstractAsyncContextManager[Sink]:
        return self._open(context)

    @asynccontextmanager
    async def _open(self, context: Context) -> AsyncIterator[Sink]:
        launch = self._launch(context.directory)
        if self.mode == "lines":
            async with open_pool(starter(launch, self.timeout, context.log), self.limits(), context.log) as pool:
                yield LinesSink(pool, context.source, one_at_a_time=self.ordering == "strict")
            return
        sink = CommandSink(launch, self.timeout, context.log)
        try:
            yield sink
        finally:
            await sink.close()

    def _launch(self, directory: Path) -> Launch:
        """Raises `Fatal` where the program is not there."""
        directory = directory.absolute()
        environment = self.environment()
        program = self._program(directory, environment.get("PATH"))
        return Launch((program, *self.command[1:]), directory, environment)

    def _program(self, directory: Path, path: str | None) -> str:
        name = self.command[0]
        inside = directory / name
        if "/" in name:
            if shutil.which(inside) is None:
                state = "may not be executed" if inside.is_file() else "does not exist"
                raise Fatal(f"{name} {state}", hint="chmod +x" if inside.is_file() else f"looked in {directory}")
            return str(inside)
        found = shutil.which(name, path=path)
        if found is None:
            hint = f'write "./{name}" for the one beside the settings file' if inside.is_file() else "install it"
            raise Fatal(f"{name} is not on the PATH", hint=hint)
        return found


class CommandSink:
    """One process per event, one after the other within a batch; an event's failure does not keep the next from it."""

    def __init__(self, launch: Launch, timeout: float, log: Logger) -> None:
        self._launch = launch
        self._timeout = timeout
        self._log = log
        self._running: set[Process] = set()

    async def deliver(self, batch: Batch) -> Verdict:
        failed: dict[Position, str] = {}
        for index, (position, line) in enumerate(zip(batch.positions, batch.lines, strict=True)):
            try:
                why = await self._run(line)
            except HeadraceError:
                if index == 0:
                    raise
                return Verdict(failed=failed, skipped=batch.positions[index:])
            if why:
                failed[position] = why
        return Verdict(failed=failed)

    async def _run(self, line: bytes) -> str:
        """Why it failed, or nothing. On return, and when cancelled, it is gone and its whole group was sent SIGKILL."""
        name = event_id(line)
        output = ProcessOutput(self._log, lambda _: name)
        with memory_file() as stdin:  # a file, not a pipe: a program that reads none of it disturbs nobody
            stdin.write(line)
            stdin.seek(0)
            process = Process(self._launch, output.feed, stdin=stdin)
        self._running.add(process)
        try:
            failpoints.reach("command.started")
            code = await self._end(process)
            failpoints.reach("command.ended")
        finally:
            self._running.discard(process)
            output.close()
        if code is None:
            return f"timed out after {self._timeout:g} s"
        return _failure(code, output.last_error) if code else ""

    async def _end(self, process: Process) -> int | None:
        """The exit code, or None where the time was over."""
        try:
            await asyncio.wait({process.ended}, timeout=self._timeout)
            if process.ended.done():
                return process.ended.result()
        finally:
            process.kill()
            await asyncio.wait({process.ended}, timeout=1)
        return None

    async def close(self) -> None:
        for process in self._running:
            process.kill()
        if self._running:
            await asyncio.wait({process.ended for process in self._running})


class LinesSink:
    """A batch at a time to each program; the verdict event by event."""

    def __init__(self, pool: Pool[LinesProcess], source: str, *, one_at_a_time: bool) -> None:
        self._pool = pool
        self._source = source
        self._one_at_a_time = one_at_a_time

    async def deliver(self, batch: Batch) -> Verdict:
        if not self._one_at_a_time or len(batch) == 1:
            return await self._together(batch)
        events: list[tuple[Position, Event]] = []
        for index, (position, line) in enumerate(zip(batch.positions, batch.lines, strict=True)):
            verdict = await self._together(Batch(batch.shard, [position], line, batch.attempt))
            events += verdict.events
            if verdict.failed:
                return Verdict(verdict.failed, batch.positions[index + 1 :], events=events)
        return Verdict(events=events)

    async def _together(self, batch: Batch) -> Verdict:
        """The program may work on all of them at once: no two have a key in common."""
        program = await self._pool.take()
        try:
            answers = await program.call(batch)
        finally:
            self._pool.give(program, len(batch))
        failed = {batch.positions[index]: why for index, why in answers.failed.items()}
        events: list[tuple[Position, Event]] = []
        for index, returned in sorted(answers.returned.items()):
            position = batch.positions[index]
            try:
                made = children(Event.parse(batch.lines[index]), returned, self._source)
                events += [(position, event) for event in made]
            except ValueError as error:
                failed[position] = f"the program returned no event: {error}"
        return Verdict(failed, [batch.positions[index] for index in answers.open], events=events)


def _failure(code: int, last_error: str) -> str:
    text = f"{exit_text(code)}: {last_error}" if last_error else exit_text(code)
    return text if len(text) <= _ERROR_LIMIT else text[:_ERROR_LIMIT] + "…"
