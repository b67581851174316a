"""What may be written now: intake waits while the journal or the disk is full, all else goes on.

Works on the writer's thread alone, but for `nudge`.
"""

from __future__ import annotations

import time
from asyncio import Future
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from headrace.journal.space import Limits, Reserve
from headrace.journal.upkeep import Upkeep
from headrace.protocols import Change, Logger

GROUP_BYTES: Final = 8 << 20  # of one transaction, about
RETRY: Final = 0.5  # seconds between two tries while intake is stopped
NO_RESERVE: Final = "the disk is full"


@dataclass(slots=True)
class Pending:
    """A change that waits for its commit; `size` in bytes, about."""

    change: Change
    future: Future[None]
    size: int

    @classmethod
    def of(cls, change: Change, future: Future[None]) -> Pending:
        blocks = sum(block.size for block in change.blocks)
        return cls(change, future, blocks + sum(len(key) + len(value or b"") for _, key, value, _ in change.rows))


class Intake:
    """Admits changes in order. `why` says what stopped intake, `""` where nothing did.

    A change larger than all of `max_size` is let in alone, once everything else could be deleted: the journal then
    exceeds its limit by one change, and the source is not stuck for ever.
    """

    def __init__(
        self, limits: Limits, reserve: Reserve, upkeep: Upkeep, log: Logger, checkpoint: Callable[[], None]
    ) -> None:
        self._limits = limits
        self._reserve = reserve
        self._upkeep = upkeep
        self._log = log
        self._checkpoint = checkpoint
        self._held: deque[Pending] = deque()
        self._retry_at = 0.0
        self._stuck = False  # full even without the reserve: nothing at all can be written
        self.why = ""

    def start(self) -> None:
        if not self._reserve.take():
            self._stop(NO_RESERVE)

    def nudge(self) -> None:
        """Try again at once: something has moved."""
        self._retry_at = 0.0

    def patience(self) -> float | None:
        """Seconds until there is something to try again, None where nothing waits."""
        if self.why:
            return max(0.0, self._retry_at - time.monotonic())
        return 0.0 if self._held else None

    def admit(self, changes: Iterable[Pending]) -> list[Pending]:
        """What may be written now, in order; the rest is kept until a later call admits it."""
        self._held.extend(changes)
        if self.why and time.monotonic() >= self._retry_at:
            self._try_again()
        return [] if self._stuck or not self._held else self._let_in()

    def full(self, changes: Iterable[Pending]) -> None:
        """These could not be written, because the disk is full. The next call of `admit` tries the reserve."""
        self._held.extendleft(reversed(list(changes)))
        self._stuck = not self._reserve.held
        self._reserve.give_up()
        self._stop(NO_RESERVE)
        self._retry_at = time.monotonic() + RETRY
        self._checkpoint()  # first of all: what is in the log needs its place in the file, and then the log has room

    def take_all(self) -> list[Pending]:
        """Everything kept, for the writer to refuse."""
        held, self._held = list(self._held), deque()
        return held

    def _try_again(self) -> None:
        self._retry_at = time.monotonic() + RETRY
        self._stuck = False
        if not self._reserve.take(2 * min(GROUP_BYTES, sum(item.size for item in self._held))):
            self._upkeep.shrink(self._reserve.size // 2)
            self._checkpoint()
            return
        first = next((item for item in self._held if item.change.intake), None)
        # More room than the first needs, or a full journal would stop and go on with every step of a consumer.
        slack = self._limits.intake // 32
        if first is None or self._fits(first, self._room(first.size + slack) - slack, alone=True):
            self._log.info("intake resumed", after=self.why)
            self.why = ""

    def _let_in(self) -> list[Pending]:
        sizes = [item.size for item in self._held if item.change.intake]
        room = self._room(min(sum(sizes), GROUP_BYTES + max(sizes, default=0)))
        admitted: list[Pending] = []
        kept: deque[Pending] = deque()
        size = 0
        for item in self._held:
            if size >= GROUP_BYTES or self._waits(item, room, alone=not admitted):
                kept.append(item)
                continue
            admitted.append(item)
            size += item.size
            room -= item.size if item.change.intake else 0
        self._held = kept
        return admitted

    def _waits(self, item: Pending, room: int, *, alone: bool) -> bool:
        if item.change.intake and not self.why and not self._fits(item, room, alone=alone):
            self._stop(f"the journal has reached its max_size of {self._limits.max_size} bytes")
        return item.change.intake and bool(self.why)

    def _room(self, wanted: int) -> int:
        """Bytes that intake may still take, after deleting what nobody needs if `wanted` is more."""
        room = self._limits.intake - self._upkeep.size
        return room + self._upkeep.prune(wanted - room) if wanted > room else room

    def _fits(self, item: Pending, room: int, *, alone: bool) -> bool:
        return item.size <= room or (alone and self._upkeep.oldest() == self._upkeep.head)

    def _stop(self, why: str) -> None:
        if self.why != why:
            self.why = why
            self._log.error("intake stopped", why=why, oldest_needed_by=sorted(self._upkeep.blockers()))
