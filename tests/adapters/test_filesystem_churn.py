"""Any sequence of operations on a tree, with the source stopped and killed at random: the events rebuild the tree."""

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.testing import MemoryCapture, SimulatedCrash
from tests.adapters.filesystem_runs import Run, listed, rebuilt, until

NAMES = ["a", "b", "a-", "c", "c.x"]
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)


def write(tree: Path, path: str, _: str) -> None:
    (tree / path).write_text("x" * random.randrange(50))


def append(tree: Path, path: str, _: str) -> None:
    with (tree / path).open("a") as file:
        file.write("y")


def make(tree: Path, path: str, _: str) -> None:
    (tree / path).mkdir(parents=True)


def rename(tree: Path, path: str, other: str) -> None:
    (tree / path).rename(tree / other)


def replace(tree: Path, path: str, other: str) -> None:
    (tree / path).with_name(".new").write_text(other)
    (tree / path).with_name(".new").rename(tree / path)


def remove(tree: Path, path: str, _: str) -> None:
    if (tree / path).is_dir():
        shutil.rmtree(tree / path)
    else:
        (tree / path).unlink()


def move_out(tree: Path, path: str, _: str) -> None:
    (tree / path).rename(tree.parent / f"out-{random.randrange(10**9)}")


def move_in(tree: Path, path: str, _: str) -> None:
    outside = next(it for it in tree.parent.iterdir() if it.name.startswith("out-"))
    outside.rename(tree / path)


def symlink(tree: Path, path: str, other: str) -> None:
    (tree / path).symlink_to(other)


def restore(tree: Path, path: str, _: str) -> None:
    """Deleted, and there again with its old size and time."""
    stat, text = (tree / path).stat(), (tree / path).read_bytes()
    (tree / path).unlink()
    (tree / path).write_bytes(text)
    os.utime(tree / path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# No hard links: written through a name that is gone by now, the other name changes without a word to anybody.
OPERATIONS: list[Callable[[Path, str, str], None]] = [
    write,
    append,
    make,
    rename,
    replace,
    remove,
    move_out,
    move_in,
    symlink,
    restore,
]
STEP = st.tuples(st.sampled_from(OPERATIONS), PATHS, PATHS)
PHASE = st.tuples(st.lists(STEP, max_size=12), st.lists(STEP, max_size=12))


def perform(tree: Path, steps: list[tuple[Callable[[Path, str, str], None], str, str]]) -> None:
    for operation, path, other in steps:
        with suppress(OSError, StopIteration):
            operation(tree, path, other)


@given(st.lists(PHASE, min_size=1, max_size=4), st.sampled_from(["watch", "poll"]))
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
def test_the_tree_rebuilt_from_the_events_is_the_tree(phases: list[tuple[list, list]], mode: str) -> None:  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), {"snapshot": "initial", "mode": mode, "poll": "100ms", "settle": "20ms"})
        run.tree.mkdir()

        async def main() -> None:
            for live, down in phases:
                async with run.running():
                    perform(run.tree, live)
                    await run.agrees()
                perform(run.tree, down)
            async with run.running():
                await run.agrees()

        asyncio.run(main())


@given(st.lists(PHASE, min_size=2, max_size=4), st.integers(1, 6), st.sampled_from(["before", "after"]), st.randoms())
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
def test_no_crash_loses_or_repeats(  # type: ignore[no-untyped-def]
    phases: list[tuple[list, list]],  # type: ignore[type-arg]
    number: int,
    when,
    chance: random.Random,
) -> None:
    """Killed at an append, at another one each run, amid changes."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), {"snapshot": "initial", "settle": "20ms"})
        run.tree.mkdir()

        async def main() -> None:
            for live, down in phases:
                crash = SimulatedCrash(number + chance.randrange(3), when)
                await crashing(run, run.capture.survivor(crash=crash), live)
                perform(run.tree, down)
            async with run.running():
                await run.agrees()

        asyncio.run(main())


async def crashing(run: Run, capture: MemoryCapture, steps: list) -> None:  # type: ignore[type-arg]
    """A run in which the daemon may die at an append."""
    async with run.running(capture):
        perform(run.tree, steps)
        await until(lambda: capture.crashed.is_set() or rebuilt(capture.events) == listed(run.tree))


def test_a_torrent_of_everything(tmp_path: Path) -> None:
    """Two thousand random operations as fast as they go, from one seed."""
    chance = random.Random(7)
    run = Run(tmp_path, {"snapshot": "initial", "settle": "20ms"})
    run.tree.mkdir()

    def path() -> str:
        return "/".join(chance.choice(NAMES) for _ in range(chance.randint(1, 3)))

    async def main() -> None:
        async with run.running():
            for _ in range(40):
                steps = [(chance.choice(OPERATIONS), path(), path()) for _ in range(50)]
                await asyncio.to_thread(perform, run.tree, steps)
            await run.agrees()

    asyncio.run(main())
