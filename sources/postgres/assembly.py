"""Messages in, portions for the journal out: transactions, ordinals, and what was captured already. No socket here.

Ordinals count the rows, truncated tables and transactional messages of a committed transaction, as sent, before any
filter: they are the same whether the server sent it while it ran or after, and whatever the settings choose.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec

from headrace.event import Event, key_hash
from headrace.journal.block import Lines, SealedBlock, Special
from headrace.sources.postgres import protocol
from headrace.sources.postgres.events import in_front, message_event, table_event
from headrace.sources.postgres.lines import END, LAST, OPERATIONS, Names, Tx
from headrace.sources.postgres.pages import Page, Xids, chosen
from headrace.sources.postgres.portion import Block, Portion
from headrace.sources.postgres.positions import Position
from headrace.sources.postgres.protocol import LogicalMessage
from headrace.sources.postgres.tables import Table, Tables
from headrace.sources.postgres.transactions import Running, Spool
from headrace.sources.postgres.window import WATERMARK, Watch

ROWS: Final = frozenset(b"IUDRYTMO")  # what may stand inside a transaction
MANY: Final = 1_000  # messages kept before they are decoded, while their transaction goes on
MANY_BYTES: Final = 2 << 20  # of them, about


class Reached(Exception):
    """The stream came to where it was to stop; all before is assembled."""


class _Open(NamedTuple):
    """The transaction that is being assembled: `skip` ordinals of it are in the journal, all of them where it is -1."""

    tx: Tx
    skip: int


def _every(_prefix: str) -> bool:
    return True


def _nothing(_lsn: int, _xid: int, _time: int) -> None:
    """No check."""


class Assembly:
    """Puts the stream's messages together to portions.

    `feed` yields those that are full, `flush` whatever is complete. `idle_end` is how far the server looked without
    finding anything more for us, once all before it is assembled.
    """

    def __init__(
        self,
        names: Names,
        start: Position,
        tables: Tables,
        spool: Spool,
        *,
        wants_message: Callable[[str], bool] = _every,
        check: Callable[[int, int, int], None] = _nothing,
        until: int | None = None,
    ) -> None:
        """`check` is called with LSN, xid and time of every transaction; `Reached` is raised at the LSN `until`."""
        self._until = sys.maxsize if until is None else until
        self.watch: Watch | None = None
        self._names = names
        self._position = start
        self._known = start
        self._tables = tables
        self._spool = spool
        self._wants_message = wants_message
        self._check = check
        self._block = Block()
        self._rows: list[bytes] = []
        self._kept = 0  # bytes of the rows, about
        self._open: _Open | None = None
        self._ordinal = 0
        self._last_ordinal = 0  # of the last line of the open transaction, 0 where it has none
        self._streaming: Running | None = None
        self._held: Portion | None = None
        self.idle_end = 0
        self.reply_wanted = False
        self._control: dict[int, Callable[[bytes], Iterator[Portion]]] = {
            protocol.BEGIN: self._begin,
            protocol.COMMIT: self._commit,
            protocol.STREAM_START: self._stream_start,
            protocol.STREAM_STOP: self._stream_stop,
            protocol.STREAM_COMMIT: self._stream_commit,
            protocol.STREAM_ABORT: self._stream_abort,
        }

    @property
    def position(self) -> Position:
        """Behind all that was handed out."""
        return self._position

    @property
    def idle(self) -> bool:
        """Whether nothing is being assembled."""
        return self._open is None and not self._block.lines

    @property
    def amid(self) -> bool:
        """Whether more will come at once, of a large transaction that still runs."""
        return self._streaming is not None

    def moved(self, position: Position) -> None:
        """The same place, with a later `end`: nothing more was found up to it."""
        self._position = position

    def feed(self, messages: Sequence[bytes]) -> Iterator[Portion]:
        """Take messages in; yields every portion that is full."""
        done = 0
        while done < len(messages):
            if self._streaming is not None:
                done = self._streaming.take(messages, done)
            done = yield from self._singly(messages, done)
        if self._rows:
            self._kept += sum(map(len, messages))
            if len(self._rows) >= MANY or self._kept >= MANY_BYTES:
                yield from self._decode()

    def _singly(self, messages: Sequence[bytes], first: int) -> Generator[Portion, None, int]:
        """Messages one by one, up to where rows of a running transaction begin; returns the index reached."""
        sink = self._sink()
        for index, message in enumerate(messages[first:] if first else messages, first + 1):
            letter = message[25] if message[0] == protocol.XLOG_DATA else 0
            if not letter:
                self._keepalive(message)
            elif letter in ROWS and sink is not None:
                sink(message)
            elif (control := self._control.get(letter)) is not None:
                yield from control(message)
                sink = self._sink()
            elif letter == protocol.MESSAGE:
                yield from self._lone_message(protocol.logical_message(message))
            else:
                self._learn(message, letter)
            if self._streaming is not None:
                return index
        return len(messages)

    def _sink(self) -> Callable[[bytes], None] | None:
        """Where the messages of a transaction go at the moment; None between transactions."""
        if self._streaming is not None:
            return self._streaming.add
        return self._rows.append if self._open is not None else None

    def flush(self) -> Iterator[Portion]:
        """What is complete, however little it is."""
        if self._block.lines and self._open is None:
            yield self._portion(len(self._block.lines), self._position)

    def _keepalive(self, message: bytes) -> None:
        alive = protocol.keepalive(message)
        self.reply_wanted = self.reply_wanted or alive.reply
        if self._open is None:
            self.idle_end = max(self.idle_end, alive.end)

    # Transactions

    def _begin(self, message: bytes) -> Iterator[Portion]:
        begin = protocol.begin(message)
        self._start(begin.lsn, begin.xid, begin.time)
        yield from ()

    def _start(self, lsn: int, xid: int, time: int) -> None:
        if lsn >= self._until:
            raise Reached
        self._check(lsn, xid, time)
        self._open = _Open(Tx(self._known.epoch, lsn, xid, time), self._known.skips(lsn))
        self._ordinal = self._last_ordinal = 0

    def _commit(self, message: bytes) -> Iterator[Portion]:
        yield from self._decode()
        self._finish(protocol.commit(message).end)

    def _finish(self, end: int) -> None:
        """The transaction is complete: its last line says so, and the position moves behind it."""
        if self._open is None:
            raise protocol.Malformed("a transaction ends that did not begin")
        tx, skip = self._open
        if self._last_ordinal:
            line = self._block.lines[-1]
            self._block.lines[-1] = line[: -len(END)] + LAST
        if skip != -1:
            self._position = _behind(self._known.epoch, tx, self._ordinal, end, complete=True)
        self._open = None
        self.idle_end = max(self.idle_end, end)

    def _stream_start(self, message: bytes) -> Iterator[Portion]:
        """What is complete does not wait for the end of what may be many rows."""
        yield from self.flush()
        self._streaming = self._spool.start(protocol.stream_start(message).xid, self._tables)

    def _stream_stop(self, message: bytes) -> Iterator[Portion]:
        if self._streaming is not None:
            self._spool.pause(self._streaming)
        self._streaming = None
        yield from ()

    def _stream_abort(self, message: bytes) -> Iterator[Portion]:
        abort = protocol.stream_abort(message)
        self._spool.abort(abort.xid, abort.subxid)
        yield from ()

    def _stream_commit(self, message: bytes) -> Iterator[Portion]:
        """What was sent while it ran comes now, as if it had been sent at its commit."""
        commit = protocol.stream_commit(message)
        self._start(commit.lsn, commit.xid, commit.time)
        running = self._spool.committed(commit.xid)
        for record in running.records():
            if isinstance(record, Page):
                yield from self._page(record, running.aborted)
            elif record.xid not in running.aborted:
                yield from self._other(record.message, record.message[25])
        held, self._held = self._held, None
        if held is None:
            self._finish(commit.end)
        else:
            self._last_ordinal = 0
            self._finish(commit.end)
            yield Portion(_ended(held.lines), self._position, held.writes)
        self._spool.drop(commit.xid)

    def _page(self, page: Page, aborted: Xids) -> Iterator[Portion]:
        """A page of a transaction that was sent while it ran. The last one is held back: its end says that it is."""
        open_ = self._open
        if open_ is None:
            raise protocol.Malformed("a page outside a transaction")
        if self.watch is not None and any(run.oid == self.watch.oid for run in page.runs):
            self._block.writes += self.watch.page(open_.tx.xid, renamed=page.renamed)
        kept = [run for run in page.runs if run.xid not in aborted]
        tables = {run.oid: self._tables.get(run.oid) for run in kept}
        early = {oid for oid, table in tables.items() if table is not None and open_.tx.lsn < table.since}
        numbered = self._ordinal == page.before and 0 <= open_.skip <= page.before
        whole = numbered and not early and len(kept) == len(page.runs)
        found = page.whole(open_.tx) if whole else chosen(page, aborted, early, open_.tx, self._ordinal, open_.skip)
        self._ordinal = found.ordinal
        if len(found.lines):
            yield from self._release()
            for table in (tables[oid] for oid in sorted(found.used)):
                if table is not None and table.changed:
                    self._compare(table, found.last - len(found.lines) + 1)
            yield from self._everything()
            self._last_ordinal = found.last
            self._held = Portion(found.lines, self._position, ())

    def _release(self) -> Iterator[Portion]:
        """The page that was held back, as more of its transaction follows."""
        if self._held is not None and self._open is not None:
            tx, held, self._held = self._open.tx, self._held, None
            self._position = _behind(self._known.epoch, tx, self._last_ordinal, self._position.end, complete=False)
            self._last_ordinal = 0
            yield Portion(held.lines, self._position, held.writes)

    def _everything(self) -> Iterator[Portion]:
        """All single lines, before a page; what they stand for is in the journal then."""
        if not self._block.lines and not self._block.writes:
            return
        if self._last_ordinal and self._open is not None:
            tx, ordinal = self._open.tx, self._last_ordinal
            self._position = _behind(self._known.epoch, tx, ordinal, self._position.end, complete=False)
            self._last_ordinal = 0
        yield self._portion(len(self._block.lines), self._position)

    # Rows

    def _decode(self) -> Iterator[Portion]:
        rows, self._rows, self._kept = self._rows, [], 0
        index = 0
        while index < len(rows):
            message = rows[index]
            letter = message[25]
            if letter not in OPERATIONS:
                yield from self._other(message, letter)
                index += 1
                continue
            reached = self._run(rows, index)
            if self.watch is not None:
                self._observe(self.watch, rows[index:reached])
            if reached == index:
                yield self._partial()
            index = reached

    def _observe(self, watch: Watch, rows: Sequence[bytes]) -> None:
        if rows and self._open is not None and int.from_bytes(rows[0][26:30]) == watch.oid:
            table = self._table(rows[0])
            if table is not None:
                self._block.writes += watch.rows(table.relation, rows, self._open.tx.xid)

    def _run(self, rows: Sequence[bytes], first: int) -> int:
        """Decode rows of one table and operation, as many as fit; returns the index reached."""
        if self._open is None:
            raise protocol.Malformed("a row outside a transaction")
        table = self._table(rows[first])
        skip = self._open.skip
        early = table is not None and self._open.tx.lsn < table.since
        if table is None or early or skip == -1 or self._ordinal < skip:
            return self._pass_over(rows, first, all_=table is None or early or skip == -1)
        block = self._block
        room = block.room(table.average)
        if room < 2 and len(block.lines) > 1:
            return first
        if table.changed:
            self._compare(table, self._ordinal + 1)
        stop = min(len(rows), first + max(room - 1, 1))
        reached = block.take(table, rows, first, stop, self._ordinal, self._open.tx)
        self._ordinal += reached - first
        self._last_ordinal = self._ordinal
        return reached

    def _table(self, message: bytes) -> Table | None:
        oid = int.from_bytes(message[26:30])
        try:
            return self._tables.get(oid)
        except KeyError:
            raise protocol.Malformed(f"a row of relation {oid}, of which no message told") from None

    def _pass_over(self, rows: Sequence[bytes], first: int, *, all_: bool) -> int:
        """Count rows that are not wanted, or in the journal already."""
        skip = len(rows) if all_ else self._skip - self._ordinal
        prefix = rows[first][25:30]
        index = first
        for index in range(first, min(len(rows), first + skip)):
            if rows[index][25:30] != prefix:
                break
        else:
            index += 1
        self._ordinal += index - first
        return index

    @property
    def _skip(self) -> int:
        return 0 if self._open is None else self._open.skip

    def _partial(self) -> Portion:
        """All lines of the open transaction but the last: whether that is its last one shows later."""
        open_ = self._open
        count = len(self._block.lines)
        if open_ is None or not self._last_ordinal:
            return self._portion(count, self._position)
        tx = open_.tx
        end = self._position.end
        ordinal = self._last_ordinal - 1
        self._position = _behind(self._known.epoch, tx, ordinal, end, complete=False)
        return self._portion(count - 1, self._position)

    def _portion(self, count: int, position: Position) -> Portion:
        writes = tuple(self._block.writes)
        lines, self._block = self._block.finish(count)
        return Portion(lines, position, writes)

    # What is no row

    def _learn(self, message: bytes, letter: int) -> None:
        match letter:
            case protocol.RELATION:
                self._tables.learn(protocol.relation(message))
            case protocol.TYPE:
                self._tables.learn_type(protocol.type_(message))
            case protocol.ORIGIN:
                self._set_origin(protocol.origin(message))
            case _:
                raise protocol.Malformed(f"a message of kind {chr(letter)!r}")

    def _set_origin(self, origin: str) -> None:
        if self._open is not None:
            tx = self._open.tx
            named = Tx(self._known.epoch, tx.lsn, tx.xid, tx.commit_time, origin)
            self._open = self._open._replace(tx=named)

    def _other(self, message: bytes, letter: int) -> Iterator[Portion]:
        if letter == protocol.TRUNCATE:
            yield from self._truncate(protocol.truncate(message))
        elif letter == protocol.MESSAGE:
            yield from self._message(protocol.logical_message(message))
        else:
            self._learn(message, letter)

    def _truncate(self, message: protocol.Truncate) -> Iterator[Portion]:
        if self._open is None:
            raise protocol.Malformed("a truncate outside a transaction")
        for oid in message.relations:
            self._ordinal += 1
            table = self._tables.get(oid)
            if table is None or self._done() or self._open.tx.lsn < table.since:
                continue
            yield from self._make_room()
            if table.changed:
                self._compare(table, self._ordinal)
            data = {"cascade": message.cascade, "restart_identity": message.restart_identity}
            if self.watch is not None and oid == self.watch.oid:
                self.watch.truncated(self._open.tx.xid)
            self._put(table_event(self._names.source, table.relation, "truncate", data, self._open.tx, self._ordinal))

    def _done(self) -> bool:
        """Whether the current ordinal is in the journal already."""
        return self._skip == -1 or self._ordinal <= self._skip

    def _message(self, message: LogicalMessage) -> Iterator[Portion]:
        self._ordinal += 1
        if self._wants_message(message.prefix) and not self._done() and self._open is not None:
            yield from self._make_room()
            self._put(message_event(self._names.source, message, self._open.tx, self._ordinal))

    def _lone_message(self, message: LogicalMessage) -> Iterator[Portion]:
        """One that was written at once, in no transaction, even if the transaction around it was rolled back."""
        if self._known.skips(message.lsn) == -1 or message.lsn <= self._position.lsn:
            return
        if message.lsn >= self._until:
            raise Reached
        if message.prefix == WATERMARK:
            yield from self._watermark(message)
            return
        tx = Tx(self._known.epoch, message.lsn, 0, 0)
        if self._wants_message(message.prefix):
            yield from self._make_room()
            self._put(message_event(self._names.source, message, tx, 0))
        end = max(message.lsn, self._position.end)
        self._position = _behind(self._known.epoch, tx, 0, end, complete=True)

    def _watermark(self, message: LogicalMessage) -> Iterator[Portion]:
        """Rows that were read beside the stream join it here."""
        joined = self.watch.reached(message.content, message.lsn) if self.watch is not None else None
        if joined is None:
            return
        yield from self.flush()
        table = Table(joined.relation, {})
        known, difference = self._tables.difference(table)
        if difference is not None:
            tx = Tx(self._known.epoch, message.lsn, 0, 0)
            event = table_event(self._names.source, joined.relation, "schema", difference, tx, 0)
            suffix = f"schema-{joined.relation.message.oid}-{known.digest}"
            self._line(msgspec.structs.replace(event, id=f"{event.id}/{suffix}"))
            yield self._portion(1, self._position)
        writes = (*self._block.writes, known.write(joined.relation.message.oid), *joined.writes)
        self._block.writes.clear()
        end = max(message.lsn, self._position.end)
        self._position = Position(self._known.epoch, message.lsn, end=end)
        yield Portion(joined.lines, self._position, writes)

    def _compare(self, table: Table, ordinal: int) -> None:
        """Keep what the table looks like; an event says what changed, before the first one that shows it."""
        known, difference = self._tables.difference(table)
        self._block.writes.append(known.write(table.relation.message.oid))
        if difference is not None and self._open is not None:
            about = (self._names.source, table.relation, "schema", difference, self._open.tx, ordinal)
            self._line(in_front(table_event(*about), f"schema-{table.relation.message.oid}-{known.digest}"))

    # Single events

    def _make_room(self) -> Iterator[Portion]:
        """Room for an event and for what goes in front of it."""
        yield from self._release()
        if len(self._block.lines) > 1 and self._block.room(1.0) < 2:
            yield self._partial()

    def _put(self, event: Event) -> None:
        self._line(event)
        if self._open is not None:
            self._last_ordinal = self._ordinal

    def _line(self, event: Event) -> None:
        block = self._block
        if event.barrier is not None:
            block.specials[len(block.lines)] = Special(0, event.barrier)
        block.lines.append(event.line())
        block.keys.append(key_hash(self._names.seed, event.partitionkey))
        block.added(1, block.kind(event.type))


def _ended(lines: Lines | SealedBlock) -> Lines:
    """Lines of a transaction of which the last one says that it is."""
    lines = lines.lines() if isinstance(lines, SealedBlock) else lines
    lengths = lines.lengths[:]
    lengths[-1] += len(LAST) - len(END)
    return replace(lines, data=lines.data[: -len(END)] + LAST, lengths=lengths)


def _behind(epoch: int, tx: Tx, ordinal: int, end: int, *, complete: bool) -> Position:
    return Position(epoch, tx.lsn, ordinal, complete, tx.xid, tx.commit_time, end)
