"""What a consumer says of itself."""

from __future__ import annotations

import msgspec


class ConsumerStatus(msgspec.Struct, frozen=True):
    """What `status` tells of a consumer.

    `lag` counts events, wanted or not; `behind` is seconds since the oldest undelivered one was appended. `replaying`
    counts the wanted events that are still to be sent again.
    """

    name: str
    state: str
    why: str
    lag: int
    behind: float
    delivered: int
    failed: int
    retried: int
    dead: int
    parked: int
    gaps: int
    replaying: int = 0


class Counts:
    """Since the daemon started."""

    def __init__(self) -> None:
        self.delivered = 0
        self.failed = 0
        self.retried = 0
        self.dead = 0
        self.kept = 0  # dead letters, also of earlier runs
        self.problem = ""
        self.reading_from: float | None = None

    def behind(self, now: float) -> float:
        return 0.0 if self.reading_from is None else max(0.0, now - self.reading_from)
