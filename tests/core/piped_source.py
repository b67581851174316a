"""A source that runs what a test names, in the daemon or in a child process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

from headrace.errors import Fatal, Permanent, Transient
from headrace.event import Event
from headrace.protocols import Capture, Context, Source, Write
from headrace.settings import SourceSettings


class PipedSettings(SourceSettings):
    """`act` names a method below."""

    child: ClassVar[bool] = True
    type: str = "piped"
    act: str

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Source]:
        yield Piped(self.act, context)


def event(number: int, size: int = 0) -> Event:
    return Event(id=str(number), source="headrace:piped", type="t", partitionkey="k", data={"x": "y" * size})


class Piped:
    """Each method is one thing a source does."""

    def __init__(self, act: str, context: Context) -> None:
        self.act = act
        self.context = context

    async def run(self, out: Capture) -> None:
        await getattr(self, self.act)(out)

    async def appends(self, out: Capture) -> None:
        for number in range(30):
            key = b"%02d" % (number % 10)
            await out.append([event(number)], [Write(key, b"%d" % number, b"odd" if number % 2 else None)])
        await out.append([], [Write(b"00", None)])
        assert await out.state.get(b"00") is None
        assert await out.state.get(b"09") == b"29"
        assert await out.state.get_many([b"00", b"09", b"none"]) == {b"09": b"29"}
        assert await out.state.scan(b"0", b"07", 5) == [(b"08", b"28"), (b"09", b"29")]
        assert [key for key, _ in await out.state.find([b"odd"])] == [b"01", b"03", b"05", b"07", b"09"]

    async def submits(self, out: Capture) -> None:
        """Ends at once, with everything in flight."""
        for number in range(200):
            await out.submit([event(number, 2_000)], [Write(b"last", b"%d" % number)])
            assert await out.state.get(b"last") == b"%d" % number

    async def submits_and_fails(self, out: Capture) -> None:
        await self.submits(out)
        raise Transient("origin away", hint="wait", retry_after=7)

    async def big(self, out: Capture) -> None:
        for number in range(6):
            await out.submit([event(number, 6 << 20)])

    async def cancels_what_it_waits_for(self, out: Capture) -> None:
        (await out.submit([event(0)])).cancel()
        await out.append([event(1)])

    async def too_many(self, out: Capture) -> None:
        await out.append([], [Write(b"%d" % number, b"") for number in range(5_001)])

    async def transient(self, out: Capture) -> None:
        raise ExceptionGroup("g", [Transient("origin away", retry_after=7)])

    async def fatal(self, out: Capture) -> None:
        raise Fatal("slot lost", hint="make it again")

    async def permanent(self, out: Capture) -> None:
        raise Permanent("odd")

    async def bug(self, out: Capture) -> None:
        raise ZeroDivisionError("a bug")

    async def logs(self, out: Capture) -> None:
        self.context.log.bind(table="t").warning("slow", seconds=3, path=self.context.directory)

    async def killed(self, out: Capture) -> None:
        await self.submits(out)
        await out.append([])
        os.kill(os.getpid(), signal.SIGKILL)

    async def forever(self, out: Capture) -> None:
        await out.append([event(0)], [Write(b"pid", b"%d" % os.getpid())])
        await asyncio.Event().wait()

    async def hangs(self, out: Capture) -> None:
        """Ignores that it is cancelled."""
        await out.append([event(0)], [Write(b"pid", b"%d" % os.getpid())])
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue
