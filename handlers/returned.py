"""The events that user code returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from headrace.event import Event

_OF_THE_PARENT: Final = ("specversion", "id", "source", "sequence", "previouskey", "barrier")


def children(parent: Event, returned: bytes, source: str) -> Iterator[Event]:
    """The returned events (a JSON list) as new ones of `source`, ordered as their parent where they name no key.

    Their ids come from the parent's source and id and their place in the list: the same again when it is delivered
    again. Raises `ValueError` where one is no CloudEvent.
    """
    for number, wire in enumerate(_decode(returned)):
        own = {name: value for name, value in wire.items() if name not in _OF_THE_PARENT}
        identity = {"specversion": "1.0", "id": f"{parent.source}/{parent.id}/{number}", "source": source}
        own.setdefault("partitionkey", parent.partitionkey)
        yield Event.parse(msgspec.json.encode({**own, **identity}))


def _decode(returned: bytes) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(returned, type=list[dict[str, Any]])
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
