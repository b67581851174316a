"""Warns while the source runs: before the WAL that its slot keeps fills the server's disk, or the slot is lost."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import psycopg

from headrace.protocols import Logger
from headrace.sources.postgres.slots import Slot, look

LOOK: Final = 30.0  # seconds between looks
NEAR: Final = 0.5  # of what the server lets a slot keep
_RUNNING: Final = "SELECT pid, xact_start, query FROM pg_stat_activity WHERE xact_start IS NOT NULL ORDER BY 2"


class Guard:
    """Looks at a slot. Says a thing once, and again when it has become twice as much or has another cause."""

    def __init__(self, slot: str, warning: int, log: Logger) -> None:
        """`warning`: bytes of WAL that the slot may keep without a word."""
        self._slot = slot
        self._warning = warning
        self._log = log
        self._told = 0
        self._why = ""

    async def run(self, admin: psycopg.AsyncConnection[Any]) -> None:
        """Until cancelled."""
        while True:
            slot = await look(admin, self._slot)
            if slot is not None:
                self.judge(slot)
            await asyncio.sleep(LOOK)

    def judge(self, slot: Slot) -> None:
        if not threatens(slot.retained, slot.safe, self._warning):
            if self._told:
                self._log.info("the slot keeps little WAL again", slot=slot.name, bytes=slot.retained)
            self._told = 0
        elif slot.retained >= 2 * self._told or _hint(slot) != self._why:
            self._told, self._why = slot.retained, _hint(slot)
            about = {"slot": slot.name, "bytes": slot.retained, "lost_after": slot.safe}
            self._log.warning("the slot keeps WAL on the server", **about, hint=self._why)


def threatens(retained: int, safe: int | None, warning: int) -> bool:
    """Whether a slot that keeps so many bytes is one to warn of; it is lost after `safe` more, None: never."""
    most = None if safe is None else retained + max(safe, 0)
    return retained > warning or (most is not None and retained > NEAR * most)


def _hint(slot: Slot) -> str:
    if slot.current - slot.flushed < slot.retained / 2:  # we have confirmed the rest: not we are behind
        return f"a transaction that runs for long keeps it: {_RUNNING}"
    return "`headrace status` tells what the source waits for: perhaps a full journal, or a consumer"
