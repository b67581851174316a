"""Data on standard output, talk on standard error."""

from __future__ import annotations

import json
import os
import select
import stat
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Final

from headrace.errors import Permanent

PIPE: Final = 141  # what a shell makes of a program that SIGPIPE ended


def data(text: str) -> None:
    """What was asked for."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def data_lines(lines: Iterable[bytes]) -> None:
    """Lines with their newlines, each seen at once by whoever reads."""
    for line in lines:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def leave_with_the_reader() -> None:
    """End the process once nobody reads standard output any more, also while there is nothing to write."""
    if stat.S_ISFIFO(os.fstat(1).st_mode):
        threading.Thread(target=_leave, daemon=True).start()


def _leave() -> None:
    reader = select.poll()
    reader.register(1, 0)  # an error is always reported
    reader.poll()
    os._exit(PIPE)


def as_json(value: Any) -> None:
    """The value as JSON on several lines."""
    data(json.dumps(value, indent=2, ensure_ascii=False))


def talk(text: str) -> None:
    """What goes to the person in front of it."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def clean(text: str) -> str:
    """What could steer a terminal is escaped; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in text)


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether the person agrees. Raises `Permanent` where nobody can be asked."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise Permanent(f"{question} Nobody is there to say yes", hint="--yes does")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns; in colour on a terminal. Numbers stand at the right."""
    if not rows:
        return
    texts = [[clean(str(cell)).replace("\n", " ") for cell in row] for row in rows]
    right = [all(isinstance(row[index], int | float) for row in rows) for index in range(len(columns))]
    if sys.stdout.isatty():
        _rich(title, columns, texts, right)
    else:
        _plain(title, columns, texts, right)


def _plain(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    data(title)
    for row in (columns, *rows):
        cells = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
        data("  " + "  ".join(cells).rstrip())


def _rich(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column, at_right in zip(columns, right, strict=True):
        shown.add_column(column, justify="right" if at_right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    Console().print(shown)
