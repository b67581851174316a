"""What the daemon and a source's child process say to each other: length-prefixed MessagePack over a socket pair."""

from __future__ import annotations

import asyncio
import socket
import struct
import traceback
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

import msgspec

from headrace.errors import Fatal, HeadraceError, Permanent, Transient
from headrace.journal.block import SealedBlock
from headrace.protocols import Write
from headrace.tasks import among, cause

_LENGTH: Final = struct.Struct("<I")
_KINDS: Final[Mapping[str, type[HeadraceError]]] = {"transient": Transient, "permanent": Permanent, "fatal": Fatal}


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
    where: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        error = among(error, Fatal) or cause(error)
        kind = next((name for name, it in _KINDS.items() if isinstance(error, it)), "unexpected")
        if isinstance(error, HeadraceError):
            return cls(kind, error.message, error.hint, getattr(error, "retry_after", None))
        return cls(kind, f"{type(error).__name__}: {error}", where="".join(traceback.format_exception(error)))

    def error(self) -> HeadraceError:
        if self.kind == "transient":
            return Transient(self.message, hint=self.hint, retry_after=self.retry_after)
        error = _KINDS.get(self.kind, HeadraceError)(self.message, hint=self.hint)
        if self.where:
            error.add_note(self.where)
        return error


class LogLine(msgspec.Struct, tag=True):
    """A line for the daemon's log."""

    level: str
    event: str
    fields: dict[str, Any]


class Backfill(msgspec.Struct, tag=True):
    """From the daemon: capture again what is there. An `Answer` tells that it was accepted."""

    number: int
    what: str


Message: TypeAlias = Backfill | Start | Submit | Ask | Answer | Failure | LogLine
_encode: Callable[[Message], bytes] = msgspec.msgpack.Encoder(enc_hook=str).encode
_decode = msgspec.msgpack.Decoder(Message).decode


class Wire:
    """Messages over a stream. Writing never waits: what is in flight is bounded by `SourceCapture`."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Wire:
        return cls(*await asyncio.open_connection(sock=end, limit=1 << 20))

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

    async def flushed(self) -> None:
        """Everything sent is with the system, which delivers it even when this process ends."""
        self._writer.transport.set_write_buffer_limits(0)
        with suppress(ConnectionError):
            await self._writer.drain()

    def close(self) -> None:
        self._writer.close()
