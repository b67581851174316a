"""Time as it passes."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """The `Clock` of a running daemon."""

    def time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
