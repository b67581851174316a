"""Capturing again what is there."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.asking import daemon_of
from headrace.cli.options import ConfigFile
from headrace.cli.output import talk

if TYPE_CHECKING:
    from headrace.control.client import Client

LOOK = 0.5  # seconds between looks at how far it is


def backfill(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A source of the settings.")],
    what: Annotated[str, typer.Argument(metavar="WHAT", help='For Postgres: tables, "public.orders" or "public.*".')],
    config: ConfigFile = None,
) -> None:
    """Capture again what is there, as events beside the live ones; it goes on after a restart.

    On a terminal a bar shows how far it is; Ctrl-C ends the bar only.
    """
    daemon = daemon_of(config)
    daemon.post("/backfill", source=source, what=what)
    talk(f"{source} will read {what}; `headrace status` tells how far it is")
    if sys.stderr.isatty():
        _bar(daemon, source, what)


COMMAND = backfill


def _bar(daemon: Client, source: str, what: str) -> None:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as shown:
        tasks: dict[str, Any] = {}
        while left := list(_reading(daemon, source, what)):
            for each in left:
                name = each["what"]
                tasks[name] = tasks[name] if name in tasks else shown.add_task(name)
                shown.update(tasks[name], completed=each["done"], total=each["total"])
            for name in set(tasks) - {each["what"] for each in left}:
                shown.update(tasks[name], completed=1, total=1)
            time.sleep(LOOK)
        for task in tasks.values():
            shown.update(task, completed=1, total=1)


def _reading(daemon: Client, source: str, what: str) -> Iterator[dict[str, Any]]:
    """What is left of it."""
    for each in daemon.get("/status")["sources"]:
        if each["name"] == source:
            yield from (part for part in each["reading"] if fnmatchcase(part["what"], what))
