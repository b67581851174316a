"""Reading the settings again while the daemon runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial

from headrace import systemd
from headrace.daemon import Daemon
from headrace.errors import HeadraceError, JournalFailed, Transient
from headrace.settings import Config
from headrace.settings_changes import Changes
from headrace.settings_file import load


class Reloader:
    """Applies the settings file anew, one at a time. Where that cannot be done the old settings stay."""

    def __init__(self, daemon: Daemon, environ: Mapping[str, str] | None = None) -> None:
        self._daemon = daemon
        self._load: Callable[[], Config] = partial(load, daemon.config.file, environ or os.environ)
        self._lock = asyncio.Lock()

    async def reload(self) -> Changes:
        """Raises `SettingsError` with all mistakes, or `Permanent` where a restart is needed."""
        async with self._lock:
            if not self._daemon.up:
                raise Transient("the daemon is starting or stopping", hint="try again")
            config = await asyncio.to_thread(self._load)
            return await self._daemon.reload(config)

    async def on(self, hangup: asyncio.Event) -> None:
        """Reload at each SIGHUP; what goes wrong is logged, because nobody waits for an answer."""
        while True:
            await hangup.wait()
            hangup.clear()
            try:
                systemd.reloading()
                await self.reload()
            except JournalFailed:
                raise
            except Exception as error:  # noqa: BLE001 -- whatever keeps it from reloading, the daemon goes on
                self._refused(error)
                systemd.notify("READY=1")  # else `systemctl reload` waits for it

    def _refused(self, error: Exception) -> None:
        unforeseen = {} if isinstance(error, HeadraceError) else {"exc_info": error}
        self._daemon.log.error("not reloaded; the old settings stay", error=str(error), **unforeseen)
