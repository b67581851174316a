"""Handlers that do the worst, in one daemon: neither it nor the others notice, and every event has its verdict."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fixtures.daemon import Daemon, running, until

HANDLERS = """
import ctypes, os, signal, subprocess, sys, time

def good(event):
    with open("good.log", "a") as file:
        file.write(event["subject"] + "\\n")

def raises(event):
    raise RuntimeError("\\udcff\\x00" * 1000)

def exits(event):
    sys.exit(0)

def leaves(event):
    os._exit(0)

def segfaults(event):
    ctypes.string_at(0)

kept = []
def leaks(event):
    kept.append(bytearray(os.urandom(1 << 20) * 32))

def hangs(event):
    while True:
        time.sleep(60)

def spins(event):
    while True:
        pass

def prints(event):
    os.write(1, os.urandom(1 << 18))
    os.write(2, b"\\xff\\x00" * (1 << 16))
    os.write(1, b"no end of line")

def garbage(event):
    return [object(), b"\\xff", {1: {2, 3}}, float("nan")]

def number(event):
    return 42

def spawns(event):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open("children.log", "a") as file:
        file.write(f"{child.pid}\\n")

def stubborn(event):
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    while True:
        time.sleep(60)

def closes(event):
    os.closerange(3, 4096)

def recurses(event):
    return recurses(event)
"""
FAIL = (
    "raises",
    "exits",
    "leaves",
    "segfaults",
    "hangs",
    "spins",
    "garbage",
    "number",
    "stubborn",
    "recurses",
)
EITHER = ("closes",)  # the function returned, but the worker may be unable to say so
SUCCEED = ("leaks", "prints", "spawns")
FILES = ("a", "b", "c")
SETTINGS = """
[sources.inbox]
type = "filesystem"
path = "inbox"
snapshot = "initial"

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
""" + "".join(
    f"""
[handlers.{name}]
function = "hostile.py:{name}"
start = "earliest"
on = ["inbox"]
concurrency = 1
timeout = "{"30s" if name == "good" else "2s"}"
retry = {{ attempts = 1 }}
"""
    for name in ("good", *FAIL, *EITHER, *SUCCEED)
)
MEMORY_MB = 150


def resident_mb(daemon: Daemon) -> float:
    return int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]) * 4096 / 2**20


def alive(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def seen(folder: Path) -> list[str]:
    """What the good handler was called for."""
    log = folder / "good.log"
    return sorted(log.read_text().split()) if log.exists() else []


@pytest.mark.crash
def test_hostile_handlers_harm_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "hostile.py").write_text(HANDLERS)
    for name in FILES:
        (tmp_path / "inbox" / name).write_text(name)
    with running(tmp_path, SETTINGS) as daemon:
        until(lambda: seen(tmp_path) == [*FILES], "the good handler was held up", 60)
        daemon.wait_until(
            lambda told: all(each["delivered"] + each["dead"] == len(FILES) for each in told["consumers"]), 90
        )
        told = {each["name"]: each for each in daemon.status()["consumers"]}
        assert {name: told[name]["dead"] for name in FAIL} == dict.fromkeys(FAIL, len(FILES))
        assert {name: told[name]["delivered"] for name in SUCCEED} == dict.fromkeys(SUCCEED, len(FILES))
        assert {each["state"] for each in told.values()} == {"running"}
        assert len((tmp_path / "audit.jsonl").read_bytes().splitlines()) == len(FILES)
        assert resident_mb(daemon) < MEMORY_MB
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 15, "the grace and what ending workers takes"
    left = [int(pid) for pid in (tmp_path / "children.log").read_text().split() if alive(int(pid))]
    assert not left, "children of a handler end with it"
