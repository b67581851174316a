"""The demo's folder and its daemon, a child process: `python -m headrace run -c headrace-demo/headrace.toml`."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from headrace.control.client import Client
from headrace.errors import Fatal, HeadraceError, Permanent, Transient

NAME: Final = "headrace-demo"
MARK: Final = ".headrace-demo"  # tells our folder from one that only has its name
PATIENCE: Final = 30.0  # seconds that the daemon may take to start, or to stop

SETTINGS: Final = """\
[sources.inbox]
type = "filesystem"
path = "inbox"
snapshot = "initial"

[handlers.on_change]
function = "react.py:on_change"
start = "earliest"

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
"""

HANDLER: Final = '''\
"""Called for each change."""

import json
import time
from pathlib import Path

LOG = Path(__file__).with_name("called.jsonl")


def on_change(event):
    with LOG.open("a") as file:
        file.write(json.dumps({"id": event.id, "time": time.time()}) + "\\n")
'''


@contextmanager
def house(parent: Path, *, keep: bool) -> Iterator[House]:
    """The folder, made anew; gone afterwards unless it is to be kept or an error left its log there.

    Raises `Permanent` where it is not ours.
    """
    folder = parent / NAME
    if os.path.lexists(folder) and not (folder / MARK).is_file():
        raise Permanent(f"{folder} exists and is not the demo's", hint="move it away, or start the demo elsewhere")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        mark = os.open(folder / MARK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Permanent(f"{folder}: {error.strerror}", hint="start the demo in a folder that you may write") from error
    try:
        _claim(mark, folder)
        _furnish(folder)
        yield House(folder)
    except KeyboardInterrupt:
        _leave(folder, keep=keep)
        raise
    else:
        _leave(folder, keep=keep)
    finally:
        os.close(mark)


def _leave(folder: Path, *, keep: bool) -> None:
    if not keep:
        shutil.rmtree(folder)


def _claim(mark: int, folder: Path) -> None:
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Permanent(f"another demo runs in {folder}", hint="wait until it has ended") from None


def _furnish(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    (folder / "inbox").mkdir()
    (folder / "headrace.toml").write_text(SETTINGS)
    (folder / "react.py").write_text(HANDLER)


class House:
    """The folder, and the daemon while it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inbox = folder / "inbox"
        self.client = Client(folder / "headrace-data")
        self._process: subprocess.Popen[bytes] | None = None

    def add(self, settings: str) -> None:
        """More for the daemon's settings, before it starts."""
        with (self.folder / "headrace.toml").open("a") as file:
            file.write(settings)

    def start(self) -> None:
        """Start the daemon; returns once all of it runs. Raises `Fatal` with the end of its log."""
        command = [sys.executable, "-m", "headrace", "run", "-c", "headrace.toml"]
        environ = {name: value for name, value in os.environ.items() if name != "HEADRACE_CONFIG"}
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops it
            )
        if not until(lambda: self._process is None or self._process.poll() is not None or self._ready(), PATIENCE):
            raise Transient("the daemon does not start", hint=self._last_words())
        if self._process.poll() is not None:
            raise Fatal("the daemon ended at once", hint=self._last_words())

    def _ready(self) -> bool:
        try:
            return bool(self.client.get("/ready")["ready"])
        except HeadraceError:
            return False

    def _last_words(self) -> str:
        lines = (self.folder / "daemon.log").read_text(errors="replace").splitlines()
        return "it said: " + lines[-1] if lines else "it said nothing"

    def status(self) -> Any:
        return self.client.get("/status")

    def kill(self) -> None:
        """As the power would go: SIGKILL."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def stop(self) -> bool:
        """SIGTERM: it drains. False where it had to be killed."""
        if self._process is None or self._process.poll() is not None:
            return True
        self._process.terminate()
        try:
            return self._process.wait(PATIENCE) == 0
        except subprocess.TimeoutExpired:
            self.kill()
            return False


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true within these seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
