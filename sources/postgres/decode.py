"""A relation compiled to a decoder: messages in, CloudEvents lines out, without an object per event.

The source of the generated code holds only numbers and names made here; everything from the catalogue comes in as a
constant. A row whose values are all there and shorter than 256 bytes takes the fast way: its columns are separated by
`t\\0\\0\\0`, which occurs nowhere else, because texts hold no NUL. Every other row is decoded column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias
from zlib import crc32

import msgspec

from headrace.journal.block import Special
from headrace.sources.postgres.lines import OPERATIONS, Names, Row, Tx, frame
from headrace.sources.postgres.protocol import DELETE, INSERT, NEW, OLD
from headrace.sources.postgres.relations import Field, Relation
from headrace.sources.postgres.types import Kind, Unparsed, hashed, in_json, json_text, key_part

Run: TypeAlias = Callable[[Sequence[bytes], int, int, int, Tx, list[bytes], list[int], dict[int, Special]], int]
"""Decodes messages from an index to another, as long as they are of this relation and operation.

(messages, first, stop, ordinal before the first, transaction; lines, keys and specials to add to) → index reached
"""


_encode: Final = msgspec.json.Encoder().encode
# Kinds whose texts need no encoding in a key: they hold no `/`, `%`, quote or control character.
_PLAIN_KEYS: Final = frozenset({Kind.NUMBER, Kind.BOOL, Kind.HASHED})
_TEMPLATE: Final = """
def run(messages, i, stop, ordinal, tx, lines, keys, specials):
    add_line = lines.append
    add_key = keys.append
    c0 = START + tx.head_id
    c1 = UNTIL_TIME + tx.time + UNTIL_KEY
    c2 = UNTIL_SEQUENCE + tx.sequence
    c3 = tx.head
    c4 = tx.tail
    while i < stop:
        m = messages[i]
        if m[25:30] != PREFIX:
            break
        ordinal += 1
        p = m.split(SEPARATOR)
        if len(p) == {parts} and len(p[0]) == 33 and {condition}:
            try:
                {names} = p
{strip}
                s = b"%d" % ordinal
                k = {key}
                add_line(join((c0, s, c1, {key_json}c2, s.rjust(10, b"0"), {pieces}, c3, s, c4)))
                add_key(crc32(k, SEED) or 1)
                i += 1
                continue
            except ValueError:  # a value that needs more care
                pass
        line, key, special = slow(FRAME, m, ordinal, tx)
        if special is not None:
            specials[len(lines)] = special
        add_line(line)
        add_key(key)
        i += 1
    return i
"""


class _Function:
    """Generates the decoder of one relation and operation."""

    def __init__(self, names: Names, relation: Relation, row: Row, letter: int) -> None:
        self._relation = relation
        self._letter = letter
        self._row = row
        self._seed = row.seed
        self._frame = frame(names, relation, OPERATIONS[letter])
        self._whole = relation.message.identity == "f" and letter != INSERT  # the old row is sent as well
        self._constants: dict[str, Any] = {}

    def build(self) -> Run:
        namespace: dict[str, Any] = {
            "slow": self._row.line,
            "crc32": crc32,
            "join": b"".join,
            "text": _encode,
            "json_text": json_text,
            "hashed": hashed,
            "key_part": key_part,
            "in_json": in_json,
            "Unparsed": Unparsed,
            "FRAME": self._frame,
            "SEED": self._seed,
            "SEPARATOR": b"t\0\0\0",
            "START": self._frame.start,
            "UNTIL_TIME": self._frame.until_time,
            "UNTIL_KEY": self._frame.until_key,
            "UNTIL_SEQUENCE": self._frame.until_sequence,
            "PREFIX": bytes([self._letter]) + self._relation.message.oid.to_bytes(4),
        }
        source = self._source()
        namespace |= self._constants
        exec(compile(source, f"<decoder of {self._relation.subject}>", "exec"), namespace)  # noqa: S102 -- as said above
        run: Run = namespace["run"]
        return run

    def _source(self) -> str:
        fields = self._relation.columns
        old = [f"o{field.place}" for field in fields] if self._whole else []
        new = [f"v{field.place}" for field in fields] if self._letter != DELETE else []
        columns = [*old, *new]
        return _TEMPLATE.format(
            condition=f"m[30] == {OLD if self._whole else NEW}",
            parts=len(columns) + 1 if columns else -1,
            names=", ".join(["_", *columns]),
            strip="\n".join(" " * 16 + line for line in self._strip(old, new)),
            key=self._key("v" if new else "o"),
            key_json=self._key_json(),
            pieces=self._pieces(self._values(old, new)),
        )

    def _strip(self, old: Sequence[str], new: Sequence[str]) -> list[str]:
        """Lines that take the length, and what introduces the second tuple, off the values."""
        used = {field.place for field in (*self._relation.visible, *self._relation.key)}
        lines = [f"{name} = {name}[1:]" for name in (*old, *new) if int(name[1:]) in used]
        if old and new:
            lines = [line.replace("[1:]", "[1:-3]") if line.startswith(f"{old[-1]} ") else line for line in lines]
            changed = " or ".join(f"o{f.place} != v{f.place}" for f in self._relation.key)
            lines += [f"if {changed}: raise Unparsed"] if changed else []
        return lines

    def _key(self, prefix: str) -> str:
        """An expression for the partition key behind the table's prefix."""
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

    def _values(self, old: Sequence[str], new: Sequence[str]) -> list[bytes | str]:
        visible, key = self._relation.visible, self._relation.key
        current = "v" if new else "o"
        before = _record(visible, "o") if old else [b"null"]
        after = _record(visible, "v") if new else [b"null"]
        key_record = _record(key, current) if key else [b"null"]
        start = self._frame.until_values
        return [start, b',"key":', *key_record, b',"before":', *before, b',"after":', *after]

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


def _record(fields: Sequence[Field], prefix: str) -> list[bytes | str]:
    parts: list[bytes | str] = [b"{"]
    for number, field in enumerate(fields):
        parts.append((b"," if number else b"") + field.json_name + b":")
        parts += _expression(field.kind, f"{prefix}{field.place}")
    return [*parts, b"}"]


def _key_expression(field: Field, name: str) -> str:
    if field.kind is Kind.HASHED:
        return f"hashed({name})"
    return name if field.kind in _PLAIN_KEYS else f"key_part({name})"


def _expression(kind: Kind, name: str) -> list[bytes | str]:
    """A column's JSON as constants and Python expressions over its text."""
    match kind:
        case Kind.NUMBER:
            return [name]
        case Kind.FLOAT:
            return [f"({name} if {name}[-1] < 58 else b'\"%b\"' % {name})"]
        case Kind.BOOL:
            return [f"(b'true' if {name} == b't' else b'false')"]
        case Kind.PLAIN:
            return [b'"', name, b'"']
        case Kind.BYTES:
            return [b'"\\', name, b'"']
        case Kind.TEXT:
            return [f"text({name}.decode())"]
        case Kind.JSON:
            return [f"json_text({name})"]
        case Kind.HASHED:
            return [b'"', f"hashed({name})", b'"']


def compiled(names: Names, relation: Relation) -> Mapping[int, Run]:
    """The relation's decoders by the letter of the message."""
    row = Row(names, relation)
    return {letter: _Function(names, relation, row, letter).build() for letter in OPERATIONS}
