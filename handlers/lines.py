"""A program that stays: events come as lines on its standard input, verdicts leave as lines on descriptor 3.

A verdict is `ok`, or `error WHY`, or a JSON object: `{}`, `{"error": "why"}`, `{"events": [...]}`, with the event's
`"id"` where it likes. Without an id it is about the oldest event that has none yet. An empty line says nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from headrace import failpoints
from headrace.errors import HeadraceError
from headrace.handlers.calls import event_id
from headrace.handlers.output import ProcessOutput
from headrace.handlers.process import Launch, Process, exit_text
from headrace.protocols import Batch, Logger

_READ: Final = 1 << 16
_LONGEST: Final = 8 << 20  # bytes of a verdict
_SHOWN: Final = 500
_END: Final = 0.5  # seconds from the end of the verdicts to the end of the program
# A shell cannot move a descriptor above 9, and nothing of Python's may run between fork and exec in a daemon with
# threads: so a fresh interpreter does it, and becomes the program.
_BECOME: Final = """
import os, sys
at = int(sys.argv[1])
if at != 3:
    os.dup2(at, 3); os.close(at)
os.set_inheritable(3, True)
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"cannot start {sys.argv[2]}: {error.strerror}")
"""


class _Said(msgspec.Struct):
    """A verdict as JSON."""

    id: str | None = None
    error: str | None = None
    events: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Said).decode


@dataclass(slots=True)
class Answers:
    """What became of a batch, by the number of the event. `open` are those without a verdict yet, oldest first."""

    open: dict[int, None]
    failed: dict[int, str] = field(default_factory=dict)
    returned: dict[int, bytes] = field(default_factory=dict)

    @property
    def oldest(self) -> int | None:
        return next(iter(self.open), None)


class LinesProcess:
    """One such program. It has one batch at a time; `on_end` is called once, when it is gone."""

    def __init__(self, launch: Launch, timeout: float, log: Logger, on_end: Callable[[LinesProcess], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._on_end = on_end
        self.ready: asyncio.Future[HeadraceError | None] = self._loop.create_future()
        self.ready.set_result(None)
        self.usable = True
        self._work: Batch | None = None
        self._answers = Answers({})
        self._future: asyncio.Future[Answers] | None = None
        self._received = b""
        self._unsent = memoryview(b"")
        self._since = 0.0
        self._why = ""
        self._timer: asyncio.TimerHandle | None = None
        self._output = ProcessOutput(log, self._event_of)
        self._start(launch)

    def _start(self, launch: Launch) -> None:
        with ExitStack() as far, ExitStack() as on_error:
            stdin, self._stdin = os.pipe()
            source = far.enter_context(open(stdin, "rb", buffering=0))
            on_error.callback(os.close, self._stdin)
            self._verdicts, verdicts = os.pipe()
            far.callback(os.close, verdicts)
            on_error.callback(os.close, self._verdicts)
            for descriptor in (self._stdin, self._verdicts):
                os.set_blocking(descriptor, False)
            arguments = (sys.executable, "-I", "-S", "-c", _BECOME, str(verdicts), *launch.arguments)
            become = Launch(arguments, launch.directory, launch.environment)
            self.process = Process(become, self._output.feed, stdin=source, inherited=(verdicts,))
            on_error.pop_all()
        self._loop.add_reader(self._verdicts, self._receive)
        self.process.ended.add_done_callback(self._ended)

    async def call(self, work: Batch) -> Answers:
        """The verdicts of a batch. Cancelling kills the program, and waits for its end."""
        self._work = work
        self._answers = Answers(dict.fromkeys(range(len(work))))
        self._future = self._loop.create_future()
        self._since = time.monotonic()
        self._arm()
        self._send(work.data)
        failpoints.reach("lines.sent")
        try:
            answers = await self._future
        except asyncio.CancelledError:
            self.kill()
            await asyncio.wait({self.process.ended}, timeout=1)
            raise
        failpoints.reach("lines.answered")
        return answers

    @property
    def quick(self) -> bool:
        """It has its own pace, and verdicts without an id must not mix."""
        return False

    # --- the way there

    def _send(self, data: bytes) -> None:
        if not self.usable:
            self._finish()
            return
        self._unsent = memoryview(data)
        self._flush()
        if self._unsent:
            self._loop.add_writer(self._stdin, self._flush_on)

    def _flush(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._stdin, self._unsent) :]
        except BlockingIOError:
            return
        except OSError:  # it reads no more: its end, or the time-out, answers
            self._unsent = memoryview(b"")

    def _flush_on(self) -> None:
        self._flush()
        if not self._unsent:
            self._loop.remove_writer(self._stdin)

    # --- the way back

    def _receive(self) -> None:
        data = self._read()
        if data:
            self._take(data)
        elif data is not None:
            self._loop.remove_reader(self._verdicts)
            self._disarm()  # mostly it just ends, and its exit code says more
            self._timer = self._loop.call_later(_END, self._broken, "closed descriptor 3")

    def _read(self) -> bytes | None:
        try:
            return os.read(self._verdicts, _READ)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _take(self, data: bytes) -> None:
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            if line.strip() and not self._why:
                self._verdict(line.strip())
        if len(self._received) > _LONGEST:
            self._broken("wrote a verdict without an end")

    def _verdict(self, line: bytes) -> None:
        try:
            said = _said(line)
            index = self._about(said.id)
        except ValueError as error:
            self._broken(str(error))
            return
        del self._answers.open[index]
        self._since = time.monotonic()
        if said.error is not None:
            self._answers.failed[index] = said.error[:_SHOWN] or "failed, and said no reason"
        elif (events := bytes(said.events)) not in {b"", b"null"}:
            self._answers.returned[index] = events
        if not self._answers.open:
            self._finish()

    def _about(self, identity: str | None) -> int:
        oldest = self._answers.oldest
        if oldest is None or self._work is None:
            raise ValueError("wrote a verdict about no event")
        if identity is None:
            return oldest
        found = next((index for index in self._answers.open if event_id(self._work.lines[index]) == identity), None)
        if found is None:
            raise ValueError(f"wrote a verdict about {identity!r}, which it does not have")
        return found

    def _broken(self, why: str) -> None:
        """It cannot be relied on any more."""
        self._why = self._why or f"the program {why}"
        self.kill()

    # --- time

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._check_time)

    def _check_time(self) -> None:
        """One timer per time-out, not per event: it looks since when nothing was answered."""
        self._timer = None
        if self._work is None:
            return
        left = self._since + self._timeout - time.monotonic()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check_time)
        else:
            self._why = self._why or f"timed out after {self._timeout:g} s"
            self.kill()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- the end

    def kill(self) -> None:
        self.usable = False
        self.process.kill()

    def stop(self, grace: float) -> None:
        """Its standard input ends, and it may end by itself; killed after `grace` seconds."""
        self.usable = False
        self._close_stdin()
        self._disarm()
        self._timer = self._loop.call_later(grace, self.process.kill)

    def _ended(self, ended: asyncio.Future[int]) -> None:
        self.usable = False
        self._disarm()
        while data := self._read():  # verdicts that came before the death count
            self._take(data)
        self._output.close()
        self._close_stdin()
        self._loop.remove_reader(self._verdicts)
        os.close(self._verdicts)
        self._answer_for_the_dead(self._why or self._last_words(ended.result()))
        self._on_end(self)

    def _last_words(self, code: int) -> str:
        said = self._output.last_error
        return f"{exit_text(code)}: {said}"[:_SHOWN] if said else exit_text(code)

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    def _answer_for_the_dead(self, why: str) -> None:
        """The oldest event was in hand, as far as anyone can tell; the others come again."""
        oldest = self._answers.oldest
        if self._work is not None and oldest is not None:
            del self._answers.open[oldest]
            self._answers.failed[oldest] = why
            self._finish()

    def _finish(self) -> None:
        self._work = None
        if self._future is not None and not self._future.done():
            self._future.set_result(self._answers)

    def _event_of(self, _: bytes) -> str | None:
        oldest = self._answers.oldest
        return None if self._work is None or oldest is None else event_id(self._work.lines[oldest])


def _said(line: bytes) -> Any:
    """Raises `ValueError`."""
    word, _, rest = line.partition(b" ")
    if word == b"ok" and not rest:
        return _Said()
    if word == b"error":
        return _Said(error=rest.decode("utf-8", "replace"))
    try:
        return _decode(line)
    except msgspec.MsgspecError as error:
        shown = line[:100].decode("utf-8", "replace")
        raise ValueError(f"wrote no verdict: {shown!r} ({error}); `ok`, `error WHY` or a JSON object") from error


def starter(launch: Launch, timeout: float, log: Logger) -> Callable[[Callable[[LinesProcess], None]], LinesProcess]:
    """How a pool starts programs."""
    return lambda on_end: LinesProcess(launch, timeout, log, on_end)
