"""Resuming a consumer."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.asking import daemon_of
from headrace.cli.options import ConfigFile
from headrace.cli.output import talk


def resume(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A handler, a sink or a source.")],
    config: ConfigFile = None,
) -> None:
    """Go on where a consumer was paused; start again what stopped until you act."""
    daemon_of(config).post("/resume", name=name)
    talk(f"{name} goes on")


COMMAND = resume
