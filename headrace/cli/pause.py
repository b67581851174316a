"""Pausing a consumer."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.asking import daemon_of
from headrace.cli.options import ConfigFile
from headrace.cli.output import talk


def pause(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A handler or a sink.")], config: ConfigFile = None
) -> None:
    """Stop delivering to a consumer, also after a restart, until `resume`."""
    daemon_of(config).post("/pause", name=name)
    talk(f"{name} is paused; its events are kept")


COMMAND = pause
