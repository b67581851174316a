"""The generated decoder, the plain one and the definition say the same."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.event import Event, encode_key, key_hash
from headrace.journal.block import Special
from headrace.sources.postgres import protocol
from headrace.sources.postgres.decode import compiled
from headrace.sources.postgres.lines import OPERATIONS, Names, Row, Tx, frame
from headrace.sources.postgres.protocol import UNCHANGED, Value
from headrace.sources.postgres.relations import Relation, Shown, key_names
from tests.adapters.postgres import wire

NAMES = Names("orders", "headrace:orders")
TX = Tx(1, 0x16B3748, 755, 1_700_000_000_000_000)
PLAIN_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)
# A text per type, and what it is in JSON; by the type's oid.
TEXTS: dict[int, st.SearchStrategy[tuple[bytes, Any]]] = {
    20: st.integers(-(2**63), 2**63 - 1).map(lambda n: (str(n).encode(), n)),
    25: PLAIN_TEXT.map(lambda text: (text.encode(), text)),
    701: st.sampled_from([(b"1.5", 1.5), (b"NaN", "NaN"), (b"-Infinity", "-Infinity"), (b"1e+20", 1e20)]),
    1700: st.sampled_from([(b"12.500", "12.500"), (b"NaN", "NaN")]),
    16: st.sampled_from([(b"t", True), (b"f", False)]),
    17: st.binary(max_size=200).map(lambda data: (b"\\x" + data.hex().encode(), "\\x" + data.hex())),
    114: st.sampled_from([(b'{"a":\r\n1}', {"a": 1}), (b'"\\u00e9"', "é"), (b"[1]", [1]), (b"1e400", "1e400")]),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[tuple[str, int, bool]], str]:
    """Columns, some of them in the key, and the replica identity."""
    names = draw(
        st.lists(st.text(min_size=1, max_size=5).filter(lambda t: "\0" not in t), min_size=1, max_size=4, unique=True)
    )
    names = [name for name in names if name.isprintable()] or ["a"]
    types = [draw(st.sampled_from(sorted(TEXTS))) for _ in names]
    keys = [draw(st.booleans()) for _ in names]
    return list(zip(names, types, keys, strict=True)), draw(st.sampled_from("dfi"))


@st.composite
def changes(draw: st.DrawFn) -> tuple[Relation, list[tuple[int, bytes, Any, Any]]]:
    """A relation, and messages with their rows: (letter, message, old row, new row)."""
    columns, identity = draw(tables())
    message = protocol.relation(wire.relation(7, "täble", columns, identity))
    keyed = [name for name, _, key in columns if key]
    relation = Relation(message, key_names(message, keyed))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        new = [draw(_value(type_, allow_null=not key)) for _, type_, key in columns]
        old = [draw(_value(type_, allow_null=not key)) for _, type_, key in columns]
        letter = draw(st.sampled_from(sorted(OPERATIONS)))
        found.append((letter, _message(draw, letter, columns, identity, old, new), old, new))
    return relation, found


def _value(type_: int, *, allow_null: bool) -> st.SearchStrategy[tuple[Value, Any]]:
    null: st.SearchStrategy[tuple[Value, Any]] = st.just((None, None))
    text: st.SearchStrategy[tuple[Value, Any]] = TEXTS[type_]
    return st.one_of(text, text, text, null) if allow_null else text


def _message(
    draw: st.DrawFn, letter: int, columns: list[tuple[str, int, bool]], identity: str, old: list[Any], new: list[Any]
) -> bytes:
    rows = [[text for text, _ in row] for row in (old, new)]
    if letter == protocol.INSERT:
        return wire.insert(7, rows[1])
    if identity == "f":
        return wire.update(7, rows[1], rows[0], b"O") if letter == protocol.UPDATE else wire.delete(7, rows[0], b"O")
    only_key = [value if key else None for value, (_, _, key) in zip(rows[0], columns, strict=True)]
    if letter == protocol.DELETE:
        return wire.delete(7, only_key)
    if draw(st.booleans()):
        return wire.update(7, rows[1], only_key)
    return wire.update(7, rows[1])


@given(changes(), st.binary(min_size=24, max_size=24) | st.just(b"t\0\0\0" * 6), st.sampled_from([b"", b"t\0\0\0"]))
def test_generated_and_plain_decoders_agree(
    case: tuple[Relation, list[tuple[int, bytes, Any, Any]]], place: bytes, xid: bytes
) -> None:
    """Wherever in the WAL, whatever the time, and inside a stream too."""
    relation, found = case
    runs, row = compiled(NAMES, relation), Row(NAMES, relation)
    for letter, sent, *_ in found:
        message = sent[:1] + place + sent[25:26] + xid + sent[26:]
        lines: list[bytes] = []
        keys: list[int] = []
        specials: dict[int, Special] = {}
        assert runs[letter]([message], 0, 1, 4, TX, xid, lines, keys, specials) == 1
        line, key, special = row.line(frame(NAMES, relation, OPERATIONS[letter]), sent, 5, TX)
        assert lines == [line]
        assert (keys, specials) == ([key], {0: special} if special else {})


@given(changes())
def test_lines_say_what_the_rows_hold(case: tuple[Relation, list[tuple[int, bytes, Any, Any]]]) -> None:
    relation, found = case
    row = Row(NAMES, relation)
    names = [column.name for column in relation.message.columns]
    for letter, message, old, new in found:
        line, key, special = row.line(frame(NAMES, relation, OPERATIONS[letter]), message, 5, TX)
        event = Event.parse(line)
        data = json.loads(line)["data"]
        assert line.count(b"\n") == 1
        assert event.partitionkey is not None
        assert key == key_hash(NAMES.seed, event.partitionkey)
        assert (special is not None) == (event.previouskey is not None)
        row_now = old if letter == protocol.DELETE else new
        parts = [row_now[field.place][0] for field in relation.key]
        assert event.partitionkey == "public.t%C3%A4ble/".replace("%C3%A4", "ä") + (encode_key(parts) if parts else "")
        if letter != protocol.DELETE:
            assert data["after"] == {name: value for name, (_, value) in zip(names, new, strict=True)}
        if special is not None:
            assert special == Special(key_hash(NAMES.seed, event.previouskey), None)


def test_an_unchanged_value_is_named_and_absent() -> None:
    columns = [("id", 20, True), ("big", 25, False)]
    message = protocol.relation(wire.relation(7, "t", columns))
    relation = Relation(message, key_names(message, ()))
    lines: list[bytes] = []
    compiled(NAMES, relation)[protocol.UPDATE]([wire.update(7, [b"1", UNCHANGED])], 0, 1, 0, TX, b"", lines, [], {})
    data = json.loads(lines[0])["data"]
    assert (data["after"], data["unchanged"]) == ({"id": 1}, ["big"])


def test_excluded_columns_are_gone_and_hashed_ones_are_hashed() -> None:
    columns = [("id", 20, True), ("mail", 25, False), ("secret", 25, False)]
    message = protocol.relation(wire.relation(7, "t", columns))
    shown = Shown(frozenset({"secret"}), frozenset({"mail", "id"}))
    relation = Relation(message, key_names(message, ()), {}, shown)
    lines: list[bytes] = []
    rows = [wire.insert(7, [b"1", b"a@b", b"x"]), wire.insert(7, [b"1", b"a@b", None])]
    compiled(NAMES, relation)[protocol.INSERT](rows, 0, 2, 0, TX, b"", lines, [], {})
    for line in lines:
        after = json.loads(line)["data"]["after"]
        assert set(after) == {"id", "mail"}
        assert len(after["mail"]) == 64
        assert b"a@b" not in line
        assert json.loads(line)["partitionkey"] == f"public.t/{after['id']}"


@given(st.binary(max_size=40))
def test_broken_messages_are_refused_not_misread(body: bytes) -> None:
    for parse in (protocol.relation, protocol.begin, protocol.truncate, protocol.logical_message):
        try:
            parse(wire.data(b"R" + body))
        except (struct.error, ValueError, IndexError):
            continue
