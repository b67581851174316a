"""The validation handshake: asking whether the target wants events at all.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md#4-abuse-protection
"""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
from yarl import URL

from headrace.errors import Fatal, Transient
from headrace.protocols import Clock
from headrace.sinks.webhook.answers import failure, unanswered

_TIMEOUT: Final = 30.0


class Handshake:
    """Done once before the first delivery of a run; afterwards requests keep to the rate that was allowed."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._lock = asyncio.Lock()
        self._done = False
        self._interval = 0.0  # seconds between requests
        self._next = 0.0

    async def passed(self, session: aiohttp.ClientSession, url: URL, clock: Clock) -> None:
        """Returns when a request may be sent. Raises `Fatal` where the target does not want any."""
        async with self._lock:
            if not self._done:
                await self._ask(session, url, clock)
                self._done = True
            if self._interval:
                now = clock.time()
                wait, self._next = self._next - now, max(self._next, now) + self._interval
                if wait > 0:
                    await clock.sleep(wait)

    async def _ask(self, session: aiohttp.ClientSession, url: URL, clock: Clock) -> None:
        headers = {"WebHook-Request-Origin": self._origin, "WebHook-Request-Rate": "*"}
        try:
            async with session.options(url, headers=headers, allow_redirects=False) as response:
                answer, status = response.headers, response.status
        except (aiohttp.ClientError, OSError) as error:
            raise unanswered(error, url.host or "", _TIMEOUT) from error
        error_of_status = failure(status, answer, "", clock.time())
        if isinstance(error_of_status, Transient):
            raise error_of_status
        allowed = answer.get("WebHook-Allowed-Origin", "")
        if error_of_status is not None or allowed not in {self._origin, "*"}:
            said = f"HTTP {status}, WebHook-Allowed-Origin {allowed or 'missing'}"
            hint = "the receiver must answer OPTIONS with WebHook-Allowed-Origin; without `handshake` it is not asked"
            raise Fatal(f"the target did not allow {self._origin}: {said}", hint=hint)
        self._interval = _interval(answer.get("WebHook-Allowed-Rate", "*"))


def _interval(rate: str) -> float:
    """From requests per minute."""
    text = rate.strip()
    return 60 / int(text) if text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text) else 0.0
