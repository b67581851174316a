"""The README's tables, from the results: `python3 benchmarks/tables.py` rewrites what stands between the markers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def table(name: str) -> str:
    """One benchmark's results as a Markdown table, with the command that measures them anew."""
    measured = json.loads((RESULTS / f"{name}.json").read_text())
    rows = [f"| {what} | {_shown(value)} |" for what, value in measured["figures"].items()]
    note = f"`make bench-{name}`, {measured['date']}, {measured['machine']}."
    return "\n".join(["| what | measured |", "|---|---|", *rows, "", note, ""])


def _shown(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int | float) else value


def filled(text: str) -> str:
    """The text with every marked table made from its results."""
    return MARKED.sub(lambda found: found[1] + table(found[2]) + found[3], text)


def main() -> None:
    """Rewrite the README."""
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
    sys.stdout.write("README.md: tables made from benchmarks/results\n")


if __name__ == "__main__":
    main()
