"""`POST /pause` and `POST /resume`: one consumer; `resume` also starts again what stopped until the operator acted."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from headrace.control.answers import DAEMON, answer, body_of, settled
from headrace.control.places import consumer_of
from headrace.errors import Permanent


async def pause(request: web.Request) -> web.Response:
    """`{name}`: durably, also after a restart."""
    (name,) = await body_of(request, "name")
    daemon = settled(request.app[DAEMON])
    if name in daemon.sources:
        raise Permanent(f"{name} is a source: only handlers and sinks can be paused")
    await consumer_of(daemon, name).pause("")
    return answer({"name": name})


async def resume(request: web.Request) -> web.Response:
    """`{name}`: go on from the cursor."""
    (name,) = await body_of(request, "name")
    await settled(request.app[DAEMON]).resume(name)
    return answer({"name": name})


ROUTES: Final = (web.post("/pause", pause), web.post("/resume", resume))
