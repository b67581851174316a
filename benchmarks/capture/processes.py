"""What processes use, and waiting for what they do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Used(NamedTuple):
    """CPU seconds so far, and peak resident memory in MB: the sum over processes, shared pages counted in each."""

    cpu: float
    memory: float


def used(pid: int) -> Used:
    """By a process and all below it."""
    cpu = memory = 0.0
    for each in tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        memory += int(Path(f"/proc/{each}/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    return Used(cpu, memory)


def tree(pid: int) -> list[int]:
    found = [pid]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            found += tree(int(child))
    return found


def wait_for(condition: Callable[[], bool], deadline: float = 120.0, pause: float = 0.02) -> None:
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it did not get there in time")
        time.sleep(pause)


def has_row(path: Path, number: int) -> bool:
    """Whether the file ends with the line of the row with this id."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16_384))
        end = file.read()
    wanted = b'"id":%d' % number
    return end.endswith(b"\n") and any(wanted + close in end for close in (b",", b"}"))
