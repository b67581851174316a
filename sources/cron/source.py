"""The source: waits for the next tick, and captures what has come due since the ledger's mark."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any, Final

from headrace.event import Event
from headrace.failpoints import reach
from headrace.protocols import Capture, Context, Finding, Write
from headrace.sources.cron.crontab import SECOND
from headrace.sources.cron.ledger import Ledger
from headrace.sources.cron.schedule import rfc3339
from headrace.sources.cron.settings import CronSource

LOOK: Final = (
    10.0  # seconds between two looks at the clock: it may be set, and a suspended machine's timers stand still
)
PAGE: Final = 500  # ticks in one append
LEDGER: Final = b"ledger"
SCHEMA: Final = "urn:headrace:schema:cron.tick:1"


class Cron:
    """One schedule. Also `Diagnoses` and `Describes`."""

    def __init__(self, settings: CronSource, context: Context) -> None:
        self._settings = settings
        self._context = context
        self._schedule = settings.ticks
        self._jitter = round(settings.jitter * SECOND)
        self._late = self._jitter + round(settings.grace * SECOND)

    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        return {SCHEMA: _SCHEMA}

    async def diagnose(self) -> AsyncIterator[Finding]:
        tick = next(self._schedule.after(self._now()), None)
        if tick is None:
            yield Finding("warning", "no tick is to come", "remove the source, or give it times in the future")
        else:
            yield Finding("ok", f"the next tick is at {rfc3339(tick)}")

    async def run(self, out: Capture) -> None:
        ledger = await self._ledger(out)
        while True:
            now = self._now()
            self._look_back(ledger, now)
            await self._miss(ledger, now, out)
            await self._capture(ledger, now, out)
            await self._context.clock.sleep(self._patience(ledger))

    def _now(self) -> int:
        return int(self._context.clock.time() * SECOND)

    async def _ledger(self, out: Capture) -> Ledger:
        """The ledger of the last run. A new one is written at once: from here on no tick is missed."""
        row = await out.state.get(LEDGER)
        ledger = Ledger.read(row, self._settings.definition, self._now())
        if row is None or ledger.row() != row:
            if row is not None:
                self._context.log.info("the schedule has changed and starts now")
            await out.append([], [Write(LEDGER, ledger.row())])
        return ledger

    def _look_back(self, ledger: Ledger, now: int) -> None:
        mark = ledger.mark
        if ledger.turned_back(now, self._schedule) and mark - now > SECOND:
            self._context.log.warning("the clock was set back", ticks_until=rfc3339(mark), now=rfc3339(now))

    async def _miss(self, ledger: Ledger, now: int, out: Capture) -> None:
        """Leave out the missed ticks that `catch_up` does not want."""
        until = now - self._late
        skipped = ledger.skip(self._schedule, until, self._wanted(ledger, now)) if until > ledger.mark else 0
        if skipped:
            self._context.log.warning("missed ticks are skipped", skipped=skipped, catch_up=self._settings.catch_up)
            await out.append([], [Write(LEDGER, ledger.row())])
            reach("cron.after-skip")

    def _wanted(self, ledger: Ledger, now: int) -> int:
        """How many missed ticks are captured at most."""
        if self._settings.catch_up == "latest":
            return 0 if self._due_anyway(ledger, now) else 1
        return self._settings.catch_up_limit if self._settings.catch_up == "all" else 0

    def _due_anyway(self, ledger: Ledger, now: int) -> bool:
        """Whether a tick that is not missed is due: it is later than the latest missed one."""
        recent = next(ledger.pending(self._schedule, now - self._late), None)
        return recent is not None and self._moment(recent) <= now

    async def _capture(self, ledger: Ledger, now: int, out: Capture) -> None:
        while events := self._due(ledger, now):
            await out.append(events, [Write(LEDGER, ledger.row())])
            reach("cron.after-append")

    def _due(self, ledger: Ledger, now: int) -> Sequence[Event]:
        """The events of the next page of ticks whose moment has come. One that waits for its jitter holds the rest."""
        events = []
        page = islice(ledger.pending(self._schedule), PAGE)
        for tick in list(takewhile(lambda tick: self._moment(tick) <= now, page)):
            skipped = ledger.skipped
            ledger.tell(tick)
            events.append(self._event(tick, skipped, ledger.events))
        return events

    def _moment(self, tick: int) -> int:
        """When a tick is due: its time, and its part of the jitter."""
        if not self._jitter:
            return tick
        digest = hashlib.blake2b(f"{self._context.name}/{tick}".encode(), digest_size=8).digest()
        return tick + int.from_bytes(digest) % self._jitter

    def _patience(self, ledger: Ledger) -> float:
        tick = next(ledger.pending(self._schedule), None)
        wait = LOOK if tick is None else (self._moment(tick) - self._now()) / SECOND
        return min(LOOK, max(0.0, wait))

    def _event(self, tick: int, skipped: int, number: int) -> Event:
        name, nominal = self._context.name, rfc3339(tick)
        return Event(
            id=f"{name}/{nominal}",
            source=self._context.source,
            type="headrace.cron.tick",
            subject=name,
            time=nominal,
            dataschema=SCHEMA,
            datacontenttype="application/json",
            partitionkey=name,
            sequence=f"{number:020}",
            data={"schedule": name, "nominal": nominal, "skipped": skipped, "payload": self._settings.payload},
        )


_SCHEMA: Final[Mapping[str, Any]] = {
    "$schema": "http://json-schema.org/draft-04/schema#",
    "id": SCHEMA,
    "type": "object",
    "properties": {
        "schedule": {"type": "string", "description": "the schedule's name: that of the source"},
        "nominal": {"type": "string", "format": "date-time", "description": "when the tick was due, without jitter"},
        "skipped": {"type": "integer", "description": "missed ticks left out since the last event"},
        "payload": {"description": "as in the settings"},
    },
    "required": ["schedule", "nominal", "skipped", "payload"],
}
