"""Who would get an event, and why not: what the settings say, without a daemon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from headrace.delivery.selection import Selection
from headrace.journal.block import Kind
from headrace.pattern import Pattern
from headrace.settings import Config, ConsumerSettings
from headrace.suggest import listed


class Route(NamedTuple):
    """What one consumer does with an event; `why_not` is empty where it gets it."""

    consumer: str
    why_not: str

    @property
    def reached(self) -> bool:
        return not self.why_not


class _Named(msgspec.Struct):
    source: str
    type: str


_decode = msgspec.json.Decoder(_Named).decode


def routes(config: Config, line: bytes, source: str | None = None) -> list[Route]:
    """Every consumer's answer to an encoded event, in the order of the settings.

    `source` is the source's name; without it, it follows from the event's `source` attribute.
    """
    event = _decode(line)
    kind = Kind(source or event.source.removeprefix(config.daemon.origin), event.type)
    return [Route(name, _why_not(settings, kind, line)) for name, settings in config.consumers.items()]


def _why_not(settings: ConsumerSettings, kind: Kind, line: bytes) -> str:
    if not Selection(settings.on).asks_for(kind):
        return f"on asks for {_listed(settings.on or ())}, and this is {kind.type} of {kind.source}"
    found = Pattern(settings.where).mismatches(line) if settings.where else []
    return f"where: {'; '.join(map(str, found))}" if found else ""


def _listed(names: Sequence[str]) -> str:
    return listed(names, "or")
