"""The documents' figures, from the results: `python3 benchmarks/tables.py` rewrites what stands between the markers.

`<!-- bench:NAME -->` holds all of one benchmark, `<!-- bench:summary -->` the few figures that tell most.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
MARKED = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)

LARGE, LAST = "one transaction of 10,000,000 rows", "last row after commit s"
# What, the benchmark, and its figures: a name of one stands in braces.
SUMMARY: Final = (
    ("file closed to function called", "latency", "p50 {closed to called p50 ms} ms, p99 {closed to called p99 ms} ms"),
    (
        "object put to function called",
        "buckets",
        "p50 {put to function at 100 puts/s, p50 ms} ms, p99 {put to function at 100 puts/s, p99 ms} ms",
    ),
    ("idle daemon", "latency", "{idle daemon RSS MB} MB, {idle CPU percent of one core} % of a core"),
    (
        "10,000 new files a second, for a minute",
        "files",
        "all {10,000 files/s for 60 s: created events}, the last {10,000 files/s for 60 s: caught up after s} s later",
    ),
    (
        "1,000,000 unchanged files compared at start",
        "files",
        "{1,000,000 files nested: times find} x `find -printf`, {1,000,000 files nested: peak RSS MB} MB",
    ),
    (
        "into the journal, an fsync for every block of 2,000",
        "journal",
        "{seal and append, up to 4 blocks in flight, events/s} events/s",
    ),
    ("out of the journal", "journal", "{read, one consumer, events/s} events/s"),
    (
        "Postgres rows of 8 columns, durable in the journal",
        "postgres",
        "{8 columns: Headrace to the journal, rows/s}/s; Debezium {8 columns: Debezium, large heap, rows/s}/s",
    ),
    (
        "10,000,000 rows in one transaction, from its commit to the last one durable",
        "postgres",
        f"{{{LARGE}: streamed while it runs, {LAST}}} s; unstreamed {{{LARGE}: sent after commit, {LAST}}} s",
    ),
    (
        "Postgres commit to the line in a file, at 1,000 tx/s",
        "postgres",
        "p50 {commit to line: Headrace, 1,000 tx/s: p50 ms} ms, p99 {commit to line: Headrace, 1,000 tx/s: p99 ms} ms",
    ),
    ("HTTP requests, durable before the 202", "http", "{JSON: requests per second}/s, p99 {JSON: p99 ms} ms"),
    ("Python function, each event for itself", "handlers", "{function, one by one, events/s} events/s on one core"),
    ("the same, in batches of 100", "handlers", "{function, as a list of 100, events/s} events/s on one core"),
    (
        "patterns on attributes, on data",
        "patterns",
        "{attributes: suffix, events/s by block}/s, {data: numeric, events/s by block}/s",
    ),
    (
        "webhooks over one pool, and in batches",
        "webhook",
        "{binary, requests/s} requests/s, {batches of 500, events/s} events/s",
    ),
)

Matrix: TypeAlias = dict[str, dict[str, float | str]]
"""Values by row and column."""


def measured(name: str) -> dict[str, Any]:
    """One benchmark's last results."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def table(name: str) -> str:
    """One benchmark's results as Markdown, with the command that measures them anew.

    Figures named `GROUP: ROW, COLUMN`, all of a group, make a table of their own.
    """
    if name == "summary":
        return summary()
    found = measured(name)
    matrices = _matrices(found["figures"])
    rest = {what: it for what, it in found["figures"].items() if what.partition(": ")[0] not in matrices}
    tables = [_table(title, rows) for title, rows in matrices.items()]
    tables.append(_table("what", {what: {"measured": it} for what, it in rest.items()}))
    note = f"`make bench-{name}`, {found['date']}, {found['machine']}."
    return "\n".join(["\n\n".join(tables), "", note, ""])


def _matrices(figures: Mapping[str, float | str]) -> dict[str, Matrix]:
    found: dict[str, Matrix] = {}
    for what, value in figures.items():
        group, _, rest = what.partition(": ")
        row, _, column = rest.rpartition(", ")
        found.setdefault(group, {}).setdefault(row, {})[column] = value
    return {group: rows for group, rows in found.items() if "" not in rows and len(rows) > 1}


def _table(title: str, rows: Matrix) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    shown = [[what, *(_shown(row.get(column, "")) for column in columns)] for what, row in rows.items()]
    lines = [" | ".join(line) for line in ([title, *columns], *shown)]
    lines.insert(1, "|".join(["---"] * (len(columns) + 1)))
    return "\n".join(f"|{line}|" if line.startswith("---") else f"| {line} |" for line in lines)


def summary() -> str:
    """The few figures, each with its command."""
    rows = [f"| {what} | {_filled_in(text, name)} | `make bench-{name}` |" for what, name, text in SUMMARY]
    return "\n".join(["| what | measured | command |", "|---|---|---|", *rows, ""])


def _filled_in(text: str, name: str) -> str:
    figures = measured(name)["figures"]
    return re.sub(r"\{(.+?)\}", lambda found: _shown(figures[found[1]]), text)


def _shown(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int | float) else value


def filled(text: str) -> str:
    """The text with every marked table made from its results."""
    return MARKED.sub(lambda found: found[1] + table(found[2]) + found[3], text)


def main() -> None:
    """Rewrite the documents."""
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text()))
        sys.stdout.write(f"{document.name}: tables made from benchmarks/results\n")


if __name__ == "__main__":
    main()
