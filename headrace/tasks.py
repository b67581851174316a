"""Small helpers over asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

Error = TypeVar("Error", bound=BaseException)


async def first_of(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Wait for the first of these and cancel the others; an error of the first is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        if not task.cancelled():
            task.result()


async def advanced(parts: AsyncGenerator[None]) -> bool:
    """Run a generator to its next yield; False where it has ended instead."""
    try:
        await anext(parts)
    except StopAsyncIteration:
        return False
    return True


def cause(error: BaseException) -> BaseException:
    """What a task group failed of: the first leaf of its exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def among(error: BaseException, kind: type[Error]) -> Error | None:
    """The first error of this kind that a task group failed of."""
    if isinstance(error, kind):
        return error
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return next((found for one in inner if (found := among(one, kind)) is not None), None)
