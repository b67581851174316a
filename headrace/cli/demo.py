"""Everything embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.output import clean, data


def demo(
    seconds: Annotated[float, typer.Option("--seconds", min=2, help="How long it takes, about.")] = 20.0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave ./headrace-demo as it is in the end.")] = False,
) -> None:
    """Watch live events of a real daemon in ./headrace-demo: it is killed in the middle, and nothing is lost."""
    from headrace.demo.house import NAME, house
    from headrace.demo.story import play

    with house(Path(), keep=keep) as place:
        whole = play(place, seconds, lambda line: data(clean(line)))
    data(f"kept: {NAME}" if keep else f"{NAME} is removed; keep it with --keep")
    if not whole:
        raise typer.Exit(1)


COMMAND = demo
