"""When to try again."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from headrace.errors import Transient
from headrace.protocols import Clock, Logger
from headrace.settings import Retry

_random: Final = random.SystemRandom()


def delay(retry: Retry, attempts: int) -> float:
    """Seconds to wait after this many failures: exponential with full jitter.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    return _random.uniform(0, min(retry.max, retry.initial * 2 ** min(attempts - 1, 32)))


class Outage:
    """A target that is away. The first delivery that met it probes; all others wait until it is back."""

    def __init__(self, retry: Retry, clock: Clock, log: Logger) -> None:
        self._retry = retry
        self._clock = clock
        self._log = log
        self._failures = 0
        self._prober: object = None
        self._over = asyncio.Event()
        self._over.set()
        self.reason = ""

    @property
    def there(self) -> bool:
        """Whether deliveries wait for the target."""
        return not self._over.is_set()

    async def over(self) -> None:
        await self._over.wait()

    async def wait_out(self, delivery: object, error: Transient) -> None:
        """Returns when `delivery` may try again."""
        if self._prober is None or self._prober is delivery:
            await self._wait_to_probe(delivery, error)
        else:
            await self._over.wait()

    async def _wait_to_probe(self, delivery: object, error: Transient) -> None:
        if not self._failures:
            self._log.warning("target away", error=str(error))
        self._prober, self.reason = delivery, str(error)
        self._over.clear()
        self._failures += 1
        wait = delay(self._retry, self._failures)
        if error.retry_after is not None:
            wait = max(wait, min(error.retry_after, self._retry.max_age))
        await self._clock.sleep(wait)

    def ended(self) -> None:
        """A delivery got through, or was given up: all may go on."""
        if self._failures:
            self._log.info("target back", failures=self._failures)
        self._failures, self._prober, self.reason = 0, None, ""
        self._over.set()
