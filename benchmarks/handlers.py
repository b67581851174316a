"""Calls of an empty Python function out of process, on one core: `make bench-handlers`.

The daemon's side of a worker and the worker share one core. "One by one": a delivery per event, two in flight, as the
engine makes them. "In frames": a delivery of many events, one call for each. "As a list": one call for each delivery.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import report
from headrace.handlers.command import CommandHandler
from headrace.handlers.function import FunctionHandler
from headrace.protocols import Batch
from headrace.settings import HandlerSettings
from headrace.testing import make_batch, make_context
from headrace.testing.sink import an_event

SECONDS = 2.0
ROUNDS = 3  # of which the best counts: a virtual machine loses whole moments to its neighbours
FUNCTIONS = "def one(event):\n    pass\n\n\ndef many(events):\n    pass\n"
PROGRAM = "import os, sys\nfor line in sys.stdin:\n    os.write(3, b'ok\\n')\n"


def a_batch(count: int) -> Batch:
    return make_batch([an_event(number, "x" * 100) for number in range(count)])


def best(settings: HandlerSettings, batch: Batch, deliveries: int) -> int:
    """Events per second."""
    return max(asyncio.run(rate(settings, batch, deliveries)) for _ in range(ROUNDS))


async def rate(settings: HandlerSettings, batch: Batch, deliveries: int) -> int:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "functions.py").write_text(FUNCTIONS)
        async with settings.open(make_context(folder)) as sink:
            await sink.deliver(batch)
            start = time.perf_counter()

            async def deliver() -> int:
                count = 0
                while time.perf_counter() - start < SECONDS:
                    await sink.deliver(batch)
                    count += len(batch)
                return count

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(deliver()) for _ in range(deliveries)]
            return round(sum(task.result() for task in tasks) / (time.perf_counter() - start))


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    one = FunctionHandler(function="functions.py:one", concurrency=1)
    many = FunctionHandler(function="functions.py:many", concurrency=1)
    lines = CommandHandler(command=(sys.executable, "-c", PROGRAM), mode="lines", concurrency=1)
    figures = {
        "bytes per event": len(a_batch(1).data),
        "function, one by one, events/s": best(one, a_batch(1), 2),
        "function, in frames of 100, events/s": best(one, a_batch(100), 2),
        "function, as a list of 100, events/s": best(many, a_batch(100), 2),
        "command in lines, one by one, events/s": best(lines, a_batch(1), 1),
        "command in lines, batches of 100, events/s": best(lines, a_batch(100), 1),
    }
    report("handlers", figures)


if __name__ == "__main__":
    main()
