"""`GET /tail`: events as JSON lines, past and live, read from the journal at the reader's own pace.

A reader that is slow holds at most one page of blocks and never the capture or a consumer. What the journal deletes
before it gets there is told by the word `gap`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Final

from aiohttp import web

from headrace.control.answers import DAEMON, stream, word
from headrace.control.places import pattern_of, start_of
from headrace.daemon import Daemon
from headrace.delivery.run import Piece
from headrace.delivery.selection import Selection
from headrace.errors import Permanent
from headrace.journal.block import Block
from headrace.protocols import Position
from headrace.suggest import did_you_mean, listed
from headrace.tasks import first_of

LOOK: Final = 1.0  # seconds until a tail without events notices that its reader has left
ENDING: Final = web.AppKey("ending", asyncio.Event)  # set when the server closes


async def tail(request: web.Request) -> web.StreamResponse:
    """`?from=&on=&where=&limit=`: what is there from a place on, then what comes."""
    daemon = request.app[DAEMON]
    where = pattern_of(request.query.get("where"))
    selection = Selection(_checked(daemon, request.query.getall("on", [])), where)
    limit = _limit(request.query.get("limit"))
    if len(daemon.journal.shards) != 1:
        raise Permanent("this journal has several shards, which `tail` cannot follow yet")
    shard = daemon.journal.shards[0]
    start = await start_of(daemon, shard, request.query.get("from", "latest"))
    reader = _Reader(daemon, shard, selection, partial(_gone, request), request.app[ENDING])
    return await stream(request, _limited(reader.lines(start), limit))


def _gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _checked(daemon: Daemon, on: Sequence[str]) -> Sequence[str] | None:
    """`on`, None for everything. Raises `Permanent` where a source is unknown."""
    for wanted in on:
        source, dot, event = wanted.partition(".")
        settings = daemon.config.sources.get(source)
        if settings is None:
            known = did_you_mean(source, daemon.config.sources)
            raise Permanent(f'no source "{source}"{known or f"; there are {listed(daemon.config.sources)}"}')
        if dot and settings.events is not None and event not in settings.events:
            raise Permanent(f'source "{source}" has no event "{event}"; it has {listed(sorted(settings.events))}')
    return on or None


def _limit(text: str | None) -> int | None:
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    raise Permanent(f"{text} is no number of events")


async def _limited(pages: AsyncIterator[Sequence[bytes] | bytes], limit: int | None) -> AsyncIterator[bytes]:
    """The lines of pages, joined, up to `limit` of them; a page that is bytes is a word and does not count."""
    left = limit
    if left == 0:
        return
    async for page in pages:
        if isinstance(page, bytes):
            yield page
            continue
        yield b"".join(page if left is None else page[:left])
        if left is not None:
            left -= len(page)
            if left <= 0:
                return


class _Reader:
    """One tail over one shard."""

    def __init__(
        self, daemon: Daemon, shard: str, selection: Selection, gone: Callable[[], bool], ending: asyncio.Event
    ) -> None:
        self._journal = daemon.journal
        self._shard = shard
        self._selection = selection
        self._gone = gone
        self._ending = ending

    async def lines(self, at: Position) -> AsyncIterator[Sequence[bytes] | bytes]:
        """The wanted lines of a block at a time, until the server closes or nobody listens any more."""
        while not self._ending.is_set() and not self._gone():
            if at >= self._journal.head(self._shard):
                await first_of(self._journal.grown(self._shard, at), self._ending.wait(), asyncio.sleep(LOOK))
                continue
            oldest = await self._journal.oldest(self._shard)
            if at < oldest:
                yield word("gap", first=at, last=oldest - 1)
                at = oldest
            page = await self._journal.read(self._shard, at, self._selection.wants)
            for block in page.blocks:
                if lines := self._wanted(block, at):
                    yield lines
                await asyncio.sleep(0)  # a pattern takes about a millisecond for a block
            at = max(at, page.next)

    def _wanted(self, block: Block, at: Position) -> Sequence[bytes]:
        indices = self._selection.indices(block, max(0, at - block.first))
        return Piece(block, indices).data.splitlines(keepends=True) if indices else []


ROUTES: Final = (web.get("/tail", tail),)
