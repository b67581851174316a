"""The whole daemon on a small disk that fills up: it says so, loses nothing, and goes on by itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fixtures.daemon import running, until

SETTINGS = """
[daemon]
data_dir = "headrace-data"

[sources.inbox]
type = "filesystem"
path = "inbox"

[sinks.audit]
type = "file"
path = "audit.jsonl"
"""
FILES = 1_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder whose `headrace-data` is a file system of 96 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root and `mount`: run as root")
    data = tmp_path / "headrace-data"
    data.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", data], check=False, capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small tmpfs is not allowed here: {mounted.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", data], check=True)


def take_all_space(file: Path) -> None:
    with file.open("wb", buffering=0) as taken, suppress(OSError):
        while True:
            taken.write(bytes(4096))


@pytest.mark.crash
def test_a_full_disk_stops_intake_with_a_word_and_all_resumes(small_disk: Path) -> None:
    inbox, audit, fill = small_disk / "inbox", small_disk / "audit.jsonl", small_disk / "headrace-data" / "fill"
    inbox.mkdir()
    with running(small_disk, SETTINGS) as daemon:
        (inbox / "first").write_text("1")
        until(lambda: audit.exists() and audit.read_bytes().count(b"\n") == 1)
        take_all_space(fill)
        for number in range(FILES):
            (inbox / f"file{number}").write_text(str(number))
        daemon.wait_until(lambda told: told["journal"]["stopped"] == "the disk is full")
        assert "intake stopped" in daemon.log
        fill.unlink()
        until(lambda: audit.read_bytes().count(b"\n") == FILES + 1)
        daemon.wait_until(lambda told: not told["journal"]["stopped"])
        assert daemon.stop() == 0
    paths = [json.loads(line)["data"]["path"] for line in audit.read_bytes().splitlines()]
    assert sorted(paths) == sorted(["first", *(f"file{number}" for number in range(FILES))])
