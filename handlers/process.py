"""One process of user code: started in a session of its own, read without blocking, ended with all its children."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from headrace.errors import Fatal, HeadraceError, Transient

_READ: Final = 1 << 16  # the usual capacity of a pipe: one read empties it
_READS_AT_END: Final = 64
_BUSY: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY})


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a program: the working directory and the whole environment included."""

    arguments: Sequence[str]
    directory: Path
    environment: Mapping[str, str]


def memory_file() -> IO[bytes]:
    """An unnamed file in memory (where the system has them), to be handed to a process."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("headrace"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


class Process:
    """A running process.

    `ended` gives its exit code, negative for a signal, once it is gone and its group was sent SIGKILL. `output` gets
    what comes on descriptor 1 and 2, up to the last byte that was there at the end. Raises `Fatal` where the program
    cannot be started at all, `Transient` where it cannot just now.
    """

    def __init__(
        self,
        launch: Launch,
        output: Callable[[int, bytes], None],
        *,
        stdin: IO[bytes] | None = None,
        inherited: Sequence[int] = (),
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._output = output
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._popen = _popen(launch, stdin, inherited)
        self._pipes = {1: _readable(self._popen.stdout), 2: _readable(self._popen.stderr)}
        for number, pipe in self._pipes.items():
            self._loop.add_reader(pipe, self._read, number)
        self._exit_watch = self._watch_exit()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def kill(self) -> None:
        """SIGKILL to the whole group. Nothing happens where it has ended."""
        if self._popen.returncode is None:
            with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
                os.killpg(self._popen.pid, signal.SIGKILL)

    def _watch_exit(self) -> int | None:
        """A descriptor readable at the exit, else a thread that waits; both leave the zombie to `_exited`."""
        try:
            descriptor = os.pidfd_open(self._popen.pid)
        except (AttributeError, OSError):  # not Linux, or a sandbox without the call
            threading.Thread(target=self._wait_in_thread, daemon=True).start()
            return None
        self._loop.add_reader(descriptor, self._exited)
        return descriptor

    def _wait_in_thread(self) -> None:
        os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT)
        with suppress(RuntimeError):  # the loop was closed over our head
            self._loop.call_soon_threadsafe(self._exited)

    def _exited(self) -> None:
        self.kill()  # its children; while it is a zombie, nobody else can have its number
        for number in tuple(self._pipes):
            for _ in range(_READS_AT_END):
                if not self._read(number):
                    break
            self._close_pipe(number)
        if self._exit_watch is not None:
            self._loop.remove_reader(self._exit_watch)
            os.close(self._exit_watch)
        code = self._popen.wait()
        if not self.ended.done():
            self.ended.set_result(code)

    def _read(self, number: int) -> bool:
        pipe = self._pipes.get(number)
        if pipe is None:
            return False
        try:
            data = os.read(pipe.fileno(), _READ)
        except BlockingIOError:
            return False
        if data:
            self._output(number, data)
        else:
            self._close_pipe(number)
        return bool(data)

    def _close_pipe(self, number: int) -> None:
        pipe = self._pipes.pop(number, None)
        if pipe is not None:
            self._loop.remove_reader(pipe)
            pipe.close()


def _popen(launch: Launch, stdin: IO[bytes] | None, inherited: Sequence[int]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            launch.arguments,
            bufsize=0,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=launch.directory,
            env=launch.environment,
            pass_fds=inherited,
            start_new_session=True,
        )
    except OSError as error:
        raise _start_error(launch.arguments[0], error) from error


def _start_error(program: str, error: OSError) -> HeadraceError:
    message = f"cannot start {program}: {error.strerror}"
    if error.errno in _BUSY:
        return Transient(message, hint="the system is short of processes, memory or descriptors")
    if error.errno == errno.ENOEXEC:
        return Fatal(message, hint="a script's first line names its interpreter: #!/bin/sh")
    return Fatal(message, hint="check that it exists and may be executed")


def _readable(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # noqa: S101 - asked for as a pipe
    os.set_blocking(pipe.fileno(), False)
    return pipe


def exit_text(code: int) -> str:
    """`exit code 3`, `killed by SIGSEGV`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
