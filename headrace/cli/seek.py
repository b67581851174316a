"""Moving a consumer's cursor."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.asking import daemon_of
from headrace.cli.options import ConfigFile
from headrace.cli.output import talk


def seek(
    consumer: Annotated[str, typer.Argument(metavar="CONSUMER", help="A handler or a sink.")],
    to: Annotated[str, typer.Argument(metavar="TO", help="earliest, latest, a time (RFC 3339) or a position.")],
    config: ConfigFile = None,
) -> None:
    """Let a consumer go on from another place; what it skips is not delivered, what it goes back is again."""
    told = daemon_of(config).post("/seek", name=consumer, to=to)
    talk(f"{consumer} goes on from {', '.join(told['positions'])}")


COMMAND = seek
