"""The workloads: tables, and what is written into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tests.fixtures.postgres import Database

NARROW = "id bigint PRIMARY KEY, n int, word text"
EIGHT = (
    "id bigint PRIMARY KEY, customer int NOT NULL, status text NOT NULL, amount numeric(12,2), created timestamptz, "
    "paid bool, note text, weight float8"
)
EIGHT_ROWS = (
    "g, g % 5000, (array['new','paid','shipped','lost'])[1 + g % 4], (g % 100000) / 100.0, "
    "timestamptz '2026-01-01' + g * interval '1 second', g % 2 = 0, 'order number ' || g || ', with a note', g * 1.25"
)
WIDE = "id bigint PRIMARY KEY, " + ", ".join(f"c{i} {'int' if i % 2 else 'text'}" for i in range(39))
WIDE_ROWS = "g, " + ", ".join("g" if i % 2 else f"'value {i} of ' || g" for i in range(39))


@dataclass(frozen=True)
class Shape:
    """A workload of one transaction."""

    columns: str
    values: str
    update: str = ""
    share: float = 1.0  # of the rows asked for

    def create(self, database: Database, rows: int) -> None:
        database.execute(f"CREATE TABLE orders ({self.columns})", "CREATE PUBLICATION p FOR TABLE orders")
        if self.update:
            database.execute("ALTER TABLE orders REPLICA IDENTITY FULL", self._insert(rows))

    def write(self, database: Database, rows: int) -> None:
        """The WAL to read: one transaction of `rows` changes, the last one that of the row `rows`."""
        database.execute(f"UPDATE orders SET {self.update}" if self.update else self._insert(rows))

    def _insert(self, rows: int) -> str:
        return f"INSERT INTO orders SELECT {self.values} FROM generate_series(1, {rows}) g"


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "3 columns": Shape(NARROW, "g, g % 1000, 'word ' || g"),
        "8 columns": Shape(EIGHT, EIGHT_ROWS),
        "40 columns": Shape(WIDE, WIDE_ROWS, share=0.3),
        "updates, full identity": Shape(EIGHT, EIGHT_ROWS, "weight = weight + 1", 0.5),
    }
)
