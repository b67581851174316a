"""`POST /seek`, `/replay` and `/replay/cancel`: where a consumer goes on, and what it gets again."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from headrace.control.answers import DAEMON, answer, body_of, settled
from headrace.control.places import consumer_of, place_text, start_of
from headrace.daemon import Daemon
from headrace.delivery import moves
from headrace.errors import Permanent
from headrace.protocols import Position


async def seek(request: web.Request) -> web.Response:
    """`{name, to}`: go on from `earliest`, `latest`, a time or a position; answers with where that is."""
    name, to = await body_of(request, "name", "to")
    daemon = settled(request.app[DAEMON])
    consumer = consumer_of(daemon, name)
    places = await _places(daemon, to)
    named = [shard for shard in places if str(to).startswith(f"{shard}:")]
    reached = await moves.seek(consumer, {shard: places[shard] for shard in named or places})
    return answer({"name": name, "positions": [place_text(daemon, *place) for place in reached.items()]})


async def replay(request: web.Request) -> web.Response:
    """`{name, from, to}`: what was delivered from one place up to another; answers with how many positions."""
    name, first, end = await body_of(request, "name", "from", "to")
    daemon = settled(request.app[DAEMON])
    consumer = consumer_of(daemon, name)
    firsts, ends = await _places(daemon, first), await _places(daemon, end)
    if all(ends[shard] <= at for shard, at in firsts.items()) and first != end:
        raise Permanent(f'"{end}" is not behind "{first}"')
    return answer({"name": name, "count": await moves.replay(consumer, firsts, ends)})


async def cancel(request: web.Request) -> web.Response:
    """`{name}`: end a replay."""
    (name,) = await body_of(request, "name")
    await moves.cancel_replay(consumer_of(settled(request.app[DAEMON]), name))
    return answer({"name": name})


async def _places(daemon: Daemon, text: object) -> dict[str, Position]:
    return {shard: await start_of(daemon, shard, str(text)) for shard in daemon.journal.shards}


ROUTES: Final = (web.post("/seek", seek), web.post("/replay", replay), web.post("/replay/cancel", cancel))
