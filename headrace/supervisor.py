"""Keeping one part of the daemon running: restart with back-off, or stop until the operator acts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from headrace.errors import Fatal, JournalFailed, Transient
from headrace.protocols import Clock, Logger
from headrace.tasks import among, cause

FIRST_BACKOFF: Final = 0.5  # seconds
LAST_BACKOFF: Final = 30.0
STEADY: Final = 60.0  # seconds of running after which the back-off starts over


class Supervised:
    """A source or a consumer as the daemon sees it. `state` is one of starting, running, waiting, failed, stopped."""

    def __init__(self, name: str, run: Callable[[], Awaitable[None]], clock: Clock, log: Logger) -> None:
        self.name = name
        self.state = "starting"
        self.why = ""
        self.restarts = 0
        self._run = run
        self._clock = clock
        self._log = log
        self._failures = 0
        self.task: asyncio.Task[None] | None = None

    async def keep_running(self) -> None:
        """Until it ends by itself, fails for good, or is cancelled. A failed journal is raised: it ends the daemon."""
        while True:
            started = self._clock.time()
            self.state, self.why = "running", ""
            error = await self._ended()
            if error is None:
                self.state = "stopped"
                return
            if not await self._again(error, self._clock.time() - started):
                return

    async def _ended(self) -> BaseException | None:
        """Run it once; what it failed of, if it failed."""
        try:
            await self._run()
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            return error  # its own, of something inside: no reason to end silently
        except Exception as error:  # noqa: BLE001 -- the one boundary where a part may fail in any way
            if (failed := among(error, JournalFailed)) is not None:
                raise failed from None
            return among(error, Fatal) or cause(error)
        return None

    async def _again(self, error: BaseException, lasted: float) -> bool:
        self.why = str(error) if isinstance(error, Transient | Fatal) else f"{type(error).__name__}: {error}"
        if isinstance(error, Fatal):
            self.state = "failed"
            self._log.error("stopped until you act", error=self.why)
            return False
        self.state = "waiting"
        self._failures = 1 if lasted > STEADY else self._failures + 1
        self.restarts += 1
        wait = min(LAST_BACKOFF, FIRST_BACKOFF * 2 ** min(self._failures - 1, 32))
        if isinstance(error, Transient):
            wait = max(wait, error.retry_after or 0.0)
            self._log.warning("will try again", error=self.why, seconds=wait)
        else:
            self._log.error("failed unexpectedly; will try again", error=self.why, seconds=wait, exc_info=error)
        await self._clock.sleep(wait)
        return True

    def start(self, group: asyncio.TaskGroup) -> None:
        self.task = group.create_task(self.keep_running(), name=self.name)

    async def cancel(self) -> None:
        """Stop it now; returns when it has ended."""
        if self.task and not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])
        self.state = "stopped"
