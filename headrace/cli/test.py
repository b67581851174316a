"""Tests of the settings: an event, and who must get it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.asking import settings_file
from headrace.cli.options import ConfigFile
from headrace.cli.output import clean, data, talk


def run_tests(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="TOML files; else those named *.test.toml beside the settings."),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Run the tests of the settings. Exit 1 where one fails, 78 where one is not written right."""
    from headrace.config_tests import run
    from headrace.errors import Permanent
    from headrace.settings_file import load

    file = settings_file(config)
    settings = load(file, os.environ)
    found = files or sorted(settings.directory.glob("*.test.toml"))
    if not found:
        raise Permanent(f"no tests beside {file}", hint="name the files, or call them *.test.toml")
    results = [(each, result) for each in found for result in run(each, settings)]
    failed = [(each, result) for each, result in results if result.wrong]
    for each, result in failed:
        for line in result.wrong:
            data(clean(f"{each}: {result.name}: {line}"))
    talk(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    if failed:
        raise typer.Exit(1)


COMMAND = run_tests
