"""Sending a range of events again."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.asking import daemon_of
from headrace.cli.options import ConfigFile
from headrace.cli.output import talk
from headrace.errors import Permanent


def replay(
    consumer: Annotated[str, typer.Argument(metavar="CONSUMER", help="A handler or a sink.")],
    first: Annotated[
        str | None,
        typer.Option("--from", metavar="WHERE", help="earliest, a time (RFC 3339) or a position.", show_default=False),
    ] = None,
    end: Annotated[
        str, typer.Option("--to", metavar="WHERE", help="latest, or a time or a position, itself not included.")
    ] = "latest",
    cancel: Annotated[bool, typer.Option("--cancel", help="End the replay that runs.")] = False,
    config: ConfigFile = None,
) -> None:
    """Deliver again what was delivered, marked `headracereplay`, beside the live events."""
    if cancel == (first is not None):
        raise Permanent("from where?", hint="--from WHERE, or --cancel")
    daemon = daemon_of(config)
    if cancel:
        daemon.post("/replay/cancel", name=consumer)
        talk(f"{consumer}: the replay is cancelled")
        return
    told = daemon.post("/replay", name=consumer, **{"from": first, "to": end})
    count = told["count"]
    talk(f"{consumer} gets {count} positions again" if count else f"{consumer}: nothing there was delivered yet")


COMMAND = replay
