"""One poison key among 100,000 events, the process killed in the middle, for real."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from headrace.delivery.records import Records
from headrace.errors import Permanent
from headrace.event import Event
from headrace.protocols import Batch, Verdict
from headrace.settings import Retry
from headrace.testing.leaks import eventually
from tests.core.delivery_rig import TargetSettings, a_consumer, a_journal, an_event, append

ROOT = Path(__file__).parents[2]
EVENTS = 100_000
POISON = "42"
BEHIND = 1_000  # one event in so many has the poison's key

PROCESS = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from tests.core.test_delivery_kill import deliver
asyncio.run(deliver(Path(sys.argv[1])))
"""


def key_of(number: int) -> str:
    return "poison" if number % BEHIND == int(POISON) else f"key/{number % 5_000}"


class Recorder:
    """Writes each id to a file as it is delivered; the poison is refused, and each try is written too."""

    def __init__(self, folder: Path) -> None:
        self.file = os.open(folder / "delivered", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.opened = 0

    async def deliver(self, batch: Batch) -> Verdict:
        ids = [event.id for event in batch.events]
        os.write(self.file, "".join(f"{it}\n" for it in ids).encode())
        if POISON in ids:
            raise Permanent("poison")
        return Verdict()


async def deliver(folder: Path) -> None:
    """The process: delivers until it is killed, or all but the poison's key is delivered."""
    retry = Retry.model_validate({"initial": "300ms", "max": "300ms", "attempts": 1_000_000})
    async with a_journal("sqlite", folder) as journal:
        consumer = a_consumer(journal, TargetSettings(target=Recorder(folder), concurrency=4, retry=retry), folder)
        await consumer.prepare()
        task = asyncio.create_task(consumer.run())
        await eventually(lambda: not consumer.status().lag or task.done(), "delivered", 100)
        sys.stdout.write(f"{peak_memory()}\n")
        await consumer.stop(5)
        await task


def peak_memory() -> int:
    """MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


async def prepared(folder: Path) -> None:
    async with a_journal("sqlite", folder) as journal:
        await append(journal, [an_event(number, key_of(number)) for number in range(EVENTS)], block=2_000)


async def parked(folder: Path) -> dict[str, int]:
    """The ids that are parked, with their attempts."""
    async with a_journal("sqlite", folder) as journal:
        records = Records(journal, "target")
        return {Event.parse(row.line).id: row.failure.attempts async for _, _, row in records.parked()}


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-c", PROCESS, str(folder), str(ROOT))
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def killed_at(process: subprocess.Popen[bytes], file: Path, size: int) -> None:
    """Kill it once it has written so much."""
    while process.poll() is None and (not file.exists() or file.stat().st_size < size):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.crash
def test_a_poison_key_among_many_and_a_kill_in_the_middle(tmp_path: Path) -> None:
    asyncio.run(prepared(tmp_path))
    killed_at(start(tmp_path), tmp_path / "delivered", 150_000)
    first = asyncio.run(parked(tmp_path))
    killed_at(start(tmp_path), tmp_path / "delivered", 350_000)
    second = asyncio.run(parked(tmp_path))
    out, _ = start(tmp_path).communicate(timeout=120)
    last = asyncio.run(parked(tmp_path))

    delivered = Counter((tmp_path / "delivered").read_text().split())
    poison = {str(number) for number in range(EVENTS) if key_of(number) == "poison"}
    assert set(last) == poison, "the poison and what waits for it, and nothing else, is parked"
    assert 1 <= first[POISON] <= second[POISON] <= last[POISON] <= delivered[POISON]
    assert {id_ for id_ in last if last[id_]} == {POISON}
    tries = delivered.pop(POISON)
    assert tries - last[POISON] <= 2, "attempts are kept, but for those in flight at the kills"
    assert delivered.keys() == {str(number) for number in range(EVENTS)} - poison
    again = sum(count - 1 for count in delivered.values())
    assert again <= 5_000, f"{again} were in flight at the two kills"
    assert int(out) < 150, "MiB at the peak"
