"""The worker: runs one function of the user's, in the user's own Python, for a daemon at the other end of a socket.

Standard library only, Python 3.9 or newer. Started as `PYTHON -I worker.py SOCKET PROGRESS PARENT SETUP`: two inherited
descriptors, the daemon's process id, and JSON `{"handler", "function", "directory", "timeout"}`. With `"contract"`, the
path of another file like this one, that file says how the function is called: `prepare(setup)` before it is imported,
`adapt(function, setup, partial)` after.

A frame is a u32 length (big-endian) of the payload, one byte of kind, the payload. The daemon sends EVENTS frames (u32
attempt, then JSON lines), perhaps one ahead, and each is answered by DONE, in their order. A success without a returned
event is told by the progress alone, which outlives the worker; everything else is sent before the next event is begun.
So a death at any instruction leaves certain which events were finished and which one was in hand.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import inspect
import io
import json
import mmap
import os
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from types import ModuleType, TracebackType
from typing import IO, Any, NamedTuple

if sys.version_info < (3, 9):  # noqa: UP036 - this file runs in the user's Python, not in Headrace's
    sys.exit("a handler's Python must be 3.9 or newer, and this is " + sys.version.split()[0])

EVENTS = b"B"  # to the worker: u32 attempt, JSON lines; one call for each
TOGETHER = b"G"  # to the worker: the same; one call for all of them, with a list
READY = b"R"  # the function is loaded: JSON {"batch"}
BROKEN = b"X"  # it cannot be: JSON {"message", "hint"}
FAILED = b"F"  # u32 index, JSON {"error", "traceback"}
RETURNED = b"E"  # u32 index, JSON list of events
PARTIAL = b"P"  # of a call for several: JSON {"failed": {index: why}, "untried": index}
DONE = b"D"  # every event of the frame was called and answered
LEAVING = b"Q"  # the function called `sys.exit`: this worker answers no more

HEADER = struct.Struct("!Ic")
NUMBER = struct.Struct("!I")
MARK = b"\0headrace "  # in front of what an event prints: the number of the event, and without one behind it
NOT_BEGUN = -1
FRAME = 32  # bits below the number of the frame, which counts from 1, in what the progress tells

_OPTIONAL = frozenset(
    {"subject", "time", "dataschema", "datacontenttype", "partitionkey", "previouskey", "barrier", "sequence"}
    | {"traceparent", "data"}
)
_MESSAGE_LIMIT = 500
_TRACEBACK_LIMIT = 8_000
_HINT_RETURN = 'return None, an event (a dict with "type" and "data") or a list of events'


class Progress:
    """Memory shared with the daemon: the event in hand, by frame and number, and since when (`time.monotonic`)."""

    SIZE = 16

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, self.SIZE)
        self._whole = memoryview(self._map)
        # One aligned store of eight bytes each: a reader never sees half of one.
        self.index = self._whole[:8].cast("q")
        self.since = self._whole[8:].cast("d")

    def close(self) -> None:
        for view in (self.index, self.since, self._whole):
            view.release()
        self._map.close()


class Event(dict[str, Any]):
    """A CloudEvent: `event["type"]` or `event.type`, `event["data"]["path"]` or `event.data["path"]`.

    An optional attribute of the envelope that the event does not have reads as None; item access raises `KeyError`.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name in _OPTIONAL:
            return None
        raise AttributeError(f"the event has no attribute {name!r}")

    def open(self, mode: str = "rb", **options: Any) -> IO[Any]:
        """The file that the event is about, opened by `open(path, mode, **options)`.

        Of a bucket's event, the object's content as a stream: `mode` is `"rb"` or `"r"`. Raises `FileNotFoundError`
        where it is gone.
        """
        data = self.get("data")
        if isinstance(data, dict) and "bucket" in data and "key" in data:
            return _open_object(self, mode, options)
        if not (isinstance(data, dict) and "root" in data and "path" in data):
            raise TypeError(f"an event of type {self.get('type')} has no file to open")
        encoded = data.get("path_base64")
        path = base64.b64decode(encoded) if encoded else os.fsencode(data["path"])
        return open(os.path.join(os.fsencode(data["root"]), path), mode, **options)


def _open_object(event: Event, mode: str, options: dict[str, Any]) -> IO[Any]:
    """The content by a short-lived address, which the daemon makes: this process has no credentials."""
    if mode not in {"r", "rt", "rb"}:
        raise ValueError(f"an object can be read only, not opened with mode {mode!r}")
    import ssl  # some 20 ms that most functions need not pay
    from urllib.error import HTTPError
    from urllib.request import urlopen

    found = _ask_daemon("/link", {"source": event["source"], "data": event["data"]})
    url, authorities = found["url"], found.get("ca_file")
    trust = ssl.create_default_context(cafile=authorities) if authorities else None
    try:
        stream: IO[Any] = urlopen(url, timeout=60, context=trust)  # noqa: S310 -- the daemon gives http(s) only
    except HTTPError as error:
        error.close()
        place = f"{event['data']['bucket']}/{event['data']['key']}"
        if error.code == 404:
            raise FileNotFoundError(f"{place} is gone") from None
        raise OSError(f"{place} cannot be read: HTTP status {error.code}") from None
    return stream if mode == "rb" else io.TextIOWrapper(stream, **options)


def _ask_daemon(path: str, body: dict[str, Any]) -> dict[str, Any]:
    from http.client import HTTPConnection

    connection = HTTPConnection("localhost", timeout=30)
    connection.sock = _connected(os.environ["HEADRACE_LINKS"])
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(answer.get("error", "the daemon gives no address"))
    return answer


def _connected(path: str) -> socket.socket:
    """To the daemon; a path longer than an address may be is reached through its open folder (Linux)."""
    there = socket.socket(socket.AF_UNIX)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        short = os.path.join(f"/proc/self/fd/{folder}", os.path.basename(path))
        there.connect(path if len(os.fsencode(path)) < 100 else short)
    except OSError:
        there.close()
        raise
    finally:
        os.close(folder)
    return there


class Context:
    """What a function that takes a second argument learns about its call. `attempt` counts from 1."""

    __slots__ = ("_since", "attempt", "handler", "timeout")

    def __init__(self, handler: str, attempt: int, timeout: float, since: memoryview[float]) -> None:
        self.handler = handler
        self.attempt = attempt
        self.timeout = timeout
        self._since = since

    def remaining_seconds(self) -> float:
        """Until the call is given up and the worker killed; never negative."""
        return max(0.0, self._since[0] + self.timeout - time.monotonic())


class Broken(Exception):
    """The function cannot be called: what is wrong and what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Partial(NamedTuple):
    """What a contract gives for a call with several events: which failed, and from which on they were not tried."""

    failed: dict[int, str]
    untried: int


class Target(NamedTuple):
    """The loaded function, and how it is called."""

    call: Callable[..., Any]
    asynchronous: bool
    batch: bool
    context: bool


def load(function: str, directory: str) -> Target:
    """The function named `FILE.py:NAME` or `MODULE:NAME`. Raises `Broken`."""
    place, _, name = function.rpartition(":")
    sys.path.insert(0, directory)
    module = _import(place, directory)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise Broken(f"{place} has no function {name!r}", _functions_of(module))
    return _target(found, function)


def _import(place: str, directory: str) -> ModuleType:
    try:
        if place.endswith(".py"):
            return _import_file(os.path.join(directory, place))
        return importlib.import_module(place)
    except FileNotFoundError as error:
        if error.filename != os.path.join(directory, place):
            raise _import_error(place, directory, error) from error
        raise Broken(f"{place} does not exist", "the path starts at the folder of the settings file") from error
    except BaseException as error:  # importing is user code: it may exit, too
        raise _import_error(place, directory, error) from error


def _import_file(path: str) -> ModuleType:
    folder, file = os.path.split(path)
    if folder != sys.path[0]:
        sys.path.insert(1, folder)
    name = file[:-3]
    if name in sys.modules:  # a file named like a module in use must not take its place
        name = "handler_" + name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _import_alone(path: str) -> ModuleType:
    """A file of Headrace's: its folder is nowhere the user's imports are looked for."""
    spec = importlib.util.spec_from_file_location("headrace_contract", path)
    if spec is None or spec.loader is None:
        raise Broken(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _import_error(place: str, directory: str, error: BaseException) -> Broken:
    if isinstance(error, SyntaxError):
        where = f"{_relative(error.filename or place, directory)}:{error.lineno}"
        return Broken(f"{where}: {type(error).__name__}: {error.msg}", "correct the file")
    hint = "the code at module level runs whenever a worker starts"
    if isinstance(error, ModuleNotFoundError) and error.name:
        hint = f"install it for {sys.executable}, or set `python` to the interpreter that has it"
    sys.stderr.write(_traceback(error))
    return Broken(f"cannot import {place}: {describe(error, directory)}", hint)


def _functions_of(module: ModuleType) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return f"it has {', '.join(names)}" if names else "it defines no function at all"


def _target(call: Callable[..., Any], function: str) -> Target:
    bound = call if inspect.isroutine(call) else getattr(call, "__call__", call)  # noqa: B004 - its code, not whether
    asynchronous = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(bound)
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):  # some built-in functions tell nothing about themselves
        return Target(call, asynchronous, batch=False, context=False)
    needed = [one for one in parameters if one.kind == one.KEYWORD_ONLY and one.default is one.empty]
    places = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    required = [one for one in places if one.default is one.empty]
    open_ended = any(one.kind == one.VAR_POSITIONAL for one in parameters)
    if needed or len(required) > 2 or not (places or open_ended):
        raise Broken(
            f"{function} cannot be called with an event", "write `def NAME(event)` or `def NAME(event, context)`"
        )
    context = len(required) == 2 or (len(places) > 1 and places[1].name == "context")
    return Target(call, asynchronous, batch=bool(places) and places[0].name == "events", context=context)


def describe(error: BaseException, directory: str) -> str:
    """`TypeName: message (file:line)`, with the innermost place of the user's own code, else the innermost one."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - `__str__` is user code
        message = "(its message cannot be shown)"
    name = type(error).__name__
    text = f"{name}: {message}" if message else name
    if len(text) > _MESSAGE_LIMIT:
        text = text[:_MESSAGE_LIMIT] + "…"
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    own = [frame for frame in places if _relative(frame.filename, directory) != frame.filename]
    own = [frame for frame in own if "site-packages" not in frame.filename] or places
    return f"{text} ({_relative(own[-1].filename, directory)}:{own[-1].lineno})" if own else text


def _is_users(filename: str) -> bool:
    return filename != __file__ and not filename.startswith("<frozen ")


def _relative(filename: str, directory: str) -> str:
    return filename.removeprefix(os.path.join(directory, ""))


def _traceback(error: BaseException) -> str:
    """Without the worker's own frames; the end is kept where it is long."""
    frames: TracebackType | None = error.__traceback__
    while frames is not None and not _is_users(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
    except Exception:  # noqa: BLE001 - formatting runs `__str__` and `__repr__` of user code
        text = f"{type(error).__name__}: its traceback cannot be shown\n"
    return text if len(text) <= _TRACEBACK_LIMIT else "…" + text[-_TRACEBACK_LIMIT:]


def encode_returned(result: Any) -> bytes:
    """The returned events as JSON. Raises `TypeError` or `ValueError` for anything else."""
    if inspect.iscoroutine(result):
        result.close()
    events = result if isinstance(result, (list, tuple)) else [result]
    for event in events:
        if not (isinstance(event, dict) and isinstance(event.get("type"), str)):
            raise TypeError(f"the function returned {type(event).__name__}; {_HINT_RETURN}")
    return json.dumps(events, allow_nan=False, separators=(",", ":")).encode()


class Output(io.RawIOBase):
    """What Python code prints, on its way to the daemon, with a mark in front that names the event in hand."""

    def __init__(self, descriptor: int, index: memoryview[int]) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._index = index
        self._marked = NOT_BEGUN
        self._fresh = True

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any) -> int:
        text = bytes(data)
        index = self._index[0]
        if index != self._marked:
            self._mark(index, b"%d" % index if index >= 0 else b"")
        self._write(text)
        return len(text)

    def end(self) -> None:
        """The event is over: what comes without a mark from now on is not its output."""
        if self._marked != NOT_BEGUN:
            self._mark(NOT_BEGUN, b"")

    def _mark(self, index: int, name: bytes) -> None:
        self._write((b"" if self._fresh else b"\n") + MARK + name + b"\n")
        self._marked = index

    def _write(self, text: bytes) -> None:
        self._fresh = text.endswith(b"\n")
        while text:
            text = text[os.write(self._descriptor, text) :]


class Channel:
    """Frames over the socket, which stays a blocking one: an answer has left when `send` returns."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._received = bytearray()
        self.send_bytes = connection.sendall

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        self.send_bytes(HEADER.pack(len(payload), kind) + payload)

    async def receive(self, *, asynchronous: bool) -> tuple[bytes, bytes] | None:
        """The next kind and payload; None when the daemon has closed. Never suspends unless `asynchronous`."""
        while (frame := self._take()) is None:
            if asynchronous:
                await self._readable()
            chunk = self._socket.recv(1 << 18)
            if not chunk:
                return None
            self._received += chunk
        return frame

    def _take(self) -> tuple[bytes, bytes] | None:
        buffer = self._received
        if len(buffer) < HEADER.size:
            return None
        size, kind = HEADER.unpack_from(buffer)
        end = HEADER.size + size
        if len(buffer) < end:
            return None
        payload = bytes(buffer[HEADER.size : end])
        del buffer[:end]
        return kind, payload

    async def _readable(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(self._socket, _wake, ready)
        try:
            await ready
        finally:
            loop.remove_reader(self._socket)


def _wake(waiting: Any) -> None:
    if not waiting.done():
        waiting.set_result(None)


class Worker:
    """Calls the function for each event of each frame, until the daemon closes or the function exits."""

    def __init__(self, channel: Channel, progress: Progress, outputs: Sequence[io.TextIOWrapper], setup: Any) -> None:
        self._channel = channel
        self._progress = progress
        self._outputs = [(text, text.buffer.raw) for text in outputs]  # type: ignore[attr-defined] # `buffer` is a BufferedWriter over Output
        self._setup = setup
        self._process = os.getpid()
        self._scan: Any = json.JSONDecoder().scan_once  # type: ignore[attr-defined] # undocumented: `raw_decode` without its frame
        self._leaving = False

    def run(self) -> None:
        target = self._load()
        if target is None:
            return
        if target.asynchronous:
            import asyncio

            asyncio.run(self._serve(target))
        else:
            _drive(self._serve(target))

    def _load(self) -> Target | None:
        try:
            target = self._loaded()
        except Broken as broken:
            self._flush()
            self._channel.send(BROKEN, json.dumps({"message": broken.message, "hint": broken.hint}).encode())
            return None
        self._flush()
        self._channel.send(READY, json.dumps({"batch": target.batch}).encode())
        return target

    def _loaded(self) -> Target:
        path = self._setup.get("contract")
        contract = _import_alone(path) if path else None
        if contract is None:
            return load(self._setup["function"], self._setup["directory"])
        contract.prepare(self._setup)
        target = load(self._setup["function"], self._setup["directory"])
        if target.asynchronous:
            raise Broken("an async function cannot be called by this contract", "call asyncio.run inside")
        return Target(contract.adapt(target.call, self._setup, Partial), asynchronous=False, batch=False, context=True)

    async def _serve(self, target: Target) -> None:
        done = HEADER.pack(0, DONE)
        index = self._progress.index
        first = 0
        while (frame := await self._channel.receive(asynchronous=target.asynchronous)) is not None:
            kind, payload = frame
            first += 1 << FRAME
            index[0] = first
            lines = str(memoryview(payload)[NUMBER.size :], "utf-8", "surrogateescape").split("\n")
            lines.pop()
            await self._frame(target, NUMBER.unpack_from(payload)[0], first, lines, together=kind == TOGETHER)
            if self._leaving:
                self._channel.send(LEAVING)
                return
            index[0] = first + len(lines)
            self._channel.send_bytes(done)

    async def _frame(self, target: Target, attempt: int, first: int, lines: list[str], *, together: bool) -> None:
        context = Context(self._setup["handler"], attempt, self._setup["timeout"], self._progress.since)
        if target.batch or together:
            await self._call(target, context, 0, lines)
            return
        for index, line in enumerate(lines):
            self._progress.index[0] = first + index
            await self._call(target, context, index, line)
            if self._leaving:
                return

    async def _call(self, target: Target, context: Context, index: int, lines: str | list[str]) -> None:
        self._progress.since[0] = time.monotonic()
        try:
            given: Any = self._decode(lines) if isinstance(lines, str) else [self._decode(line) for line in lines]
            result = target.call(given, context) if target.context else target.call(given)
            if target.asynchronous:
                result = await result
            if self._process != os.getpid():  # the function forked, and this is the child
                os._exit(0)
            if isinstance(result, Partial):
                self._partial(index, result, one=isinstance(lines, str))
            elif result is not None:
                self._channel.send(RETURNED, NUMBER.pack(index) + encode_returned(result))
        except BaseException as error:  # noqa: BLE001 - the boundary between the user's code and ours
            self._failed(index, error)
        self._flush()

    def _partial(self, index: int, result: Partial, *, one: bool) -> None:
        if one:
            text = {"error": "; ".join(result.failed.values()), "traceback": ""}
            self._channel.send(FAILED, NUMBER.pack(index) + json.dumps(text).encode())
        else:
            self._channel.send(PARTIAL, json.dumps(result._asdict()).encode())

    def _decode(self, line: str) -> Event:
        return Event(self._scan(line, 0)[0])

    def _failed(self, index: int, error: BaseException) -> None:
        if self._process != os.getpid():
            os._exit(1)
        text = {"error": describe(error, self._setup["directory"]), "traceback": _traceback(error)}
        self._flush()
        self._channel.send(FAILED, NUMBER.pack(index) + json.dumps(text).encode())
        self._leaving = isinstance(error, SystemExit)

    def _flush(self) -> None:
        for text, raw in self._outputs:
            try:
                text.flush()
                raw.end()
            except (OSError, ValueError):  # closed by the function: its own affair
                continue


def _drive(serving: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never suspends, without a loop: a plain function may then start one of its own."""
    try:
        serving.send(None)
    except StopIteration:
        return
    raise RuntimeError("a plain function's worker waited")


def _die_with(parent: int) -> None:
    """End when the daemon ends, however it ends: by the kernel on Linux, else when the socket is closed."""
    if sys.platform == "linux":
        try:
            import ctypes

            ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
        except (ImportError, OSError, AttributeError):
            pass  # a Python without ctypes: the closed socket remains
    if os.getppid() != parent:
        os._exit(1)


def _text(raw: Output) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)


def main(connection: int, shared: int, parent: int, setup: Any) -> None:
    """Set the process up, then serve until the daemon closes."""
    _die_with(parent)
    os.set_inheritable(connection, False)  # noqa: FBT003 - it takes no keywords
    progress = Progress(shared)
    os.close(shared)
    outputs = [_text(Output(descriptor, progress.index)) for descriptor in (1, 2)]
    sys.stdout, sys.stderr = outputs
    sys.argv = [setup["function"]]
    try:
        import faulthandler

        faulthandler.enable(2)  # a segmentation fault tells where
    except ImportError:
        pass
    Worker(Channel(socket.socket(fileno=connection)), progress, outputs, setup).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
