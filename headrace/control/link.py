"""`POST /link`: an address that reads what an event is about, made on demand so that no event carries credentials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, runtime_checkable

from aiohttp import web

from headrace.control.answers import DAEMON, answer, body_of, settled
from headrace.errors import Permanent
from headrace.protocols import Context

SECONDS: Final = 300  # how long an address can be opened; what is open is read on


@runtime_checkable
class Links(Protocol):
    """Settings of a source whose events are about something with an address."""

    async def link(self, context: Context, data: Mapping[str, Any], seconds: int) -> Mapping[str, str]:
        """`url`, and `ca_file` where the system does not trust the server. Raises `Permanent` where data has none."""


async def link(request: web.Request) -> web.Response:
    """`{source, data}` of an event. Answers `{url, ca_file}`."""
    source, data = await body_of(request, "source", "data")
    daemon = settled(request.app[DAEMON])
    name = str(source).removeprefix(daemon.config.daemon.origin)
    settings: object = daemon.config.sources.get(name)
    if not isinstance(settings, Links) or not isinstance(data, dict):
        raise Permanent(f"the events of {source} are about nothing that can be opened")
    return answer(await settings.link(daemon.context(name, None), data, SECONDS))


ROUTES: Final = (web.post("/link", link),)
