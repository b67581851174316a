"""Runs the filesystem source over a real tree, and rebuilds the tree from its events."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import Any

from headrace.event import Event, encode_text
from headrace.sources.filesystem import FilesystemSource
from headrace.testing import MemoryCapture, RecordingLog, make_context
from headrace.testing.leaks import eventually


@dataclass
class Run:
    """A tree below `folder`, the settings of the source, and what was captured over all runs so far."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    capture: MemoryCapture = field(default_factory=MemoryCapture)
    log: RecordingLog = field(default_factory=RecordingLog)

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @asynccontextmanager
    async def running(self, capture: MemoryCapture | None = None) -> AsyncIterator[None]:
        """The source runs, and has compared once or died, while the context is entered."""
        settings = FilesystemSource.model_validate({"type": "filesystem", "path": "tree", **self.options})
        self.capture = capture or self.capture.survivor()
        compared = self.told("compared with the tree")
        async with settings.open(make_context(self.folder, log=self.log)) as source, asyncio.TaskGroup() as group:
            task = group.create_task(source.run(self.capture))
            if self.tree.exists():
                await until(lambda: self.told("compared with the tree") > compared or self.capture.crashed.is_set())
            try:
                yield
            finally:
                task.cancel()

    def told(self, event: str) -> int:
        return sum(it[1] == event for it in self.log.records)

    def since(self, count: int) -> list[tuple[str, str | None]]:
        """The events after the first `count`, as (name, subject)."""
        return [(name(event), event.subject) for event in self.capture.events[count:]]

    @property
    def all(self) -> list[tuple[str, str | None]]:
        return self.since(0)

    async def sees(self, *expected: tuple[str, str]) -> None:
        """Exactly these events have come, once the last of them has."""
        await until(lambda: len(self.all) >= len(expected))
        assert self.all == list(expected)

    async def agrees(self) -> None:
        """The tree rebuilt from the events becomes equal to the tree."""
        try:
            await until(lambda: rebuilt(self.capture.events) == listed(self.tree))
        except AssertionError:
            assert rebuilt(self.capture.events) == listed(self.tree)
            raise
        ids = [event.id for event in self.capture.events]
        assert len(set(ids)) == len(ids)


async def until(condition: Callable[[], bool], deadline: float = 10.0) -> None:
    """Returns once the condition holds. Raises `AssertionError` after `deadline` seconds."""
    await eventually(condition, "the condition", deadline)


def name(event: Event) -> str:
    return event.type.rpartition(".")[2]


def rebuilt(events: list[Event]) -> dict[str, tuple[Any, ...]]:
    """Path to kind, size and mtime, applying the events one by one."""
    tree: dict[str, tuple[Any, ...]] = {}
    for event in events:
        data = event.data
        if name(event) == "created":
            assert data["path"] not in tree, f"created twice: {data['path']}"
        if name(event) in {"deleted", "modified"}:
            assert data["path"] in tree, f"{name(event)}, and was not there: {data['path']}"
        if name(event) == "moved":
            del tree[data["previous_path"]]
        tree[data["path"]] = (data["kind"], data.get("size"), data.get("mtime"))
        if name(event) == "deleted":
            del tree[data["path"]]
    return tree


def listed(root: Path) -> dict[str, tuple[Any, ...]]:
    """The same, of the tree itself."""
    from headrace.event import rfc3339

    tree: dict[str, tuple[Any, ...]] = {}
    for folder, directories, files in os.walk(os.fsencode(root)):
        for each in directories + files:
            path = os.path.join(folder, each)
            try:
                st = os.lstat(path)
            except FileNotFoundError:
                continue
            kind = _kind(st.st_mode)
            rest = (None, None) if kind == "directory" else (st.st_size, rfc3339(st.st_mtime_ns))
            tree[encode_text(os.path.relpath(path, os.fsencode(root)))] = (kind, *rest)
    return tree


def _kind(mode: int) -> str:
    if S_ISDIR(mode):
        return "directory"
    return "symlink" if S_ISLNK(mode) else "file" if S_ISREG(mode) else "other"
