"""The demo from start to end: live events, a SIGKILL in the middle, and the comparison."""

from __future__ import annotations

import json
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from headrace.demo.house import House, until
from headrace.demo.orders import Orders, database
from headrace.demo.orders import rebuilt as rebuilt_rows
from headrace.demo.watch import Lines, rebuilt, tree_of
from headrace.demo.writer import Writer
from headrace.errors import HeadraceError

PAUSE: Final = 0.2  # seconds between two changes
LOOK: Final = 0.02  # seconds between two looks at what arrived
DARK: Final = 8  # changes while no daemon runs
KILL_AT: Final = 0.5  # of the time
PATIENCE: Final = 15.0  # seconds until all that was changed must have arrived


def play(house: House, seconds: float, tell: Callable[[str], None]) -> bool:
    """The whole demo, cut short by Ctrl-C; whether nothing was lost. `tell` prints what happens, one line each."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        orders = None
        try:
            orders = stack.enter_context(database())
        except HeadraceError as error:
            tell(f"Postgres is left out: {error}")
        return Story(house, orders, tell).play(seconds)


class Story:
    """A folder changes, and a table where there is a database."""

    def __init__(self, house: House, orders: Orders | None, tell: Callable[[str], None]) -> None:
        self._house = house
        self._orders = orders
        self._tell = tell
        self._writer = Writer(house.inbox, house.folder / "outside")
        self._writers: list[Writer | Orders] = [self._writer, *([orders] if orders else [])]
        self._next = cycle(self._writers)
        self._calls = Lines(house.folder / "called.jsonl")
        self._audit = Lines(house.folder / "audit.jsonl")
        self._called: dict[str, float] = {}
        self._events: dict[str, dict[str, Any]] = {}
        self._shown: set[str] = set()
        self._latencies: list[float] = []
        self._dark_until = 0.0
        self._killed = False

    def play(self, seconds: float) -> bool:
        """All of it, cut short by Ctrl-C; whether nothing was lost."""
        try:
            self._play(seconds)
            return self._finish()
        finally:
            self._house.kill()  # also where nobody reads on: `make demo | head`

    def _play(self, seconds: float) -> None:
        try:
            self._begin()
            self._acts(seconds)
        except KeyboardInterrupt:
            self._tell("interrupted: finishing")

    def _begin(self) -> None:
        orders, what = self._orders, "a folder is"
        if orders:
            self._house.add(orders.settings)
            what = f"a folder and a throw-away Postgres {orders.version} are"
        self._tell(f"demo in {self._house.folder}: {what} watched, a Python function and an audit file get the changes")
        started = time.monotonic()
        self._house.start()
        process = self._house.status()["pid"]
        self._tell(f"daemon started in {time.monotonic() - started:.1f} s, process {process}")
        until(self._complete, PATIENCE)

    def _acts(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._live(end - seconds * (1 - KILL_AT))
        self._power_cut()
        self._live(end)

    def _live(self, end: float) -> None:
        while time.monotonic() < end:
            next(self._next).step()
            following = time.monotonic() + PAUSE
            while time.monotonic() < following:
                self._look()
                time.sleep(LOOK)

    def _power_cut(self) -> None:
        self._house.kill()
        self._killed = True
        self._tell(
            f"kill -9: the daemon is gone; the folder {'and the table change' if self._orders else 'changes'} on"
        )
        for _ in range(DARK):
            next(self._next).step()
            time.sleep(LOOK)
        self._dark_until = time.time()
        started = time.monotonic()
        self._house.start()
        self._tell(f"{DARK} changes later the daemon is back, after {time.monotonic() - started:.1f} s; it catches up")
        until(self._complete, PATIENCE)

    def _look(self) -> None:
        """Read on, and show what both the function and the audit file have."""
        for call in self._calls.new():
            self._called.setdefault(call["id"], call["time"])
        for event in self._audit.new():
            self._events[event["id"]] = event
        for name, event in self._events.items():
            if name in self._called and name not in self._shown:
                self._shown.add(name)
                self._show(event, self._called[name])

    def _show(self, event: dict[str, Any], called: float) -> None:
        key, data = event["partitionkey"], event["data"]
        changed = max(writer.changed.get(key, 0.0) for writer in self._writers)
        late = ""
        if not data.get("recovered") and self._dark_until < changed <= called:
            self._latencies.append(called - changed)
            late = f"on_change() {(called - changed) * 1000:.1f} ms later"
        what = event["type"].rpartition(".")[2]
        previous = data.get("previous_path")
        shown = f"{previous} -> {key}" if previous else key
        self._tell(f"  {what:8}  {shown:34}  {late or 'on_change(), caught up'}, audit line {len(self._shown)}")

    def _finish(self) -> bool:
        """Wait until everything arrived, stop the daemon, compare."""
        arrived = until(self._complete, PATIENCE)
        try:
            captured = self._house.status()["journal"]["events"]
        except HeadraceError:
            captured = len(self._events)
        clean = self._house.stop()
        return self._closing(captured, whole=arrived and clean and self._complete())

    def _complete(self) -> bool:
        self._look()
        return self._same_tree() and self._same_table() and self._events.keys() == self._called.keys()

    def _same_tree(self) -> bool:
        return rebuilt(self._audited("filesystem")) == tree_of(self._house.inbox)

    def _same_table(self) -> bool:
        return self._orders is None or rebuilt_rows(self._audited("postgres")) == self._orders.rows()

    def _audited(self, kind: str) -> list[dict[str, Any]]:
        events = _read(self._house.folder / "audit.jsonl")
        return [event for event in events if event["type"].startswith(f"headrace.{kind}.")]

    def _closing(self, captured: int, *, whole: bool) -> bool:
        ids = [event["id"] for event in _read(self._house.folder / "audit.jsonl")]
        calls = len(_read(self._house.folder / "called.jsonl"))
        twice = len(ids) - len(set(ids))
        repeated = calls - len(self._called)
        self._tell("")
        self._tell(f"changes made               {sum(writer.count for writer in self._writers)}")
        self._tell(f"events captured            {captured}{_NETTED if self._killed else ''}")
        self._tell(f"on_change() called         {calls}{_repeats(repeated) if self._killed else ''}")
        self._tell(f"lines in the audit file    {len(ids)}, {twice or 'none'} twice")
        self._tell(f"change -> on_change()      {_spread(self._latencies)}")
        self._tell(f"tree rebuilt from audit    {_verdict(same=self._same_tree())}")
        if self._orders:
            self._tell(f"table rebuilt from audit   {_verdict(same=self._same_table())}")
        if not whole:
            self._tell(f"not everything arrived, or the daemon did not end well: {self._house.folder / 'daemon.log'}")
        return whole and not twice


_NETTED: Final = " (of files that came and went while the daemon was down there is none)"


def _verdict(*, same: bool) -> str:
    return "the same: nothing was lost" if same else "DIFFERENT"


def _repeats(count: int) -> str:
    return f", {count or 'none'} again after the kill"


def _spread(latencies: list[float]) -> str:
    if not latencies:
        return "not measured"
    ordered = sorted(latencies)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"p50 {statistics.median(ordered) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    except FileNotFoundError:
        return []
