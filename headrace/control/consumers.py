"""`POST /consumers/forget` and `/consumers/rename`: consumers that left the settings."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from headrace.control.answers import DAEMON, answer, body_of, settled
from headrace.errors import Permanent
from headrace.settings_file import NAME


async def forget(request: web.Request) -> web.Response:
    """`{name}`: drop its cursor, parked events and dead letters."""
    (name,) = await body_of(request, "name")
    await settled(request.app[DAEMON]).forget(name)
    return answer({"forgotten": name})


async def rename(request: web.Request) -> web.Response:
    """`{old, new}`: the new name goes on where the old one stood."""
    old, new = await body_of(request, "old", "new")
    if not re.fullmatch(NAME, str(new)):
        raise Permanent(f'"{new}" is no name', hint="letters, digits, _ and -, at most 64")
    await settled(request.app[DAEMON]).rename(old, new)
    return answer({"old": old, "new": new})


ROUTES: Final = (web.post("/consumers/forget", forget), web.post("/consumers/rename", rename))
