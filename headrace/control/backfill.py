"""`POST /backfill`: a source captures again what is there."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from headrace.control.answers import DAEMON, answer, body_of, settled


async def backfill(request: web.Request) -> web.Response:
    """`{source, what}`: answered once it is accepted; how far it is, the log tells."""
    source, what = await body_of(request, "source", "what")
    await settled(request.app[DAEMON]).backfill(str(source), str(what))
    return answer({"source": source, "what": what})


ROUTES: Final = (web.post("/backfill", backfill),)
