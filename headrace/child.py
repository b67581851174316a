"""A source in a process of its own, so that decoding at full rate never delays the daemon's loop.

The two ends speak length-prefixed MessagePack over a socket pair: finished blocks one way, acknowledgements the other.
The child ends when its end of the socket closes, so no child outlives the daemon.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from asyncio import Future, StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import msgspec

from headrace.capture import JournalPort, SourceCapture
from headrace.clock import SystemClock
from headrace.errors import Fatal, HeadraceError, Permanent, Transient
from headrace.journal.block import SealedBlock
from headrace.protocols import Context, Logger, Write
from headrace.settings import SourceSettings

_LENGTH: Final = struct.Struct("<I")
_KINDS: Final = {"transient": Transient, "permanent": Permanent, "fatal": Fatal}


class Start(msgspec.Struct, tag=True):
    """The first message: all that the child needs to open its source. `settings` is its pickled `SourceSettings`."""

    name: str
    settings: bytes
    directory: str
    scratch: str
    origin: str
    max_event: int


class Submit(msgspec.Struct, tag=True):
    """An append: sealed blocks, and rows of state."""

    number: int
    blocks: list[SealedBlock]
    writes: list[Write]


class Ask(msgspec.Struct, tag=True):
    """A read of the state: the name of a method of `Port` and its arguments."""

    number: int
    method: str
    arguments: tuple[Any, ...]


class Answer(msgspec.Struct, tag=True):
    """What became of a `Submit` or an `Ask`."""

    number: int
    value: Any = None
    error: Failure | None = None


class Failure(msgspec.Struct, tag=True):
    """An error on its way to the other process, or the end of the source."""

    kind: str
    message: str
    hint: str = ""
    retry_after: float | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        kind = next((name for name, it in _KINDS.items() if isinstance(error, it)), "fatal")
        if isinstance(error, HeadraceError):
            return cls(kind, error.message, error.hint, getattr(error, "retry_after", None))
        return cls(kind, f"{type(error).__name__}: {error}")

    def error(self) -> HeadraceError:
        if self.kind == "transient":
            return Transient(self.message, hint=self.hint, retry_after=self.retry_after)
        kind = Permanent if self.kind == "permanent" else Fatal
        return kind(self.message, hint=self.hint)


class LogLine(msgspec.Struct, tag=True):
    """A line for the daemon's log."""

    level: str
    event: str
    fields: dict[str, Any]


Message: TypeAlias = Start | Submit | Ask | Answer | Failure | LogLine
_encode: Callable[[Message], bytes] = msgspec.msgpack.Encoder(enc_hook=str).encode
_decode = msgspec.msgpack.Decoder(Message).decode


class Wire:
    """Messages over a stream. Writing never waits: what is in flight is bounded by `SourceCapture`."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Wire:
        return cls(*await asyncio.open_connection(sock=end, limit=1 << 22))

    def send(self, message: Message) -> None:
        """Queue a message; one for an end that is gone goes nowhere."""
        if self._writer.is_closing():
            return
        payload = _encode(message)
        self._writer.writelines((_LENGTH.pack(len(payload)), payload))

    async def messages(self) -> AsyncIterator[Message]:
        """All that comes, until the other end is gone."""
        try:
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                yield _decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    async def drain(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


# The daemon's side.


class ChildSource:
    """Runs a source in a child process, in place of one in the daemon. A child that dies is `Transient`."""

    def __init__(self, settings: SourceSettings, context: Context, port: JournalPort, max_event: int) -> None:
        self._settings = settings
        self._context = context
        self._port = port
        self._max_event = max_event

    async def run(self) -> None:
        ours, theirs = socket.socketpair()
        async with _process(theirs, self._context.name) as process:
            wire = await Wire.over(ours)
            try:
                wire.send(self._start())
                failure = await self._serve(wire)
            finally:
                wire.close()
            code = await process.wait()
        if failure:
            raise failure.error()
        raise Transient(f"the process of source {self._context.name} ended ({_ending(code)})")

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
                        future.add_done_callback(partial(_acknowledge, wire, message.number))
                    case Ask():
                        reads.create_task(self._answer(wire, message))
                    case LogLine():
                        getattr(self._context.log, message.level)(message.event, **message.fields)
                    case Failure():
                        failure = message
        return failure

    async def _answer(self, wire: Wire, ask: Ask) -> None:
        method = {"get": self._port.get, "scan": self._port.scan, "find": self._port.find}[ask.method]
        try:
            wire.send(Answer(ask.number, await method(*ask.arguments)))  # type: ignore[operator]
        except HeadraceError as error:
            wire.send(Answer(ask.number, error=Failure.of(error)))


def _acknowledge(wire: Wire, number: int, future: Future[None]) -> None:
    error = None if future.cancelled() else future.exception()
    wire.send(Answer(number, error=Failure.of(error) if error else None))


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@asynccontextmanager
async def _process(theirs: socket.socket, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "headrace.child", str(theirs.fileno()), name),
            pass_fds=[theirs.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        yield process
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

    async def scan(self, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        return [(key, value) for key, value in await self._ask("scan", prefix, after, limit)]

    async def find(self, secondary: bytes) -> list[tuple[bytes, bytes]]:
        return [(key, value) for key, value in await self._ask("find", secondary)]

    async def _ask(self, method: str, *arguments: Any) -> Any:
        number, future = self._expect()
        self._wire.send(Ask(number, method, arguments))
        return await future

    def _expect(self) -> tuple[int, Future[Any]]:
        self._number += 1
        future: Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = future
        return self._number, future

    async def listen(self) -> None:
        """Resolve what comes back, until the daemon is gone."""
        async for message in self._wire.messages():
            if isinstance(message, Answer):
                self._resolve(message)

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
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(port.listen())
        running = group.create_task(_run(start, capture, PipeLogger(wire), wire))
        await asyncio.wait((listening, running), return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        listening.cancel()


async def _run(start: Start, capture: SourceCapture, log: Logger, wire: Wire) -> None:
    try:
        await _open_and_run(start, capture, log)
    except Exception as error:  # noqa: BLE001 -- the process's one boundary: the daemon is told, and decides
        wire.send(Failure.of(error))
        await wire.drain()


async def _open_and_run(start: Start, capture: SourceCapture, log: Logger) -> None:
    settings = _settings(start)
    directory, scratch = Path(start.directory), Path(start.scratch)
    context = Context(start.name, None, directory, scratch, log, SystemClock(), start.origin)
    async with settings.open(context) as source:
        await source.run(capture)


def _settings(start: Start) -> SourceSettings:
    settings = pickle.loads(start.settings)  # noqa: S301 -- from the daemon, over a socket that only it has
    if not isinstance(settings, SourceSettings):
        raise Fatal("the first message carries no settings of a source")
    return settings


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon stops its children; Ctrl-C reaches only it
    os.set_inheritable(int(sys.argv[1]), False)  # noqa: FBT003 -- the standard library's signature
    asyncio.run(main(int(sys.argv[1])))
