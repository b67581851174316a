"""Why a request is not taken, as the answer it gets."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from aiohttp import web


class Refused(Exception):
    """The answer to a request that becomes no event. `words` name no secret."""

    def __init__(self, status: int, words: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.words = words
        self.headers = headers or {}

    def response(self) -> web.Response:
        """A line of text; the connection is closed where the body was not read to its end."""
        answer = web.Response(status=self.status, text=self.words + "\n", headers=self.headers)
        if self.status in {408, 413}:
            answer.force_close()
        return answer


def busy(words: str, seconds: float = 1.0) -> Refused:
    """Come again later: 503."""
    return Refused(503, words, {"Retry-After": str(max(1, ceil(seconds)))})
