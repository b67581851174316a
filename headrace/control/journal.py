"""`GET /journal/verify`, `POST /journal/skip` and `/journal/backup`, while the daemon goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from headrace.control.answers import DAEMON, answer, body_of, settled, stream
from headrace.daemon import Daemon
from headrace.errors import Permanent


async def verify(request: web.Request) -> web.StreamResponse:
    """A line for each damaged block."""
    return await stream(request, _damage(request.app[DAEMON]))


async def _damage(daemon: Daemon) -> AsyncIterator[bytes]:
    async for block in daemon.journal.verify():
        yield msgspec.json.encode({"first": block.first, "why": block.why}) + b"\n"


async def skip(request: web.Request) -> web.Response:
    """`{first, reason}`: take a block out and record the gap. `stopped` are the consumers to resume."""
    first, reason = await body_of(request, "first", "reason")
    daemon = settled(request.app[DAEMON])
    if not isinstance(first, int):
        raise Permanent(f"{first} is no position", hint="`headrace journal verify` names the damaged blocks")
    count = await daemon.journal.skip(first, str(reason))
    daemon.log.warning("journal block skipped", first=first, events=count, reason=reason)
    stopped = [name for name, part in daemon.running.items() if part.state == "failed"]
    return answer({"first": first, "events": count, "stopped": stopped})


async def backup(request: web.Request) -> web.Response:
    """`{target}`: copy the journal to a new file, an absolute path of this machine."""
    (target,) = await body_of(request, "target")
    path = Path(str(target))
    if not path.is_absolute():
        raise Permanent(f"{path} is not an absolute path")
    await settled(request.app[DAEMON]).journal.backup(path)
    return answer({"target": str(path), "size": (await asyncio.to_thread(path.stat)).st_size})


ROUTES: Final = (
    web.get("/journal/verify", verify),
    web.post("/journal/skip", skip),
    web.post("/journal/backup", backup),
)
