"""The daemon's side of one worker: its process, its socket, and what became of the frame it holds."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from headrace import failpoints
from headrace.errors import Fatal, HeadraceError, Transient
from headrace.handlers import worker as wire
from headrace.handlers.calls import Outcome, WorkerSettings, event_id
from headrace.handlers.output import ProcessOutput
from headrace.handlers.process import Process, exit_text, memory_file
from headrace.protocols import Batch, Logger

_DONE: Final = wire.HEADER.pack(0, wire.DONE)
_READ: Final = 1 << 18
_ELSEWHERE: Final = -2  # as an event that was given up: none of this frame
_REMEMBERED: Final = 4  # frames, for output that comes late
_QUICK: Final = 0.002  # seconds per frame, up to which another one may wait behind it
_SHARE: Final = 0.2  # of the last frame in the mean


@dataclass(slots=True)
class _Frame:
    """One frame on its way."""

    number: int
    work: Batch
    outcome: Outcome
    future: asyncio.Future[Outcome]

    def within(self, place: int) -> int | None:
        """The number of the event in this frame, from what the progress tells; None where it tells of another."""
        return place & (1 << wire.FRAME) - 1 if place >= 0 and place >> wire.FRAME == self.number else None


class WorkerProcess:
    """One worker. It works on one frame after the other, and is used no more once `usable` is false.

    `ready` gives None, or the error for which it cannot be used. `on_end` is called once, when the process is gone.
    `quick`: frames take so little time that the next one may be sent ahead, and then nobody waits for the way.
    """

    def __init__(self, settings: WorkerSettings, log: Logger, on_end: Callable[[WorkerProcess], None]) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._log = log
        self._on_end = on_end
        self.ready: asyncio.Future[HeadraceError | None] = self._loop.create_future()
        self.batch = False
        self.usable = True
        self._received = b""
        self._unsent = memoryview(b"")
        self._frames: deque[_Frame] = deque()
        self._recent: dict[int, Batch] = {}
        self._number = 0
        self._answered = 0  # frames, by what was received last
        self._mean = math.inf
        self._begun = time.monotonic()
        self._overrun: int | None = None
        self._broken: HeadraceError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._output = ProcessOutput(log, self._event_of, wire.MARK)
        self._start(settings)
        self._arm(settings.start_timeout)

    def _start(self, settings: WorkerSettings) -> None:
        with ExitStack() as on_error:
            self._socket, far = socket.socketpair()
            on_error.callback(self._socket.close)
            self._socket.settimeout(0)
            with far, memory_file() as shared:
                shared.truncate(wire.Progress.SIZE)
                self._progress = wire.Progress(shared.fileno())
                on_error.callback(self._progress.close)
                self._progress.index[0] = wire.NOT_BEGUN
                inherited = (far.fileno(), shared.fileno())
                self.process = Process(settings.launch(*inherited), self._output.feed, inherited=inherited)
            on_error.pop_all()
        self._loop.add_reader(self._socket, self._receive)
        self.process.ended.add_done_callback(self._ended)

    # --- one frame

    async def call(self, work: Batch, *, together: bool = False) -> Outcome:
        """Have every event called, or all `together`. Cancelling kills the worker, and waits for its end."""
        frame = self._new_frame(work)
        if len(self._frames) == 1:
            self._begun = time.monotonic()
        if self._timer is None:
            self._arm(self._settings.timeout)
        size = wire.HEADER.pack(wire.NUMBER.size + len(work.data), wire.TOGETHER if together else wire.EVENTS)
        self._send(b"".join((size, wire.NUMBER.pack(work.attempt), work.data)))
        failpoints.reach("handler.sent")
        try:
            outcome = await frame.future
        except asyncio.CancelledError:
            if self._overrun is None:
                self._overrun = _ELSEWHERE  # no event is to blame
            self.kill()
            await asyncio.wait({self.process.ended}, timeout=1)
            raise
        failpoints.reach("handler.answered")
        return outcome

    def _new_frame(self, work: Batch) -> _Frame:
        self._number += 1
        frame = _Frame(self._number, work, Outcome(len(work)), self._loop.create_future())
        self._frames.append(frame)
        self._recent[frame.number] = work
        self._recent.pop(frame.number - _REMEMBERED, None)
        return frame

    @property
    def quick(self) -> bool:
        return self._mean < _QUICK

    def _send(self, frame: bytes) -> None:
        if not self.usable:
            return
        if self._unsent or self._answered > 1:
            if not self._unsent:
                self._loop.call_soon(self._flush_all)  # several were answered at once, and more will follow
            self._unsent = memoryview(bytes(self._unsent) + frame)
            return
        self._unsent = memoryview(frame)
        self._flush_all()

    def _flush_all(self) -> None:
        if not self.usable:
            return
        self._flush()
        if self._unsent:
            self._loop.add_writer(self._socket, self._flush_on)

    def _flush(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:  # it died: its end answers the frame
            self._unsent = memoryview(b"")

    def _flush_on(self) -> None:
        self._flush()
        if not self._unsent:
            self._loop.remove_writer(self._socket)

    def _receive(self) -> None:
        data = self._read()
        self._answered = 0
        if data == _DONE and not self._received:
            self._finish()
        elif data:
            self._parse(data)
        elif data is not None:  # closed by the function, or by its death
            self._loop.remove_reader(self._socket)
            self.kill()

    def _read(self) -> bytes | None:
        try:
            return self._socket.recv(_READ)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _parse(self, data: bytes) -> None:
        buffer, at = self._received + data, 0
        while len(buffer) - at >= wire.HEADER.size:
            size, kind = wire.HEADER.unpack_from(buffer, at)
            end = at + wire.HEADER.size + size
            if len(buffer) < end:
                break
            self._frame(kind, buffer[at + wire.HEADER.size : end])
            at = end
        self._received = buffer[at:]

    def _frame(self, kind: bytes, payload: bytes) -> None:
        if kind == wire.DONE:
            self._finish()
        elif kind == wire.RETURNED:
            self._frames[0].outcome.returned[wire.NUMBER.unpack_from(payload)[0]] = payload[wire.NUMBER.size :]
        elif kind == wire.PARTIAL:
            self._frames[0].outcome.tell(**json.loads(payload))
        elif kind == wire.FAILED:
            self._failed(wire.NUMBER.unpack_from(payload)[0], json.loads(payload[wire.NUMBER.size :]))
        elif kind == wire.READY:
            self._is_ready(json.loads(payload))
        elif kind == wire.BROKEN:
            broken = json.loads(payload)
            self._broken = Fatal(broken["message"], hint=broken["hint"])
        elif kind == wire.LEAVING:
            self._answer_for_the_dead("exited")
            self.stop(grace=1)

    def _failed(self, index: int, answer: Any) -> None:
        frame = self._frames[0]
        frame.outcome.failed[index] = answer["error"]
        identity = event_id(frame.work.lines[index])
        self._log.warning("the function raised", event_id=identity, traceback=answer["traceback"])

    def _is_ready(self, answer: Any) -> None:
        self.batch = answer["batch"]
        self._disarm()
        self._set_ready(None)

    def _set_ready(self, error: HeadraceError | None) -> None:
        if not self.ready.done():
            self.ready.set_result(error)

    def _finish(self) -> None:
        """The oldest frame is answered."""
        frame, now = self._frames.popleft(), time.monotonic()
        self._answered += 1
        spent = now - self._begun
        self._mean = spent if self._mean == math.inf else self._mean + _SHARE * (spent - self._mean)
        self._begun = now
        if not frame.future.done():
            frame.future.set_result(frame.outcome)

    # --- time

    def _arm(self, delay: float) -> None:
        self._timer = self._loop.call_later(delay, self._check_time)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_time(self) -> None:
        """One timer per time-out, not per event: it looks since when the event in hand is being called."""
        self._timer = None
        if not self.ready.done():
            hint = "importing it takes too long or waits for something"
            self._broken = Transient(f"{self._settings.function} was not loaded in time", hint=hint)
            self.kill()
        elif self._frames:
            since = max(self._begun, self._progress.since[0])
            left = since + self._settings.timeout - time.monotonic()
            if left > 0:
                self._arm(left)
            else:
                self._overrun = self._progress.index[0]
                self.kill()

    # --- the end

    def kill(self) -> None:
        self.usable = False
        self.process.kill()

    def stop(self, grace: float) -> None:
        """Let it end by itself, its exit handlers run; killed after `grace` seconds."""
        self.usable = False
        self._close_socket()
        self._disarm()
        self._timer = self._loop.call_later(grace, self.process.kill)

    def _ended(self, ended: asyncio.Future[int]) -> None:
        self.usable = False
        self._disarm()
        self._output.close()
        self._take_rest()
        self._close_socket()
        text = exit_text(ended.result())
        if self._overrun is not None:
            text = f"timed out after {self._settings.timeout:g} s"
        self._answer_for_the_dead(text)
        self._set_ready(self._start_failure(ended.result()))
        self._progress.close()
        self._on_end(self)

    def _take_rest(self) -> None:
        """Answers that arrived before the death count."""
        while data := self._read():
            self._parse(data)

    def _close_socket(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()

    def _start_failure(self, code: int) -> HeadraceError:
        if self._broken is not None:
            return self._broken
        message = f"the worker ended while it loaded {self._settings.function}: {exit_text(code)}"
        if self._output.last_error:
            message += f": {self._output.last_error}"
        if code == -9:  # not its own doing: the kernel short of memory, or an operator
            return Transient(message, hint="was the system short of memory?")
        return Fatal(message, hint="the code at module level ended it; its output is in the log")

    def _answer_for_the_dead(self, why: str) -> None:
        """The frames it holds have an outcome all the same."""
        place = self._progress.index[0]
        while self._frames:
            frame = self._frames[0]
            index = frame.within(place)
            overrun = None if self._overrun is None else frame.within(self._overrun)
            given_up = _ELSEWHERE if overrun is None and self._overrun is not None else overrun
            frame.outcome.end(wire.NOT_BEGUN if index is None else index, why, given_up)
            self._finish()

    # --- whose output

    def _event_of(self, mark: bytes) -> str | None:
        """The id of the event a line belongs to: by its mark, else the one in hand when the line is read."""
        if mark.isdigit():
            return self._id(int(mark))
        return self._id(self._progress.index[0]) if self._frames else None

    def _id(self, place: int) -> str | None:
        work = self._recent.get(place >> wire.FRAME)
        index = place & (1 << wire.FRAME) - 1
        return event_id(work.lines[index]) if work is not None and index < len(work) else None


def starter(settings: WorkerSettings, log: Logger) -> Callable[[Callable[[WorkerProcess], None]], WorkerProcess]:
    """How a pool starts workers."""
    return lambda on_end: WorkerProcess(settings, log, on_end)
