"""`GET /dead-letters`, `/dead-letters/show`, `POST /dead-letters/redrive` and `/dead-letters/discard`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from headrace.control.answers import DAEMON, answer, body_of, settled, stream
from headrace.control.places import consumer_of, place_of, place_text
from headrace.daemon import Daemon
from headrace.delivery.consumer import Consumer
from headrace.delivery.cursor import DeadLetter, Parked
from headrace.delivery.records import Records
from headrace.errors import Permanent
from headrace.event import Event, rfc3339
from headrace.protocols import Position


async def every(request: web.Request) -> web.StreamResponse:
    """A line for each, without its data; of one consumer, also of one that left the settings, or of all."""
    daemon = request.app[DAEMON]
    name = request.query.get("consumer")
    if name is not None and name not in daemon.orphans:
        consumer_of(daemon, name)
    names = [name] if name is not None else [*daemon.consumers, *daemon.orphans]
    return await stream(request, _listed(daemon, names))


async def _listed(daemon: Daemon, names: list[str]) -> AsyncIterator[bytes]:
    for name in names:
        records = Records(daemon.journal, name)
        async for shard, position, letter in records.dead():
            yield _line(_told(daemon, name, shard, position, letter, held=False))
        async for shard, position, parked in records.parked():
            if parked.held:
                yield _line(_told(daemon, name, shard, position, parked, held=True))


def _line(told: dict[str, Any]) -> bytes:
    return msgspec.json.encode(told) + b"\n"


def _told(
    daemon: Daemon, name: str, shard: str, position: Position, letter: DeadLetter | Parked, *, held: bool
) -> dict[str, Any]:
    event, failure = Event.parse(letter.line), letter.failure
    return {
        "consumer": name,
        "position": place_text(daemon, shard, position),
        "held": held,
        "id": event.id,
        "source": letter.source,
        "type": event.type,
        "subject": event.subject,
        "attempts": failure.attempts,
        "first": rfc3339(int(failure.first * 1e9)),
        "last": rfc3339(int(failure.last * 1e9)),
        "error": failure.error,
    }


async def show(request: web.Request) -> web.Response:
    """One of them, with the whole event."""
    daemon = request.app[DAEMON]
    name = request.query.get("consumer", "")
    if name not in daemon.orphans:
        consumer_of(daemon, name)
    shard, position = place_of(daemon, request.query.get("position", ""))
    records = Records(daemon.journal, name)
    letter: DeadLetter | Parked | None = await records.dead_at(shard, position)
    parked = await records.parked_at(shard, position)
    if letter is None and parked and parked.held:
        letter = parked
    if letter is None:
        raise Permanent(f"consumer {name} has no dead letter at {position}")
    told = _told(daemon, name, shard, position, letter, held=isinstance(letter, Parked))
    return answer({**told, "event": msgspec.Raw(letter.line)})


async def redrive(request: web.Request) -> web.Response:
    """`{consumer, positions}`: deliver them again."""
    return await _each(request, Consumer.redrive)


async def discard(request: web.Request) -> web.Response:
    """`{consumer, positions}`: forget them."""
    return await _each(request, Consumer.discard)


async def _each(request: web.Request, act: Callable[[Consumer, str, Position], Awaitable[None]]) -> web.Response:
    """In order; the first that is not there ends it with an error, the ones before it are done."""
    name, positions = await body_of(request, "consumer", "positions")
    daemon = settled(request.app[DAEMON])
    consumer = consumer_of(daemon, name)
    places = [place_of(daemon, text) for text in positions]
    for place in places:
        await act(consumer, *place)
    return answer({"done": len(places)})


ROUTES: Final = (
    web.get("/dead-letters", every),
    web.get("/dead-letters/show", show),
    web.post("/dead-letters/redrive", redrive),
    web.post("/dead-letters/discard", discard),
)
