"""What every source must keep, as a suite that a subclass applies to one source."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Final
from unittest import SkipTest

from headrace.errors import Fatal, HeadraceError, Transient
from headrace.event import Event, event_name
from headrace.protocols import Clock
from headrace.settings import SourceSettings
from headrace.tasks import cause
from headrace.testing.fakes import MemoryCapture, SimulatedCrash, make_context
from headrace.testing.leaks import DEADLINE, cancelled, eventually, nothing_left

_CHANGES: Final = 5
_PROBES: Final = 9  # the waits between them double: 25 s in all


class SourceConformance:
    """Subclass it, override `settings` and `change`, and pytest finds the tests.

    `crashes` is how many of its first appends the source is killed at, before and after each became durable.
    `one_event_each` says that `change` gives exactly one event. `waits` says that the source itself waits until its
    origin is back, instead of raising `Transient`.
    """

    crashes: ClassVar[int] = 4
    one_event_each: ClassVar[bool] = True
    waits: ClassVar[bool] = False

    def settings(self, tmp_path: Path) -> SourceSettings:
        """The source under test; its origin is below `tmp_path`. Called again for every run."""
        raise NotImplementedError

    def prepare(self, tmp_path: Path) -> None:
        """Make the origin, once before the first run. Optional."""

    def change(self, tmp_path: Path, number: int) -> str:
        """Make the change `number`, another one for each number, and return the `subject` of its event.

        It is called whether the source runs or not.
        """
        raise NotImplementedError

    def change_again(self, tmp_path: Path, number: int) -> None:
        """Change once more what `change` made, so that its key has a second event. Optional."""
        raise SkipTest("no change_again() given")

    def outage(self, tmp_path: Path) -> AbstractContextManager[None]:
        """While inside, the origin is away. Optional."""
        raise SkipTest("no outage() given")

    def clock(self) -> Clock | None:
        """Another clock than the system's, where time matters. Optional."""
        return None

    @asynccontextmanager
    async def running(self, tmp_path: Path, capture: MemoryCapture) -> AsyncIterator[None]:
        """The source as the daemon runs it, cancelled at the end."""
        context = make_context(tmp_path, clock=self.clock())
        try:
            async with self.settings(tmp_path).open(context) as source, asyncio.TaskGroup() as group:
                task = group.create_task(source.run(capture), name="the source")
                try:
                    yield
                finally:
                    if not task.done():
                        await cancelled(task)
        except BaseExceptionGroup as error:
            raise cause(error) from None

    # --- the suite ------------------------------------------------------------------------------

    def test_captures_every_change_in_the_envelope(self, tmp_path: Path) -> None:
        async def run() -> MemoryCapture:
            capture = (await self._established(tmp_path)).survivor()
            async with self.running(tmp_path, capture):
                await self._arrive(capture, self._changes(tmp_path, range(_CHANGES)))
            return capture

        capture = asyncio.run(run())
        known = self.settings(tmp_path).events
        for event in capture.events:
            require_envelope(event, make_context(tmp_path).source)
            assert known is None or event_name(event.type) in known, f"{event.type} is not among {sorted(known)}"
        require_unique(capture.events)

    def test_resumes_after_its_position(self, tmp_path: Path) -> None:
        async def run() -> None:
            first = (await self._established(tmp_path)).survivor()
            async with self.running(tmp_path, first):
                seen = self._changes(tmp_path, range(_CHANGES))
                await self._arrive(first, seen)
            before = Counter(event.subject for event in first.events)
            missed = self._changes(tmp_path, range(_CHANGES, 2 * _CHANGES))
            second = first.survivor()
            async with self.running(tmp_path, second):
                await self._arrive(second, missed)
            require_unique(second.events)
            self._require_once(second.events, missed)
            after = Counter(event.subject for event in second.events)
            again = [subject for subject in seen if after[subject] > before[subject]]
            assert not again, f"captured again after a restart: {again}"

        asyncio.run(run())

    def test_a_crash_at_any_append_loses_and_repeats_nothing(self, tmp_path: Path) -> None:
        for number in range(1, self.crashes + 1):
            for crash in (SimulatedCrash(number, "before"), SimulatedCrash(number, "after")):
                asyncio.run(self._crash_later(folder(tmp_path, f"{number}-{crash.when}"), crash))

    def test_a_crash_of_the_first_run_is_overcome(self, tmp_path: Path) -> None:
        for crash in (SimulatedCrash(1, "before"), SimulatedCrash(1, "after")):
            asyncio.run(self._crash_at_start(folder(tmp_path, crash.when), crash))

    def test_waits_for_a_durable_append(self, tmp_path: Path) -> None:
        """A failed append ends the run: going on would acknowledge what is not durable."""

        async def run() -> None:
            failure = Fatal("the journal can no longer be trusted")
            failing = (await self._established(tmp_path)).survivor(fail_with=failure)
            self._changes(tmp_path, range(_CHANGES))
            error = await self._ends_with(tmp_path, failing)
            assert error is failure, f"the append failed, and run() ended with {error!r}"

        asyncio.run(run())

    def test_changes_of_one_key_stay_in_order(self, tmp_path: Path) -> None:
        async def run() -> None:
            capture = (await self._established(tmp_path)).survivor()
            async with self.running(tmp_path, capture):
                [subject] = self._changes(tmp_path, [0])
                await self._arrive(capture, [subject])
                before = len(capture.events)
                self.change_again(tmp_path, 0)
                await eventually(
                    lambda: any(event.subject == subject for event in capture.events[before:]), f"{subject} again"
                )
            own = [event for event in capture.events if event.subject == subject]
            assert len({event.partitionkey for event in own}) == 1, "the changes of one subject have several keys"
            require_sequence(capture.events)

        asyncio.run(run())

    def test_outage_is_transient(self, tmp_path: Path) -> None:
        async def run() -> None:
            first = await self._established(tmp_path)
            with self.outage(tmp_path):
                error = await self._ends_with(tmp_path, first.survivor(), 1.0 if self.waits else None)
            right = error is None if self.waits else isinstance(error, Transient)
            assert right, f"the origin is away, and run() ended with {error!r}"
            second = first.survivor()
            async with self.running(tmp_path, second):
                await self._arrive(second, self._changes(tmp_path, range(_CHANGES)))

        asyncio.run(run())

    def test_ends_when_cancelled_and_leaves_nothing_behind(self, tmp_path: Path) -> None:
        async def run() -> None:
            first = await self._established(tmp_path)
            async with nothing_left():
                second = first.survivor()
                async with self.running(tmp_path, second):
                    await self._arrive(second, self._changes(tmp_path, range(_CHANGES)))

        asyncio.run(run())

    # --- how ------------------------------------------------------------------------------------

    def _changes(self, tmp_path: Path, numbers: Iterable[int]) -> list[str]:
        return [self.change(tmp_path, number) for number in numbers]

    async def _established(self, tmp_path: Path) -> MemoryCapture:
        """What is left after a first run that captured at least one change."""
        self.prepare(tmp_path)
        capture = MemoryCapture()
        async with self.running(tmp_path, capture):
            await self._listening(tmp_path, capture)
        return capture

    async def _listening(self, tmp_path: Path, capture: MemoryCapture) -> None:
        """Make changes until one is captured: those before the very first listing may not count."""
        for attempt in range(_PROBES):
            subject = self.change(tmp_path, 1_000_000 + attempt)
            with suppress(AssertionError):
                await eventually(lambda: bool(capture.events), f"{subject} is captured", 0.05 * 2**attempt)
            if capture.events:
                return
        raise AssertionError("no change was ever captured")

    async def _arrive(self, capture: MemoryCapture, subjects: Sequence[str]) -> None:
        missing = set(subjects)

        def arrived() -> bool:
            missing.difference_update(event.subject for event in capture.events)
            return not missing

        with suppress(AssertionError):
            await eventually(arrived, "every change is captured")
        assert arrived(), f"never captured: {sorted(missing)}"

    async def _ends_with(
        self, tmp_path: Path, capture: MemoryCapture, within: float | None = None
    ) -> BaseException | None:
        """What `open` or `run` raises when left alone; None where it still runs."""
        context = make_context(tmp_path, clock=self.clock())
        try:
            async with self.settings(tmp_path).open(context) as source, asyncio.timeout(within or DEADLINE):
                await source.run(capture)
        except TimeoutError:
            return None
        except (HeadraceError, ExceptionGroup) as error:
            return cause(error)
        return None

    async def _crash_at_start(self, tmp_path: Path, crash: SimulatedCrash) -> None:
        """The very first run dies: what it should have seen is open, but the next run works."""
        self.prepare(tmp_path)
        first = MemoryCapture(crash=crash)
        await self._until_crashed(tmp_path, first, [])
        second = first.survivor()
        async with self.running(tmp_path, second):
            await self._listening(tmp_path, second)
            await self._arrive(second, self._changes(tmp_path, range(_CHANGES)))
        require_unique(second.events)

    async def _crash_later(self, tmp_path: Path, crash: SimulatedCrash) -> None:
        """A later run dies amid changes: the next one finds them all, and those made meanwhile."""
        first = await self._established(tmp_path)
        second = first.survivor(crash=crash)
        subjects = self._changes(tmp_path, range(_CHANGES))
        subjects += await self._until_crashed(tmp_path, second, range(_CHANGES, 3 * _CHANGES))
        subjects += self._changes(tmp_path, range(3 * _CHANGES, 4 * _CHANGES))
        third = second.survivor()
        async with self.running(tmp_path, third):
            await self._arrive(third, subjects)
        require_unique(third.events)
        self._require_once(third.events, subjects)

    async def _until_crashed(self, tmp_path: Path, capture: MemoryCapture, numbers: Iterable[int]) -> list[str]:
        """Run amid changes, one after the other, until the crash; it may take more appends than there are."""
        subjects: list[str] = []
        async with self.running(tmp_path, capture):
            for number in numbers:
                subjects.append(self.change(tmp_path, number))
                with suppress(AssertionError):
                    await eventually(lambda: capture.crashed.is_set() or capture.has(subjects[-1]), "captured", 1.0)
                if capture.crashed.is_set():
                    break
        return subjects

    def _require_once(self, events: Sequence[Event], subjects: Iterable[str]) -> None:
        times = Counter(event.subject for event in events)
        repeated = {subject: times[subject] for subject in subjects if times[subject] != 1}
        assert not (self.one_event_each and repeated), f"events for one change: {repeated}"


def folder(tmp_path: Path, name: str) -> Path:
    """A folder of its own for one of several runs."""
    made = tmp_path / name
    made.mkdir()
    return made


def require_envelope(event: Event, source: str) -> None:
    """What CloudEvents and the journal ask of every event, beyond its types."""
    assert event.id, "an event has no id"
    assert event.source == source or "://" in event.source, f"{event.id}: source is {event.source}, not {source}"
    assert event.type, f"{event.id}: no type"
    if event.time is not None:
        assert event.time.endswith("Z"), f"{event.id}: {event.time} is not RFC 3339 in UTC"
        datetime.fromisoformat(event.time)
    assert event.previouskey is None or event.previouskey != event.partitionkey, f"{event.id}: renamed to itself"


def require_unique(events: Sequence[Event]) -> None:
    """No id is given twice within one `source`."""
    times = Counter((event.source, event.id) for event in events)
    repeated = [id_ for (_, id_), number in times.items() if number > 1]
    assert not repeated, f"ids given twice: {repeated}"


def require_sequence(events: Sequence[Event]) -> None:
    """`sequence` sorts as text in the order of the appends, where it is given."""
    given = [event.sequence for event in events if event.sequence is not None]
    assert given == sorted(given), "sequence does not sort in the order of the events"
