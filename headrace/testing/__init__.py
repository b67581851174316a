"""What adapters are tested with, also third-party ones: conformance suites and fakes.

The suites are plain classes; a subclass says how its adapter is set up, and pytest runs the rest:

    class TestSpool(SinkConformance):
        def settings(self, tmp_path): return SpoolSink(type="spool", folder="spool")
        def delivered(self, tmp_path): return [p.read_bytes() for p in sorted((tmp_path / "spool").iterdir())]
"""

from headrace.testing.fakes import FakeClock, MemoryCapture, RecordingLog, SimulatedCrash, make_batch, make_context
from headrace.testing.sink import SinkConformance
from headrace.testing.source import SourceConformance

__all__ = [
    "FakeClock",
    "MemoryCapture",
    "RecordingLog",
    "SimulatedCrash",
    "SinkConformance",
    "SourceConformance",
    "make_batch",
    "make_context",
]
