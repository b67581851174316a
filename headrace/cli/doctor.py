"""What is wrong around the daemon, and what mends it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from headrace.cli.asking import settings_file
from headrace.cli.options import ConfigFile, Json
from headrace.cli.output import as_json, clean, data

if TYPE_CHECKING:
    from headrace.cli.adapters import Findings

BAD = 1  # exit code where anything is an error


def doctor(config: ConfigFile = None, json: Json = False) -> None:
    """Look at the machine, the journal and what the sources watch; say what is wrong and what mends it. Exit 1."""
    import asyncio

    from headrace.cli.adapters import diagnosed
    from headrace.diagnosis import diagnose
    from headrace.settings_file import load

    settings = load(settings_file(config), os.environ)
    found = [("headrace", finding) for finding in diagnose(settings)]
    found += asyncio.run(diagnosed(settings))
    if json:
        as_json([{"part": part, **finding._asdict()} for part, finding in found])
    else:
        show(found)
    if any(finding.level == "error" for _, finding in found):
        raise typer.Exit(BAD)


COMMAND = doctor


def show(found: Findings) -> None:
    """One line each, and the remedy below it."""
    for part, (level, what, remedy) in found:
        data(clean(f"{level:<7}  {part}: {what}"))
        if remedy:
            data(clean(f"         {remedy}"))
