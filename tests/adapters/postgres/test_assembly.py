"""Transactions put together: the same events however the server sends them, and none twice after a restart."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import Transient
from headrace.event import Event
from headrace.journal.block import SealedBlock
from headrace.sources.postgres.assembly import Assembly
from headrace.sources.postgres.lines import Names
from headrace.sources.postgres.pages import Xids
from headrace.sources.postgres.portion import Portion
from headrace.sources.postgres.positions import KnownRelation, Position
from headrace.sources.postgres.relations import EVERYTHING, Shown
from headrace.sources.postgres.tables import Tables
from headrace.sources.postgres.transactions import AT_ONCE, Spool
from headrace.testing.fakes import typed
from tests.adapters.postgres import wire

NAMES = Names("orders", "headrace:orders")
COLUMNS = {
    "one": [("id", 20, True), ("word", 25, False)],
    "two": [("id", 20, True)],
    "hidden": [("id", 20, True)],
}
CHANGED = [("id", 20, True), ("word", 25, False), ("more", 25, False)]
OIDS = {name: 100 + index for index, name in enumerate(COLUMNS)}


@dataclass
class Step:
    """One change inside a transaction; `sub`: the sub-transaction that made it, 0 for none."""

    kind: str
    table: str
    sub: int


@dataclass
class Transaction:
    """What happened in it; `aborted` are its sub-transactions that were rolled back."""

    xid: int
    lsn: int
    steps: list[Step]
    aborted: set[int]
    streamed: bool


@dataclass
class Server:
    """Sends a history, each transaction in the way that its `streamed` says, unless told otherwise."""

    history: Sequence[Transaction]
    numbers: Iterable[int] = field(default_factory=lambda: count(1))

    def messages(self, *, streaming: bool, start: int = 0) -> list[bytes]:
        """All from the transaction with LSN `start` on, on a fresh connection."""
        found: list[bytes] = []
        altered = any("alter" in [s.kind for s in tx.steps] for tx in self.history if tx.lsn < start)
        sender = _Sender(altered)
        for tx in self.history:
            if tx.lsn >= start:
                found += sender.streamed(tx) if streaming and tx.streamed and tx.steps else sender.whole(tx)
        return found


class _Sender:
    """One connection: relations are described before their first use and after every change."""

    def __init__(self, altered: bool) -> None:
        self._altered = altered
        self._sent: set[tuple[str, bool]] = set()

    def whole(self, tx: Transaction) -> list[bytes]:
        found = [wire.begin(tx.lsn, tx.xid, wire.EPOCH + tx.lsn)]
        for number, step in enumerate(tx.steps):
            if step.sub not in tx.aborted:
                found += self._step(step, tx, number, None)
        return [*found, wire.commit(tx.lsn, wire.EPOCH + tx.lsn)]

    def streamed(self, tx: Transaction) -> list[bytes]:
        found: list[bytes] = []
        before = set(self._sent)
        for number, step in enumerate(tx.steps):
            xid = tx.xid + step.sub
            found += [
                wire.stream_start(tx.xid, first=number == 0),
                *self._step(step, tx, number, xid),
                wire.stream_stop(),
            ]
            if step.sub in tx.aborted and all(later.sub != step.sub for later in tx.steps[number + 1 :]):
                found.append(wire.stream_abort(tx.xid, xid))
                # What it told of tables is gone with it.
                self._sent = set(before)
        return [*found, wire.stream_commit(tx.xid, tx.lsn, wire.EPOCH + tx.lsn)]

    def _step(self, step: Step, tx: Transaction, number: int, xid: int | None) -> list[bytes]:
        oid, key = OIDS[step.table], b"%d" % (tx.lsn * 100 + number)
        if step.kind == "alter":
            self._altered = True
            return []
        if step.kind == "message":
            return [wire.message(tx.lsn, "prefix", key, transactional=True, xid=xid)]
        wide = step.table == "one" and self._altered
        described = []
        if (step.table, wide) not in self._sent or xid is not None:
            self._sent.add((step.table, wide))
            columns = CHANGED if wide else COLUMNS[step.table]
            described = [wire.relation(oid, step.table, columns, xid=xid)]
        width = len(CHANGED) if wide else len(COLUMNS[step.table])
        row = [key, *[b"x"] * (width - 1)]
        change = {
            "insert": lambda: wire.insert(oid, row, xid),
            "update": lambda: wire.update(oid, row, xid=xid),
            "delete": lambda: wire.delete(oid, [key, *[None] * (width - 1)], xid=xid),
            "truncate": lambda: wire.truncate(sorted(OIDS.values())[: OIDS[step.table] - 99], xid),
        }[step.kind]()
        if step.kind == "truncate":
            described = [
                wire.relation(OIDS[t], t, CHANGED if t == "one" and self._altered else COLUMNS[t], xid=xid)
                for t in OIDS
            ]
        return [*described, change]


@st.composite
def histories(draw: st.DrawFn) -> Server:
    found = []
    for number in range(draw(st.integers(1, 6))):
        steps = [
            Step(
                draw(st.sampled_from(["insert"] * 4 + ["update", "delete", "truncate", "message", "alter"])),
                draw(st.sampled_from(sorted(COLUMNS))),
                draw(st.sampled_from([0, 0, 1, 2])),
            )
            for _ in range(draw(st.integers(0, 8)))
        ]
        aborted = set(draw(st.lists(st.sampled_from([1, 2]), max_size=2)))
        for step in steps:
            if step.kind == "alter":  # kept simple: never rolled back
                step.sub = 0
        found.append(Transaction(1000 + 10 * number, 100 * (number + 1), steps, aborted, draw(st.booleans())))
    return Server(found)


def choose(schema: str, table: str) -> Shown | None:
    return None if table == "hidden" else EVERYTHING


def assemble(
    messages: Sequence[bytes], batch: int, position: Position, known: dict[int, KnownRelation], folder: Path
) -> list[Portion]:
    tables = Tables(NAMES, choose, lambda oid: ("id",), known)
    spool = Spool(folder, NAMES)
    assembly = Assembly(NAMES, position, tables, spool)
    found: list[Portion] = []
    with closing(spool), pytest.MonkeyPatch.context() as patch:
        patch.setattr("headrace.sources.postgres.portion.BLOCK_EVENTS", 4)  # so that transactions span blocks
        patch.setattr("headrace.sources.postgres.assembly.MANY", 3)
        for start in range(0, len(messages), batch):
            found += assembly.feed(messages[start : start + batch])
            found += assembly.flush()
    return found


def events(portions: Iterable[Portion]) -> list[Event]:
    found = [portion.lines.lines() if isinstance(portion.lines, SealedBlock) else portion.lines for portion in portions]
    assert all(len(lines) == len(lines.keys) == len(lines.kinds) for lines in found)
    return [event for lines in found for event in typed(lines)]


def known_after(portions: Iterable[Portion]) -> dict[int, KnownRelation]:
    import msgspec

    found = {}
    for portion in portions:
        for key, value, _ in portion.writes:
            assert value is not None
            found[int(key.rpartition(b"/")[2])] = msgspec.msgpack.decode(value, type=KnownRelation)
    return found


@given(histories(), st.integers(1, 20))
@settings(max_examples=200)
def test_events_do_not_depend_on_how_they_were_sent(server: Server, batch: int) -> None:
    with TemporaryDirectory() as folder:
        whole = assemble(server.messages(streaming=False), 1000, Position(1), {}, Path(folder))
        streamed = assemble(server.messages(streaming=True), batch, Position(1), {}, Path(folder))
    assert events(streamed) == events(whole)
    sequence = [event.sequence for event in events(whole)]
    assert sequence == sorted(set(sequence), key=lambda it: it or "")
    assert len({event.id for event in events(whole)}) == len(sequence)


@given(histories(), st.integers(1, 20), st.data())
@settings(max_examples=200)
def test_nothing_is_lost_or_repeated_after_a_restart(server: Server, batch: int, data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        before = assemble(server.messages(streaming=True), batch, Position(1), {}, Path(folder))
        if not before:
            return
        cut = data.draw(st.integers(0, len(before) - 1))
        kept = before[: cut + 1]
        # The server sends again from any acknowledged place on, perhaps in the other way.
        acknowledged = [0, *(tx.lsn for tx in server.history if tx.lsn + 48 <= kept[-1].position.end)]
        start = data.draw(st.sampled_from(acknowledged))
        again = server.messages(streaming=data.draw(st.booleans()), start=start)
        after = assemble(again, batch, kept[-1].position, known_after(kept), Path(folder))
    assert events([*kept, *after]) == events(before)


def test_pages_behind_what_was_rolled_back_stay_as_they_were_sealed(tmp_path: Path) -> None:
    """Of a savepoint that failed only its own rows and those up to its end are written anew."""
    oid, rows = OIDS["two"], [wire.insert(OIDS["two"], [b"%d" % number], xid=7) for number in range(40)]
    messages = [
        *(wire.stream_start(7, first=True), wire.relation(oid, "two", COLUMNS["two"], xid=7), *rows[:4]),
        *(wire.insert(oid, [b"100"], xid=8), wire.insert(oid, [b"101"], xid=8)),
        *(wire.stream_stop(), wire.stream_abort(7, 8), wire.stream_start(7, first=False), *rows[4:]),
        *(wire.stream_stop(), wire.stream_commit(7, 100)),
    ]
    portions = assemble(messages, 1000, Position(1), {}, tmp_path)
    found = events(portions)
    assert [event.data["after"]["id"] for event in found] == list(range(40))
    assert [event.data["tx"]["ordinal"] for event in found] == list(range(1, 41))
    assert [event.data["tx"]["last"] for event in found] == [False] * 39 + [True]
    assert [isinstance(portion.lines, SealedBlock) for portion in portions[1:-1]] == [True] * (len(portions) - 2)


def test_a_running_transaction_that_finds_no_room_is_transient(tmp_path: Path) -> None:
    oid = OIDS["two"]
    rows = [wire.insert(oid, [b"%d" % number], xid=7) for number in range(5_000)]
    messages = [wire.stream_start(7, first=True), wire.relation(oid, "two", COLUMNS["two"], xid=7), *rows]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        with pytest.raises(Transient, match="a running transaction cannot be kept") as raised:
            assemble(messages, 1000, Position(1), {}, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "streaming = false" in raised.value.hint
    assert not list(tmp_path.glob("*.tx"))


def test_many_running_transactions_keep_little_in_memory(tmp_path: Path) -> None:
    """Each part ends on the disk where there are many; the order within each stays."""
    oid, many = OIDS["two"], range(1_000, 1_000 + 4 * AT_ONCE)
    messages: list[bytes] = []
    for turn in range(3):
        for xid in many:
            described = [wire.relation(oid, "two", COLUMNS["two"], xid=xid)] if not turn else []
            row = wire.insert(oid, [b"%d" % (xid + turn * 10_000)], xid=xid)
            messages += [wire.stream_start(xid, first=not turn), *described, row, wire.stream_stop()]
    spool = Spool(tmp_path, NAMES)
    assembly = Assembly(NAMES, Position(1), Tables(NAMES, choose, lambda oid: ("id",), {}), spool)
    with closing(spool):
        assert not list(assembly.feed(messages))
        kept = [xid for xid in many if spool.committed(xid).rows]
        assert len(kept) <= AT_ONCE
        commits = [wire.stream_commit(xid, 100 + xid) for xid in many]
        found = [event.data["after"]["id"] for event in events([*assembly.feed(commits), *assembly.flush()])]
    assert found == [xid + turn * 10_000 for xid in many for turn in range(3)]


@given(st.sets(st.integers(0, 2**32 - 1)), st.sets(st.integers(0, 2**32 - 1)))
def test_a_set_of_transaction_ids_is_one(added: set[int], others: set[int]) -> None:
    found = Xids()
    for xid in added:
        found.add(xid)
    near = {(xid + step) % 2**32 for xid in added for step in (-1, 1, 8, 8_192)}
    assert {xid for xid in added | others | near if xid in found} == added
