"""What requests name: consumers, and positions in the journal."""

from __future__ import annotations

from datetime import datetime

from headrace.daemon import Daemon
from headrace.delivery.consumer import Consumer
from headrace.delivery.cursor import REPLAY
from headrace.errors import Permanent
from headrace.pattern import Pattern, PatternError
from headrace.protocols import Position
from headrace.suggest import did_you_mean, listed
from headrace.units import parse_duration, parse_start


def consumer_of(daemon: Daemon, name: str) -> Consumer:
    """A consumer of the settings. Raises `Permanent`."""
    found = daemon.consumers.get(name)
    if found is None:
        known = did_you_mean(name, daemon.consumers) or f"; there are {listed(daemon.consumers)}"
        raise Permanent(f"no consumer {name}{known}")
    return found


def pattern_of(text: str | None) -> Pattern | None:
    """A pattern as JSON. Raises `Permanent` with its mistakes."""
    if text is None:
        return None
    try:
        return Pattern(text)
    except PatternError as error:
        raise Permanent(f"--where: {error}") from error


def moment_of(text: str, now: float) -> float:
    """Seconds since 1970 of a time, or of `7d`: so long ago. Raises `Permanent`."""
    try:
        return now - float(parse_duration(text))
    except ValueError:
        pass
    try:
        start = parse_start(text)
    except ValueError as error:
        raise Permanent(f'"{text}": {error}, or so long ago (7d)') from error
    if isinstance(start, datetime):
        return start.timestamp()
    raise Permanent(f'"{text}" is no time', hint="a time (RFC 3339), or so long ago (7d)")


def place_of(daemon: Daemon, text: object) -> tuple[str, Position]:
    """The shard and position of `SHARD:POSITION`, or of a position where there is one shard. Raises `Permanent`."""
    shard, colon, number = str(text).rpartition(":")
    shards = daemon.journal.shards
    if not colon and len(shards) == 1:
        shard = shards[0]
    if shard.removesuffix(REPLAY) not in shards or not number.isdecimal():
        raise Permanent(f"{text} is no position", hint="`headrace dead-letters list` shows them")
    return shard, int(number)


def place_text(daemon: Daemon, shard: str, position: Position) -> str:
    """What `place_of` reads."""
    return str(position) if daemon.journal.shards == (shard,) else f"{shard}:{position}"


async def start_of(daemon: Daemon, shard: str, text: str) -> Position:
    """Where `--from` begins in a shard: `latest`, `earliest`, a time or a position. Raises `Permanent`."""
    if text.isdecimal() or text.rpartition(":")[0] in daemon.journal.shards:
        named, position = place_of(daemon, text)
        return position if named == shard else daemon.journal.head(shard)
    try:
        start = parse_start(text)
    except ValueError as error:
        raise Permanent(f'"{text}": {error}, or a position') from error
    if isinstance(start, datetime):
        return await daemon.journal.at(shard, start.timestamp())
    return await daemon.journal.oldest(shard) if start == "earliest" else daemon.journal.head(shard)
