"""Looking after the journal: through the daemon where it runs, else directly."""

from __future__ import annotations

import json as jsons
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from headrace.cli.asking import data_dir, settings_file
from headrace.cli.options import ConfigFile, Json, Yes
from headrace.cli.output import as_json, confirmed, data, talk
from headrace.errors import NotRunning

if TYPE_CHECKING:
    from headrace.control.client import Client

T = TypeVar("T")


def _either(config: str | None, online: Callable[[Client], T], offline: Callable[[Path], T]) -> T:
    """`offline` claims the data directory: a daemon that starts meanwhile, or does not answer, is an error."""
    from headrace.control.client import Client

    folder = data_dir(settings_file(config))
    try:
        return online(Client(folder))
    except NotRunning:
        return offline(folder)


def verify(config: ConfigFile = None, json: Json = False) -> None:
    """Read the whole journal; name every damaged block. Exit 1 where there is one."""
    damaged = _either(config, _verify_online, _verify_offline)
    if json:
        as_json(damaged)
    for block in damaged if not json else ():
        data(f"block at {block['first']}: {block['why']}")
    if damaged:
        talk("`headrace journal skip FIRST` takes a block out and records the gap")
        raise typer.Exit(1)
    talk("no damage")


def _verify_online(daemon: Client) -> list[Any]:
    return [jsons.loads(line) for line in daemon.lines("/journal/verify")]


def _verify_offline(folder: Path) -> list[Any]:
    from headrace.journal import offline

    return [{"first": block.first, "why": block.why} for block in offline.verify(folder)]


def skip(
    first: Annotated[int, typer.Argument(metavar="FIRST", help="Where the block starts, as `verify` says.")],
    reason: Annotated[str, typer.Option(help="Kept with the gap.")] = "damaged",
    yes: Yes = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Take a damaged block out of the journal and record the gap: its events are lost to who has not read them."""
    if not confirmed(f"take the block at {first} out of the journal?", yes=yes):
        talk("nothing was done")
        return
    told = _either(
        config,
        lambda daemon: daemon.post("/journal/skip", first=first, reason=reason),
        lambda folder: _skip_offline(folder, first, reason),
    )
    if json:
        as_json(told)
    talk(f"skipped {told['events']} events from {first} on; the gap is recorded")
    for name in told["stopped"]:
        talk(f"{name} has stopped; if it was for this: headrace resume {name}")


def _skip_offline(folder: Path, first: int, reason: str) -> dict[str, Any]:
    from headrace.journal import offline

    return {"first": first, "events": offline.skip(folder, first, reason), "stopped": []}


def backup(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Copy the journal to a new file, while everything goes on."""
    path = target.absolute()
    told = _either(
        config,
        lambda daemon: daemon.post("/journal/backup", target=os.fspath(path)),
        lambda folder: _backup_offline(folder, path),
    )
    if json:
        as_json(told)
    talk(f"{path}: {told['size']} bytes")


def _backup_offline(folder: Path, target: Path) -> dict[str, Any]:
    from headrace.journal import offline

    offline.backup(folder, target)
    return {"target": os.fspath(target), "size": target.stat().st_size}


COMMANDS = {"verify": verify, "skip": skip, "backup": backup}
