"""The answers: 202, and why a request is not taken."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Final

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


class Accepted(web.StreamResponse):
    """202 without a body, as bytes that were made once: the answer is a third of what a small request costs."""

    _TEXT: Final = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
    _CLOSING: Final = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__(status=202)
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        if request.transport is None:
            raise ConnectionResetError("the client is gone")
        request.transport.write(self._TEXT if self._keep_alive else self._CLOSING)

    async def write_eof(self, data: bytes = b"") -> None:
        """It was written whole."""


_staying: Final = Accepted(keep_alive=True)
_leaving: Final = Accepted(keep_alive=False)


def accepted(request: web.BaseRequest) -> Accepted:
    """The answer to what is durable."""
    return _staying if request.keep_alive else _leaving
