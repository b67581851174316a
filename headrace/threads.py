"""Threads: blocking calls of adapters, where a cancellation must not leave one that still writes; their memory."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar, TypeVarTuple

# mallopt(3): one heap for all threads, of which blocks of a megabyte and more are a part, and that keeps some free.
_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1
_HEAP: Final = 8 << 20

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def keep_one_heap() -> None:
    """Let this process use little memory again and again, where its C library is glibc.

    By itself that gives every thread a heap of its own, so that what one makes and another drops stays in both; and it
    takes the pages for every large block from the system anew: read from the journal, 0.46 µs an event instead of 0.37.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, _HEAP)
        library.mallopt(_M_TRIM_THRESHOLD, _HEAP)


async def finish(call: Callable[[*Ts], T], *args: *Ts, interrupt: Callable[[], object] | None = None) -> T:
    """`call` in a thread, whose end is awaited even when cancelled: a thread cannot be stopped.

    The cancellation is raised only then, so that the caller can undo what was done. `interrupt` is
    called at the cancellation and may ask the thread to end early.
    """
    work = asyncio.get_running_loop().run_in_executor(None, call, *args)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if interrupt is not None:
            interrupt()
        await _ended(work)
        raise


async def _ended(work: asyncio.Future[Any]) -> None:
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:  # a second one changes nothing; the first is raised after
            continue
    if not work.cancelled():
        work.exception()  # retrieved: the cancellation is what the caller hears of
