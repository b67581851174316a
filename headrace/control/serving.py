"""The daemon with its servers and signals, from start to end."""

from __future__ import annotations

import asyncio
import signal

from headrace.control.reloading import Reloader
from headrace.control.server import answering
from headrace.daemon import Daemon, open_daemon
from headrace.errors import HeadraceError
from headrace.log import WINDOW, Repeats, logger
from headrace.settings import Config
from headrace.tasks import cause


def serve(settings: Config, repeats: Repeats) -> bool:
    """Run the daemon to its end; False where a second signal cut it short. Raises the one error that ended it."""
    try:
        asyncio.run(_serve(settings, repeats))
    except asyncio.CancelledError:
        return False
    except BaseExceptionGroup as group:
        error = cause(group)
        if isinstance(error, HeadraceError):
            raise error from None
        raise
    return True


async def _serve(settings: Config, repeats: Repeats) -> None:
    signals = _Signals()
    async with open_daemon(settings, logger()) as daemon:
        signals.daemon = daemon
        reloader = Reloader(daemon)
        async with answering(daemon, reloader), asyncio.TaskGroup() as group:
            beside = (group.create_task(reloader.on(signals.hangup)), group.create_task(_tell(repeats)))
            await daemon.run()
            for task in beside:
                task.cancel()


async def _tell(repeats: Repeats) -> None:
    """Counts of repeated messages are told also where no other message follows."""
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
