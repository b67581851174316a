"""When to try again."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from headrace.errors import Transient
from headrace.protocols import Clock, Logger
from headrace.settings import Retry
from headrace.tasks import first_of

_random: Final = random.SystemRandom()


def delay(retry: Retry, attempts: int) -> float:
    """Seconds to wait after this many failures: exponential with full jitter.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    return _random.uniform(0, min(retry.max, retry.initial * 2 ** min(attempts - 1, 32)))


class Outage:
    """A target that is away. One delivery probes; all others wait until it is back, or the consumer closes."""

    def __init__(self, retry: Retry, clock: Clock, log: Logger) -> None:
        self._retry = retry
        self._clock = clock
        self._log = log
        self._failures = 0
        self._prober: object = None
        self._over = asyncio.Event()
        self._over.set()
        self._closed = asyncio.Event()
        self.reason = ""

    @property
    def there(self) -> bool:
        """Whether deliveries wait for the target."""
        return self._prober is not None

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        """Nothing more is to be tried: all waiting ends."""
        self._closed.set()
        self._over.set()

    async def over(self) -> None:
        await self._over.wait()

    async def wait_out(self, delivery: object, error: Transient) -> None:
        """Returns when `delivery` may try again, or at once when closed."""
        if self.closed:
            return
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
        await first_of(self._clock.sleep(wait), self._closed.wait())

    def ended(self) -> None:
        """A delivery got through, or was given up: all may go on."""
        if self._prober is None:
            return
        self._log.info("target back", failures=self._failures)
        self._failures, self._prober, self.reason = 0, None, ""
        self._over.set()
