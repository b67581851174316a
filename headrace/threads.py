"""Blocking calls of adapters, where a cancellation must not leave a thread that still writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


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
