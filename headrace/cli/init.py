"""A starter: a commented settings file and a handler, that run as they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.output import talk
from headrace.errors import Permanent

SETTINGS = """\
# What Headrace watches, and who hears of it. Check it: headrace check. Run it: headrace run.
# A schema for your editor: headrace schema settings

[daemon]
data_dir = "headrace-data"       # the journal; on a local disk

[sources.inbox]
type = "filesystem"
path = "inbox"                   # relative paths start at this file's folder
exclude = ["**/.*", "**/*.tmp"]
# snapshot = "initial"           # tell also of what is there at the very first start

[handlers.on_change]
function = "handlers.py:on_change"
on = ["inbox"]                   # or one kind of event: ["inbox.created"]
# timeout = "30s"                # of one call
# on_failure = "hold-key"        # default: "dead-letter", see headrace dead-letters list

[sinks.audit]
type = "file"                    # every event, one JSON line each
path = "audit.jsonl"
"""

HANDLERS = '''\
"""Called for each change in inbox/, in a process of its own. What it prints appears in the daemon's log."""


def on_change(event):
    # Raise to have the event delivered again later; it may come twice after a crash.
    print(event.type.rpartition(".")[2], event.subject)
'''


def init(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Made where it is missing.")] = Path(),
) -> None:
    """Write a commented headrace.toml and handlers.py that run as they are; nothing is overwritten."""
    files = {folder / "headrace.toml": SETTINGS, folder / "handlers.py": HANDLERS}
    for path in files:
        if os.path.lexists(path):
            raise Permanent(f"{path} exists", hint="`headrace init FOLDER` writes into another folder")
    try:
        (folder / "inbox").mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            with path.open("x") as file:
                file.write(text)
    except OSError as error:
        raise Permanent(f"{error.filename}: {error.strerror}", hint="name a folder that you may write") from error
    where = "" if folder == Path() else f" -c {folder / 'headrace.toml'}"
    talk(f"wrote {', '.join(map(str, files))} and {folder / 'inbox'}{os.sep}")
    talk(f"next: headrace run{where}, then copy a file into {folder / 'inbox'}{os.sep}")


COMMAND = init
