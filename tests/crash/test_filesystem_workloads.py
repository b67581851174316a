"""What real programs do to a tree, with the daemon killed at random meanwhile: the events rebuild the tree."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from headrace.event import Event
from tests.adapters.filesystem_runs import listed, name, rebuilt
from tests.fixtures.daemon import Daemon, start, until

SETTINGS = """
[sources.tree]
type = "filesystem"
path = "tree"
snapshot = "initial"
settle = "100ms"

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
"""
KILLS = 3
COMPARED = "compared with the tree"
ALIVE = 0.8  # seconds that a daemon lives at most: the moment of death is the random input

pytestmark = pytest.mark.crash


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    (tmp_path / "tree").mkdir()
    (tmp_path / "work").mkdir()
    daemon = start(tmp_path, SETTINGS)
    try:
        yield daemon
    finally:
        daemon.kill()
        sys.stdout.write(daemon.log[-4000:])


class Killer:
    """A thread that kills the daemon and starts it again until stopped; then one runs."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self._daemon = daemon
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.kills = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._random.uniform(0.1, ALIVE)):
            if self.kills % 3:  # while it starts, then twice while it follows
                self._until_compared()
            self._daemon.kill()
            self._stop.wait(self._random.uniform(0, 0.1))
            self._daemon.start()
            self.kills += 1

    def _until_compared(self) -> None:
        before = self._daemon.log.count("running")
        until(lambda: self._stop.is_set() or self._daemon.log.count(COMPARED) > before - 1)
        self._stop.wait(self._random.uniform(0, ALIVE))


def events_of(folder: Path) -> list[Event]:
    file = folder / "audit.jsonl"
    whole = file.read_bytes().rpartition(b"\n")[0] if file.exists() else b""
    return [Event.parse(line) for line in whole.splitlines()]


def agrees(folder: Path) -> list[Event]:
    """The events, once the tree rebuilt from them is the tree: strictly, nothing told of twice or out of order."""
    tree = listed(folder / "tree")

    def same() -> bool:
        return rebuilt(events_of(folder)) == tree

    try:
        until(same, "the rebuilt tree equals the tree")
    except AssertionError:
        assert rebuilt(events_of(folder)) == tree
    events = events_of(folder)
    assert len({event.id for event in events}) == len(events)
    assert [int(event.sequence or 0) for event in events] == list(range(1, len(events) + 1))
    return events


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not here: apt install {program}")


def run(*command: str | Path, cwd: Path | None = None) -> None:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True)


def plant(folder: Path, seed: int, files: int = 150) -> None:
    """Files in folders, other ones by each seed, though half of them with the same names."""
    chance = random.Random(seed)
    for number in range(files):
        kept = number if number % 2 else f"{number}-{seed}"
        file = folder / f"part{number % 7}" / f"deep{number % 3}" / f"file{kept}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(chance.randbytes(chance.randrange(3_000)))
        os.utime(file, (1_600_000_000 + number, 1_600_000_000 + number))


# The programs: each is run again and again, with the number of the round


def git(tree: Path, work: Path, number: int) -> None:
    origin, clone = work / "origin", tree / f"clone{number % 3}"
    commit = ("git", "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qam")
    if not origin.exists():
        run("git", "init", "-q", "-b", "main", origin)
        for branch in ("main", "other"):
            if branch != "main":
                run("git", "checkout", "-qb", branch, cwd=origin)
            shutil.rmtree(origin / "src", ignore_errors=True)
            plant(origin / "src", len(branch))
            run("git", "add", "-A", cwd=origin)
            run(*commit, branch, cwd=origin)
    shutil.rmtree(clone, ignore_errors=True)
    run("git", "clone", "-q", origin, clone)
    for branch in ("main", "other", "main"):
        run("git", "checkout", "-q", branch, cwd=clone)
    run("git", "gc", "-q", cwd=clone)


def tar(tree: Path, work: Path, number: int) -> None:
    archive = work / f"{number % 2}.tar"
    if not archive.exists():
        plant(work / archive.stem, number)
        run("tar", "cf", archive, "-C", work / archive.stem, ".")
    (tree / "unpacked").mkdir(exist_ok=True)
    run("tar", "xpf", archive, "-C", tree / "unpacked")


def rsync(tree: Path, work: Path, number: int) -> None:
    shutil.rmtree(work / "source", ignore_errors=True)
    plant(work / "source", number)
    run("rsync", "-a", "--delete", f"{work}/source/", tree / "mirror")


def pip(tree: Path, work: Path, number: int) -> None:
    wheel = work / f"things-{number}-py3-none-any.whl"
    plant(work / f"wheel{number}/things", number)
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in (work / f"wheel{number}").rglob("*"):
            archive.write(file, file.relative_to(work / f"wheel{number}"))
        info = f"things-{number}.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: things\nVersion: {number}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    install = ("install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", *install, "--target", tree / "site", wheel)


def editors(tree: Path, _: Path, number: int) -> None:
    """How vim, emacs and those that write a temporary file save; each text is longer than the last."""
    for count in range(30):
        text, file = "x" * (number * 30 + count + 1), tree / f"text{count % 3}"
        if count % 3 == 0 and file.exists():
            file.rename(tree / f"{file.name}~")
            file.write_text(text)
            (tree / f"{file.name}~").unlink()
        elif count % 3 == 1:
            lock = tree / f".#{file.name}"
            lock.symlink_to("somebody@example.org.4711:1")
            (tree / f"#{file.name}#").write_text(text)
            file.write_text(text)
            (tree / f"#{file.name}#").unlink()
            lock.unlink()
        else:
            (tree / f".{file.name}.swp").write_text(text)
            (tree / f".{file.name}.swp").replace(file)


def rotation(tree: Path, _: Path, number: int) -> None:
    """By renaming, the writer opening anew, and by copying and truncating under a writer."""
    for count in range(20):
        for age in (3, 2, 1):
            if (old := tree / f"app.log.{age}").exists():
                old.replace(tree / f"app.log.{age + 1}")
        with (tree / "app.log").open("a") as log:
            log.write(f"line {number} {count}\n")
            (tree / "app.log").rename(tree / "app.log.1")
            log.write("written to the old one after it was renamed\n")
        with (tree / "copied.log").open("a") as log:
            log.write(f"line {number} {count}\n" * 20)
            log.flush()
            shutil.copy2(tree / "copied.log", tree / "copied.log.1")
            with (tree / "copied.log").open("r+") as truncated:
                truncated.truncate()
            log.write("more\n")


def renaming(tree: Path, _: Path, number: int) -> None:
    """Ping-pong of files and of directories."""
    (tree / "d").mkdir(exist_ok=True)
    (tree / "d/in").write_text("x" * number)
    (tree / "a").write_text("x" * number)
    for _turn in range(100):
        (tree / "a").rename(tree / "b")
        (tree / "b").rename(tree / "a")
        (tree / "d").rename(tree / "e")
        (tree / "e").rename(tree / "d")


def restoring(tree: Path, work: Path, number: int) -> None:
    """Deleted, and there again from a copy with the old times; in turn a file alone and all of them."""
    if not (work / "copy").exists():
        plant(work / "copy", 1)
    if number % 2 == 0:
        shutil.rmtree(tree / "kept", ignore_errors=True)
        shutil.copytree(work / "copy", tree / "kept")
        return
    for file in [it for it in (work / "copy").rglob("*") if it.is_file()]:
        target = tree / "kept" / file.relative_to(work / "copy")
        target.unlink()
        shutil.copy2(file, target)


@pytest.mark.parametrize("program", [git, tar, rsync, pip, editors, rotation, renaming, restoring])
def test_what_programs_do(tmp_path: Path, daemon: Daemon, program: Callable[[Path, Path, int], None]) -> None:
    if program in {git, tar, rsync}:
        needs(program.__name__)
    if program is pip and importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not here: python3 -m ensurepip")
    number = 0
    with Killer(daemon, seed=len(program.__name__)) as killer:
        while killer.kills < KILLS:
            program(tmp_path / "tree", tmp_path / "work", number)
            number += 1
    assert agrees(tmp_path)


def test_a_slow_writer_while_daemons_die_is_one_created(tmp_path: Path, daemon: Daemon) -> None:
    with (tmp_path / "tree/slow").open("wb") as file, Killer(daemon, seed=5) as killer:
        while killer.kills < KILLS:
            file.write(b"more")
            file.flush()
    events = [event for event in agrees(tmp_path) if event.subject == "slow"]
    assert [(name(event), event.data["size"]) for event in events] == [
        ("created", (tmp_path / "tree/slow").stat().st_size)
    ]
