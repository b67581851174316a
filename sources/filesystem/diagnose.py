"""What `doctor` says about a watched directory. Blocking: belongs into a thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Final

from headrace.protocols import Finding
from headrace.sources.filesystem.hints import WATCHES
from headrace.sources.filesystem.names import Visibility
from headrace.sources.filesystem.root import file_system, notifies
from headrace.sources.filesystem.settings import FilesystemSource

PATIENCE: Final = 5.0  # seconds of counting directories
SAMPLE: Final = 50
_LIMITS: Final = Path("/proc/sys/fs/inotify")


def findings(settings: FilesystemSource, root: bytes, limits: Path = _LIMITS) -> Iterator[Finding]:
    """One finding for each thing that can be wrong."""
    shown = root.decode(errors="backslashreplace")
    if not os.path.isdir(root):
        yield Finding("error", f"{shown} is not there", "make it; `run` waits for it")
        return
    if not os.access(root, os.R_OK | os.X_OK):
        yield Finding("error", f"{shown} cannot be read", "give the daemon's user read and search permission")
        return
    yield from _notification(settings, root, shown)
    yield from _limits(settings, root, limits)
    yield from _clock(root)


def _notification(settings: FilesystemSource, root: bytes, shown: str) -> Iterator[Finding]:
    kind = file_system(root)
    if settings.mode == "poll":
        yield Finding("ok", f"{shown} is polled every {settings.poll:g} s")
    elif sys.platform == "linux" and notifies(kind):
        yield Finding("ok", f"{shown} is on {kind or 'a file system'} that notifies")
    elif settings.mode == "watch":
        remedy = 'mode = "auto" polls; so does mode = "poll"'
        yield Finding("warning", f"{kind} does not tell of what others change on it", remedy)
    else:
        yield Finding("ok", f"{shown} is on {kind}, which does not notify: polled every {settings.poll:g} s")


def _limits(settings: FilesystemSource, root: bytes, limits: Path) -> Iterator[Finding]:
    if settings.mode == "poll" or not limits.exists():
        return
    most = int((limits / "max_user_watches").read_text())
    count, complete = _directories(root, Visibility(settings.include, settings.exclude))
    what = f"{'' if complete else 'more than '}{count} directories to watch, of {most} watches that a user may have"
    yield Finding("ok", what) if count < most * 0.8 else Finding("warning", what, WATCHES)
    queued = int((limits / "max_queued_events").read_text())
    if queued < 16_384:
        remedy = "sysctl fs.inotify.max_queued_events=16384: a burst beyond it costs a comparison of the whole tree"
        yield Finding("warning", f"the kernel queues {queued} notifications only", remedy)


def _directories(root: bytes, visible: Visibility) -> tuple[int, bool]:
    """How many directories there are to watch, and whether all could be counted in time."""
    end, count = monotonic() + PATIENCE, 0
    for folder, directories, _ in os.walk(root):
        count += 1
        directories[:] = [it for it in directories if visible.enters(os.path.relpath(os.path.join(folder, it), root))]
        if monotonic() > end:
            return count, False
    return count, True


def _clock(root: bytes) -> Iterator[Finding]:
    """How finely the file system dates its files, judged by some that are there."""
    with os.scandir(root) as entries:
        times = [entry.stat(follow_symlinks=False).st_mtime_ns for entry in islice(entries, SAMPLE)]
    if len(times) > 9 and all(it % 1_000_000_000 == 0 for it in times):
        yield Finding(
            "warning",
            "files are dated in whole seconds: two writes in one, of one size, look the same",
            "fingerprint = true tells them apart",
        )
