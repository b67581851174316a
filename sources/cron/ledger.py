"""The tick ledger: which ticks were told of. It is committed together with their events.

Ranges of time stand for the ticks in them, so the ledger stays small however long a schedule runs. A tick within `told`
never comes again, whatever the clock does. Ticks that were left out are not in `told`: when the clock is set back to
before them, they are ahead again and come in their time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Self

import msgspec

from headrace.sources.cron.schedule import Schedule, boundary

FOREVER: Final = 1 << 62
RANGES: Final = 64  # beyond which the two oldest become one, with what was left out between them

Range = tuple[int, int]
"""(after, until]: instants in microseconds since 1970."""


class Ledger(msgspec.Struct):
    """The ledger of one schedule. `mark`: up to here every tick is decided. `events` counts all ticks told of.

    `skipped` ticks since `skipped_since` were left out, and the next event is to say so.
    """

    definition: str
    mark: int
    told: list[Range] = []
    events: int = 0
    skipped: int = 0
    skipped_since: int = 0

    @classmethod
    def read(cls, row: bytes | None, definition: str, now: int) -> Self:
        """The ledger in a row; a new one from `now` on where there is none, or where the definition changed.

        What the old definition told of in the future of the clock is kept: the ids of these ticks are taken.
        """
        if row is None:
            return cls(definition, now)
        ledger = msgspec.json.decode(row, type=cls)
        if ledger.definition == definition:
            return ledger
        ahead = [(after, until) for after, until in ledger.told if until > now]
        return cls(definition, now, ahead, ledger.events)

    def row(self) -> bytes:
        return msgspec.json.encode(self)

    def turned_back(self, now: int, schedule: Schedule) -> bool:
        """Take note that the clock was set back behind the mark."""
        if now >= self.mark:
            return False
        self.mark = now
        if self.skipped:
            self.skipped_since = min(self.skipped_since, now)
            self.skipped = self.untold(schedule, self.skipped_since, now)
        return True

    def untold(self, schedule: Schedule, after: int, until: int) -> int:
        """How many ticks in (after, until] were not told of."""
        return sum(schedule.count(low, high) for low, high in self._open(after, until))

    def pending(self, schedule: Schedule, after: int | None = None) -> Iterator[int]:
        """The ticks after the mark, or after a later instant, that were not told of, in order."""
        for low, high in self._open(self.mark if after is None else max(after, self.mark), FOREVER):
            for tick in schedule.after(low):
                if tick > high:
                    break
                yield tick

    def tell(self, tick: int) -> None:
        """The first pending tick has its event."""
        self.told = _merged([*self.told, (self.mark, tick)])
        self.mark = tick
        self.events += 1
        self.skipped = 0

    def skip(self, schedule: Schedule, until: int, keep: int) -> int:
        """Leave out what is pending up to an instant, but for the last `keep`; returns how many were left out."""
        missed = self.untold(schedule, self.mark, until)
        if missed <= keep:
            return 0
        if not self.skipped:
            self.skipped_since = self.mark
        self.skipped += missed - keep
        self.mark = self._keeping(schedule, until, keep)
        return missed - keep

    def _keeping(self, schedule: Schedule, until: int, keep: int) -> int:
        for low, high in reversed(self._open(self.mark, until)):
            if not keep:
                break
            found = schedule.count(low, high)
            if found >= keep:
                return boundary(schedule, low, high, keep)
            keep -= found
        return until

    def _open(self, after: int, until: int) -> list[Range]:
        """The parts of (after, until] that are not in `told`."""
        found, at = [], after
        for low, high in self.told:
            if low >= until:
                break
            if low > at:
                found.append((at, low))
            at = max(at, high)
        return [*found, (at, until)] if at < until else found


def _merged(ranges: list[Range]) -> list[Range]:
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    while len(merged) > RANGES:
        merged[:2] = [(merged[0][0], merged[1][1])]
    return merged
