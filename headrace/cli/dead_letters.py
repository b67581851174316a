"""Events that were given up: look at them, deliver them again, or forget them."""

from __future__ import annotations

import json as jsons
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from headrace.cli.asking import daemon_of
from headrace.cli.options import ConfigFile, Json, Where, Yes
from headrace.cli.output import as_json, confirmed, data, data_lines, table, talk
from headrace.errors import Permanent

if TYPE_CHECKING:
    from headrace.control.client import Client

PORTION = 500  # positions in one request

Consumer = Annotated[str, typer.Argument(metavar="CONSUMER")]
Positions = Annotated[list[str] | None, typer.Argument(metavar="[POSITION]...")]
Since = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="Given up then or later: RFC 3339, or 7d ago.")
]
Before = Annotated[str | None, typer.Option("--before", metavar="TIME", help="Given up earlier.")]
All = Annotated[bool, typer.Option("--all", help="All of the consumer's.")]


def list_(
    consumer: Annotated[str | None, typer.Argument(metavar="[CONSUMER]")] = None,
    where: Where = None,
    since: Since = None,
    before: Before = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """List dead letters and held events, of one consumer or of all; --json: one object per line."""
    lines = daemon_of(config).lines("/dead-letters", consumer=consumer, where=where, since=since, before=before)
    if json:
        data_lines(lines)
        return
    letters = [jsons.loads(line) for line in lines]
    columns = ("consumer", "position", "subject", "attempts", "last", "error")
    table("dead letters", columns, [[_cell(letter, key) for key in columns] for letter in letters])
    if not letters:
        talk("no dead letters")


def _cell(letter: dict[str, Any], key: str) -> object:
    if key == "error":
        return ("held: " if letter["held"] else "") + str(letter["error"]).partition("\n")[0]
    return letter[key][:19] + "Z" if key == "last" else letter[key] if letter[key] is not None else ""


def show(
    consumer: Consumer,
    position: Annotated[str, typer.Argument(metavar="POSITION")],
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Show one, with its event and its last error in full."""
    letter = daemon_of(config).get("/dead-letters/show", consumer=consumer, position=position)
    if json:
        as_json(letter)
        return
    talk(f"{consumer} gave up after {letter['attempts']} attempts, the last at {letter['last']}:")
    talk(str(letter["error"]))
    data(jsons.dumps(letter["event"], indent=2, ensure_ascii=False))


def redrive(
    consumer: Consumer,
    positions: Positions = None,
    every: All = False,
    where: Where = None,
    since: Since = None,
    before: Before = None,
    yes: Yes = False,
    config: ConfigFile = None,
) -> None:
    """Deliver again, marked `headraceredrive`."""
    _act(daemon_of(config), "redrive", consumer, positions, Chosen(every, where, since, before), yes=yes)


def discard(
    consumer: Consumer,
    positions: Positions = None,
    every: All = False,
    where: Where = None,
    since: Since = None,
    before: Before = None,
    yes: Yes = False,
    config: ConfigFile = None,
) -> None:
    """Forget for good; also those of a consumer that left the settings."""
    _act(daemon_of(config), "discard", consumer, positions, Chosen(every, where, since, before), yes=yes)


class Chosen(NamedTuple):
    """Which ones, where they are not named one by one."""

    every: bool
    where: str | None
    since: str | None
    before: str | None


def _act(daemon: Client, what: str, consumer: str, positions: list[str] | None, chosen: Chosen, *, yes: bool) -> None:
    """Counts first, and asks."""
    if bool(positions) == any(chosen):
        raise Permanent("which ones?", hint="name positions, or --where, --since, --before, or --all")
    found = positions or _positions(daemon, consumer, chosen)
    if not found:
        talk(f"{consumer} has no dead letters" + ("" if chosen.every else " like that"))
        return
    letters = "1 dead letter" if len(found) == 1 else f"{len(found)} dead letters"
    if not confirmed(f"{what} {letters} of {consumer}?", yes=yes):
        talk("nothing was done")
        return
    for start in range(0, len(found), PORTION):
        daemon.post(f"/dead-letters/{what}", consumer=consumer, positions=found[start : start + PORTION])
    talk(f"{what}: {letters} of {consumer}")


def _positions(daemon: Client, consumer: str, chosen: Chosen) -> list[str]:
    lines = daemon.lines(
        "/dead-letters", consumer=consumer, where=chosen.where, since=chosen.since, before=chosen.before
    )
    return [jsons.loads(line)["position"] for line in lines]


COMMANDS = {"list": list_, "show": show, "redrive": redrive, "discard": discard}
