"""What an adapter must not leave behind once it is closed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

DEADLINE = 10.0


async def eventually(condition: Callable[[], bool], what: str, deadline: float | None = None) -> None:
    """Returns once the condition holds. Raises `AssertionError` naming `what` after `deadline` seconds (`DEADLINE`)."""
    loop = asyncio.get_running_loop()
    deadline = DEADLINE if deadline is None else deadline
    end = loop.time() + deadline
    while not condition():
        assert loop.time() < end, f"not within {deadline} s: {what}"
        await asyncio.sleep(0.005)


def open_files() -> dict[int, str]:
    """The file descriptors of this process, with what they lead to; empty where the system does not tell."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Inside, no task may be left running and no file open when it ends."""
    tasks, files = asyncio.all_tasks(), open_files()
    yield
    await eventually(lambda: asyncio.all_tasks() <= tasks, "every task has ended")
    deadline = asyncio.get_running_loop().time() + DEADLINE
    while left := {fd: name for fd, name in open_files().items() if files.get(fd) != name}:
        # The far end of a connection may be a server in this process, on a thread of its own.
        assert asyncio.get_running_loop().time() < deadline, f"files left open: {left}"
        await asyncio.sleep(0.005)


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancel and await it: it must end in time, and raise nothing but the cancellation."""
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=DEADLINE)
    assert done, f"{task.get_name()} did not end within {DEADLINE} s of its cancellation"
    error = None if task.cancelled() else task.exception()
    assert error is None, f"{task.get_name()} ended with {error!r}"
