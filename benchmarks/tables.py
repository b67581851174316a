"""The documents' figures, from the results: `python3 benchmarks/tables.py` rewrites what stands between the markers.

`<!-- bench:NAME -->` holds all of one benchmark, `<!-- bench:summary -->` the few figures that tell most.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
MARKED = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)

# What, the benchmark, and its figures: a name of one stands in braces.
SUMMARY: Final = (
    ("file closed to function called", "latency", "p50 {closed to called p50 ms} ms, p99 {closed to called p99 ms} ms"),
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


def measured(name: str) -> dict[str, Any]:
    """One benchmark's last results."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def table(name: str) -> str:
    """One benchmark's results as a Markdown table, with the command that measures them anew."""
    if name == "summary":
        return summary()
    found = measured(name)
    rows = [f"| {what} | {_shown(value)} |" for what, value in found["figures"].items()]
    note = f"`make bench-{name}`, {found['date']}, {found['machine']}."
    return "\n".join(["| what | measured |", "|---|---|", *rows, "", note, ""])


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
