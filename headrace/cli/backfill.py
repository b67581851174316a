"""Capturing again what is there."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.asking import daemon_of
from headrace.cli.options import ConfigFile
from headrace.cli.output import talk


def backfill(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A source of the settings.")],
    what: Annotated[str, typer.Argument(metavar="WHAT", help='For Postgres: tables, "public.orders" or "public.*".')],
    config: ConfigFile = None,
) -> None:
    """Capture again what is there, as events beside the live ones; it goes on after a restart."""
    daemon_of(config).post("/backfill", source=source, what=what)
    talk(f"{source} will read {what}; the daemon's log tells how far it is")


COMMAND = backfill
