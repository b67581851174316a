"""The daemon's HTTP servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import web

from headrace.control import (
    backfill,
    consumers,
    dead_letters,
    health,
    journal,
    link,
    moves,
    pause,
    reload,
    status,
    tail,
)
from headrace.control.admin import guard
from headrace.control.answers import DAEMON, RELOADER, errors
from headrace.control.reloading import Reloader
from headrace.control.socket import LINKS, NAME, listen
from headrace.control.tail import ENDING
from headrace.daemon import Daemon
from headrace.errors import Fatal

LEAVE: Final = 1.0  # seconds that open requests have to end once the server closes

_READS: Final = (*status.ROUTES, *health.ROUTES)
_ALL: Final = (
    *_READS,
    *backfill.ROUTES,
    *consumers.ROUTES,
    *dead_letters.ROUTES,
    *journal.ROUTES,
    *moves.ROUTES,
    *pause.ROUTES,
    *reload.ROUTES,
    *tail.ROUTES,
)


@asynccontextmanager
async def answering(daemon: Daemon, reloader: Reloader) -> AsyncIterator[None]:
    """Answer on both sockets, and on `[daemon] admin` where it is set. Raises `Fatal` where that cannot be."""
    data_dir = daemon.config.data_dir
    async with (
        _at(data_dir, NAME, _commands(daemon, reloader)),
        _at(data_dir, LINKS, _links(daemon)),
        _admin(daemon),
    ):
        yield


@asynccontextmanager
async def _at(data_dir: Path, name: str, app: web.Application) -> AsyncIterator[None]:
    """Answer on a socket, and remove it."""
    runner = await _set_up(app)
    try:
        await web.SockSite(runner, listen(data_dir, name)).start()
        yield
    finally:
        await runner.cleanup()
        (data_dir / name).unlink(missing_ok=True)


def _commands(daemon: Daemon, reloader: Reloader) -> web.Application:
    app = web.Application(middlewares=[errors])
    app[DAEMON], app[RELOADER], app[ENDING] = daemon, reloader, asyncio.Event()
    app.add_routes(_ALL)
    app.on_shutdown.append(_end_streams)
    return app


def _links(daemon: Daemon) -> web.Application:
    """What the user's code may ask for, and nothing else."""
    app = web.Application(middlewares=[errors])
    app[DAEMON] = daemon
    app.add_routes(link.ROUTES)
    return app


async def _end_streams(app: web.Application) -> None:
    app[ENDING].set()


async def _set_up(app: web.Application) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=LEAVE)
    await runner.setup()
    return runner


@asynccontextmanager
async def _admin(daemon: Daemon) -> AsyncIterator[None]:
    """The part that only reads, over TCP."""
    address = daemon.config.daemon.admin_address
    if address is None:
        yield
        return
    app = web.Application(middlewares=[errors, guard(daemon.config.daemon)])
    app[DAEMON] = daemon
    app.add_routes(_READS)
    runner = await _set_up(app)
    try:
        await _listen(runner, *address)
        daemon.log.info("admin", address=":".join(map(str, runner.addresses[0][:2])))
        yield
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        why = error.strerror or str(error)
        raise Fatal(f"[daemon] admin {host}:{port}: {why}", hint="choose a free port, or 0 for any") from error
