"""What goes wrong around a watched tree, live: reported, nothing made up, and healed when the cause goes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from headrace.event import Event
from headrace.sources.filesystem import (
    watch,  # noqa: F401 -- loaded before a test becomes a user who may not read where Python is
)
from tests.adapters.filesystem_runs import Run, listed, rebuilt, until
from tests.fixtures.daemon import environment
from tests.fixtures.daemon import until as eventually
from tests.fixtures.users import unprivileged

LOST = "notifications were lost in a burst: the whole tree is compared"
BLIND = "the limit of watches is reached"
SETTINGS = """
[sources.tree]
type = "filesystem"
path = "tree"
snapshot = "initial"
poll = "200ms"

[sinks.audit]
type = "file"
path = "audit.jsonl"
start = "earliest"
"""


def did(*command: str | Path) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("lost_at", ["", "d"])
def test_permission_lost_and_regained_while_it_runs(lost_at: str) -> None:
    async def main(folder: Path) -> None:
        run = Run(folder, {"snapshot": "initial"})
        lost = run.tree / lost_at
        (run.tree / "d/e").mkdir(parents=True)
        (run.tree / "d/e/x").write_text("x")
        root, inside = os.open(run.tree, os.O_RDONLY), os.open(run.tree / "d/e", os.O_RDONLY)
        async with run.running():
            await until(lambda: len(run.all) == 3)
            lost.chmod(0)
            await until(lambda: run.told("a directory cannot be read, what is in it is left as it was") == 1)
            os.close(os.open("y", os.O_CREAT | os.O_WRONLY, dir_fd=inside))
            os.unlink("x", dir_fd=inside)
            if lost_at:  # a later hint acted on: the others were heard, and could not be looked at
                os.mkdir("end", dir_fd=root)
                await until(lambda: run.since(3) == [("created", "end")])
            lost.chmod(0o700)
            await run.agrees()
            assert run.told("compared with the tree") == 1
        assert sorted(set(run.since(3)) - {("created", "end")}) == [("created", "d/e/y"), ("deleted", "d/e/x")]
        os.close(root)
        os.close(inside)

    with unprivileged() as folder:
        asyncio.run(main(folder))


@contextmanager
def mounted(tree: Path, *what: str | Path) -> Iterator[None]:
    """What `mount` is told, on the tree."""
    if not did("mount", *what, tree):
        pytest.skip("mounting takes root: run as root, with CAP_SYS_ADMIN")
    try:
        yield
    finally:
        assert did("umount", tree)


def test_a_root_unmounted_and_mounted_again(tmp_path: Path) -> None:
    async def main() -> None:
        run, store = Run(tmp_path, {"snapshot": "initial"}), tmp_path / "store"
        run.tree.mkdir()
        store.mkdir()
        (store / "a").write_text("x")
        (store / "b").write_text("x")
        async with AsyncExitStack() as stack:
            with mounted(run.tree, "--bind", store):
                await stack.enter_async_context(run.running())
                await until(lambda: len(run.all) == 2)
            await until(lambda: run.told("the watched directory is gone") == 1)
            await until(lambda: run.told("waiting for the watched directory") == 1)
            (store / "a").unlink()
            assert len(run.all) == 2
            with mounted(run.tree, "--bind", store):
                await until(lambda: run.since(2) == [("deleted", "a")])
                (run.tree / "c").write_text("x")
                await run.agrees()
                await stack.aclose()

    asyncio.run(main())


def test_a_file_system_unmounted_from_the_root_and_another_mounted(tmp_path: Path) -> None:
    """The kernel tells at once. The other one is empty at first, as a mount point is whose mount is missing."""
    disk = ("-t", "tmpfs", "none")

    async def main() -> None:
        run = Run(tmp_path, {"snapshot": "initial"})
        run.tree.mkdir()
        async with AsyncExitStack() as stack:
            with mounted(run.tree, *disk):
                (run.tree / "a").write_text("x")
                (run.tree / "b").write_text("x")
                await stack.enter_async_context(run.running())
                await until(lambda: len(run.all) == 2)
            await until(lambda: run.told("the watched directory is gone") == 1)
            await until(lambda: run.told("waiting for the watched directory") == 1)
            with mounted(run.tree, *disk):
                assert len(run.all) == 2
                (run.tree / "b").write_text("longer")
                await until(lambda: sorted(run.since(2)) == [("deleted", "a"), ("modified", "b")])
                (run.tree / "c").write_text("x")
                await run.agrees()
                await stack.aclose()

    asyncio.run(main())


def test_a_file_system_below_the_root_unmounted_and_mounted_again(tmp_path: Path) -> None:
    away = "a file system below the directory is not mounted, what was on it is left as it was"

    async def main() -> None:
        run, disk, point = (
            Run(tmp_path, {"snapshot": "initial", "poll": "200ms"}),
            tmp_path / "disk",
            tmp_path / "tree/m",
        )
        for folder in (disk, point):
            folder.mkdir(parents=True)
        with mounted(disk, "-t", "tmpfs", "none"):
            (disk / "a").write_text("x")
            (disk / "b").write_text("x")
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(run.running())
                await until(lambda: run.all == [("created", "m")])
                with mounted(point, "--bind", disk):
                    await until(lambda: sorted(run.since(1)) == [("created", "m/a"), ("created", "m/b")])
                await until(lambda: run.told(away) == 1)
                (disk / "b").unlink()
                assert len(run.all) == 3
                with mounted(point, "--bind", disk):
                    await until(lambda: run.since(3) == [("deleted", "m/b")])
                    (disk / "c").write_text("x")
                    await until(lambda: run.since(4) == [("created", "m/c")])
                    await stack.aclose()

    asyncio.run(main())


def test_a_slow_writer_during_an_overflow_is_one_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.sources.filesystem.hints.Hints.__init__.__defaults__", (500,))

    async def main() -> None:
        run = Run(tmp_path)
        run.tree.mkdir()
        async with run.running():
            with (run.tree / "slow").open("w") as slow:
                for number in range(5_000):
                    slow.write("line\n")
                    slow.flush()
                    (run.tree / str(number)).write_text("x")
                await until(lambda: run.told("compared with the tree") > 1)
                await until(lambda: len(run.all) == 5_000, 30)
                assert run.told(LOST) > 0
                assert "slow" not in {path for _, path in run.all}
                slow.write("the end")
            await run.agrees()
        assert [(it.type, it.data["size"]) for it in run.capture.events if it.subject == "slow"] == [
            ("headrace.filesystem.created", 5 * 5_000 + 7)
        ]

    asyncio.run(main())


def test_comparisons_end_while_directories_are_renamed_without_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.sources.filesystem.hints.Hints.__init__.__defaults__", (500,))
    stop = threading.Event()

    def storm(tree: Path) -> None:
        while not stop.is_set():
            (tree / "d").rename(tree / "e")
            (tree / "e").rename(tree / "d")

    async def main() -> None:
        run = Run(tmp_path, {"snapshot": "initial"})
        for number in range(20):
            (run.tree / f"d/{number}").mkdir(parents=True)
        async with run.running():
            storming = asyncio.create_task(asyncio.to_thread(storm, run.tree))
            try:
                await until(lambda: run.told(LOST) > 0, 30)
                before = run.told("compared with the tree")
                await until(lambda: run.told("compared with the tree") > before + 1, 30)
            finally:
                stop.set()
                await storming
            await run.agrees()

    asyncio.run(main())


def test_the_limit_of_watches_reached_and_left(tmp_path: Path) -> None:
    """A real limit: that of a user namespace of the daemon's own."""
    limited = ("unshare", "-Ur", "sh", "-c", 'echo 12 > /proc/sys/user/max_inotify_watches && exec "$@"', "-")
    if not did(*limited, "true"):
        pytest.skip("user namespaces are not allowed here, or `unshare` is missing: apt install util-linux")
    tree, audit, log = tmp_path / "tree", tmp_path / "audit.jsonl", tmp_path / "daemon.log"
    (tmp_path / "headrace.toml").write_text(SETTINGS)
    for number in range(20):
        (tree / f"{number:02}").mkdir(parents=True)

    def same() -> bool:
        lines = audit.read_bytes().rpartition(b"\n")[0].splitlines() if audit.exists() else []
        return rebuilt([Event.parse(line) for line in lines]) == listed(tree)

    with log.open("wb") as output:
        command = [*limited, sys.executable, "-m", "headrace", "run", "-c", "headrace.toml"]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=output, stderr=output)
        try:
            eventually(lambda: BLIND in log.read_text(), "the limit is reported")
            for number in range(20):
                (tree / f"{number:02}/file").write_text("x")
            eventually(same, "what is not watched is polled")
            for number in range(10, 20):
                os.remove(tree / f"{number}/file")
                (tree / f"{number}").rmdir()
            eventually(lambda: "every directory is watched again" in log.read_text(), "healed")
            eventually(same, "the tree is right")
        finally:
            process.kill()
            process.wait()
