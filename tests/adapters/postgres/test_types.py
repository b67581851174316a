"""Every type comes through exactly: what an event holds, cast back by the server, is what was written."""

from __future__ import annotations

import asyncio
import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.testing import MemoryCapture
from tests.adapters.postgres.kit import capture, running, until
from tests.adapters.postgres.kit import settings as source
from tests.fixtures.postgres import Database

pytestmark = pytest.mark.postgres
# A type, a literal, and what the event holds.
TRAPS: list[tuple[str, str, Any]] = [
    ("int8", "9223372036854775807", 9223372036854775807),
    ("numeric", "123456789012345678901234567890.000100", "123456789012345678901234567890.000100"),
    ("numeric", "NaN", "NaN"),
    ("float8", "Infinity", "Infinity"),
    ("float8", "-Infinity", "-Infinity"),
    ("float8", "NaN", "NaN"),
    ("float8", "0.1", 0.1),
    ("float8", "1e300", 1e300),
    ("float4", "1.1", 1.1),
    ("date", "infinity", "infinity"),
    ("date", "0044-03-15 BC", "0044-03-15 BC"),
    ("timestamp", "-infinity", "-infinity"),
    ("timestamptz", "2026-01-01 12:00:00.123456+02", "2026-01-01 10:00:00.123456+00"),
    ("interval", "1 year 2 mons -3 days 04:05:06.789", "P1Y2M-3DT4H5M6.789S"),
    ("int[]", "{{1,2},{3,NULL}}", "{{1,2},{3,NULL}}"),
    ("int[]", "[2:3]={1,2}", "[2:3]={1,2}"),
    ("text[]", '{"a\\"b",NULL,"NULL"}', '{"a\\"b",NULL,"NULL"}'),
    ("json", '{"a":\r\n 1, "a": 2}', {"a": 2}),
    ("json", '"\\ud800"', '"\\ud800"'),
    ("json", "1e400", "1e400"),
    ("json", "[" * 3000 + "]" * 3000, "[" * 3000 + "]" * 3000),
    ("jsonb", '{"k": "line\\nbreak"}', {"k": "line\nbreak"}),
    ("char(5)", "ab", "ab   "),
    ("bytea", "\\x00ff0a", "\\x00ff0a"),
    ("bool", "true", True),
    ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("inet", "192.168.0.1/24", "192.168.0.1/24"),
    ("int4range", "[1,5)", "[1,5)"),
    ("mood", 'so "so"', 'so "so"'),
    ("positive", "7", 7),
    ("pair", '(1,"x y")', '(1,"x y")'),
    ("text", 'tab\tquote"back\\slash\u2028', 'tab\tquote"back\\slash\u2028'),
    ("bit(3)", "101", "101"),
    ("tsvector", "'a':1 'b':2", "'a':1 'b':2"),
    ("money", "12.34", "$12.34"),
    ("point", "(1,2)", "(1,2)"),
    ("pg_lsn", "16/B374D848", "16/B374D848"),
]
TYPES = [
    "CREATE TYPE mood AS ENUM ('sad', 'so \"so\"')",
    "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
    "CREATE TYPE pair AS (a int, b text)",
]


def test_every_trap(database: Database, tmp_path: Path) -> None:
    columns = ", ".join(f"c{number} {type_}" for number, (type_, _, _) in enumerate(TRAPS))
    literals = ", ".join("'" + text.replace("'", "''") + "'" for _, text, _ in TRAPS)
    make = [*TYPES, f"CREATE TABLE t (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, {columns})"]
    names = ", ".join(f"c{number}" for number in range(len(TRAPS)))
    [event] = capture(database, tmp_path, f"INSERT INTO t ({names}) VALUES ({literals})", before=make, count=1)
    found = {TRAPS[n][:2]: event.data["after"][f"c{n}"] for n in range(len(TRAPS))}
    assert found == {trap[:2]: trap[2] for trap in TRAPS}
    unparsed = [n for n, (type_, text, value) in enumerate(TRAPS) if type_ == "json" and value == text]
    assert event.data["unparsed"] == [f"c{n}" for n in unparsed]


NUMBERS = count()
CAST: dict[str, st.SearchStrategy[Any]] = {
    "int8": st.integers(-(2**63), 2**63 - 1),
    "float8": st.floats(allow_nan=False),
    "numeric": st.decimals(allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12),
    "text": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=400),
    "bytea": st.binary(max_size=300),
    "jsonb": st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text('ab "\\/é', max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    "date": st.dates(),
    "text[]": st.lists(st.text(st.characters(codec="ascii", min_codepoint=32), max_size=5), max_size=4),
}


@given(st.lists(st.fixed_dictionaries({name: st.none() | it for name, it in CAST.items()}), min_size=1, max_size=20))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_an_event_holds_casts_back_to_what_was_written(
    database: Database, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    columns = ", ".join(f"c{n} {name}" for n, name in enumerate(CAST))

    async def main() -> list[dict[str, Any]]:
        found = MemoryCapture()
        database.execute("DROP TABLE IF EXISTS t", f"CREATE TABLE t (id serial PRIMARY KEY, {columns})")
        database.execute("DROP PUBLICATION IF EXISTS p", "CREATE PUBLICATION p FOR TABLE t")
        slot = f"{database.name}_{next(NUMBERS)}"
        async with running(source(database, publication="p", slot=slot), tmp_path, found):
            await asyncio.to_thread(_write, database, rows)
            await until(found, lambda events: len(events) >= len(rows))
        database.drop_slot(slot)
        return [event.data["after"] for event in found.events]

    for after in asyncio.run(main()):
        same = [f"t.c{n} IS NOT DISTINCT FROM %s::{name}" for n, name in enumerate(CAST)]
        values = [_text(after[f"c{n}"], name) for n, name in enumerate(CAST)]
        with database.connect() as connection:
            query = f"SELECT {', '.join(same)} FROM t WHERE id = %s"
            found = connection.execute(query.encode(), [*values, after["id"]]).fetchone()
        assert found == (True,) * len(CAST)


def _write(database: Database, rows: list[dict[str, Any]]) -> None:
    names = ", ".join(f"c{n}" for n in range(len(CAST)))
    places = ", ".join(f"%s::{name}" for name in CAST)
    with database.connect() as connection:
        for row in rows:
            values = [json.dumps(row[name]) if name == "jsonb" else row[name] for name in CAST]
            connection.execute(f"INSERT INTO t ({names}) VALUES ({places})".encode(), values)


def _text(value: Any, name: str) -> str | None:
    if name == "jsonb":
        return json.dumps(value)
    return value if value is None or isinstance(value, str) else repr(value)
