"""The instants of cron expressions, against a matcher that walks every minute and knows nothing of the code."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.sources.cron.crontab import SECOND, Crontab
from headrace.sources.cron.schedule import Interval, Moments, boundary, instant_of

MINUTE = timedelta(minutes=1)
NAMES = {name: str(i) for i, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
ABBREVIATED = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTHS = {
    name: str(i + 1)
    for i, name in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"])
}

# Both changes of a year, at other hours, by half an hour, at midnight, across midnight, and rules that changed.
STRETCHES = [
    ("UTC", "2024-02-20", 20),
    ("Europe/Paris", "2026-03-20", 20),
    ("Europe/Paris", "2026-10-15", 20),
    ("America/New_York", "2026-03-01", 15),
    ("America/New_York", "2026-10-25", 15),
    ("Australia/Lord_Howe", "2026-04-01", 10),  # half an hour back
    ("Australia/Lord_Howe", "2026-09-28", 10),  # half an hour forward
    ("Africa/Cairo", "2024-04-20", 10),  # midnight does not exist
    ("Africa/Cairo", "2024-10-25", 10),  # the last hour of a day comes twice
    ("America/Havana", "2024-03-05", 10),
    ("America/Havana", "2024-10-29", 10),  # the first hour of a day comes twice
    ("America/St_Johns", "2010-03-10", 8),  # one minute after midnight
    ("America/St_Johns", "2010-11-02", 8),  # back across midnight
    ("America/Sao_Paulo", "2018-10-30", 10),
    ("Pacific/Apia", "2011-12-25", 10),  # a day that does not exist
    ("Europe/Moscow", "2014-10-20", 10),  # the offset changed, without daylight saving
    ("Asia/Pyongyang", "2018-05-01", 8),  # half an hour forward, just before midnight
    ("Africa/Casablanca", "2026-02-10", 50),  # both changes around Ramadan
]
EXPRESSIONS = [
    "* * * * *",
    "*/15 * * * *",
    "0 * * * *",
    "30 2 * * *",
    "30 1,2 * * *",
    "0,30 0,2,23 * * *",
    "15-45/10 1-3 * * *",
    "*/20 2 * * *",
    "5 */2 * * *",
    "0 0 * * *",
    "59 23 * * *",
    "30 0 1,15 * mon",
    "0 12 */2 * 7",
    "0 3 29 2 *",
    "10 2 * mar,oct,nov sun-tue",
]


def numbers(field: str, low: int, high: int) -> set[int]:
    """What a field lists, spelled out."""
    for name, number in {**NAMES, **MONTHS}.items():
        field = field.replace(name, number)
    found: set[int] = set()
    for term in field.split(","):
        span, _, step = term.partition("/")
        first, last = (low, high) if span == "*" else (int(span.split("-")[0]), int(span.split("-")[-1]))
        last = high if step and "-" not in span else last
        found |= set(range(first, last + 1, int(step or 1)))
    return found


class Oracle:
    """Debian cron as its manual describes it, minute by minute."""

    def __init__(self, expression: str, zone: str) -> None:
        fields = expression.split()
        self.minutes, self.hours = numbers(fields[0], 0, 59), numbers(fields[1], 0, 23)
        self.days, self.months = numbers(fields[2], 1, 31), numbers(fields[3], 1, 12)
        self.weekdays = {day % 7 for day in numbers(fields[4], 0, 7)}
        self.both = fields[2].startswith("*") or fields[4].startswith("*")
        self.fixed = not fields[0].startswith("*") and not fields[1].startswith("*")
        self.zone = ZoneInfo(zone)

    def matches(self, wall: datetime) -> bool:
        day, weekday = wall.day in self.days, (wall.weekday() + 1) % 7 in self.weekdays
        right_day = (day and weekday) if self.both else (day or weekday)
        return right_day and wall.month in self.months and wall.hour in self.hours and wall.minute in self.minutes

    def ticks(self, start: datetime, end: datetime) -> Iterator[datetime]:
        """In (start, end]. A fixed time is taken at the first minute whose wall clock has reached or passed it."""
        at, shown = start, self.wall(start)
        furthest = max(self.wall(start - MINUTE * back) for back in range(26 * 60))
        while at < end:
            at, before = at + MINUTE, shown
            shown = self.wall(at)
            if not self.fixed:
                if self.matches(shown):
                    yield at
                continue
            skipped = range(1, int((shown - before) / MINUTE) + 1)
            passed = [before + MINUTE * i for i in skipped if before + MINUTE * i > furthest]
            furthest = max(furthest, shown)
            if any(map(self.matches, passed)):
                yield at

    def wall(self, at: datetime) -> datetime:
        return at.astimezone(self.zone).replace(tzinfo=None)


@cache
def expected(expression: str, zone: str, first: str, days: int) -> list[datetime]:
    start = datetime.fromisoformat(first).replace(tzinfo=UTC)
    return list(Oracle(expression, zone).ticks(start, start + timedelta(days=days)))


def ticks(expression: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    found = []
    for tick in Crontab(expression, ZoneInfo(zone)).after(instant_of(start)):
        if tick > instant_of(end):
            break
        found.append(datetime.fromtimestamp(tick / SECOND, UTC))
    return found


@pytest.mark.parametrize(("zone", "first", "days"), STRETCHES)
def test_ticks_equal_the_oracle(zone: str, first: str, days: int) -> None:
    start = datetime.fromisoformat(first).replace(tzinfo=UTC)
    end = start + timedelta(days=days)
    for expression in EXPRESSIONS:
        assert ticks(expression, zone, start, end) == expected(expression, zone, first, days), expression


@pytest.mark.parametrize("zone", ["Europe/Paris", "Australia/Lord_Howe"])
def test_a_whole_leap_year_equals_the_oracle(zone: str) -> None:
    start, end = datetime(2028, 1, 31, tzinfo=UTC), datetime(2028, 11, 30, tzinfo=UTC)
    for expression in ("30 2 * * *", "0 */6 29 2 *"):
        assert ticks(expression, zone, start, end) == list(Oracle(expression, zone).ticks(start, end))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_start_and_any_count_agree_with_the_oracle(data: st.DataObject) -> None:
    """From any instant on, also within a gap or a second pass, the same ticks follow."""
    zone, first, days = data.draw(st.sampled_from(STRETCHES))
    expression = data.draw(st.sampled_from(EXPRESSIONS))
    origin = datetime.fromisoformat(first).replace(tzinfo=UTC)
    end = origin + timedelta(days=days)
    start = origin + MINUTE * data.draw(st.integers(0, days * 1440 - 1))
    rest = [tick for tick in expected(expression, zone, first, days) if tick > start]
    assert ticks(expression, zone, start, end) == rest
    crontab = Crontab(expression, ZoneInfo(zone))
    assert crontab.count(instant_of(start), instant_of(end)) == len(rest)
    for tick in rest[:3]:
        assert crontab.count(instant_of(tick) - 1, instant_of(tick)) == 1
        assert crontab.count(instant_of(tick), instant_of(tick)) == 0


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@Daily", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
        ("0 0 * * 0", "0 0 * * 7"),
        ("0 0 * * SUN", "@weekly"),
        ("0 0 * JAN,dec *", "0 0 * 1,12 *"),
        ("0 30 2 * * *", "30 2 * * *"),
    ],
)
def test_spellings_of_one_schedule(expression: str, same: str) -> None:
    start = instant_of(datetime(2026, 1, 1, tzinfo=UTC))
    zone = ZoneInfo("Europe/Paris")
    assert list(islice(Crontab(expression, zone).after(start), 400)) == list(
        islice(Crontab(same, zone).after(start), 400)
    )


def test_seconds() -> None:
    start = instant_of(datetime(2026, 1, 1, tzinfo=UTC))
    found = list(islice(Crontab("*/20 59 23 * * *", UTC).after(start), 4))
    shown = [datetime.fromtimestamp(tick / SECOND, UTC).strftime("%d %H:%M:%S") for tick in found]
    assert shown == ["01 23:59:00", "01 23:59:20", "01 23:59:40", "02 23:59:00"]


@pytest.mark.parametrize(
    "expression", ["", "* * * *", "60 * * * *", "* * * * 8", "@reboot", "@often", "5-1 * * * *", "x"]
)
def test_what_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Crontab(expression, UTC)
    assert "Traceback" not in str(caught.value)


def test_years_of_seconds_are_counted_at_once() -> None:
    crontab = Crontab("* * * * * *", ZoneInfo("Europe/Paris"))
    start, end = (instant_of(datetime(year, 1, 1, tzinfo=UTC)) for year in (2026, 2046))
    assert crontab.count(start, end) == (end - start) // SECOND
    assert crontab.count(boundary(crontab, start, end, 1_000), end) == 1_000


def test_intervals_are_anchored() -> None:
    step, anchor = 900 * SECOND, 7 * SECOND
    interval = Interval(step, anchor)
    assert list(islice(interval.after(anchor - 1), 2)) == [anchor, anchor + step]
    assert list(islice(interval.after(anchor), 2)) == [anchor + step, anchor + 2 * step]
    assert next(interval.after(-(10**12))) == anchor
    assert interval.count(anchor, anchor + 10 * step) == 10
    assert interval.count(-5, anchor) == 1


def test_moments_come_once_each() -> None:
    moments = Moments([5, 3, 5])
    assert list(moments.after(0)) == [3, 5]
    assert list(moments.after(3)) == [5]
    assert moments.count(3, 5) == 1
