"""Applying the settings anew."""

from __future__ import annotations

from headrace.cli.asking import daemon_of
from headrace.cli.options import ConfigFile, Json
from headrace.cli.output import as_json, talk


def reload(config: ConfigFile = None, json: Json = False) -> None:
    """Apply what changed in the settings, or keep the old ones and say why."""
    changes = daemon_of(config).post("/reload")
    if json:
        as_json(changes)
        return
    told = [
        f"{how} {name}" for names in changes.values() for how in ("added", "removed", "changed") for name in names[how]
    ]
    talk("reloaded: " + (", ".join(told) or "nothing has changed"))


COMMAND = reload
