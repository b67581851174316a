"""A source and a sink of another distribution work by their entry points alone, and keep what every adapter must."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from headrace import plugins
from headrace.settings import SinkSettings, SourceSettings
from headrace.testing import SinkConformance, SourceConformance
from headrace.testing.leaks import eventually

EXAMPLE = Path(__file__).parents[1] / "fixtures" / "third_party"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built and installed by pip into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(EXAMPLE)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(autouse=True)
def on_the_path(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)


def test_both_are_found_by_name() -> None:
    assert "lines" in plugins.names("headrace.sources")
    assert plugins.find("headrace.sources", "lines").__module__ == "headrace_example"
    assert plugins.find("headrace.sinks", "spool").__module__ == "headrace_example"


class TestLinesSource(SourceConformance):
    """The suite that ships, applied to the example's source."""

    def settings(self, tmp_path: Path) -> SourceSettings:
        return plugins.find("headrace.sources", "lines").model_validate({"type": "lines", "path": "lines.txt"})

    def prepare(self, tmp_path: Path) -> None:
        (tmp_path / "lines.txt").touch()

    def change(self, tmp_path: Path, number: int) -> str:
        with (tmp_path / "lines.txt").open("a") as file:
            file.write(f"line {number}\n")
        return f"line {number}"

    def change_again(self, tmp_path: Path, number: int) -> None:
        self.change(tmp_path, number)

    @contextmanager
    def outage(self, tmp_path: Path) -> Iterator[None]:
        (tmp_path / "lines.txt").rename(tmp_path / "away")
        yield
        (tmp_path / "away").rename(tmp_path / "lines.txt")


class TestSpoolSink(SinkConformance):
    """And to its sink."""

    effectively_once = True

    def settings(self, tmp_path: Path) -> SinkSettings:
        return plugins.find("headrace.sinks", "spool").model_validate({"type": "spool", "folder": "spool"})

    def delivered(self, tmp_path: Path) -> list[bytes]:
        return [path.read_bytes() for path in sorted((tmp_path / "spool").glob("[!.]*"))]

    @contextmanager
    def outage(self, tmp_path: Path) -> Iterator[None]:
        (tmp_path / "spool").rename(tmp_path / "away")
        yield
        (tmp_path / "away").rename(tmp_path / "spool")


SETTINGS = """
[sources.notes]
type = "lines"
path = "lines.txt"

[sinks.copies]
type = "spool"
folder = "spool"
start = "earliest"

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
"""


def lines_in(folder: Path) -> list[str]:
    """The lines that both sinks have by now; what only one of them has is not counted."""
    spooled = [json.loads(path.read_text()) for path in sorted((folder / "spool").glob("[!.]*"))]
    audit = folder / "audit.jsonl"
    written = [json.loads(line) for line in audit.read_bytes().splitlines()] if audit.exists() else []
    return [event["data"]["line"] for event in spooled if event in written]


async def through_the_daemon(folder: Path, installed: Path, expected: list[str]) -> None:
    """A real daemon runs until both sinks have the expected lines, and ends by SIGTERM."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "headrace", "run", "-c", "headrace.toml"]
    daemon = await asyncio.create_subprocess_exec(*command, cwd=folder, env=environment)
    try:
        await eventually(lambda: lines_in(folder) == expected or daemon.returncode is not None, "delivered", 20)
        assert daemon.returncode is None, f"the daemon ended with {daemon.returncode}"
    finally:
        if daemon.returncode is None:
            daemon.terminate()
        await daemon.wait()
    assert daemon.returncode == 0


@pytest.mark.skipif(find_spec("headrace.cli.run") is None, reason="`headrace run` is not there yet")
def test_a_real_daemon_runs_both_and_catches_up_after_a_stop(tmp_path: Path, installed: Path) -> None:
    (tmp_path / "headrace.toml").write_text(SETTINGS)
    source = tmp_path / "lines.txt"
    source.write_text("one\ntwo\n")
    asyncio.run(through_the_daemon(tmp_path, installed, ["one", "two"]))
    source.write_text("one\ntwo\nthree\n")  # while it is down
    asyncio.run(through_the_daemon(tmp_path, installed, ["one", "two", "three"]))
