"""Logs: form, level, repeats, secrets."""

import io
import json
from typing import Any

import pytest

from headrace import log
from headrace.errors import SettingsError
from headrace.settings import Secret


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds, turned by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def entries(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_pipe_gets_json_lines() -> None:
    log.configure(stream=(stream := io.StringIO()))
    log.logger().bind(source="inbox").info("running", path=b"a", number=3)
    (entry,) = entries(stream)
    assert list(entry)[:3] == ["timestamp", "level", "event"]
    assert (entry["source"], entry["event"], entry["number"]) == ("inbox", "running", 3)


def test_a_terminal_gets_text_in_colour_unless_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    log.configure(stream=(stream := Terminal()))
    log.logger().info("running", sources=1)
    assert "\x1b[" in stream.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    log.configure(stream=(stream := Terminal()))
    log.logger().info("running", sources=1)
    assert "\x1b[" not in stream.getvalue()
    assert "running" in stream.getvalue()
    assert "sources=1" in stream.getvalue()


def test_levels() -> None:
    log.configure("warning", stream=(stream := io.StringIO()))
    log.logger().info("hidden")
    log.logger().warning("shown")
    assert [entry["event"] for entry in entries(stream)] == ["shown"]
    assert log.level("DEBUG", {}) == "debug"
    assert log.level(None, {"HEADRACE_LOG": "error"}) == "error"
    with pytest.raises(SettingsError, match=r"\$HEADRACE_LOG: unknown level"):
        log.level(None, {"HEADRACE_LOG": "loud"})


def test_repeats_are_counted_and_told_when_the_window_is_over() -> None:
    clock = Clock()
    repeats = log.configure(stream=(stream := io.StringIO()), clock=clock)
    for _ in range(13):
        log.logger().warning("target away", sink="a")
    log.logger().warning("target away", sink="b")
    assert len(entries(stream)) == 2
    clock.now = 10.0
    repeats.expire()
    assert [(entry["sink"], entry.get("repeated")) for entry in entries(stream)] == [
        ("a", None),
        ("b", None),
        ("a", 12),
    ]
    log.logger().warning("target away", sink="a")
    assert "repeated" not in entries(stream)[-1]


def test_the_end_tells_the_counts() -> None:
    repeats = log.configure(stream=(stream := io.StringIO()))
    log.logger().info("again")
    log.logger().info("again")
    repeats.flush()
    assert entries(stream)[-1]["repeated"] == 1


def test_a_secret_prints_stars() -> None:
    for stream in (io.StringIO(), Terminal()):
        log.configure(stream=stream)
        log.logger().error("refused", password=Secret("hunter2"), nested={"key": [Secret("hunter2")]})
        assert "***" in stream.getvalue()
        assert "hunter2" not in stream.getvalue()


def test_an_unexpected_error_keeps_its_traceback() -> None:
    log.configure(stream=(stream := io.StringIO()))
    try:
        raise RuntimeError("broken")
    except RuntimeError as error:
        log.logger().error("failed unexpectedly", exc_info=error)
    (entry,) = entries(stream)
    assert "RuntimeError: broken" in entry["exception"]


def test_messages_remembered_are_bounded() -> None:
    repeats = log.configure(stream=io.StringIO())
    for number in range(3 * log.KEPT):
        log.logger().info("line", number=number)
    assert len(repeats._seen) <= log.KEPT + 1
