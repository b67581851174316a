"""What the tests of handlers share: events, a log that is kept, and settings opened as the daemon opens them."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from headrace.event import Event
from headrace.protocols import Batch, Context, Sink
from headrace.settings import HandlerSettings

FUNCTIONS = Path(__file__).parent


class Log:
    """Keeps what is logged as (level, event, fields)."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, dict[str, Any]]] = []

    def debug(self, event: str, **fields: Any) -> None:
        self.entries.append(("debug", event, fields))

    def info(self, event: str, **fields: Any) -> None:
        self.entries.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.entries.append(("warning", event, fields))

    def error(self, event: str, **fields: Any) -> None:
        self.entries.append(("error", event, fields))

    def exception(self, event: str, **fields: Any) -> None:
        self.entries.append(("exception", event, fields))

    def bind(self, **fields: Any) -> Log:
        return self

    def output(self, level: str) -> list[tuple[str | None, str]]:
        """(event id, line) of everything printed."""
        return [
            (fields.get("event_id"), fields["line"])
            for at, event, fields in self.entries
            if at == level and event == "output"
        ]


class SystemClock:
    """The real one."""

    def time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def event(n: float, **more: Any) -> Event:
    known: dict[str, Any] = {"source": "headrace:test", "type": "test.made", "partitionkey": "k", "data": {"n": n}}
    return Event(id=f"e{n}", **{**known, **more})


def batch(*events: Event | float, attempt: int = 1) -> Batch:
    """A batch whose positions are 100, 101, …; a number stands for an event with `data.n`."""
    made = [one if isinstance(one, Event) else event(one) for one in events]
    return Batch("main", range(100, 100 + len(made)), b"".join(one.line() for one in made), attempt)


def folder(tmp_path: Path) -> Path:
    """A settings folder with the functions in it."""
    shutil.copytree(FUNCTIONS, tmp_path / "settings", ignore=shutil.ignore_patterns("__pycache__", "kit.py"))
    return tmp_path / "settings"


@asynccontextmanager
async def opened(settings: HandlerSettings, directory: Path, log: Log) -> AsyncIterator[Sink]:
    context = Context(name="thumbs", state=None, directory=directory, scratch=directory, log=log, clock=SystemClock())
    async with settings.open(context) as sink:
        yield sink


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Poll until the condition holds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


def running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return _answers(pid) and not Path("/proc/self").exists()
    return state != "Z"


def ended(pid: int) -> None:
    """A process that was sent SIGKILL is gone in a moment."""
    asyncio.run(until(lambda: not running(pid)))


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def lines(path: Path) -> Sequence[str]:
    return path.read_text().splitlines() if path.exists() else []


def children() -> set[int]:
    """The processes started from here that still run."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that ended just now
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return {pid for pid in found if running(pid)}
