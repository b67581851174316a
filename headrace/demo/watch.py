"""What arrived: the handler's own log and the audit file, read as they grow; and the tree they tell of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

Tree: TypeAlias = dict[str, tuple[str, int | None, float | None]]
"""Kind, size and mtime (microseconds since 1970) by path."""


class Lines:
    """A file of JSON lines that another process appends to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = 0

    def new(self) -> Iterator[Any]:
        """The lines that were finished since the last call. After a crash the file may be cut to before a line."""
        try:
            with self._path.open("rb") as file:
                self._done = min(self._done, os.fstat(file.fileno()).st_size)
                file.seek(self._done)
                data = file.read()
        except FileNotFoundError:
            return
        end = data.rfind(b"\n") + 1
        self._done += end
        for line in data[:end].splitlines():
            yield json.loads(line)


def tree_of(root: Path) -> Tree:
    """What is there."""
    found: Tree = {}
    for folder, folders, files in os.walk(root):
        for name in folders:
            found[str(Path(folder, name).relative_to(root))] = ("directory", None, None)
        for name in files:
            path = Path(folder, name)
            stat = path.lstat()
            found[str(path.relative_to(root))] = ("file", stat.st_size, stat.st_mtime_ns // 1000)
    return found


def rebuilt(events: Iterable[dict[str, Any]]) -> Tree:
    """What must be there, by the events alone."""
    tree: Tree = {}
    for event in events:
        data, name = event["data"], event["type"].rpartition(".")[2]
        if name == "moved":
            tree.pop(data["previous_path"], None)
        if name == "deleted":
            tree.pop(data["path"], None)
        else:
            tree[data["path"]] = (data["kind"], data.get("size"), _micros(data.get("mtime")))
    return tree


def _micros(time: str | None) -> float | None:
    if time is None:
        return None
    moment = datetime.fromisoformat(time) - datetime(1970, 1, 1, tzinfo=UTC)
    return (moment.days * 86_400 + moment.seconds) * 1_000_000 + moment.microseconds
