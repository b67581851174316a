"""The daemon in the foreground."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Annotated, Final

import typer

from headrace.cli.asking import settings_file
from headrace.cli.options import ConfigFile
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.daemon import Daemon
    from headrace.log import Repeats
    from headrace.settings import Config

UMASK: Final = 0o077  # what the daemon writes holds other people's data
CUT_SHORT: Final = 130


def run(
    config: ConfigFile = None,
    log_level: Annotated[
        str | None,
        typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error; else $HEADRACE_LOG."),
    ] = None,
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C, which drain; a second one stops at once. SIGHUP reloads."""
    from headrace import log
    from headrace.settings_file import load

    os.umask(UMASK)
    level = log.level(log_level, os.environ)
    settings = load(settings_file(config), os.environ)
    repeats = log.configure(level)
    try:
        _run(settings, repeats)
    finally:
        repeats.flush()


COMMAND = run


def _run(settings: Config, repeats: Repeats) -> None:
    """Raises the one error that ended the daemon."""
    from headrace.tasks import cause

    try:
        asyncio.run(_serve(settings, repeats))
    except asyncio.CancelledError:
        raise typer.Exit(CUT_SHORT) from None
    except BaseExceptionGroup as group:
        error = cause(group)
        if isinstance(error, HeadraceError):
            raise error from None
        raise


async def _serve(settings: Config, repeats: Repeats) -> None:
    from headrace import log
    from headrace.control.reloading import Reloader
    from headrace.control.server import serve
    from headrace.daemon import open_daemon

    signals = _Signals()
    async with open_daemon(settings, log.logger()) as daemon:
        signals.daemon = daemon
        reloader = Reloader(daemon)
        async with serve(daemon, reloader), asyncio.TaskGroup() as group:
            beside = (group.create_task(reloader.on(signals.hangup)), group.create_task(_tell(repeats)))
            await daemon.run()
            for task in beside:
                task.cancel()


async def _tell(repeats: Repeats) -> None:
    """Counts of repeated messages are told also where no other message follows."""
    from headrace.log import WINDOW

    while True:
        await asyncio.sleep(WINDOW)
        repeats.expire()


class _Signals:
    """SIGTERM and SIGINT: the first drains, a second one ends at once; before the daemon is open, so does the first."""

    def __init__(self) -> None:
        self.daemon: Daemon | None = None
        self.hangup = asyncio.Event()
        self._main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        loop.add_signal_handler(signal.SIGINT, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self.hangup.set)

    def _stop(self) -> None:
        if self.daemon and not self.daemon.stopping:
            self.daemon.stop()
        elif self._main:
            self._main.cancel()
