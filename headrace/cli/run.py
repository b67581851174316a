"""The daemon in the foreground."""

from __future__ import annotations

import os
from typing import Annotated, Final

import typer

from headrace.cli.asking import settings_file
from headrace.cli.options import ConfigFile

UMASK: Final = 0o077  # what the daemon writes holds other people's data
CUT_SHORT: Final = 130


def run(
    config: ConfigFile = None,
    log_level: Annotated[
        str | None,
        typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error; else $HEADRACE_LOG."),
    ] = None,
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C, which drain; a second one stops at once. SIGHUP reloads."""
    from headrace import log
    from headrace.control.serving import serve
    from headrace.settings_file import load
    from headrace.threads import keep_one_heap

    os.umask(UMASK)
    keep_one_heap()
    level = log.level(log_level, os.environ)
    settings = load(settings_file(config), os.environ)
    repeats = log.configure(level)
    try:
        stopped = serve(settings, repeats)
    finally:
        repeats.flush()
    if not stopped:
        raise typer.Exit(CUT_SHORT)


COMMAND = run
