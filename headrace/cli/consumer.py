"""Consumers that left the settings: their cursor keeps events until it is forgotten or given to another name."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.asking import daemon_of
from headrace.cli.options import ConfigFile, Yes
from headrace.cli.output import confirmed, talk


def forget(name: Annotated[str, typer.Argument(metavar="NAME")], yes: Yes = False, config: ConfigFile = None) -> None:
    """Drop the cursor, parked events and dead letters of a consumer that left the settings."""
    daemon = daemon_of(config)
    orphans = {orphan["name"]: orphan["undelivered"] for orphan in daemon.get("/status")["orphans"]}
    question = f"forget {name} with {orphans.get(name, 0)} undelivered events?"
    if name in orphans and not confirmed(question, yes=yes):
        talk("nothing was done")
        return
    daemon.post("/consumers/forget", name=name)
    talk(f"{name} is forgotten")


def rename(
    old: Annotated[str, typer.Argument(metavar="OLD")],
    new: Annotated[str, typer.Argument(metavar="NEW")],
    config: ConfigFile = None,
) -> None:
    """Let NEW go on where OLD stood, which has left the settings."""
    daemon_of(config).post("/consumers/rename", old=old, new=new)
    talk(f"{new} goes on where {old} stood")


COMMANDS = {"forget": forget, "rename": rename}
