"""A source in a process of its own, so that decoding at full rate never delays the daemon's loop.

Finished blocks go one way over a socket pair, acknowledgements the other (`child_wire`).
The child ends when its end of the socket closes, so no child outlives the daemon.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from asyncio import Future
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from headrace.capture import JournalPort, SourceCapture
from headrace.child_wire import Answer, Ask, Backfill, Failure, LogLine, Start, Submit, Wire
from headrace.clock import SystemClock
from headrace.errors import Fatal, HeadraceError, JournalFailed, Permanent, Transient
from headrace.journal.block import SealedBlock
from headrace.protocols import Backfills, Context, Logger, Source, Write
from headrace.settings import SourceSettings
from headrace.threads import keep_one_heap

STOP: Final = 2.0  # seconds that a child has to close its source, before it is killed


# The daemon's side.


class ChildSource:
    """Runs a source in a child process, in place of one in the daemon. A child that dies is `Transient`."""

    def __init__(self, settings: SourceSettings, context: Context, port: JournalPort, max_event: int) -> None:
        self._settings = settings
        self._context = context
        self._port = port
        self._max_event = max_event
        self._in_flight: set[Future[None]] = set()
        self._journal_failed: JournalFailed | None = None
        self._wire: Wire | None = None
        self._asked: list[Future[None]] = []

    async def backfill(self, what: str) -> None:
        """The power `Backfills` of the source. Raises what it raises, or `Transient` where the child ends first."""
        if self._wire is None:
            raise Transient(f"source {self._context.name} is not running")
        future: Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        self._wire.send(Backfill(len(self._asked) - 1, what))
        await future

    def _answered(self, answer: Answer) -> None:
        future = self._asked[answer.number]
        if future.done():
            return
        if answer.error:
            future.set_exception(answer.error.error())
        else:
            future.set_result(None)

    def _unanswered(self) -> None:
        for future in self._asked:
            if not future.done():
                future.set_exception(Transient(f"source {self._context.name} ended"))

    async def run(self) -> None:
        """Returns where the source ended by itself; what it had handed over is settled then."""
        ours, theirs = socket.socketpair()
        async with _process(theirs) as process:
            wire = await Wire.over(ours)
            try:
                wire.send(self._start())
                self._wire = wire
                failure = await self._serve(wire)
            finally:
                self._wire = None
                self._unanswered()
                wire.close()
            code = await process.wait()
        await self._settled()
        if self._journal_failed:
            raise self._journal_failed
        if failure:
            raise failure.error()
        if code:
            raise Transient(f"the process of source {self._context.name} ended ({_ending(code)})")

    async def _settled(self) -> None:
        """The next run must find in the state all that this one handed over."""
        if self._in_flight:
            await asyncio.wait(list(self._in_flight))

    def _start(self) -> Start:
        context = self._context
        return Start(
            name=context.name,
            settings=pickle.dumps(self._settings),
            directory=str(context.directory),
            scratch=str(context.scratch),
            origin=context.origin,
            max_event=self._max_event,
        )

    async def _serve(self, wire: Wire) -> Failure | None:
        """Until the child is gone; what it said at last, if anything."""
        failure = None
        async with asyncio.TaskGroup() as reads:
            async for message in wire.messages():
                match message:
                    case Submit():
                        future = self._port.submit(message.blocks, message.writes)
                        self._in_flight.add(future)
                        future.add_done_callback(partial(self._acknowledge, wire, message.number))
                    case Ask():
                        reads.create_task(self._answer(wire, message))
                    case LogLine():
                        getattr(self._context.log, message.level)(message.event, **message.fields)
                    case Answer():
                        self._answered(message)
                    case Failure():
                        failure = message
        return failure

    async def _answer(self, wire: Wire, ask: Ask) -> None:
        try:
            wire.send(Answer(ask.number, await getattr(self._port, ask.method)(*ask.arguments)))
        except HeadraceError as error:
            wire.send(Answer(ask.number, error=Failure.of(error)))

    def _acknowledge(self, wire: Wire, number: int, future: Future[None]) -> None:
        self._in_flight.discard(future)
        error = Transient("the append was given up") if future.cancelled() else future.exception()
        if isinstance(error, JournalFailed):
            self._journal_failed = error
        wire.send(Answer(number, error=Failure.of(error) if error else None))


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@asynccontextmanager
async def _process(theirs: socket.socket) -> AsyncIterator[asyncio.subprocess.Process]:
    """The child; on leaving it has ended, by itself within `STOP` or killed."""
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "headrace.child", str(theirs.fileno())),
            pass_fds=[theirs.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


# The child's side.


class PipePort:
    """The `Port` of a source that runs in a child process."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._number = 0
        self._waiting: dict[int, Future[Any]] = {}

    def submit(self, blocks: Sequence[SealedBlock], writes: Sequence[Write]) -> Future[None]:
        number, future = self._expect()
        self._wire.send(Submit(number, list(blocks), list(writes)))
        return future

    async def get(self, key: bytes) -> bytes | None:
        value: bytes | None = await self._ask("get", key)
        return value

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        rows: dict[bytes, bytes] = await self._ask("get_many", keys)
        return rows

    async def scan(self, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        return [(key, value) for key, value in await self._ask("scan", prefix, after, limit)]

    async def find(self, secondaries: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        return [(key, value) for key, value in await self._ask("find", secondaries)]

    async def _ask(self, method: str, *arguments: Any) -> Any:
        number, future = self._expect()
        self._wire.send(Ask(number, method, arguments))
        return await future

    def _expect(self) -> tuple[int, Future[Any]]:
        self._number += 1
        future: Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = future
        return self._number, future

    async def listen(self, backfill: Callable[[Backfill], object]) -> None:
        """Resolve what comes back, and pass on what the daemon asks for, until it is gone."""
        async for message in self._wire.messages():
            if isinstance(message, Answer):
                self._resolve(message)
            elif isinstance(message, Backfill):
                backfill(message)

    def _resolve(self, answer: Answer) -> None:
        future = self._waiting.pop(answer.number)
        if future.done():
            return
        if answer.error:
            future.set_exception(answer.error.error())
        else:
            future.set_result(answer.value)


class PipeLogger:
    """Sends log lines to the daemon, which writes them."""

    def __init__(self, wire: Wire, bound: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._wire = wire
        self._bound = bound

    def bind(self, **fields: Any) -> PipeLogger:
        return PipeLogger(self._wire, {**self._bound, **fields})

    def _send(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        self._wire.send(LogLine(level, event, {**self._bound, **fields}))

    def debug(self, event: str, **fields: Any) -> None:
        self._send("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._send("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._send("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._send("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        self.error(event, **fields, traceback=traceback.format_exc())


async def main(descriptor: int) -> None:
    """Run one source for the daemon at the other end of the inherited socket."""
    wire = await Wire.over(socket.socket(fileno=descriptor))
    start = await anext(wire.messages())
    if not isinstance(start, Start):
        raise Fatal("the first message must be the start")
    port = PipePort(wire)
    capture = SourceCapture(port, start.name, start.max_event)
    opened: Future[Source] = asyncio.get_running_loop().create_future()
    asked: list[asyncio.Task[None]] = []
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(
            port.listen(lambda message: asked.append(group.create_task(_backfill(message, opened, wire))))
        )
        running = group.create_task(_run(start, capture, PipeLogger(wire), wire, opened))
        await asyncio.wait((listening, running), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            _end_within(2 * STOP)
        for task in (running, listening, *asked):
            task.cancel()


def _end_within(seconds: float) -> None:
    """The daemon is gone: end even where the source's threads or its closing hang."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


async def _backfill(message: Backfill, opened: Future[Source], wire: Wire) -> None:
    try:
        await backfill(opened.result() if opened.done() else None, message.what)
        wire.send(Answer(message.number))
    except Exception as error:  # noqa: BLE001 -- whatever it is, the one who asked is told
        wire.send(Answer(message.number, error=Failure.of(error)))


async def backfill(source: Source | None, what: str) -> None:
    """Use the power `Backfills`. Raises `Permanent` where the source does not have it."""
    if source is None:
        raise Transient("the source is still starting", hint="try again")
    if not isinstance(source, Backfills):
        raise Permanent("this type of source has no backfill")
    await source.backfill(what)


async def _run(start: Start, capture: SourceCapture, log: Logger, wire: Wire, opened: Future[Source]) -> None:
    try:
        await _open_and_run(start, capture, log, opened)
    except Exception as error:  # noqa: BLE001 -- the process's one boundary: the daemon is told, and decides
        await capture.drain()
        wire.send(Failure.of(error))
        await wire.flushed()
    else:
        await capture.drain()


async def _open_and_run(start: Start, capture: SourceCapture, log: Logger, opened: Future[Source]) -> None:
    settings = _settings(start)
    directory, scratch = Path(start.directory), Path(start.scratch)
    context = Context(start.name, None, directory, scratch, log, SystemClock(), start.origin)
    async with settings.open(context) as source:
        opened.set_result(source)
        await source.run(capture)


def _settings(start: Start) -> SourceSettings:
    settings = pickle.loads(start.settings)  # noqa: S301 -- from the daemon, over a socket that only it has
    if not isinstance(settings, SourceSettings):
        raise Fatal("the first message carries no settings of a source")
    return settings


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon stops its children; Ctrl-C reaches only it
    keep_one_heap()
    os.set_inheritable(int(sys.argv[1]), False)  # noqa: FBT003 -- the standard library's signature
    asyncio.run(main(int(sys.argv[1])))
