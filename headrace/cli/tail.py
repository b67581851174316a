"""Live events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

import typer

from headrace.cli.asking import daemon_of
from headrace.cli.options import ConfigFile, Where
from headrace.cli.output import clean, data_lines, leave_with_the_reader, talk


def tail(
    on: Annotated[
        list[str] | None, typer.Argument(metavar="[SOURCE[.EVENT]]...", help="Only these; without it all.")
    ] = None,
    start: Annotated[
        str, typer.Option("--from", metavar="WHERE", help="earliest, latest, a time (RFC 3339) or a position.")
    ] = "latest",
    where: Where = None,
    count: Annotated[int | None, typer.Option("-n", min=0, metavar="N", help="End after N events.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Short lines instead of JSON.")] = False,
    config: ConfigFile = None,
) -> None:
    """Print events as they are captured, one JSON line each."""
    leave_with_the_reader()
    lines = _told(daemon_of(config).lines("/tail", on=on, where=where, limit=count, **{"from": start}))
    data_lines(map(text_line, lines) if text else lines)


COMMAND = tail


def _told(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The events; what the journal deleted in between is told aside."""
    for line in lines:
        if line.startswith(b'{"control":'):
            gap = json.loads(line)
            talk(f"the journal no longer has positions {gap['first']} to {gap['last']}")
        else:
            yield line


def text_line(line: bytes) -> bytes:
    """`12:00:01 uploads created incoming/a.csv`, the time in UTC."""
    event = json.loads(line)
    time = str(event.get("time", ""))[11:19] or "--:--:--"
    name = str(event["type"]).rpartition(".")[2]
    parts = (time, str(event["source"]).removeprefix("headrace:"), name, str(event.get("subject", "")))
    return (clean(" ".join(parts).rstrip()).replace("\n", " ") + "\n").encode()
