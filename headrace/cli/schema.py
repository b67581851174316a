"""JSON Schemas, for editors and for who reads the events."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.asking import settings_file
from headrace.cli.options import ConfigFile
from headrace.cli.output import as_json
from headrace.errors import Permanent

if TYPE_CHECKING:
    from headrace.settings import Config


def schema(
    what: Annotated[
        str, typer.Argument(metavar="settings|events|URN", help="The settings file; the data of events; of one.")
    ] = "settings",
    config: ConfigFile = None,
) -> None:
    """Print the JSON Schema of the settings file, or of the events that its sources give, by `dataschema`."""
    if what == "settings":
        from headrace.settings_schema import schema as settings_schema

        as_json(settings_schema())
        return
    import asyncio

    found = asyncio.run(_events(_loaded(config)))
    if what != "events" and what not in found:
        raise Permanent(f'no schema "{what}"', hint="`headrace schema events` prints all")
    as_json(found if what == "events" else found[what])


COMMAND = schema


def _loaded(config: str | None) -> Config:
    from headrace.settings_file import load

    return load(settings_file(config), os.environ)


async def _events(settings: Config) -> Mapping[str, Mapping[str, Any]]:
    from headrace.cli.adapters import opened
    from headrace.protocols import Describes

    found: dict[str, Mapping[str, Any]] = {}
    for name, each in settings.sources.items():
        async with opened(settings, name, each) as source:
            if isinstance(source, Describes):
                found.update(source.schemas())
    return found
