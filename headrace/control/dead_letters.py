"""`GET /dead-letters`, `/dead-letters/show`, `POST /dead-letters/redrive` and `/dead-letters/discard`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from headrace.control.answers import DAEMON, answer, body_of, settled, stream
from headrace.control.places import consumer_of, moment_of, pattern_of, place_of, place_text
from headrace.daemon import Daemon
from headrace.delivery.cursor import DeadLetter, Parked
from headrace.delivery.given_up import GivenUp
from headrace.delivery.records import Records
from headrace.delivery.status import Counts
from headrace.errors import Permanent
from headrace.event import Event, rfc3339
from headrace.protocols import Position


async def every(request: web.Request) -> web.StreamResponse:
    """`?consumer=&where=&since=&before=`: a line for each, without its data.

    Of one consumer, also of one that left the settings, or of all. Times are those of the last attempt.
    """
    daemon = request.app[DAEMON]
    chosen = _Filter(daemon, request.query)
    name = request.query.get("consumer")
    if name is not None and name not in daemon.orphans:
        consumer_of(daemon, name)
    names = [name] if name is not None else [*daemon.consumers, *daemon.orphans]
    return await stream(request, _listed(daemon, names, chosen))


async def _listed(daemon: Daemon, names: list[str], chosen: _Filter) -> AsyncIterator[bytes]:
    for name in names:
        async for shard, position, letter, held in given_up_of(daemon, name).all():
            if chosen.takes(letter):
                yield _line(_told(daemon, name, shard, position, letter, held=held))


class _Filter:
    """Which ones. Raises `Permanent` where a pattern or a time cannot be read."""

    def __init__(self, daemon: Daemon, query: Mapping[str, str]) -> None:
        now = daemon.clock.time()
        self._pattern = pattern_of(query.get("where"))
        self._since = moment_of(query["since"], now) if "since" in query else -math.inf
        self._before = moment_of(query["before"], now) if "before" in query else math.inf

    def takes(self, letter: DeadLetter) -> bool:
        matches = self._pattern is None or self._pattern.matches(letter.line)
        return matches and self._since <= letter.failure.last < self._before


def given_up_of(daemon: Daemon, name: str) -> GivenUp:
    """Of a consumer of the settings, or of one that left them. Raises `Permanent`."""
    if name in daemon.orphans:
        return GivenUp(daemon.journal, Records(daemon.journal, name), Counts())
    return consumer_of(daemon, name).given_up


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
    name, _ = await body_of(request, "consumer", "positions")
    if name in request.app[DAEMON].orphans:
        hint = f"put it back, or `headrace consumer rename {name} NEW`; they can be discarded as it is"
        raise Permanent(f"consumer {name} is not in the settings: nobody would take them", hint=hint)
    return await _each(request, GivenUp.redrive)


async def discard(request: web.Request) -> web.Response:
    """`{consumer, positions}`: forget them, also those of a consumer that left the settings."""
    return await _each(request, GivenUp.discard)


async def _each(request: web.Request, act: Callable[[GivenUp, str, Position], Awaitable[None]]) -> web.Response:
    """In order; the first that is not there ends it with an error, the ones before it are done."""
    name, positions = await body_of(request, "consumer", "positions")
    daemon = settled(request.app[DAEMON])
    given_up = given_up_of(daemon, name)
    places = [place_of(daemon, text) for text in positions]
    for place in places:
        await act(given_up, *place)
    return answer({"done": len(places)})


ROUTES: Final = (
    web.get("/dead-letters", every),
    web.get("/dead-letters/show", show),
    web.post("/dead-letters/redrive", redrive),
    web.post("/dead-letters/discard", discard),
)
