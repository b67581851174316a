"""Cron expressions as instants: Debian cron's fields and its rules for daylight saving, over a time zone.

`cronsim` parses the fields and matches the days (day-of-month OR day-of-week, unless one starts with `*`). Instants are
computed here a day at a time, so that counting the ticks of years costs microseconds a day, and so that offsets of half
an hour and changes at midnight are right.

A schedule whose minute and hour fields do not start with `*` is *fixed*: a time that the clock skips in spring is taken
at the first instant after the gap, and one that comes twice in autumn is taken once, the first time. All others follow
the wall clock: what is skipped does not happen, what comes twice happens twice.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cached_property
from itertools import pairwise
from typing import Final

from cronsim import CronSim, CronSimError

MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
YEARS: Final = 50  # after so many without a tick there will be none
SECOND: Final = 1_000_000  # instants are microseconds since 1970

_DAY: Final = timedelta(days=1)
_HOUR: Final = 3600
_LAST: Final = date(9998, 12, 31)


class Crontab:
    """The ticks of one expression in one time zone. Raises `ValueError` where it is none."""

    def __init__(self, expression: str, zone: tzinfo) -> None:
        self._zone = zone
        fields = _fields(expression)
        try:
            self._sim = CronSim(" ".join(fields), datetime(2000, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise ValueError(f'"{expression}": {_lowered(str(error))}') from None
        minute, hour = fields[-5:-3]
        self._fixed = not minute.startswith("*") and not hour.startswith("*")

    def after(self, instant: int) -> Iterator[int]:
        """The ticks after an instant, in order; ends where there is none for 50 years."""
        day, last = self._date(instant), instant
        give_up = day.year + YEARS
        while day < _LAST and day.year <= give_up:
            for tick in self._window(day, last):
                yield (last := tick)
                give_up = day.year + YEARS
            day += _DAY

    def count(self, after: int, until: int) -> int:
        """How many ticks are in (after, until]; costs some microseconds for each day."""
        total, day, last = 0, self._date(after), after
        while day <= self._date(until) + _DAY and day < _LAST:
            ticks = self._window(day, last)
            total += bisect_right(ticks, until)
            last = ticks[-1] if ticks else last
            day += _DAY
        return total

    def _date(self, instant: int) -> date:
        """A date whose window holds the instant or is before it: gaps and folds at midnight shift it by one."""
        return datetime.fromtimestamp(instant // SECOND, self._zone).date() - _DAY

    def _window(self, day: date, after: int) -> Sequence[int]:
        """The ticks of one day's window that are after an instant. Windows of successive days join without a gap."""
        start, end = self._utc(day, 0), self._utc(day + _DAY, 0)
        if end * SECOND < after:  # a tick moved out of a gap may stand at the end itself
            return ()
        if end - start == 24 * _HOUR and self._offset(start) == self._offset(end):
            return self._plain(day, start, after)
        ticks = self._moved(day) if self._fixed else self._walked(start, end)
        return [tick * SECOND for tick in ticks if tick * SECOND > after]

    def _plain(self, day: date, start: int, after: int) -> Sequence[int]:
        if not self._matches(day):
            return ()
        skip = bisect_right(self._times, after // SECOND - start) if after >= start * SECOND else 0
        return _Shifted(self._times, start, skip)

    def _matches(self, day: date) -> bool:
        return day.month in self._sim.months and self._sim.match_day(day)

    @cached_property
    def _times(self) -> array[int]:
        """The seconds of a matching day, in order."""
        sim = self._sim
        hours, minutes, seconds = sorted(sim.hours), sorted(sim.minutes), sorted(sim.seconds)
        return array("I", [_HOUR * hour + 60 * minute + s for hour in hours for minute in minutes for s in seconds])

    def _utc(self, day: date, second: int) -> int:
        """Seconds since 1970 at a wall time, the first where it comes twice; by the old offset where it is skipped."""
        wall = datetime.combine(day, time(), tzinfo=self._zone) + timedelta(seconds=second)
        return int(wall.timestamp())

    def _offset(self, second: int) -> int:
        offset = datetime.fromtimestamp(second, self._zone).utcoffset() or timedelta()
        return int(offset.total_seconds())

    def _moved(self, day: date) -> list[int]:
        """A fixed schedule on a day with a change: each wall time once, moved to the end of a gap it falls into."""
        if not self._matches(day):
            return []
        return sorted({self._real(self._utc(day, time_), day, time_) for time_ in self._times})

    def _real(self, instant: int, day: date, wall: int) -> int:
        shown = datetime.fromtimestamp(instant, self._zone).replace(tzinfo=None)
        gap = shown - (datetime.combine(day, time()) + timedelta(seconds=wall))
        if not gap:
            return instant
        return _change(self._offset, instant - int(gap.total_seconds()), instant)

    def _walked(self, start: int, end: int) -> Iterator[int]:
        """A schedule that follows the wall clock, over the stretches between the changes of the offset."""
        hours = [*range(start, end, _HOUR), end]
        cuts = [_change(self._offset, a, b) for a, b in pairwise(hours) if self._offset(a) != self._offset(b)]
        for low, high in pairwise([start, *(cut for cut in cuts if start < cut < end), end]):
            yield from self._stretch(low, high, self._offset(low))

    def _stretch(self, low: int, high: int, offset: int) -> Iterator[int]:
        day = datetime.fromtimestamp(low + offset, UTC).date()
        while (midnight := int(datetime.combine(day, time(), UTC).timestamp()) - offset) < high:
            if self._matches(day):
                first = bisect_left(self._times, max(0, low - midnight))
                last = bisect_left(self._times, high - midnight)
                yield from (midnight + second for second in self._times[first:last])
            day += _DAY


class _Shifted(Sequence[int]):
    """The times of one day as instants, made when they are asked for."""

    def __init__(self, times: array[int], start: int, skip: int) -> None:
        self._times = times
        self._start = start
        self._skip = skip

    def __len__(self) -> int:
        return len(self._times) - self._skip

    def __getitem__(self, index: int) -> int:  # type: ignore[override] # no slices are taken
        if index >= len(self):
            raise IndexError(index)
        at = index if index < 0 else index + self._skip
        return (self._start + self._times[at]) * SECOND


def _change(offset: Callable[[int], int], low: int, high: int) -> int:
    """The instant between two at which the offset changes, found by halving."""
    before = offset(low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if offset(middle) == before else (low, middle)
    return high


def _fields(expression: str) -> list[str]:
    if expression.strip().lower() == "@reboot":
        raise ValueError('"@reboot" is no time; a handler runs at start by `start = "latest"` of another source')
    fields = MACROS.get(expression.strip().lower(), expression).split()
    if len(fields) not in {5, 6} or fields[0].startswith("@"):
        known = ", ".join(MACROS)
        raise ValueError(f'"{expression}" needs five fields, or six with seconds first, or one of {known}')
    return fields


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
