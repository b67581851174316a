"""`GET /status`."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from headrace.control.answers import DAEMON, answer
from headrace.control.report import report


async def status(request: web.Request) -> web.Response:
    """The whole report."""
    return answer(await report(request.app[DAEMON]))


ROUTES: Final = (web.get("/status", status),)
