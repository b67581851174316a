"""Logs on standard error: text on a terminal, one JSON object per line otherwise.

A message that repeats within ten seconds with the same fields is counted, not printed; the count
follows as `repeated` when the ten seconds are over. `NO_COLOR` is honoured (https://no-color.org).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, TextIO, cast

import structlog

from headrace.errors import Problem, SettingsError
from headrace.protocols import Logger
from headrace.suggest import listed

VARIABLE: Final = "HEADRACE_LOG"
LEVELS: Final = ("debug", "info", "warning", "error")
WINDOW: Final = 10.0  # seconds within which a repeated message is only counted
KEPT: Final = 1_000  # messages remembered; a flood of different ones forgets the oldest

Entry = MutableMapping[str, Any]


def level(option: str | None, environ: Mapping[str, str]) -> str:
    """The level asked for by `--log-level`, else by `$HEADRACE_LOG`, else `info`. Raises `SettingsError`."""
    wanted = (option or environ.get(VARIABLE) or "info").lower()
    if wanted not in LEVELS:
        place = "--log-level" if option else f"${VARIABLE}"
        raise SettingsError([Problem(place, None, "", f'unknown level "{wanted}"; the levels are {listed(LEVELS)}')])
    return wanted


def configure(
    level: str = "info", stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
) -> Repeats:
    """Send all logs to `stream` (standard error). Call `expire` of what it returns now and then, `flush` at the end."""
    stream = stream or sys.stderr
    render = _renderer(stream)
    repeats = Repeats(lambda entry: print(render(None, "", entry), file=stream, flush=True), clock)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            repeats,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    return repeats


def logger() -> Logger:
    """The root of all loggers; `bind` adds fields."""
    return cast("Logger", structlog.get_logger())


def coloured(stream: TextIO) -> bool:
    """Whether colours are welcome there."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _renderer(stream: TextIO) -> Callable[[Any, str, Entry], str]:
    if not stream.isatty():
        return _Json()
    return structlog.dev.ConsoleRenderer(
        colors=coloured(stream), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
    )


class _Json:
    """One line, the fields that all entries have first. What JSON cannot hold is written as `str`: secrets as `***`."""

    def __init__(self) -> None:
        self._render = structlog.processors.JSONRenderer(default=str, ensure_ascii=False)

    def __call__(self, logger: Any, name: str, entry: Entry) -> str:
        entry = structlog.processors.format_exc_info(logger, name, entry)
        first = {key: entry.pop(key) for key in ("timestamp", "level", "event") if key in entry}
        return str(self._render(logger, name, {**first, **entry}))


class Repeats:
    """A processor that lets a message pass once per window and counts the rest. Safe from several threads."""

    def __init__(self, write: Callable[[Entry], None], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, int, Entry]] = {}  # when it passed, repeats since, the last of them

    def __call__(self, logger: Any, name: str, entry: Entry) -> Entry:
        self.expire()
        key = repr(sorted((field, value) for field, value in entry.items() if field not in {"timestamp", "exc_info"}))
        with self._lock:
            if key in self._seen:
                passed, count, _ = self._seen[key]
                self._seen[key] = (passed, count + 1, dict(entry))
                raise structlog.DropEvent
            self._seen[key] = (self._clock(), 0, entry)
        return entry

    def expire(self) -> None:
        """Write the counts of messages whose window is over."""
        with self._lock:
            over = self._clock() - WINDOW
            old = [key for key, (passed, _, _) in self._seen.items() if passed <= over]
            old += list(self._seen)[: max(0, len(self._seen) - KEPT)]
            gone = [self._seen.pop(key, None) for key in old]
        for each in gone:
            self._tell(each)

    def flush(self) -> None:
        """Write all counts, at the end of the process."""
        with self._lock:
            left = list(self._seen.values())
            self._seen.clear()
        for each in left:
            self._tell(each)

    def _tell(self, seen: tuple[float, int, Entry] | None) -> None:
        if seen and seen[1]:
            self._write({**seen[2], "repeated": seen[1]})
