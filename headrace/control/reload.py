"""`POST /reload`."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from headrace.control.answers import RELOADER, answer
from headrace.settings_changes import Names


async def reload(request: web.Request) -> web.Response:
    """Read the settings file again and apply what changed, or keep the old and say why."""
    changes = await request.app[RELOADER].reload()
    return answer({"sources": _names(changes.sources), "consumers": _names(changes.consumers)})


def _names(names: Names) -> dict[str, list[str]]:
    return {"added": sorted(names.added), "removed": sorted(names.removed), "changed": sorted(names.changed)}


ROUTES: Final = (web.post("/reload", reload),)
