"""The `[sources.NAME]` table of `type = "cron"`."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, tzinfo
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import msgspec
from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from headrace.protocols import Context, Source
from headrace.settings import Duration, SourceSettings, mistake
from headrace.sources.cron.crontab import SECOND, YEARS, Crontab
from headrace.sources.cron.schedule import Interval, Moments, Schedule, instant_of
from headrace.suggest import did_you_mean


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        known = available_timezones()
        missing = "; no time zones are installed: apt install tzdata, or pip install tzdata" if not known else ""
        raise ValueError(f'unknown time zone "{name}"' + (missing or did_you_mean(name, sorted(known)))) from None
    return name


def _expression(text: str) -> str:
    ticks = Crontab(text, UTC).after(instant_of(datetime(2000, 1, 1, tzinfo=UTC)))
    if next(ticks, None) is None:
        raise ValueError(f'"{text}" never comes within {YEARS} years')
    return text


def _json(payload: Any) -> Any:
    try:
        msgspec.json.encode(payload)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise ValueError(f"must be what JSON can hold: {error}") from None
    return payload


class CronSource(SourceSettings):
    """A schedule: one of `schedule` (a cron expression in `timezone`), `every` (from `start`, else 1970) or `at`.

    `jitter` delays each tick by a part of it that is the same at every run, and keeps their order. A tick is missed
    when it is older than `grace` (after its jitter): because the daemon was down, the machine slept, or the clock was
    set forward. `catch_up` says what becomes of missed ticks: `all` captures the last `catch_up_limit` of them,
    `latest` one, unless a tick is due anyway, `none` nothing. What is left out is counted in `data.skipped` of the next
    tick. `payload` goes into every event.
    """

    events: ClassVar[frozenset[str] | None] = frozenset({"tick"})

    type: Literal["cron"]
    schedule: Annotated[str, AfterValidator(_expression)] | None = None
    every: Duration | None = Field(None, ge=1)
    start: AwareDatetime | None = None
    at: tuple[AwareDatetime, ...] | None = Field(None, min_length=1, max_length=10_000)
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    jitter: Duration = Field(0.0, ge=0)
    catch_up: Literal["all", "latest", "none"] = "all"
    catch_up_limit: int = Field(1_000, ge=1)
    grace: Duration = Field(60.0, ge=1)
    payload: Annotated[Any, AfterValidator(_json)] = None

    @model_validator(mode="after")
    def _one_definition(self) -> Self:
        given = [key for key in ("schedule", "every", "at") if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise mistake(given[-1] if given else "schedule", f"give one of schedule, every and at, not {found}")
        if self.start is not None and self.every is None:
            raise mistake("start", 'goes with "every" only')
        if self.schedule is None and "timezone" in self.model_fields_set:
            raise mistake("timezone", 'goes with "schedule" only; times in "at" and "start" carry their offset')
        return self

    @cached_property
    def ticks(self) -> Schedule:
        """The schedule itself."""
        if self.schedule is not None:
            return Crontab(self.schedule, self.zone)
        if self.every is not None:
            return Interval(round(self.every * SECOND), instant_of(self.start) if self.start else 0)
        return Moments([instant_of(moment) for moment in self.at or ()])

    @property
    def zone(self) -> tzinfo:
        return ZoneInfo(self.timezone)

    @property
    def definition(self) -> str:
        """What the ticks follow from, hashed: where it changes, the schedule starts anew."""
        moments = sorted(map(instant_of, self.at or ()))
        start = instant_of(self.start) if self.start else 0
        parts = [self.schedule and " ".join(self.schedule.split()), self.every, start, moments, self.timezone]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]

    def open(self, context: Context) -> AbstractAsyncContextManager[Source]:
        return _opened(self, context)


@asynccontextmanager
async def _opened(settings: CronSource, context: Context) -> AsyncIterator[Source]:
    from headrace.sources.cron.source import Cron

    yield Cron(settings, context)
