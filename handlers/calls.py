"""What a worker is started with, and what became of the events it was given: values, without any I/O."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from headrace.handlers import worker as wire
from headrace.handlers.process import Launch


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is started with. `timeout` is per event, `start_timeout` for the import; both in seconds.

    `contract`, the file that says how the function is called where that is not Headrace's own way, gets `options`.
    """

    name: str
    function: str
    python: str
    directory: Path
    environment: dict[str, str]
    timeout: float
    start_timeout: float = 60.0
    contract: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def launch(self, connection: int, progress: int) -> Launch:
        setup = {
            "handler": self.name,
            "function": self.function,
            "directory": str(self.directory),
            "timeout": self.timeout,
            **({} if self.contract is None else {**self.options, "contract": str(self.contract)}),
        }
        numbers = (str(connection), str(progress), str(os.getpid()))
        arguments = (self.python, "-I", str(wire.__file__), *numbers, json.dumps(setup))
        return Launch(arguments, self.directory, self.environment)


@dataclass(slots=True)
class Outcome:
    """What became of a frame of `count` events, by the number of the event in it.

    Events before `finished` were called; `failed` says which of them failed and why, `returned` holds JSON lists. Those
    from `finished` on were not tried. `begun` is false where the worker died before it took the frame.
    `partial`: one call for several events told which of them failed.
    """

    count: int
    finished: int = field(init=False)
    failed: dict[int, str] = field(default_factory=dict)
    returned: dict[int, bytes] = field(default_factory=dict)
    begun: bool = True
    partial: bool = False

    def __post_init__(self) -> None:
        self.finished = self.count

    def tell(self, failed: Mapping[str, str], untried: int) -> None:
        """What a call for several events told about them."""
        self.partial = True
        self.failed.update({int(index): why for index, why in failed.items()})
        self.finished = untried

    def end(self, index: int, why: str, overrun: int | None) -> None:
        """The worker died with event `index` in hand: it failed, unless it was answered already.

        `overrun` is the event that was given up for its time; where the worker had just gone on to the next one, that
        next one was merely killed with it, and is not blamed.
        """
        self.begun = index != wire.NOT_BEGUN
        if self.partial:
            return
        if index in self.failed or index in self.returned:
            self.finished = index + 1
        elif index < self.count:
            self._blame(index, why, overrun)

    def _blame(self, index: int, why: str, overrun: int | None) -> None:
        if not self.begun or (overrun is not None and overrun != index):
            self.finished = max(index, 0)
            return
        self.finished = index + 1
        self.failed[index] = why


class _Identified(msgspec.Struct):
    id: str


_decode_id = msgspec.json.Decoder(_Identified).decode


def event_id(line: bytes) -> str | None:
    """The `id` in an event's line, without decoding the rest."""
    try:
        return _decode_id(line).id
    except msgspec.MsgspecError:
        return None
