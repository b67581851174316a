"""What a schedule is to the source: instants in order, and how many of them there are.

Instants are microseconds since 1970, UTC.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count as counted
from typing import Final, Protocol

from headrace.event import EPOCH

MICROSECOND: Final = timedelta(microseconds=1)


class Schedule(Protocol):
    """When ticks are. The same definition always gives the same instants."""

    def after(self, instant: int) -> Iterator[int]:
        """The ticks after an instant, in order; it may never end."""

    def count(self, after: int, until: int) -> int:
        """How many ticks are in (after, until], without making each of them."""


class Interval:
    """Every `step` microseconds, counted from `anchor`, which is the first tick."""

    def __init__(self, step: int, anchor: int) -> None:
        self._step = step
        self._anchor = anchor

    def after(self, instant: int) -> Iterator[int]:
        return counted(self._anchor + self._step * self._passed(instant), self._step)

    def count(self, after: int, until: int) -> int:
        return max(0, self._passed(until) - self._passed(after))

    def _passed(self, instant: int) -> int:
        """How many ticks are at the instant or before it."""
        return max(0, (instant - self._anchor) // self._step + 1)


class Moments:
    """Single instants."""

    def __init__(self, instants: Sequence[int]) -> None:
        self._instants = sorted(set(instants))

    def after(self, instant: int) -> Iterator[int]:
        return iter(self._instants[bisect_right(self._instants, instant) :])

    def count(self, after: int, until: int) -> int:
        return max(0, bisect_right(self._instants, until) - bisect_right(self._instants, after))


def boundary(schedule: Schedule, after: int, until: int, last: int) -> int:
    """The latest instant in [after, until] with at least `last` ticks between it and `until`, found by halving."""
    low, high = after, until + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if schedule.count(middle, until) >= last else (low, middle)
    return low


def instant_of(moment: datetime) -> int:
    """Microseconds since 1970 of a moment with an offset."""
    return (moment - EPOCH) // MICROSECOND


def rfc3339(instant: int) -> str:
    """An instant as RFC 3339 in UTC, its fraction only where there is one."""
    moment = EPOCH + instant * MICROSECOND
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
