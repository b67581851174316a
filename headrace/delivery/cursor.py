"""Where a consumer stands, and how that is stored. The format is part of the journal's: it is read for ever.

A cursor is complete for a shard up to `low`, and beyond it for the `done` ranges. Events that failed, and those that
wait behind them, are *parked*: rows of their own, so that `low` can pass them and their blocks can go.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeVar
from zlib import crc32

import msgspec

from headrace.errors import JournalFailed
from headrace.journal.schema import RESTORE
from headrace.protocols import Position

CURSORS: Final = "cursor"
REPLAY: Final = "+replay"  # behind a shard's name, for what is parked of its replay
_CHECK: Final = struct.Struct("<I")
_POSITION: Final = struct.Struct(">Q")


class ShardCursor(msgspec.Struct, frozen=True, array_like=True):
    """`low` is the first position that is not complete; `done` are ranges above it, first and last included."""

    low: Position
    done: tuple[tuple[Position, Position], ...] = ()


class Replay(msgspec.Struct, frozen=True, array_like=True):
    """Ranges of a shard that are delivered again, first and last included; `at` is how far that is done."""

    at: ShardCursor
    ranges: tuple[tuple[Position, Position], ...]


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """A consumer's progress by shard, with the sink's own state (`Verdict.state`) as of it, and its replays."""

    shards: Mapping[str, ShardCursor]
    state: bytes | None = None
    version: int = 1
    replays: Mapping[str, Replay] = {}

    def needs(self, shard: str) -> Position:
        """The first position of a shard that is still to be read."""
        low = self.shards[shard].low
        return min(low, self.replays[shard].at.low) if shard in self.replays else low


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a failed event: attempts made, the first and last time (seconds since 1970), the last error."""

    attempts: int = 0
    first: float = 0.0
    last: float = 0.0
    error: str = ""


class Parked(msgspec.Struct, frozen=True, array_like=True):
    """A parked event, whole. `retry_at` 0 waits only for its key; `held` waits for the operator."""

    line: bytes
    source: str
    failure: Failure = Failure()
    retry_at: float = 0.0
    held: bool = False


class DeadLetter(msgspec.Struct, frozen=True, array_like=True):
    """An event given up, whole, with what is needed to deliver it again."""

    line: bytes
    source: str
    failure: Failure


class Control(msgspec.Struct, frozen=True, array_like=True):
    """What the operator, or the engine on the operator's behalf, decided: "" or why the consumer is paused.

    `gaps` are (shard, first, last, why). A `detached` consumer holds nothing in the journal.
    """

    paused: str = ""
    gaps: tuple[tuple[str, Position, Position, str], ...] = ()
    detached: bool = False


def parked_space(consumer: str) -> str:
    """The space of a consumer's parked events, by `row_key`."""
    return f"parked:{consumer}"


def dead_space(consumer: str) -> str:
    """The space of a consumer's dead letters, by `row_key`."""
    return f"dead:{consumer}"


CONTROLS: Final = "control"


def row_key(shard: str, position: Position) -> bytes:
    """Sorts by shard, then by position."""
    return shard.encode() + b"\0" + _POSITION.pack(position)


def parse_row_key(key: bytes) -> tuple[str, Position]:
    """The shard and the position of a `row_key`."""
    return key[:-9].decode(), _POSITION.unpack(key[-8:])[0]


Record = TypeVar("Record", Cursor, Parked, DeadLetter, Control)
_encoder: Final = msgspec.msgpack.Encoder()


def encode(record: Cursor | Parked | DeadLetter | Control) -> bytes:
    """A record with its checksum."""
    payload = _encoder.encode(record)
    return _CHECK.pack(crc32(payload)) + payload


def decode(data: bytes, kind: type[Record]) -> Record:
    """The record again. Raises `JournalFailed` where it is damaged: going on from a wrong cursor would lose events."""
    payload = data[_CHECK.size :]
    if len(data) <= _CHECK.size or _CHECK.unpack(data[: _CHECK.size])[0] != crc32(payload):
        raise JournalFailed(f"a stored {kind.__name__} is damaged", hint=RESTORE)
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except msgspec.MsgspecError as error:
        raise JournalFailed(f"a stored {kind.__name__} cannot be read: {error}", hint=RESTORE) from error


def ranges_between(pending: Sequence[Position], low: Position, end: Position) -> Iterable[tuple[Position, Position]]:
    """The ranges of `low` up to `end` (excluded) that hold none of the `pending` positions, which are sorted."""
    start = low
    for position in pending:
        if position > start:
            yield start, position - 1
        start = position + 1
    if end > start:
        yield start, end - 1
