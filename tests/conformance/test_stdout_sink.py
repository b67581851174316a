"""The stdout sink keeps what every sink must."""

from pathlib import Path

import pytest

from headrace.settings import SinkSettings
from headrace.sinks.stdout import StdoutSink
from headrace.testing import SinkConformance


class TestStdoutSink(SinkConformance):
    """Standard output is pytest's capture of it."""

    @pytest.fixture(autouse=True)
    def _captured(self, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        self.captured = capfdbinary

    def settings(self, tmp_path: Path) -> SinkSettings:
        return StdoutSink()

    def delivered(self, tmp_path: Path) -> list[bytes]:
        return self.captured.readouterr().out.splitlines(keepends=True)
