"""The suites see what they forbid: each fails on an adapter that breaks one rule."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import PrivateAttr

from headrace.errors import Fatal, Permanent
from headrace.event import Event
from headrace.protocols import Batch, Capture, Context, Sink, Source, Verdict, Write
from headrace.settings import SinkSettings, SourceSettings
from headrace.testing import SinkConformance, SourceConformance


class ListSink(SinkSettings):
    """Into a list, breaking the rule that `breaks` names."""

    type: str = "list"
    breaks: str = ""
    _target: list[bytes] = PrivateAttr(default_factory=list)

    @property
    def target(self) -> list[bytes]:
        return self._target

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Sink]:
        yield self
        if self.breaks == "leaves a file":
            os.open(os.devnull, os.O_RDONLY)

    async def deliver(self, batch: Batch) -> Verdict:
        lines = batch.lines
        match self.breaks:
            case "drops":
                lines = lines[:-1]
            case "reorders":
                lines = lines[::-1]
            case "fails":
                raise Permanent("no")
            case "answers for others":
                return Verdict(skipped=[10_000])
            case "half when cancelled":
                self.target.extend(line for line in lines[1:] if line not in self.target)
                await asyncio.sleep(0.01)
                lines = lines[:1]
        self.target.extend(line for line in lines if line not in self.target or self.breaks == "repeats")
        return Verdict()


class ListSuite(SinkConformance):
    """Not named `Test…`: run by hand below."""

    effectively_once = True

    def __init__(self, breaks: str) -> None:
        self.sink = ListSink(breaks=breaks)

    def settings(self, tmp_path: Path) -> SinkSettings:
        return self.sink

    def delivered(self, tmp_path: Path) -> list[bytes]:
        return self.sink.target


@pytest.mark.parametrize(
    ("breaks", "test"),
    [
        ("drops", "test_delivers_every_event_in_order"),
        ("reorders", "test_delivers_every_event_in_order"),
        ("fails", "test_delivers_every_event_in_order"),
        ("answers for others", "test_delivers_every_event_in_order"),
        ("repeats", "test_uncommitted_deliveries_come_again"),
        ("repeats", "test_first_delivery_uncommitted_comes_again"),
        ("half when cancelled", "test_cancelled_delivery_leaves_no_gap"),
        ("leaves a file", "test_leaves_no_task_and_no_file_behind"),
    ],
)
def test_a_wrong_sink_fails(tmp_path: Path, breaks: str, test: str) -> None:
    getattr(ListSuite(""), test)(tmp_path)
    with pytest.raises((AssertionError, Permanent)):
        getattr(ListSuite(breaks), test)(tmp_path)


class CountSource(SourceSettings):
    """From a list of subjects, breaking the rule that `breaks` names."""

    events: ClassVar[frozenset[str] | None] = frozenset({"made"})

    type: str = "count"
    breaks: str = ""
    _origin: list[str] = PrivateAttr(default_factory=list)

    @property
    def origin(self) -> list[str]:
        return self._origin

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Source]:
        yield self

    async def run(self, out: Capture) -> None:
        position = int(await out.state.get(b"at") or 0)
        while True:
            if position < len(self.origin):
                position += 1
                try:
                    await self._append(out, position)
                except Fatal:
                    if self.breaks != "swallows errors":
                        raise
            await asyncio.sleep(0.001)

    async def _append(self, out: Capture, position: int) -> None:
        event = self._event(position)
        state = Write(b"at", str(position).encode())
        match self.breaks:
            case "state first":
                await out.append([], [state])
                await out.append([event])
            case "state last":
                await out.append([event])
                await out.append([], [state])
            case "keeps no state":
                await out.append([event])
            case _:
                await out.append([event], [state])

    def _event(self, position: int) -> Event:
        number = 1 if self.breaks == "repeats ids" else position
        source = "headrace:other" if self.breaks == "other source" else "headrace:under_test"
        type_ = "test.unknown" if self.breaks == "unknown type" else "test.made"
        return Event(id=str(number), source=source, type=type_, subject=self.origin[position - 1])


class CountSuite(SourceConformance):
    """Not named `Test…`: run by hand below."""

    def __init__(self, breaks: str) -> None:
        self.source = CountSource(breaks=breaks)

    def settings(self, tmp_path: Path) -> SourceSettings:
        return self.source

    def prepare(self, tmp_path: Path) -> None:
        self.source.origin.clear()

    def change(self, tmp_path: Path, number: int) -> str:
        self.source.origin.append(f"n{number}")
        return f"n{number}"


@pytest.mark.parametrize(
    ("breaks", "test"),
    [
        ("repeats ids", "test_captures_every_change_in_the_envelope"),
        ("other source", "test_captures_every_change_in_the_envelope"),
        ("unknown type", "test_captures_every_change_in_the_envelope"),
        ("keeps no state", "test_resumes_after_its_position"),
        ("state last", "test_a_crash_at_any_append_loses_and_repeats_nothing"),
        ("swallows errors", "test_waits_for_a_durable_append"),
        ("state first", "test_a_crash_at_any_append_loses_and_repeats_nothing"),
    ],
)
def test_a_wrong_source_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str, test: str) -> None:
    monkeypatch.setattr("headrace.testing.leaks.DEADLINE", 0.5)
    monkeypatch.setattr("headrace.testing.source.DEADLINE", 0.5)
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    getattr(CountSuite(""), test)(good)
    with pytest.raises(AssertionError):
        getattr(CountSuite(breaks), test)(bad)
