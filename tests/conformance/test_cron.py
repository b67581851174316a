"""The cron source keeps what every source must. Its origin is the clock: a change is the next second passing."""

from pathlib import Path

from headrace.protocols import Clock
from headrace.settings import SourceSettings
from headrace.sources.cron import CronSource
from headrace.testing import FakeClock, SourceConformance


class TestCronSource(SourceConformance):
    """One tick for each change; all of them have the schedule's name as their subject."""

    one_event_each = False

    def setup_method(self) -> None:
        self._clock = FakeClock()

    def clock(self) -> Clock:
        return self._clock

    def settings(self, tmp_path: Path) -> SourceSettings:
        return CronSource(type="cron", every="1s")

    def change(self, tmp_path: Path, number: int) -> str:
        self._clock.advance(1.0)
        return "under_test"

    def change_again(self, tmp_path: Path, number: int) -> None:
        self._clock.advance(1.0)
