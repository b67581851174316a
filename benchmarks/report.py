"""Where a benchmark leaves its figures: a table for the reader, a file for the README."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """The machine in one line."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    python = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    return f"{os.cpu_count()} cores of {model}, {platform.system()} {platform.release()}, {python}"


def report(name: str, figures: Mapping[str, float | int | str]) -> None:
    """Print the figures and write them to results/NAME.json, which the README's tables are made from."""
    width = max(map(len, figures))
    for what, value in figures.items():
        sys.stdout.write(f"{what:<{width}}  {_shown(value)}\n")
    RESULTS.mkdir(exist_ok=True)
    results = {"machine": machine(), "date": datetime.now(UTC).date().isoformat(), "figures": dict(figures)}
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(f"\n{results['machine']}\n")


def measured(name: str) -> dict[str, float | int | str]:
    """The figures that results/NAME.json has."""
    file = RESULTS / f"{name}.json"
    figures: dict[str, float | int | str] = json.loads(file.read_text())["figures"] if file.exists() else {}
    return figures


def _shown(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int | float) else value
