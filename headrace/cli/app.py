"""Which commands there are, and what becomes of a failure: one line for a user's mistake, never a traceback."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from headrace import __version__
from headrace.cli.options import ConfigFile
from headrace.cli.output import PIPE, clean, data, talk
from headrace.errors import Fatal, HeadraceError, NotRunning, SettingsError
from headrace.suggest import did_you_mean

COMMANDS: Final = (
    "demo",
    "init",
    "check",
    "test",
    "run",
    "reload",
    "status",
    "tail",
    "seek",
    "replay",
    "pause",
    "resume",
    "backfill",
    "dead-letters",
    "consumer",
    "journal",
    "doctor",
    "schema",
)
"""In the order of `--help`. The module is of that name with `_`; it has `COMMAND`, or `COMMANDS` below one name."""

# What sysexits.h calls these: https://man.freebsd.org/cgi/man.cgi?sysexits
UNAVAILABLE: Final = 69
SOFTWARE: Final = 70
CONFIG: Final = 78
INTERRUPTED: Final = 130


def code_of(error: HeadraceError) -> int:
    """The exit code that tells the kind of failure."""
    match error:
        case SettingsError():
            return CONFIG
        case NotRunning():
            return UNAVAILABLE
        case Fatal():
            return SOFTWARE
    return 1


def run(args: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    try:
        return _run(args)
    except SettingsError as error:
        for problem in error.problems:
            talk(clean(str(problem)))
        return CONFIG
    except HeadraceError as error:
        talk(clean(f"headrace: {error.message}" + (f"; {error.hint}" if error.hint else "")))
        return code_of(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in the buffer has nowhere to go
        return PIPE


def _run(args: Sequence[str]) -> int:
    try:
        _main()(args=list(args), prog_name="headrace")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0


def _main() -> Any:
    app = _typer(
        cls=Commands, help="Changes from files, buckets, databases and clocks to your code, without losing one."
    )
    app.callback()(_root)
    return typer.main.get_command(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        data(f"headrace {__version__}")
        raise typer.Exit


def _root(
    config: ConfigFile = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def _typer(**options: Any) -> typer.Typer:
    # Without markup: the library for it takes longer to import than most commands take to run.
    return typer.Typer(
        rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, **options
    )


class Commands(TyperGroup):
    """Commands whose modules are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            ctx.fail(f'no command "{cmd_name}"{did_you_mean(cmd_name, COMMANDS)}')
        module = import_module(f"headrace.cli.{cmd_name.replace('-', '_')}")
        app = _typer(help=module.__doc__)
        below = getattr(module, "COMMANDS", None)
        if below is None:
            app.command(cmd_name)(module.COMMAND)
        else:
            app.callback()(lambda: None)
            for name, function in below.items():
                app.command(name)(function)
        command = typer.main.get_command(app)
        command.name = cmd_name
        return command
