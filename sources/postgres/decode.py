r"""A relation compiled to a decoder: messages in, CloudEvents lines out, without an object per event.

The source of the generated code holds only numbers and names made here; everything from the catalogue comes in as a
constant. A row whose values are all there and shorter than 256 bytes takes the fast way: its columns are separated by
`t\0\0\0`, which occurs nowhere else, because texts hold no NUL. Nulls and long values stand between two such places.
Every other row is decoded column by column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias
from zlib import crc32

import msgspec

from headrace.journal.block import Special
from headrace.sources.postgres.lines import OPERATIONS, Names, Row, Tx, frame
from headrace.sources.postgres.protocol import DELETE, KEY, NEW, NULL, OLD, TEXT, UPDATE, without_xid
from headrace.sources.postgres.relations import Field, Relation
from headrace.sources.postgres.types import Kind, Unparsed, hashed, in_json, json_text, key_part

Run: TypeAlias = Callable[[Sequence[bytes], int, int, int, Tx, bytes, list[bytes], list[int], dict[int, Special]], int]
"""Decodes messages from an index to another, as long as they are of this relation and operation.

(messages, first, stop, ordinal before the first, transaction, the four bytes of the (sub-)transaction where they come
from inside a stream, else none; lines, keys and specials to add to) → index reached
"""


_encode: Final = msgspec.json.Encoder().encode
# Kinds whose texts need no encoding in a key: they hold no `/`, `%`, quote or control character.
_PLAIN_KEYS: Final = frozenset({Kind.NUMBER, Kind.BOOL, Kind.HASHED})
_SHORT: Final = """
            try:
                {names} = p
{strip}
                {emit}
                continue
            except ValueError:  # a value that needs more care
                pass
"""
_STREAM: Final = """
def run(messages, i, stop, ordinal, tx, xid, lines, keys, specials):
    add_line = lines.append
    add_key = keys.append
    c0, c1, c2, c3, c4 = tx.around(FRAME)
    prefix = LETTER + xid + OID
    expected = prefix + TUPLE
    kind = 30 + len(xid)
    first = ordinal + 1
    for ordinal, m in enumerate(messages[i:stop] if i or stop < len(messages) else messages, first):
        s = b"%d" % ordinal
        p = m.split(SEPARATOR)
        if len(p) == {parts} and p[0][25:] == expected:
{short}
        elif m[25:kind] != prefix:
            return i + ordinal - first
        elif m[kind] == {kind}:
            try:
                {names} = values(p, kind + 3)
                {check}
                {emit}
                continue
            except ValueError:
                pass
        line, key, special = slow(FRAME, without_xid(m) if xid else m, ordinal, tx)
        if special is not None:
            specials[len(lines)] = special
        add_line(line)
        add_key(key)
    return stop
"""
_COPY: Final = """
def run(rows, tx, lines, keys):
    add_line = lines.append
    add_key = keys.append
    c0, c1, c2, c3, c4 = tx.around(FRAME)
    c4 = c3 + c4
    for m in rows:
        p = m[:-1].split(TAB)
        if BACKSLASH not in m:
{short}
        row = [None if v == MISSING else unescaped(v) if BACKSLASH in v else v for v in p]
        try:
            {names} = row
            {emit}
            continue
        except ValueError:
            pass
        line, key = slow(FRAME, row, tx)
        add_line(line)
        add_key(key)
"""
TEXTS: Final = 3  # of a row, from which on looking at all of them together is cheaper than encoding each
READ: Final = 0  # the letter of rows that were there already
_NAMES: Final = {**OPERATIONS, READ: "read"}


class _Function:
    """Generates the decoder of one relation and operation."""

    def __init__(self, names: Names, relation: Relation, row: Row, letter: int) -> None:
        self._relation = relation
        self._letter = letter
        self._row = row
        self._frame = frame(names, relation, _NAMES[letter])
        whole = relation.message.identity == "f" and letter in {UPDATE, DELETE}  # the old row is sent as well
        self._kind = OLD if whole else KEY if letter == DELETE else NEW
        self._old = [f"o{field.place}" for field in relation.columns] if self._kind != NEW else []
        self._new = [f"v{field.place}" for field in relation.columns] if letter != DELETE else []
        self._texts = self._many_texts()
        self._often = self._used_often()
        self._constants: dict[str, Any] = {}

    def _many_texts(self) -> list[str]:
        """Texts that are looked at together for what JSON escapes, where they are many: most hold nothing of it."""
        fields = [f for f in self._relation.visible if f.kind is Kind.TEXT and f not in self._relation.key]
        prefixes = ("o" if self._old else "") + ("v" if self._new else "")
        found = [f"{prefix}{field.place}" for prefix in prefixes for field in fields]
        return found if len(found) >= TEXTS and self._kind != KEY else []

    def _used_often(self) -> set[str]:
        """Values that the fast way uses more than once."""
        fields = [*self._relation.key, *(field for field in self._relation.visible if field.kind is Kind.FLOAT)]
        return {*self._texts, *(f"{prefix}{field.place}" for prefix in "ov" for field in fields)}

    def build(self) -> Any:
        """The function; what it needs are its globals."""
        source = self.source()
        count = len(self._relation.columns)
        namespace: dict[str, Any] = {
            **_GLOBALS,
            "slow": self._row.read if self._letter == READ else self._row.line,
            "SEED": self._row.seed,
            "ID": self._row.prefix,
            "FRAME": self._frame,
            "LETTER": bytes([self._letter]),
            "OID": self._relation.message.oid.to_bytes(4),
            "TUPLE": bytes([self._kind]) + count.to_bytes(2),
        }
        namespace |= self._constants
        exec(compile(source, f"<decoder of {self._relation.subject}>", "exec"), namespace)  # noqa: S102 -- as said above
        return namespace["run"]

    def source(self) -> str:
        columns = [*self._old, *self._new]
        extra = ["ctid"] if self._letter == READ else ["_"]
        names = {"names": ", ".join([*extra, *columns])}
        strip = _indented([*self._strip(), *self._check_texts()])
        short = _SHORT.format(**names, strip=strip, emit=self._emit(nullable=False))
        emit = self._emit(nullable=True)
        if self._letter == READ:
            return _COPY.format(short=short, **names, emit=emit)
        return _STREAM.format(
            parts=-1 if self._kind == KEY else len(columns) + 1,
            kind=self._kind,
            short=short,
            names=", ".join(columns) + ",",
            check=_indented([*self._same_key(), "pass"]).lstrip(),
            emit=emit,
        )

    def _strip(self) -> list[str]:
        """Take the length, and what introduces the second tuple, off the values that are used more than once."""
        if self._letter == READ:
            return []
        names = [name for name in (*self._old, *self._new) if name in self._often]
        return [*(f"{name} = {self._bare(name)}" for name in names), *self._same_key()]

    def _bare(self, name: str) -> str:
        """A value as it was split off, without its length and what introduces the second tuple."""
        return f"{name}[1:-3]" if self._new and self._old[-1:] == [name] else f"{name}[1:]"

    def _check_texts(self) -> list[str]:
        if not self._texts:
            return []
        escaped = "; ".join(f"{name} = inner({name})" for name in self._texts)
        return [
            f"t = join(({', '.join(self._texts)}))",
            f"if not t.isascii() or t.translate(None, SAFE): {escaped}",
        ]

    def _same_key(self) -> list[str]:
        if not (self._old and self._new) or not self._relation.key:
            return []
        changed = " or ".join(f"o{f.place} != v{f.place}" for f in self._relation.key)
        return [f"if {changed}: raise Unparsed"]

    def _emit(self, *, nullable: bool) -> str:
        """Statements that add the line, from values in the variables named like their places."""
        values = self._pieces(self._values(nullable=nullable))
        if self._letter == READ:
            identity = self._key_json() or "ctid, "
            line = f"c0, ID, {identity}c1, {self._key_json()}c2, {values}, c4"
        else:
            line = f"c0, s, c1, {self._key_json()}c2, s.rjust(10, b'0'), {values}, c3, s, c4"
        return f"k = {self._key()}; add_line(join(({line}))); add_key(crc32(k, SEED) or 1)"

    def _key(self) -> str:
        """An expression for the partition key behind the table's prefix."""
        prefix = "v" if self._new else "o"
        parts = [_key_expression(field, f"{prefix}{field.place}") for field in self._relation.key]
        if len(parts) < 2:
            return parts[0] if parts else "b''"
        joined = ", b'/', ".join(parts)
        return f"join(({joined}))"

    def _key_json(self) -> str:
        """The key between the quotes of a JSON string, and a comma; nothing where there is none."""
        if not self._relation.key:
            return ""
        plain = all(field.kind in _PLAIN_KEYS for field in self._relation.key)
        return "k, " if plain else "in_json(k), "

    def _values(self, *, nullable: bool) -> list[bytes | str]:
        visible, key = self._relation.visible, self._relation.key
        current = "v" if self._new else "o"
        sent = key if self._kind == KEY else visible
        before = self._record(sent, "o", nullable=nullable) if self._old else [b"null"]
        after = self._record(visible, "v", nullable=nullable) if self._new else [b"null"]
        key_record = self._record(key, current, nullable=False) if key else [b"null"]
        start = self._frame.until_values
        return [start, b',"key":', *key_record, b',"before":', *before, b',"after":', *after]

    def _record(self, fields: Sequence[Field], prefix: str, *, nullable: bool) -> list[bytes | str]:
        parts: list[bytes | str] = [b"{"]
        for number, field in enumerate(fields):
            name = f"{prefix}{field.place}"
            parts.append((b"," if number else b"") + field.json_name + b":")
            parts += [_nullable(field.kind, name)] if nullable else self._short(field, name)
        return [*parts, b"}"]

    def _short(self, field: Field, name: str) -> list[bytes | str]:
        """The expression for a value of the fast way."""
        kind = Kind.PLAIN if name in self._texts else field.kind
        bare = self._letter == READ or name in self._often
        return _expression(kind, name if bare else self._bare(name))

    def _pieces(self, parts: Sequence[bytes | str]) -> str:
        """Constants and expressions, neighbouring constants joined."""
        found: list[str] = []
        constant = b""
        for part in (*parts, ""):
            if isinstance(part, bytes):
                constant += part
            else:
                found += [self._constant(constant)] if constant else []
                found += [part] if part else []
                constant = b""
        return ", ".join(found)

    def _constant(self, value: bytes) -> str:
        name = f"C{len(self._constants)}"
        self._constants[name] = value
        return name


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(" " * 16 + line for line in lines)


def _nullable(kind: Kind, name: str) -> str:
    """The same expression for a value that may be None."""
    value = " + ".join(part if isinstance(part, str) else repr(part) for part in _expression(kind, name))
    return f"(b'null' if {name} is None else {value})"


def _key_expression(field: Field, name: str) -> str:
    if field.kind is Kind.HASHED:
        return f"hashed({name})"
    return name if field.kind in _PLAIN_KEYS else f"key_part({name})"


_EXPRESSIONS: Final[Mapping[Kind, tuple[bytes | str, ...]]] = {
    Kind.NUMBER: ("{}",),
    Kind.FLOAT: ("({0} if {0}[-1] < 58 else b'\"%b\"' % {0})",),
    Kind.BOOL: ("(b'true' if {} == b't' else b'false')",),
    Kind.PLAIN: (b'"', "{}", b'"'),
    Kind.BYTES: (b'"\\', "{}", b'"'),
    Kind.TEXT: ("text({}.decode())",),
    Kind.JSON: ("json_text({})",),
    Kind.HASHED: (b'"', "hashed({})", b'"'),
}


def _expression(kind: Kind, name: str) -> list[bytes | str]:
    """A column's JSON as constants and Python expressions over its text."""
    return [part.format(name) if isinstance(part, str) else part for part in _EXPRESSIONS[kind]]


def _values(pieces: Sequence[bytes], start: int) -> list[bytes | None]:
    """The values of a message's tuples: it was split at what introduces short values, the first column is at `start`.

    Raises `Unparsed` where a value was not sent, or the head of the message looks like the beginning of one.
    """
    first = pieces[0]
    if len(first) < start:
        raise Unparsed("the head was split")
    values = _between(first, start) if len(first) > start else []
    for piece in pieces[1:]:
        end = piece[0] + 1
        values.append(piece[1:end])
        if end < len(piece):
            values += _between(piece, end)
    return values


def _between(piece: bytes, place: int) -> list[bytes | None]:
    """What stands between two short values: nulls, long values, the beginning of a second tuple."""
    values: list[bytes | None] = []
    while place < len(piece):
        kind = piece[place]
        if kind == NULL:
            values.append(None)
            place += 1
        elif kind == TEXT:
            end = place + 5 + int.from_bytes(piece[place + 1 : place + 5])
            values.append(piece[place + 5 : end])
            place = end
        elif kind == NEW:
            place += 3
        else:
            raise Unparsed(f"a value of kind {chr(kind)!r}")
    return values


def _inner(value: bytes) -> bytes:
    """A text between the quotes of a JSON string."""
    return _encode(value.decode())[1:-1]


Reads: TypeAlias = Callable[[Sequence[bytes], Tx, list[bytes], list[int]], None]
"""Decodes rows of a COPY, their `ctid` first: (rows, transaction; lines and keys to add to)."""


def compiled(names: Names, relation: Relation) -> Mapping[int, Run]:
    """The relation's decoders by the letter of the message."""
    row = Row(names, relation)
    return {letter: _Function(names, relation, row, letter).build() for letter in OPERATIONS}


def compiled_read(names: Names, relation: Relation) -> Reads:
    """The decoder of rows that were there already."""
    reads: Reads = _Function(names, relation, Row(names, relation), READ).build()
    return reads


_ESCAPE: Final = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def unescaped(value: bytes) -> bytes:
    """A value as COPY's text format wrote it."""
    return _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), value)


_GLOBALS: Final[Mapping[str, Any]] = {
    "join": b"".join,
    "crc32": crc32,
    "text": _encode,
    "json_text": json_text,
    "hashed": hashed,
    "key_part": key_part,
    "in_json": in_json,
    "Unparsed": Unparsed,
    "inner": _inner,
    "SAFE": bytes(set(range(0x20, 0x80)) - set(b'"\\')),  # what stands in a JSON string as it is
    "without_xid": without_xid,
    "values": _values,
    "unescaped": unescaped,
    "SEPARATOR": b"t\0\0\0",
    "TAB": b"\t",
    "BACKSLASH": b"\\",
    "MISSING": b"\\N",
}
