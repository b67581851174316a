"""Everything that can be known before the daemon runs: all mistakes at once, each with its line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Protocol, runtime_checkable

import typer

from headrace.cli.asking import settings_file
from headrace.cli.options import ConfigFile
from headrace.cli.output import clean, data, talk
from headrace.errors import Problem, SettingsError

if TYPE_CHECKING:
    from headrace.cli.adapters import Findings
    from headrace.settings import Config


PROBLEMS: Final = 78
CONTRACTS: Final = ("function", "command", "contract")  # keys that name what a handler calls


@runtime_checkable
class Verifies(Protocol):
    """Settings that can try what they describe, such as importing a function in a worker."""

    async def verify(self, directory: Path) -> list[str]:
        """What is wrong, or nothing."""


def check(
    config: ConfigFile = None,
    event: Annotated[
        Path | None, typer.Option("--event", metavar="FILE", help="Say who would get the events in it, and why not.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help="The source of these events, if they do not say.")
    ] = None,
    connect: Annotated[bool, typer.Option("--connect", help="Try to reach what the sources watch, too.")] = False,
) -> None:
    """Check the settings, the paths and the handlers, and say everything that is wrong. Exit 78."""
    import asyncio

    file = settings_file(config)
    settings = _checked(file)
    talk(f"{file}: {_summary(settings)}")
    if event is not None:
        _route(settings, event, source)
    if connect:
        from headrace.cli.adapters import diagnosed

        _show(asyncio.run(diagnosed(settings)))


COMMAND = check


def _route(settings: Config, file: Path, source: str | None) -> None:
    """One line for each event and consumer. Raises `Permanent` where the file holds something else."""
    from headrace.errors import Permanent
    from headrace.event import Event
    from headrace.routing import routes

    try:
        events = [Event.parse(text) for text in _events(file.read_bytes())]
    except OSError as error:
        raise Permanent(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise Permanent(f"{file}: {error}", hint="a CloudEvent as JSON, a list of them, or one on each line") from error
    for each in events:
        for route in routes(settings, each.line(), source):
            data(clean(f"{each.id}: {route.consumer}: " + (f"no: {route.why_not}" if route.why_not else "yes")))


def _events(content: bytes) -> list[bytes]:
    """The encoded events of a file. Raises `ValueError`."""
    import json

    try:
        value = json.loads(content)
    except ValueError:
        return [line for line in content.splitlines() if line.strip()]
    return [json.dumps(one).encode() for one in (value if isinstance(value, list) else [value])]


def _checked(file: Path) -> Config:
    """The settings. Raises `SettingsError` with all that is wrong inside and outside of the file."""
    import asyncio

    from headrace.settings_file import load
    from headrace.toml_lines import dotted, key_lines, line_of

    problems: list[Problem] = []
    try:
        settings = load(file, os.environ, strict=True)
    except SettingsError as error:
        problems += error.problems
        try:
            settings = load(file, os.environ)
        except SettingsError:
            raise error from None
    lines = key_lines(file.read_text())
    verified = asyncio.run(_verified(settings, {problem.path for problem in problems}))
    for table, message in (*verified, *_unusable(settings)):
        path = next((key for contract in CONTRACTS if (key := (*table, contract)) in lines), table)
        problems.append(Problem(str(file), line_of(lines, path), dotted(path), message))
    if problems:
        raise SettingsError(problems)
    return settings


async def _verified(settings: Config, known: set[str]) -> list[tuple[tuple[str, str], str]]:
    """Every handler tried at once; one of which something is known to be wrong is left out."""
    import asyncio

    from headrace.toml_lines import dotted

    adapters = {
        (section, name): each
        for section in ("sources", "handlers", "sinks")
        for name, each in getattr(settings, section).items()
    }
    wanted = {
        path: each
        for path, each in adapters.items()
        if isinstance(each, Verifies) and not any(f"{at}.".startswith(f"{dotted(path)}.") for at in known)
    }
    found = await asyncio.gather(*(each.verify(settings.directory) for each in wanted.values()))
    return [(path, message) for path, messages in zip(wanted, found, strict=True) for message in messages]


def _unusable(settings: Config) -> list[tuple[tuple[str, str], str]]:
    """A data directory that this user could not use."""
    folder = settings.data_dir
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        why = f"{there} is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        why = f"{there} is not writable"
    else:
        return []
    return [(("daemon", "data_dir"), why)]


def _summary(settings: Config) -> str:
    counts = [_counted(name, len(getattr(settings, f"{name}s"))) for name in ("source", "handler", "sink")]
    return f"no problems; {', '.join(counts)}"


def _counted(name: str, count: int) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _show(found: Findings) -> None:
    for name, (level, what, remedy) in found:
        data(clean(f"{level}: {name}: {what}" + (f"; {remedy}" if remedy else "")))
    if not found:
        talk("no source can tell more by connecting")
    if any(finding.level == "error" for _, finding in found):
        raise typer.Exit(PROBLEMS)
